"""Models of values: what they read of a packed batch, against transformers' own sequence classification."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from actors.config import ModelConfig, ModelInit, UserError
from actors.episodes import Sequence
from actors.models.export import export_model
from actors.models.load import TokenValues, load_model, load_value_model
from actors.models.skeleton import write_skeleton
from actors.models.tokenizer import load_tokenizer
from actors.train.worker import pack_sequences
from tests.weights import weights_of

CPU = torch.device("cpu")
Family = Literal["qwen2", "llama"]
FAMILIES: tuple[Family, ...] = ("qwen2", "llama")
MASKS = {
    "responses to one prompt": [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1, 1]],
    "several prompts": [[0, 1], [0, 0, 0, 1, 1, 1], [0, 0, 1, 1]],
    "several turns": [[0, 0, 1, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1], [0, 1, 1]],
}


def _model(family: Family) -> ModelConfig:
    return ModelConfig(init=ModelInit(family=family, hidden_size=32, layers=2, heads=2, kv_heads=1, max_positions=64))


def _spread(model: Any) -> Any:
    """Larger weights than initial ones, so that scores differ by more than rounding."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return model


def _exported(family: Family, directory: Path, **config: Any) -> tuple[TokenValues, Path]:
    """A value model, as a worker holds it, and the directory that it is exported to."""
    skeleton = Path(write_skeleton(_model(family), directory / "skeleton"))
    _configure(skeleton, **config)
    model = _spread(load_value_model(_model(family), str(skeleton)))
    export_model(model, *weights_of(model), load_tokenizer(str(skeleton)), directory / "export")
    return TokenValues(model), directory / "export"


