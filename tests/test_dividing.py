"""Models that are divided over ranks while they are loaded: the same weights, and refused where others are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from actors.config import LoraConfig, ModelConfig, ModelInit, TrainerConfig, UserError
from actors.models.load import load_model, load_value_model
from actors.models.lora import select_trained
from actors.models.skeleton import write_skeleton
from actors.train.engine import gathered, is_sharded
from actors.train.sharding import Sharding, sharding
from tests.families.table import write
from tests.one_rank import alone  # noqa: F401

pytestmark = pytest.mark.usefixtures("alone")
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
GROUP = TrainerConfig(zero_stage=3, deepspeed={"zero_optimization": {"reduce_bucket_size": 1000}})


def divided(dtype: Any = "fp32") -> Sharding:
    divider = sharding(GROUP, dtype)
    assert divider is not None
    return divider


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Whole parameters, under all their names, and buffers."""
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with gathered([parameter]):
            found[name] = parameter.detach().clone()
    return found | dict(model.named_buffers())


def assert_same(found: Any, expected: Any) -> None:
    first, second = weights(found), weights(expected)
    assert list(first) == list(second)
    for name, tensor in second.items():
        assert first[name].dtype == tensor.dtype, name
        assert torch.equal(first[name], tensor), name
    sharded = [name for name, each in found.named_parameters() if is_sharded(each)]
    large = [name for name, each in expected.named_parameters() if each.ndim >= 2 and not name.startswith("score.")]
    assert set(large) <= set(sharded)
    assert not any(is_sharded(each) for each in expected.parameters())


def saved(directory: Path, kind: Any = LlamaForCausalLM, config: Any = None, **settings: Any) -> ModelConfig:
    torch.manual_seed(3)
    kind(config or LlamaConfig(**SIZES, **settings)).save_pretrained(directory)
    return ModelConfig(path=str(directory))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("load", [load_model, load_value_model])
