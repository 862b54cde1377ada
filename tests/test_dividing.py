"""Models that are divided over ranks while they are loaded: the same weights, and refused where others are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.config import ModelConfig, ModelInit, TrainerConfig
from actors.models.load import load_model, load_value_model
from actors.models.skeleton import write_skeleton
from actors.train.engine import gathered, is_sharded
from actors.train.sharding import Sharding, sharding
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
    model = kind(config or LlamaConfig(**SIZES, **settings))
    model.save_pretrained(directory, max_shard_size=settings.pop("max_shard_size", "1GB"))
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
