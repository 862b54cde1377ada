"""Adapters of families whose layers are not all called as layers are: what is merged is what has been trained."""

from contextlib import nullcontext

import pytest
import torch

from actors.config import LoraConfig, UserError
from actors.models.adaptable import linear_layers
from actors.models.lora import add_adapters, plain_parameters
from tests.families.table import build
from tests.test_families import alone, sequences

LEFT_OUT = {
    "mamba": {"dt_proj", "x_proj", "out_proj"},
    "mamba2": {"out_proj"},
    "falcon_mamba": {"dt_proj", "x_proj", "out_proj"},
    "falcon_h1": {"out_proj"},
    "bamba": {"out_proj"},
    "nemotron_h": {"out_proj"},
    "jamba": {"dt_proj"},
    "zamba": {"dt_proj", "q_proj", "gate_proj"},
    "deepseek_v4": {"o_a_proj"},
    "llama4 text": {"router"},
    "qwen3_5 text": set(),
    "lfm2": set(),
    "gemma3": set(),
    "minimax": set(),
}
"""Family -> layers of which the weight is read by others, grouped, or that of several layers."""


@pytest.mark.parametrize("name", LEFT_OUT)
def test_adapters_are_where_they_are_merged(name: str) -> None:
    adapted, plain = build(name), build(name)
    kinds = {layer.rpartition(".")[2] for layer in linear_layers(adapted)}
    assert kinds and not kinds & LEFT_OUT[name]
    row = sequences(100)[4]
    add_adapters(adapted, LoraConfig(rank=2), seed=1)
    adapters = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    with torch.no_grad():
        for each in adapters.values():
            each.normal_(0, 0.1)
    found = alone(adapted, row)
    found.sum().backward()
    # What an indexer chooses has no gradient.
    silent = [key for key, each in adapters.items() if each.grad is None or not each.grad.any()]
    assert [key for key in silent if "indexer" not in key] == []
    state = plain.state_dict()
    with torch.no_grad():
        for key, tensor in plain_parameters(adapted, lambda _: nullcontext(), merged=True):
            state[key].copy_(tensor)
    torch.testing.assert_close(alone(plain, row), found, rtol=0, atol=1e-3)
    assert (alone(build(name), row) - found).abs().max() > 1e-2


def test_a_layer_that_can_have_none_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^model.lora.targets: must be linear layers .* got out_proj$"):
        add_adapters(build("mamba"), LoraConfig(rank=2, targets=["out_proj"]), seed=1)
