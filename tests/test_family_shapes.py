"""Batches of unusual shapes: sequences of one token, one long among short ones, long prompts, no sequence.

They give what sequences give alone, and whatever a rank reads, it computes and reduces the same in the same order.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from actors.config import ModelConfig, UserError
from actors.episodes import Sequence
from actors.models.load import TokenLogprobs, load_model
from actors.models.mixture_limits import refuse_divided
from actors.models.packed import pack
from actors.models.rows import PaddedRows
from tests.families.table import FAMILIES, write
from tests.test_families import REFUSED, alone, gradients, wanted

CPU = torch.device("cpu")
PACKED = (
    *("mistral odd window", "mistral window of one", "gpt_oss", "gemma2 sharp caps", "deepseek_v3", "mimo_v2_flash"),
    *("gemma3n text", "cohere2", "gpt_bigcode"),
)
ROWS = (
    *("llama4 text", "falcon alibi", "stablelm", "qwen3_5 text", "mamba", "lfm2", "zamba2", "minimax", "rwkv"),
    *("deepseek_v4", "recurrent_gemma"),
)
SHAPES = {
    "hardly anything": [(0, 1, 0), (0, 1, 1), (1, 1, 2), (2, 1, 1)],
    "one long": [(0, 7, 93), *((0, 7, length) for length in (1, 2, 2, 3, 4, 1, 1, 5)), (1, 1, 1)],
    "one action": [(0, 1, 1)],
    "none to learn from": [(0, 5, 0), (0, 5, 2)],
    "long prompts": [(0, 60, 3), (0, 60, 5), (0, 60, 1), (1, 17, 16), (1, 17, 1)],
}
"""Of each sequence: number of its prompt, tokens of that, tokens of the response."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sequences(shape: list[tuple[int, int, int]]) -> list[Sequence]:
    numbers, prompts, found = np.random.default_rng(3), {}, []
    for prompt, length, response in shape:
        if prompt not in prompts:
            prompts[prompt] = numbers.integers(3, 100, length)
        tokens = np.concatenate([prompts[prompt], numbers.integers(3, 100, response)]).astype(np.int64)
        found.append(Sequence(token_ids=tokens, action_mask=np.arange(len(tokens)) >= length))
    return found


@pytest.mark.parametrize("name", PACKED + ROWS)
def test_a_batch_of_any_shape_gives_what_sequences_give_alone(name: str, tmp_path: Path) -> None:
    plain = wanted(name)
    plain.save_pretrained(tmp_path)
    model = load_model(ModelConfig(path=str(tmp_path)), str(tmp_path))
    module = TokenLogprobs(model)
    assert module.shares_prompts == (name in PACKED)
    for shape, described in SHAPES.items():
        rows = sequences(described)
        plain.zero_grad()
        expected = torch.cat([alone(plain, row) for row in rows])
        expected.sum().backward()
        grads = gradients(plain)
        largest = max(float(grad.abs().max()) for grad in grads.values())
        for shared in (False, True) if module.shares_prompts else (False,):
            model.zero_grad()
            batch = pack(rows, {}, CPU, share_prompts=shared)
            logprobs, _ = module(batch, 1.0, 64)
            parts = [part[row.action_mask] for part, row in zip(batch.split(logprobs), rows, strict=True)]
            assert np.abs(np.concatenate(parts) - expected.detach().numpy()).max() <= 2e-4, shape
            logprobs.sum().backward()
            for parameter, grad in gradients(model).items():
                assert float((grads[parameter] - grad).abs().max()) <= 1e-4 * largest, f"{shape}: {parameter}"


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "deepseek_v3", "mistral sliding", "qwen3_5 text", "mamba"])
def test_neighbours_change_no_more_in_bf16(name: str, tmp_path: Path) -> None:
    """Rounding is that of the sequence alone: by a tenth of what bf16 takes from it."""
    write(name, tmp_path)
    exact, rounded = (
        TokenLogprobs(load_model(ModelConfig(path=str(tmp_path), dtype=dtype), str(tmp_path)))
        for dtype in ("fp32", "bf16")
    )
    rows = sequences(SHAPES["one long"] + [(2, 12, 30), (2, 12, 28)])

    def read(module: TokenLogprobs, rows: list[Sequence]) -> torch.Tensor:
        return module(pack(rows, {}, CPU), 1.0, 64)[0]

    together, apart = read(rounded, rows), torch.cat([read(rounded, [row]) for row in rows])
    taken = float((apart - torch.cat([read(exact, [row]) for row in rows])).abs().mean())
    assert 1e-3 < taken < 0.1
    assert float((together - apart).abs().mean()) <= 0.1 * taken


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_what_a_rank_computes_and_reduces_does_not_depend_on_what_it_reads(name: str, tmp_path: Path) -> None:
    """ZeRO gathers parameters as modules are called, and reduces gradients as they come: ranks must do it in step."""
    write(name, tmp_path)
    model = load_model(ModelConfig(path=str(tmp_path)), str(tmp_path))
    module = TokenLogprobs(model)
    called, reduced = list[str](), list[str]()
    for part, each in model.named_modules():
        if list(each.parameters(recurse=False)):
            each.register_forward_pre_hook(lambda *_, part=part: called.append(part))
    for parameter, each in model.named_parameters():
        if each.requires_grad:
            each.register_post_accumulate_grad_hook(lambda _, parameter=parameter: reduced.append(parameter))
    seen = []
    several = [(0, 1, 2), (1, 1, 40)]
    for shape in ([], [(0, 1, 2)], [(0, 1, 40)], several):
        called.clear()
        reduced.clear()
        model.zero_grad()
        logprobs, entropies = module(pack(sequences(shape), {}, CPU), 1.0, 64)
        (logprobs.sum() + entropies.sum()).backward()
        # Ranks keep in step in how often they call a model for a batch; see `Body`.
        seen.append((seen[-1][0] if shape is several else tuple(called), tuple(reduced)))
        if not shape:
            assert not any(bool(grad.any()) for grad in gradients(model).values()), "0, and no NaN"
    calls, gradients_ = (set(each) for each in zip(*seen, strict=True))
    assert len(gradients_) == 1
    if len(calls) > 1:
        with pytest.raises(UserError, match="must be below 3"):
            refuse_divided(model.config.to_dict(), "zero_stage")


def test_rows_are_as_long_as_they_must_be() -> None:
    """A few short sequences beside a long one are not padded to it; `least` is a bound for all."""
    rows = PaddedRows.of([3, 90, 1, 2, 88], [None] * 5)
    assert [call.shape for call in rows.calls] == [(3, 3), (2, 90)]
    padded = PaddedRows.of([3, 90, 1, 2, 88], [None] * 5, 8)
    assert [call.shape for call in padded.calls] == [(3, 8), (2, 90)]
    for each in (rows, padded):
        flat = np.concatenate([call.ravel() for call in each.calls])
        assert flat[each.slots].tolist() == list(range(184))
        assert (flat >= 0).sum() == 184