def _configure(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _sequences(masks: list[list[int]]) -> list[Sequence]:
    """Equal tokens at equal positions before a sequence's first action, other ones after it."""
    found = []
    for number, mask in enumerate(masks, start=1):
        places = np.arange(len(mask))
        tokens = 7 + (11 + 5 * places + 3 * number * (places >= mask.index(1))) % 90
        found.append(Sequence(token_ids=tokens, action_mask=np.array(mask, dtype=np.bool_)))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("share_prompts", [False, True])
def test_scores_are_those_of_transformers(family: Family, masks: str, share_prompts: bool, tmp_path: Path) -> None:
    """Of each sequence alone, up to its last action token, and of all of them in padded batches."""
    ours, directory = _exported(family, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    sequences = _sequences(MASKS[masks])
    batch = pack_sequences(sequences, CPU, share_prompts=share_prompts, read="end")
    with torch.no_grad():
        found = batch.sequence_sums(ours(batch, 1.0, 1024)[0])
        rows = [torch.from_numpy(sequence.token_ids) for sequence in sequences]
        alone = torch.cat([theirs(input_ids=row[None]).logits[:, 0] for row in rows])
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=theirs.config.pad_token_id)
        attended = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        together = theirs(input_ids=padded, attention_mask=attended).logits[:, 0]
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, together, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.05, "scores differ"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("share_prompts", [False, True])
def test_values_are_read_before_each_action(family: Family, masks: str, share_prompts: bool, tmp_path: Path) -> None:
    """The value of an action token is the score after the tokens before it; elsewhere it is 0."""
    ours, directory = _exported(family, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    sequences = _sequences(MASKS[masks])
    batch = pack_sequences(sequences, CPU, share_prompts=share_prompts)
    with torch.no_grad():
        found = batch.split(ours(batch, 1.0, 1024)[0])
        for values, sequence in zip(found, sequences, strict=True):
            for place, action in enumerate(sequence.action_mask):
                before = torch.from_numpy(sequence.token_ids[:place])[None]
                expected = theirs(input_ids=before).logits.item() if action else 0.0
                assert values[place] == pytest.approx(expected, rel=1e-4, abs=1e-5), f"token {place}"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_learns(family: Family, tmp_path: Path) -> None:
    """The score head as well; nothing learns from a micro-batch without work."""
    ours, _ = _exported(family, tmp_path)
    for sequences, learns in ((_sequences(MASKS["several prompts"]), True), ([], False)):
        ours.zero_grad()
        ours(pack_sequences(sequences, CPU), 1.0, 1024)[0].sum().backward()
        gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
        moved = {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
        assert None not in gradients.values()
        assert moved == (gradients.keys() if learns else set())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_scores_text(family: Family, tmp_path: Path) -> None:
    """With its tokenizer, padded by it: the score is that of the end-of-sequence token, the last one of each text."""
    ours, directory = _exported(family, tmp_path)
    tokenizer, theirs = AutoTokenizer.from_pretrained(directory), None
    theirs = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    assert theirs.config.num_labels == 1
    assert theirs.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    texts = [text + tokenizer.eos_token for text in ("a question and its answer", "short", "neither short nor long")]
    with torch.no_grad():
        scores = theirs(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
    torch.testing.assert_close(scores, _packed_scores(ours, [tokenizer(text)["input_ids"] for text in texts]))


def _packed_scores(model: TokenValues, rows: list[list[int]]) -> torch.Tensor:
    last = [np.arange(len(row)) == len(row) - 1 for row in rows]
    sequences = [Sequence(token_ids=np.array(row), action_mask=mask) for row, mask in zip(rows, last, strict=True)]
    batch = pack_sequences(sequences, CPU, read="end")
    with torch.no_grad():
        return batch.sequence_sums(model(batch, 1.0, 1024)[0])


@pytest.mark.parametrize("several", [False, True], ids=["one end", "a list of ends"])
def test_padding_that_is_the_end_of_sequence_is_not_exported(several: bool, tmp_path: Path) -> None:
    """transformers would take the score before such padding, that is before the end of the text: it must not know it.

    It then scores texts one at a time, and refuses a batch.
    """
    end = 2
    ours, directory = _exported("qwen2", tmp_path, pad_token_id=end, eos_token_id=[end, 5] if several else end)
    theirs = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    assert theirs.config.pad_token_id is None
    rows = [[20, 30, 40, end], [20, 50, end]]
    found = _packed_scores(ours, rows)
    with torch.no_grad():
        for score, row in zip(found, rows, strict=True):
            assert theirs(input_ids=torch.tensor([row])).logits.item() == pytest.approx(score.item(), rel=1e-4)
        with pytest.raises(ValueError, match="batch sizes > 1"):
            theirs(input_ids=torch.tensor([rows[0], [*rows[1], end]]))
        theirs.config.pad_token_id = end
        wrong = theirs(input_ids=torch.tensor([rows[0]])).logits.item()
    assert abs(wrong - found[0].item()) > 1e-3, "the score before the end is another one"


@pytest.mark.parametrize("origin", ["init", "path"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_critic_from_the_policy_has_its_body(family: Family, origin: str, tmp_path: Path) -> None:
    """All weights but the head, whether the policy is built from numbers or loaded."""
    settings = _model(family)
    skeleton = write_skeleton(settings, tmp_path / "skeleton")
    policy: Any = load_model(settings, skeleton)
    if origin == "path":
        policy = _spread(policy)
        export_model(policy, *weights_of(policy), load_tokenizer(skeleton), tmp_path / "policy")
        settings, skeleton = ModelConfig(path=str(tmp_path / "policy")), str(tmp_path / "policy")
        policy = AutoModelForCausalLM.from_pretrained(skeleton)
    torch.manual_seed(7)
    critic: Any = load_value_model(settings, skeleton)
    body, expected = critic.model.state_dict(), policy.model.state_dict()
    assert body.keys() == expected.keys() and len(body) >= 20
    assert all(torch.equal(tensor, expected[name]) for name, tensor in body.items())
    assert critic.score.weight.shape == (1, 32) and critic.score.weight.any() and critic.score.bias is None
    torch.manual_seed(7)
    again: Any = load_value_model(settings, skeleton)
    assert torch.equal(again.score.weight, critic.score.weight), "the head is decided by the seed: equal on all ranks"


def test_a_reward_model_keeps_its_head(tmp_path: Path) -> None:
    """What a critic or a scoring group starts from is the exported model, the head included."""
    ours, directory = _exported("qwen2", tmp_path)
    loaded = load_value_model(ModelConfig(path=str(directory)), str(directory))
    expected = ours.model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_a_model_without_a_linear_score_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 1}
    config = BertConfig(vocab_size=50, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model.path: .*bert"):
        load_value_model(ModelConfig(path=str(tmp_path)), str(tmp_path))
