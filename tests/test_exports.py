"""An export is its source plus new weights: config.json and generation_config.json, field by field."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.config import EncoderHead, LoraConfig, ModelConfig, ModelInit
from actors.models.adapter_files import adapter_config, adapter_state, merge_adapter, write_adapter
from actors.models.dividing import OnlySettings
from actors.models.encoders import load_encoder, write_encoder
from actors.models.export import export_model
from actors.models.load import load_model, load_value_model
from actors.models.lora import add_adapters
from actors.models.skeleton import write_skeleton
from actors.models.tokenizer import load_tokenizer
from tests.weights import weights_of

SETTINGS = {"attention_dropout": 0.1, "use_cache": True, "rope_theta": 5000.0, "torch_dtype": "bfloat16", "ours": [1]}
GENERATION = {"eos_token_id": [2, 5], "temperature": 0.6, "do_sample": False}
"""As some models come: transformers refuses to write a temperature without sampling."""


def _source(directory: Path, generation: bool = True, family: Any = "qwen2", **changes: Any) -> Path:
    """A directory with weights, whose files say more than transformers would write."""
    skeleton = Path(
        write_skeleton(ModelConfig(init=ModelInit(family=family, hidden_size=16, heads=2, layers=1)), directory)
    )
    file = skeleton / "config.json"
    values = _read(file)
    if "torch_dtype" in changes:
        del values["dtype"]
    file.write_text(json.dumps(values | changes))
    if family == "qwen2":
        model = AutoModelForCausalLM.from_config(load_model(ModelConfig(init=ModelInit()), str(skeleton)).config)
        kept = file.read_text()
        model.save_pretrained(skeleton)
        file.write_text(kept)
        (skeleton / "generation_config.json").unlink()
        if generation:
            (skeleton / "generation_config.json").write_text(json.dumps(GENERATION))
    return skeleton


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _changed(source: Path, export: Path) -> dict[str, Any]:
    """Fields of config.json that are not the source's, but for the version of transformers, with their values."""
    then, now = _read(source / "config.json"), _read(export / "config.json")
    names = (then.keys() | now.keys()) - {"transformers_version"}
    return {name: now.get(name) for name in names if then.get(name) != now.get(name)}


@pytest.mark.parametrize("generation", [True, False])
def test_the_export_of_a_policy_has_the_settings_of_its_source(tmp_path: Path, generation: bool) -> None:
    source = _source(tmp_path / "source", generation, **SETTINGS)
    model = load_model(ModelConfig(path=str(source)), str(source))
    assert model.config.attention_dropout == 0
    with torch.no_grad():
        model.model.norm.weight += 1
    export_model(model, *weights_of(model), load_tokenizer(str(source)), tmp_path / "export")
    assert _changed(source, tmp_path / "export") == {"torch_dtype": "float32"}, "it was trained in fp32"
    file = tmp_path / "export/generation_config.json"
    assert (_read(file) == GENERATION) if generation else not file.exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert torch.equal(again.model.norm.weight, model.model.norm.weight)
    assert again.config.attention_dropout == 0.1


def test_the_tokenizer_of_an_export_is_that_of_its_source(tmp_path: Path) -> None:
    """File by file; what transformers would leave out or call otherwise is still there."""
    source = _source(tmp_path / "source")
    file = source / "tokenizer_config.json"
    file.write_text(json.dumps(_read(file) | {"tokenizer_class": "Qwen2TokenizerFast", "ours": 1}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    model = load_model(ModelConfig(path=str(source)), str(source))
    export_model(model, *weights_of(model), load_tokenizer(str(source)), tmp_path / "export")
    names = {path.name for path in source.iterdir()}
    assert {path.name for path in (tmp_path / "export").iterdir()} == names
    for name in names - {"config.json", "model.safetensors"}:
        assert (tmp_path / "export" / name).read_bytes() == (source / name).read_bytes(), name


def test_links_out_of_a_source_are_not_copied(tmp_path: Path) -> None:
    """Exports can be uploaded: what such links lead to is read as what it should be, and the rest of it left."""
    source = _source(tmp_path / "source")
    secrets = {"vocab.json": {"token": "SECRET"}, "generation_config.json": GENERATION | {"token": "SECRET"}}
    for name, content in secrets.items():
        (tmp_path / name).write_text(json.dumps(content))
        (source / name).unlink(missing_ok=True)
        (source / name).symlink_to(tmp_path / name)
    model = load_model(ModelConfig(path=str(source)), str(source))
    export_model(model, *weights_of(model), load_tokenizer(str(source)), tmp_path / "export")
    assert _read(tmp_path / "export/generation_config.json") == GENERATION
    assert [path.name for path in (tmp_path / "export").iterdir() if b"SECRET" in path.read_bytes()] == []
    assert len(load_tokenizer(str(tmp_path / "export"))) == len(load_tokenizer(str(source)))


def test_a_new_model_has_the_settings_that_it_was_made_of(tmp_path: Path) -> None:
    init = ModelConfig(init=ModelInit(hidden_size=16, heads=2, layers=1))
    skeleton = write_skeleton(init, tmp_path / "model")
    model = load_model(init, skeleton)
    export_model(model, *weights_of(model), load_tokenizer(skeleton), tmp_path / "export")
    assert _changed(tmp_path / "model", tmp_path / "export") == {}


def test_a_score_head_changes_class_and_labels_only(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", **SETTINGS)
    model = load_value_model(ModelConfig(path=str(source)), str(source))
    export_model(model, *weights_of(model), load_tokenizer(str(source)), tmp_path / "export")
    assert _changed(source, tmp_path / "export") == {
        "architectures": ["Qwen2ForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "torch_dtype": "float32",
    }
    assert not (tmp_path / "export/generation_config.json").exists()
    again = load_value_model(ModelConfig(path="x"), str(tmp_path / "export"), needs_head=True)
    assert again.config.num_labels == 1


def test_merged_adapters_change_no_setting(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", **SETTINGS | {"torch_dtype": "float32"})
    model = load_model(ModelConfig(path=str(source)), str(source))
    add_adapters(model, LoraConfig(rank=2), seed=0)
    state = adapter_state(model, lambda _: nullcontext(), keep=True)
    write_adapter(tmp_path / "adapter", adapter_config(model, str(source)), state)
    merge_adapter(tmp_path / "adapter", str(source), tmp_path / "export")
    assert _changed(source, tmp_path / "export") == {}
    assert _read(tmp_path / "export/generation_config.json") == GENERATION


def test_the_export_of_an_embedding_model_has_the_settings_of_its_source(tmp_path: Path) -> None:
    changes = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "use_cache": True}
    source = _source(tmp_path / "source", family="bert", **changes)
    head = EncoderHead(kind="embedding", pooling="mean")
    init = ModelConfig(init=ModelInit(family="bert", hidden_size=16, heads=2, layers=1))
    first = load_encoder(init, head, str(source))
    first[0].model.save_pretrained(source)
    (source / "config.json").write_text(json.dumps(_read(source / "config.json") | changes))
    path = ModelConfig(path=str(source))
    model = load_encoder(path, head, str(source))
    weights = weights_of(model.transformers_model)
    write_encoder(load_encoder(path, head, str(source), OnlySettings()), *weights, {}, head, tmp_path / "export")
    assert _changed(source, tmp_path / "export") == {}
