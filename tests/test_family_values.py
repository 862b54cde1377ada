"""Reward models and critics of every family that transformers has a score head for: a batch gives what the model alone
gives, values and gradients; a causal model's directory gives its whole body; all others are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from actors.config import ModelConfig, UserError
from actors.episodes import Sequence
from actors.models.body import body_of
from actors.models.load import TokenValues, load_model, load_value_model
from actors.models.packed import Read, pack
from tests.families.not_causal import NOT_CAUSAL
from tests.families.scores import build_scores, has_scores, score_of
from tests.families.table import FAMILIES, write
from tests.test_families import REFUSED, forget_lengths, gradients, sequences, wanted

CPU = torch.device("cpu")
UNLISTED = "must be a model that transformers has for SequenceClassification, got a"
OTHER_HEADS = {
    "ctrl": "has no linear score head",
    "cohere_compass": "layers between its body and its logits",
    "modernbert-decoder": "layers between its body and its logits",
    **dict.fromkeys(("bart", "bigbird_pegasus", "mbart", "mvp", "plbart"), "layers between its body and its logits"),
}
"""Causal models whose heads for scores are others than one linear layer called score."""
SCORED = [name for name in FAMILIES if has_scores(name) and name not in (*OTHER_HEADS, *REFUSED)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows_of(model: PreTrainedModel) -> list[Sequence]:
    """Sequences without the tokens that stand for images and sound, where a family has some."""
    return sequences(min(model.config.get_text_config().vocab_size, 100))


def scores_before(model: PreTrainedModel, head: Tensor, sequence: Sequence) -> Tensor:
    """Of the token before each action, by the plain body's pass over this sequence alone, and the head's weights."""
    forget_lengths(model)
    hidden = body_of(model)(input_ids=torch.from_numpy(sequence.token_ids)[None], use_cache=False)[0][0, :-1]
    return (hidden @ head[0])[torch.from_numpy(sequence.action_mask)[1:]]


def read(module: TokenValues, rows: list[Sequence], *, shared: bool = False, at: Read = "before") -> Tensor:
    """What is read at the actions of all rows."""
    batch = pack(rows, {}, CPU, share_prompts=shared, read=at)
    values, _ = module(batch, 1.0, 64)
    places = range(len(values)) if batch.sources is None else batch.sources
    mask = torch.from_numpy(np.concatenate([row.action_mask for row in rows]))
    return batch.sequence_sums(values) if at == "end" else values[list(places)][mask]


@pytest.mark.parametrize("name", SCORED)
def test_a_batch_gives_what_sequences_give_alone(name: str, tmp_path: Path) -> None:
    plain = build_scores(name)
    plain.save_pretrained(tmp_path)
    rows = rows_of(plain)
    expected = torch.cat([scores_before(plain, plain.get_submodule("score").weight, row) for row in rows])  # type: ignore[arg-type]
    expected.sum().backward()
    grads = gradients(plain)
    model = load_value_model(ModelConfig(path=str(tmp_path)), str(tmp_path), needs_head=True)
    module = TokenValues(model)
    largest = max(float(grad.abs().max()) for grad in grads.values())
    for shared in (False, True) if module.shares_prompts else (False,):
        model.zero_grad()
        found = read(module, rows, shared=shared)
        assert float((found - expected).abs().max().detach()) <= 2e-4
        found.sum().backward()
        for parameter, grad in gradients(model).items():
            assert float((grads[parameter] - grad).abs().max()) <= 1e-4 * largest, parameter
    plain.config.get_text_config().pad_token_id = None  # by which it would find padding among the tokens
    with torch.no_grad():
        whole = []
        for row in rows:
            forget_lengths(plain)
            whole.append(score_of(plain, torch.from_numpy(row.token_ids)))
        assert float((read(module, rows, at="end") - torch.stack(whole)).abs().max()) <= 2e-4


@torch.no_grad()
@pytest.mark.parametrize("name", SCORED)
def test_a_causal_model_gives_its_whole_body(name: str, tmp_path: Path) -> None:
    """And the head is new."""
    write(name, tmp_path)
    torch.manual_seed(3)
    model = load_value_model(ModelConfig(path=str(tmp_path)), str(tmp_path))
    head = model.get_submodule("score").weight
    plain = wanted(name)
    rows = rows_of(plain)
    expected = torch.cat([scores_before(plain, head, row) for row in rows])  # type: ignore[arg-type]
    assert expected.std() > 1e-3
    assert float((read(TokenValues(model), rows) - expected).abs().max()) <= 2e-4


@pytest.mark.parametrize("name", [name for name in FAMILIES | NOT_CAUSAL if name not in SCORED])
def test_all_others_are_refused(name: str, tmp_path: Path) -> None:
    """By the field that names them."""
    write(name, tmp_path)
    why = OTHER_HEADS.get(name, "" if has_scores(name) else UNLISTED)
    for needs_head, field in ((False, "critic.path"), (True, "reward.models")):
        with pytest.raises(UserError, match=f"^({field}: .*{why}|model.path: doge cannot)"):
            load_value_model(ModelConfig(path=str(tmp_path)), str(tmp_path), needs_head=needs_head, field=field)


@pytest.mark.parametrize("lacking", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_no_weights_are_drawn_in_place_of_those_that_a_directory_lacks(lacking: str, tmp_path: Path) -> None:
    write("seed_oss", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors[lacking]
    save_file(tensors, file, metadata={"format": "pt"})
    line = f"weights must hold {lacking}, as config.json says, got none in {tmp_path}"
    with pytest.raises(UserError, match=f"^model.path: {line}$"):
        load_model(ModelConfig(path=str(tmp_path)), str(tmp_path))
    if lacking == "lm_head.weight":  # of which no score is made
        load_value_model(ModelConfig(path=str(tmp_path)), str(tmp_path))
        return
    with pytest.raises(UserError, match=f"^critic.path: {line}$"):
        load_value_model(ModelConfig(path=str(tmp_path)), str(tmp_path), field="critic.path")
