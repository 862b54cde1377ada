"""Every causal family of transformers: its packed or padded batches give what plain transformers gives each sequence
alone, logprobs and gradients, or it is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from actors.config import ModelConfig, UserError
from actors.episodes import Sequence
from actors.models.family import Family
from actors.models.load import TokenLogprobs, load_model
from actors.models.packed import pack
from actors.models.rope import RopeRule
from actors.models.tried import TRIED
from tests.families.not_causal import NOT_CAUSAL
from tests.families.table import FAMILIES, build, config_of

PROMPTS_AND_RESPONSES = [(0, 9), (0, 33), (1, 5), (2, 26), (0, 20), (2, 28)]
"""Number of the prompt, tokens of the response: windows of 16 are exceeded, prompts shared, lengths mixed."""
_ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
REFUSED = {
    **dict.fromkeys(("modernbert-decoder", *_ENCODERS), "layers between its body and its logits"),
    **dict.fromkeys(("xlm", "xlnet"), "lets tokens see what comes after them"),
    "blt": "groups bytes into patches",
    "mllama": "must be a model that transformers has for CausalLM",
    "doge": "chooses what a token sees",
    "reformer local": "hashes by chance",
}
"""What has no other outcome but one line."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sequences(vocabulary: int) -> list[Sequence]:
    numbers = np.random.default_rng(0)
    prompts = [numbers.integers(3, vocabulary, length) for length in (7, 7, 12)]
    found = []
    for prompt, response in PROMPTS_AND_RESPONSES:
        tokens = np.concatenate([prompts[prompt], numbers.integers(3, vocabulary, response)]).astype(np.int64)
        found.append(Sequence(token_ids=tokens, action_mask=np.arange(len(tokens)) >= len(prompts[prompt])))
    return found


def alone(model: PreTrainedModel, sequence: Sequence) -> Tensor:
    """Logprobs of the action tokens, by the model's own forward pass over nothing else, before or beside."""
    forget_lengths(model)
    tokens = torch.from_numpy(sequence.token_ids)
    logprobs = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(-1, tokens[1:, None])[torch.from_numpy(sequence.action_mask)[1:], 0]


def forget_lengths(model: PreTrainedModel) -> None:
    """What dynamic NTK has grown to in an earlier call, it keeps."""
    for module in model.modules():
        if hasattr(module, "original_max_seq_len") and hasattr(module, "original_inv_freq"):
            module.register_buffer("inv_freq", module.original_inv_freq, persistent=False)  # type: ignore[arg-type]
            module.max_seq_len_cached = module.original_max_seq_len  # type: ignore[assignment]


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def wanted(name: str) -> PreTrainedModel:
    """Plain transformers, whose SDPA leaves out the cap of Gemma 2's scores without a word: eager attention has it."""
    model = build(name)
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_a_batch_gives_what_sequences_give_alone(name: str, tmp_path: Path) -> None:
    plain = wanted(name)
    plain.save_pretrained(tmp_path)
    # Below the tokens that stand for images and sound, where a family has some.
    rows = sequences(min(plain.config.get_text_config().vocab_size, 100))
    expected = [alone(plain, sequence) for sequence in rows]
    torch.cat(expected).sum().backward()
    grads = gradients(plain)
    model = load_model(ModelConfig(path=str(tmp_path)), str(tmp_path))
    module = TokenLogprobs(model)
    for shared in (False, True) if module.shares_prompts else (False,):
        model.zero_grad()
        batch = pack(rows, {}, torch.device("cpu"), share_prompts=shared)
        logprobs, _ = module(batch, 1.0, 64)
        parts = [part[row.action_mask] for part, row in zip(batch.split(logprobs), rows, strict=True)]
        assert np.abs(np.concatenate(parts) - torch.cat(expected).detach().numpy()).max() <= 2e-4
        logprobs.sum().backward()
        found = gradients(model)
        assert found.keys() == grads.keys()
        largest = max(float(grad.abs().max()) for grad in grads.values())
        for parameter, grad in grads.items():
            assert float((found[parameter] - grad).abs().max()) <= 1e-4 * largest, parameter


def test_a_batch_without_sequences_has_no_gradient(tmp_path: Path) -> None:
    """Of a rank that has run out of work: where an embedding is all zeros, Gemma 3n has the slope of a root of 0."""
    build("gemma3n text").save_pretrained(tmp_path)
    model = load_model(ModelConfig(path=str(tmp_path)), str(tmp_path))
    logprobs, _ = TokenLogprobs(model)(pack([], {}, torch.device("cpu")), 1.0, 64)
    logprobs.sum().backward()
    assert all(bool((grad == 0).all()) for grad in gradients(model).values())


@pytest.mark.parametrize("name", [*REFUSED, *NOT_CAUSAL])
def test_what_no_way_is_right_for_is_refused(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"^model.path: .*{REFUSED.get(name, '')}"):
        load_model(ModelConfig(path=str(tmp_path)), str(tmp_path))


def test_an_indexer_of_few_heads_is_refused(tmp_path: Path) -> None:
    """Its scores are the sums of what is above 0 in each head: with two of them, a fourth of all are exactly 0."""
    model = build("deepseek_v32")
    model.config.index_n_heads = 2
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="chooses by scores, of which many are equal"):
        load_model(ModelConfig(path=str(tmp_path)), str(tmp_path))


def test_the_kinds_that_are_said_to_be_tried_are_those_tried_here() -> None:
    kinds = {name: config_of(name).get_text_config().model_type for name in FAMILIES}
    refused = {kinds[name] for name in REFUSED}
    assert set(TRIED) == {kind for name, kind in kinds.items() if name not in REFUSED} - refused


def test_a_kind_that_is_new_is_tried_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recurrent model whose class does not say so would be packed, and its state run over borders."""
    build("qwen3_5 text").save_pretrained(tmp_path)
    monkeypatch.setattr("actors.models.trial.TRIED", frozenset())
    load_model(ModelConfig(path=str(tmp_path)), str(tmp_path))
    packed = Family("packed")
    monkeypatch.setattr("actors.models.load.family_of_class", lambda *_: packed)
    monkeypatch.setattr("actors.models.load.family_of_model", lambda _: packed)
    with pytest.raises(UserError, match=r"must give what its sequences give alone, got .* in a qwen3_5"):
        load_model(ModelConfig(path=str(tmp_path)), str(tmp_path))


def test_a_difference_that_is_no_number_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")  # type: ignore[index, union-attr]
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("actors.models.trial.TRIED", frozenset())
    with pytest.raises(UserError, match="got a difference of nan in a llama"):
        load_model(ModelConfig(path=str(tmp_path)), str(tmp_path))


@pytest.mark.parametrize("name", ["gemma2 sharp caps", "granite_swa"])
def test_rows_keep_caps_and_sinks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where something else than these has the model read in rows: its SDPA would leave them out."""
    plain = wanted(name)
    plain.set_attn_implementation("eager")
    plain.save_pretrained(tmp_path)
    monkeypatch.setattr(RopeRule, "depends", True)
    module = TokenLogprobs(load_model(ModelConfig(path=str(tmp_path)), str(tmp_path)))
    assert module.body.family.way == "rows" and not module.shares_prompts
    rows = sequences(100)
    batch = pack(rows, {}, torch.device("cpu"))
    parts = [part[row.action_mask] for part, row in zip(batch.split(module(batch, 1.0, 64)[0]), rows, strict=True)]
    expected = torch.cat([alone(plain, row) for row in rows]).detach().numpy()
    assert np.abs(np.concatenate(parts) - expected).max() <= 2e-4