def test_new_weights_are_drawn_as_ever(load: Any, family: Any, tied: bool, tmp_path: Path) -> None:
    """Bit for bit, and what is drawn after them is so, too."""
    init = ModelInit(family=family, hidden_size=16, layers=2, heads=2, kv_heads=1, tie_embeddings=tied, seed=7)
    model = ModelConfig(init=init)
    skeleton = write_skeleton(model, tmp_path)
    whole = load(model, skeleton)
    after = torch.rand(3)
    shared = load(model, skeleton, divided())
    assert torch.equal(torch.rand(3), after)
    assert_same(shared, whole)
    if tied and load is load_model:
        assert shared.get_output_embeddings().weight is shared.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("size", ["1GB", "3KB"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("load", [load_model, load_value_model])
def test_a_directory_is_loaded_tensor_by_tensor(load: Any, tied: bool, size: str, dtype: Any, tmp_path: Path) -> None:
    """From one file or several, tied or not, in the wanted precision; a new head is drawn as ever."""
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "3KB")
    model = ModelConfig(path=str(tmp_path), dtype=dtype)
    found = []
    for divider in (None, divided(dtype)):
        torch.manual_seed(5)
        found.append(load(model, str(tmp_path), divider))
    whole, shared = found
    assert_same(shared, whole)
    assert shared.config.to_dict() == whole.config.to_dict()
    assert shared.config.name_or_path == whole.config.name_or_path
    assert (shared.training, whole.training) == (True, True)


def test_what_is_tied_but_stored_with_different_values_is_not_tied(tmp_path: Path) -> None:
    """As without ZeRO-3: config.json is wrong then. With equal values, it is tied."""
    model = saved(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for factor in (1.0, 2.0):
        embedding = tensors["model.embed_tokens.weight"]
        save_file(tensors | {"lm_head.weight": factor * embedding}, file, metadata={"format": "pt"})
        whole, shared = (load_model(model, str(tmp_path), divider) for divider in (None, divided()))
        assert_same(shared, whole)
        tied = [each.get_output_embeddings().weight is each.get_input_embeddings().weight for each in (whole, shared)]
        assert tied == [factor == 1, factor == 1]


@pytest.mark.parametrize("name", ["marian", "pegasus", "rwkv", "xlstm", "youtu", "qwen3_5 text", "gemma3"])
def test_families_that_draw_by_shapes_are_loaded_as_well(name: str, tmp_path: Path) -> None:
    """What they would draw is all there; what is computed anew, such as rotary positions, is."""
    write(name, tmp_path)
    model = ModelConfig(path=str(tmp_path))
    whole, shared = (load_model(model, str(tmp_path), divider) for divider in (None, divided()))
    assert_same(shared, whole)
    buffers = dict(whole.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in shared.named_buffers())


FAULTS: dict[str, tuple[type[Exception], str] | None] = {
    "shape": (RuntimeError, "ignore_mismatched_sizes"),
    "missing": (
        UserError,
        r"^model.path: weights must hold model\.layers\.1\.mlp\.up_proj\.weight, as ",
    ),
    "unexpected": None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_tensors_than_the_models_are_treated_as_ever(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused with another shape, or when one is missing; reported when there are more."""
    model = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    if fault == "shape":
        tensors[name] = tensors[name][:3].clone()
    elif fault == "missing":
        del tensors[name]
    else:
        tensors["model.layers.1.mlp.other.weight"] = torch.ones(2)
    save_file(tensors, file, metadata={"format": "pt"})
    if refused := FAULTS[fault]:
        for divider in (None, divided()):
            with pytest.raises(refused[0], match=refused[1]):
                load_model(model, str(tmp_path), divider)
        return
    found = []
    for divider in (None, divided()):
        torch.manual_seed(5)
        found.append(weights(load_model(model, str(tmp_path), divider)))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[1][name], tensor) for name, tensor in found[0].items())
    assert caplog.text.count("other.weight") in (0, 2)


def test_the_heads_of_reward_models_must_be_there(tmp_path: Path) -> None:
    model = saved(tmp_path)
    for divider in (None, divided()):
        with pytest.raises(UserError, match=r"^reward\.models: must hold the weights of a score head"):
            load_value_model(model, str(tmp_path), divider, needs_head=True)


def test_files_of_torch_save_are_loaded_too(tmp_path: Path) -> None:
    model = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    file.unlink()
    assert_same(load_model(model, str(tmp_path), divided()), load_model(model, str(tmp_path)))


def test_weights_that_files_have_otherwise_are_put_together(tmp_path: Path) -> None:
    """A mixture's experts are single tensors in files, and one in the model."""
    sizes = SIZES | {"num_key_value_heads": 2, "num_local_experts": 3}
    model = saved(tmp_path, MixtralForCausalLM, MixtralConfig(**sizes))
    names = load_file(tmp_path / "model.safetensors").keys()
    shared = load_model(model, str(tmp_path), divided())
    assert_same(shared, load_model(model, str(tmp_path)))
    assert len(names) > len(list(shared.named_parameters()))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_drawn_as_ever(dora: bool, dtype: Any, tmp_path: Path) -> None:
    """DoRA's begin with the lengths of weights that no rank has as a whole."""
    saved(tmp_path)
    model = ModelConfig(path=str(tmp_path), dtype=dtype, lora=LoraConfig(rank=2, dora=dora))
    found = []
    for divider in (None, divided(dtype)):
        built = load_model(model, str(tmp_path), divider)
        select_trained(built, model, 4)
        found.append(built)
    whole, shared = found
    first, second = weights(shared), weights(whole)
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    trained = [{name for name, each in built.named_parameters() if each.requires_grad} for built in found]
    assert trained[0] == trained[1] and all("lora_" in name for name in trained[0])


def test_parameters_are_frozen_by_their_names(tmp_path: Path) -> None:
    saved(tmp_path)
    model = ModelConfig(path=str(tmp_path), freeze=["*embed_tokens*", "*.mlp.*"])
    found = []
    for divider in (None, divided()):
        built = load_model(model, str(tmp_path), divider)
        select_trained(built, model, 4)
        found.append([(name, each.requires_grad) for name, each in built.named_parameters()])
    assert found[0] == found[1]
