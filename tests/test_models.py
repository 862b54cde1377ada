"""Models as they are handed to training: without dropout, in training mode, in the wanted precision, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from actors.config import LoraConfig, ModelConfig, ModelInit, UserError
from actors.models.attention import PACKED_ATTENTION
from actors.models.load import load_model, load_value_model
from actors.models.lora import quantization_config
from actors.models.skeleton import write_skeleton

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
GPT2: dict[str, Any] = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
DROPOUT: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(**GPT2, attn_pdrop=0.1, embd_pdrop=0.2, resid_pdrop=0.3)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, attention_dropout=0.4)),
}
INIT = ModelInit(hidden_size=16, layers=1, heads=2, max_positions=32, alphabet="abc")


def saved(kind: type[PreTrainedModel], config: Any, directory: Path) -> str:
    """Directory of a model of random weights."""
    torch.manual_seed(3)
    kind(config).save_pretrained(directory)
    return str(directory)


def loaded(directory: str, **settings: Any) -> Any:
    return load_model(ModelConfig(path=directory, **settings), directory)


def rates(model: torch.nn.Module) -> list[Any]:
    """Of all that may drop something: modules, and attention, which has a number."""
    modules = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    return modules + [module.attention_dropout for module in model.modules() if hasattr(module, "attention_dropout")]


@pytest.mark.parametrize("family", DROPOUT)
def test_a_loaded_model_drops_nothing(family: str, tmp_path: Path) -> None:
    """The sampler drops nothing either; the directory's own configuration does."""
    kind, config = DROPOUT[family]
    directory = saved(kind, config, tmp_path)
    assert sum(rates(kind.from_pretrained(directory))) > 0
    model = loaded(directory)
    assert set(rates(model)) == {0.0}
    names = [name for name in model.config.to_dict() if "pdrop" in name or name.endswith("attention_dropout")]
    assert names and {getattr(model.config, name) for name in names} == {0.0}


def test_a_loaded_model_of_values_drops_nothing(tmp_path: Path) -> None:
    _, config = DROPOUT["gpt2"]
    directory = saved(GPT2ForSequenceClassification, GPT2Config(**config.to_diff_dict() | {"num_labels": 1}), tmp_path)
    assert sum(rates(GPT2ForSequenceClassification.from_pretrained(directory))) > 0
    model = load_value_model(ModelConfig(path=directory), directory)
    found = rates(model)
    assert found and set(found) == {0.0}


@pytest.mark.parametrize("family", DROPOUT)
def test_models_are_in_training_mode_and_keep_no_cache(family: str, tmp_path: Path) -> None:
    """`from_pretrained` gives them in evaluation mode, in which gradient checkpointing does nothing."""
    kind, config = DROPOUT[family]
    directory = saved(kind, config, tmp_path / "model")
    skeleton = write_skeleton(ModelConfig(init=INIT), tmp_path / "skeleton")
    models = [loaded(directory), load_model(ModelConfig(init=INIT), skeleton)]
    if family == "llama":
        models += [load_value_model(ModelConfig(path=directory), directory)]
        models += [load_value_model(ModelConfig(init=INIT), skeleton)]
    for model in models:
        assert all(module.training for module in model.modules())
        assert model.config.use_cache is False


def test_gradient_checkpointing_is_on_where_it_is_set(tmp_path: Path) -> None:
    """And not reentrant: that kind gives no gradient below frozen embeddings."""
    directory = saved(*DROPOUT["llama"], tmp_path)
    assert not loaded(directory).is_gradient_checkpointing
    model = loaded(directory, gradient_checkpointing=True)
    assert model.is_gradient_checkpointing
    functions = [getattr(module, "_gradient_checkpointing_func", None) for module in model.modules()]
    assert {each.keywords["use_reentrant"] for each in functions if each} == {False}


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_have_the_wanted_precision_and_attention_packs(name: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    directory = saved(*DROPOUT["llama"], tmp_path / "model")
    skeleton = write_skeleton(ModelConfig(init=INIT, dtype=name), tmp_path / "skeleton")
    for settings, where in (({"path": directory}, directory), ({"init": INIT}, skeleton)):
        model = ModelConfig.model_validate({**settings, "dtype": name})
        for built in (load_model(model, where), load_value_model(model, where)):
            assert {parameter.dtype for parameter in built.parameters()} == {dtype}
            assert built.config._attn_implementation == PACKED_ATTENTION


def test_flash_attention_without_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    directory = saved(*DROPOUT["llama"], tmp_path)
    with pytest.raises(UserError, match=r"model\.attention: flash_attention_2 needs a GPU and the flash-attn package"):
        loaded(directory, attention="flash_attention_2", dtype="bf16")


def test_the_seed_of_a_new_model_decides_its_weights(tmp_path: Path) -> None:
    """And nothing else does: neither what was drawn before nor the rank."""

    def weights(seed: int) -> torch.Tensor:
        settings = ModelConfig(init=INIT.model_copy(update={"seed": seed}))
        model = load_model(settings, write_skeleton(settings, tmp_path / str(seed)))
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    torch.manual_seed(1)
    first = weights(4)
    torch.manual_seed(2)
    assert torch.equal(weights(4), first)
    assert not torch.equal(weights(5), first)


def test_weights_are_those_of_the_directory(tmp_path: Path) -> None:
    directory = saved(*DROPOUT["llama"], tmp_path)
    expected = LlamaForCausalLM.from_pretrained(directory).state_dict()
    found = loaded(directory).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_reward_model_needs_a_trained_head(tmp_path: Path) -> None:
    """A policy's directory has none: a new head would score at random. A critic may start with one."""
    directory = saved(*DROPOUT["llama"], tmp_path / "policy")
    model = ModelConfig(path=directory)
    with pytest.raises(UserError) as caught:
        load_value_model(model, directory, needs_head=True)
    assert str(caught.value) == (
        f"reward.models: must hold the weights of a score head (score.weight), got none in {directory}"
    )
    critic: Any = load_value_model(model, directory)
    assert critic.score.weight.shape == (1, 16)
    critic.save_pretrained(tmp_path / "reward")
    again: Any = load_value_model(ModelConfig(path=str(tmp_path / "reward")), str(tmp_path / "reward"), needs_head=True)
    assert torch.equal(again.score.weight, critic.score.weight)


@pytest.mark.parametrize(("padding", "end", "kept"), [(0, 1, 0), (1, 1, None), (2, [1, 2], None), (0, [1, 2], 0)])
def test_only_padding_that_ends_nothing_is_kept(padding: int, end: Any, kept: int | None, tmp_path: Path) -> None:
    directory = saved(*DROPOUT["llama"], tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": padding, "eos_token_id": end}))
    assert load_value_model(ModelConfig(path=directory), directory).config.pad_token_id == kept


@pytest.mark.parametrize(("dtype", "computes"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_quantised_weights_are_nf4_and_compute_in_the_models_precision(
    dtype: Any, computes: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As QLoRA has them, twice quantised; a GPU without the package is refused."""
    model = ModelConfig(path="x", lora=LoraConfig(), quantize="nf4", dtype=dtype)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("actors.models.lora.BitsAndBytesConfig", dict)
    monkeypatch.setattr("actors.models.lora.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the bitsandbytes package, got no bitsandbytes$"):
        quantization_config(model)
    monkeypatch.setattr("actors.models.lora.importlib.util.find_spec", lambda name: name)
    assert quantization_config(model) == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": computes,
    }
