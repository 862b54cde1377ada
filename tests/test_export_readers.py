"""Whoever loads an export by AutoTokenizer of transformers 5.19, as vLLM does, reads texts as its model was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoTokenizer

from actors.config import ModelConfig, ModelInit
from actors.models.skeleton import write_skeleton
from actors.models.tokenizer import load_tokenizer
from actors.models.tokenizer_readers import agree_with_readers
from tests.tokenizer_sources import KINDS, TEXTS

SPECIAL = ("the<s>the", "<s>the</s> the\n", "x</s>\nthe<|im_end|>the", "<|im_start|>the")


def source(kind: str, directory: Path, model_type: str | None = None, **changed: object) -> Path:
    """A tokenizer beside a configuration: of this kind of model, and with these fields of tokenizer_config.json."""
    fields = KINDS[kind](directory)
    (directory / "config.json").write_text(json.dumps(fields | ({"model_type": model_type} if model_type else {})))
    write(directory, settings(directory) | changed)
    return directory


def settings(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "tokenizer_config.json").read_text())


def write(directory: Path, values: dict[str, Any]) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(values))


def ids(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text).input_ids for text in (*TEXTS, *SPECIAL)]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_this_is_the_version_of_which_the_rest_is_told() -> None:
    assert transformers.__version__.startswith("5.19.")


@pytest.mark.parametrize("model", [True, False], ids=["with tokenizer.model", "without"])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"legacy": True},
        {"add_prefix_space": True},
        {"add_prefix_space": False},
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"tokenizer_class": "GemmaTokenizer"},
    ],
    ids=json.dumps,
)
def test_classes_that_split_texts_their_own_way_are_replaced(
    changed: dict[str, Any], model: bool, tmp_path: Path
) -> None:
    """LlamaTokenizer and GemmaTokenizer take tokens and merges from tokenizer.json, and nothing else."""
    directory = source("llama", tmp_path / "model", **changed)
    if not model:
        (directory / "tokenizer.model").unlink()
    trained = load_tokenizer(str(directory))
    kind = str(changed.get("tokenizer_class", "LlamaTokenizer")).removesuffix("Fast")
    reader = AutoTokenizer.from_pretrained(directory)
    assert type(reader).__name__ == kind
    assert ids(reader) != ids(trained)
    before = contents(directory)
    note = agree_with_readers(directory, trained)
    assert note
    assert note.startswith(f"tokenizer_class of the export is PreTrainedTokenizerFast, as otherwise {kind} of transf")
    assert ids(AutoTokenizer.from_pretrained(directory)) == ids(trained) == ids(load_tokenizer(str(directory)))
    after = contents(directory)
    assert [name for name in before if before[name] != after[name]] == ["tokenizer_config.json"]
    assert agree_with_readers(directory, trained) is None and contents(directory) == after


def test_a_space_that_is_there_and_what_follows_a_special_token_are_what_llama_reads_otherwise(tmp_path: Path) -> None:
    directory = source("llama", tmp_path / "model")
    trained, reader = load_tokenizer(str(directory)), AutoTokenizer.from_pretrained(directory)
    found = {text: (trained.tokenize(text), reader.tokenize(text)) for text in ("the", " the", "</s>the")}
    assert found == {
        "the": (["\u2581the"], ["\u2581the"]),
        " the": (["\u2581", "\u2581the"], ["\u2581the"]),
        "</s>the": (["</s>", "\u2581the"], ["</s>", "the"]),
    }


def test_what_the_class_says_beside_stays_without_it(tmp_path: Path) -> None:
    directory = source("llama", tmp_path / "model", add_prefix_space=True)
    given = settings(directory)
    del given["unk_token"], given["eos_token"]
    (directory / "special_tokens_map.json").unlink()
    write(directory, given)
    reader = AutoTokenizer.from_pretrained(directory)
    assert agree_with_readers(directory, load_tokenizer(str(directory)))
    assert settings(directory) == {name: value for name, value in given.items() if name != "add_prefix_space"} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "unk_token": "<unk>",
        "eos_token": "</s>",
    }
    after = AutoTokenizer.from_pretrained(directory)
    for part in ("special_tokens_map", "model_input_names", "model_max_length", "padding_side", "chat_template"):
        assert getattr(after, part) == getattr(reader, part), part


def test_a_setting_that_bytes_are_split_by_is_that_of_the_file(tmp_path: Path) -> None:
    """transformers 4 applies add_prefix_space of tokenizer_config.json whatever the class; training does not."""
    directory = source("gpt2", tmp_path / "model", add_prefix_space=True)
    trained = load_tokenizer(str(directory))
    assert agree_with_readers(directory, trained)
    assert settings(directory)["add_prefix_space"] is False
    assert ids(AutoTokenizer.from_pretrained(directory)) == ids(trained)


def test_a_class_that_cannot_be_made_is_replaced(tmp_path: Path) -> None:
    directory = source("plain", tmp_path / "model", tokenizer_class="GemmaTokenizer")
    trained = load_tokenizer(str(directory))
    note = agree_with_readers(directory, trained)
    assert note
    assert "as otherwise GemmaTokenizer of transformers 5.19" in note and "cannot read 'the moon' (Unk token" in note
    assert "mask_token" not in settings(directory)
    assert ids(AutoTokenizer.from_pretrained(directory)) == ids(trained)


@pytest.mark.parametrize("kind", ["qwen2", "plain", "gpt2"])
def test_classes_that_read_alike_stay(kind: str, tmp_path: Path) -> None:
    directory = source(kind, tmp_path / "model")
    before = contents(directory)
    assert agree_with_readers(directory, load_tokenizer(str(directory))) is None
    assert contents(directory) == before


@pytest.mark.parametrize("model_type", ["mistral", "phi3"])
def test_kinds_of_models_whose_class_is_not_believed_stay(model_type: str, tmp_path: Path) -> None:
    """Of these transformers 5.19 reads tokenizer.json as it is, whatever tokenizer_class says."""
    directory = source("llama", tmp_path / "model", model_type)
    before = contents(directory)
    assert agree_with_readers(directory, load_tokenizer(str(directory))) is None
    assert contents(directory) == before


def test_what_the_kind_of_model_decides_is_told(tmp_path: Path) -> None:
    """transformers 5.19 makes a Qwen2Tokenizer for qwen2, whatever the files say: they stay as they are."""
    directory = source("llama", tmp_path / "model", "qwen2")
    before = contents(directory)
    note = agree_with_readers(directory, load_tokenizer(str(directory)))
    assert note
    assert note.startswith("texts for the export must be encoded as its tokenizer.json says, but Qwen2Tokenizer of tra")
    assert "\n" not in note
    assert contents(directory) == before
    (directory / "tokenizer_config.json").unlink()
    assert agree_with_readers(directory, load_tokenizer(str(directory)))
    assert not (directory / "tokenizer_config.json").exists()


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_new_models_are_read_alike(family: Any, tmp_path: Path) -> None:
    """Also where accents are joined first: what is no letter of the alphabet is not tried."""
    init = ModelInit(family=family, hidden_size=16, layers=1, heads=2, alphabet="the mon\n")
    directory = Path(write_skeleton(ModelConfig(init=init), tmp_path / "model"))
    assert agree_with_readers(directory, load_tokenizer(str(directory))) is None


def test_without_tokenizer_json_training_reads_as_all_do(tmp_path: Path) -> None:
    directory = source("qwen2", tmp_path / "model")
    (directory / "tokenizer.json").unlink()
    before = contents(directory)
    assert agree_with_readers(directory, load_tokenizer(str(directory))) is None
    assert contents(directory) == before


def test_chat_reads_as_training_does(tmp_path: Path) -> None:
    """Also a model that is no export."""
    from launch.verbs.chat import _Speaker
    from tests.tokenizer_sources import with_model

    directory = with_model("llama", tmp_path / "model")
    assert ids(_Speaker(directory, 0, None)._tokenizer) == ids(load_tokenizer(str(directory)))
