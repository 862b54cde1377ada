"""Weights go to engines and into exports as files of their kind of model have them, one at a time, buffers included."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    HrmTextConfig,
    HrmTextForCausalLM,
    MiniMaxM2Config,
    MiniMaxM2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.core_model_loading import revert_weight_conversion

from actors.config import FrozenGroupConfig, LoraConfig, ModelConfig
from actors.models.as_stored import as_stored, metas_as_stored
from actors.models.dividing import Divider
from actors.models.export import save_weights
from actors.models.load import load_model
from actors.models.lora import add_adapters, parameter_metas
from actors.models.state import state_tensors
from actors.train.frozen import ReferenceWorker
from actors.train.policy import PolicyWorker
from tests.weights import weights_of

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
GROUPS = {"n_group": 1, "topk_group": 1, "n_routed_experts": 4, "first_k_dense_replace": 1}
MODELS = {
    "one tensor of several": lambda: HrmTextForCausalLM(
        HrmTextConfig(**SIZES | {"num_hidden_layers": 1}, H_cycles=1, L_cycles=1)
    ),
    "several of one": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=4)),
    "other modules": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)),
    "another name": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**{name: size for name, size in SIZES.items() if name != "num_key_value_heads"})
    ),
    "buffers": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES, **EXPERTS, **LATENT, **GROUPS)),
    "a renamed buffer": lambda: MiniMaxM2ForCausalLM(
        MiniMaxM2Config(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    ),
}
EXPECTED = {
    "one tensor of several": "model.L_module.layers.0.attn.gqkv_proj.weight",
    "several of one": "model.layers.1.mlp.experts.3.up_proj.weight",
    "other modules": "model.layers.1.block_sparse_moe.experts.3.w2.weight",
    "another name": "embed_out.weight",
    "buffers": "model.layers.1.mlp.gate.e_score_correction_bias",
    "a renamed buffer": "model.layers.1.block_sparse_moe.e_score_correction_bias",
}


def built(name: str) -> Any:
    """A model all of whose tensors have values of their own, as after training."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for _, tensor in state_tensors(model):
            tensor.copy_(torch.randn_like(tensor))
    return model


def reused(tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The same, in one buffer, as under ZeRO-3: each is gone when the next comes."""
    buffer = torch.empty(100_000)
    for name, tensor in tensors:
        view = buffer[: tensor.numel()].view(tensor.shape)
        view.copy_(tensor)
        yield name, view


def streamed(model: Any) -> dict[str, torch.Tensor]:
    metas, tensors = weights_of(model)
    found = {name: each.clone() for name, each in as_stored(model, [meta[0] for meta in metas], reused(tensors))}
    assert metas_as_stored(model, metas) == [(name, each.dtype, tuple(each.shape)) for name, each in found.items()]
    return found


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_one_by_one_they_are_what_transformers_makes_of_the_whole(name: str, adapted: bool) -> None:
    """Whatever is written is read again as it was, buffers too."""
    model = built(name)
    expected = revert_weight_conversion(model, dict(weights_of(model)[1]))
    if adapted:
        targets = ["dense" if name == "another name" else "o_proj"]
        add_adapters(model, LoraConfig(rank=2, targets=targets), seed=0)  # which change nothing yet
    found = streamed(model)
    assert found.keys() == expected.keys() and EXPECTED[name] in found
    assert all(torch.equal(found[each], tensor) for each, tensor in expected.items())


@pytest.mark.parametrize("name", MODELS)
def test_an_export_is_read_as_what_was_trained(name: str, tmp_path: Path) -> None:
    model = built(name)
    model.save_pretrained(tmp_path, state_dict={})
    save_weights(model, *weights_of(model), tmp_path)
    again = dict(state_tensors(AutoModelForCausalLM.from_pretrained(tmp_path)))
    for each, tensor in state_tensors(model):
        assert torch.equal(again[each], tensor), each


def test_files_in_the_form_of_the_model_are_not_what_engines_get(tmp_path: Path) -> None:
    """Which form a model was read from is no matter: vLLM loads one of them."""
    model = built("several of one")
    model.save_pretrained(tmp_path, save_original_format=False)
    assert any(name.endswith("gate_up_proj") for name in load_file(tmp_path / "model.safetensors"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert streamed(again).keys() == streamed(model).keys()


class Noted:
    """A divider that leaves parameters whole, and notes which tensors it was to share."""

    def __init__(self) -> None:
        self.shared: list[torch.Tensor] = []

    def divide(self, parameter: torch.nn.Parameter) -> None:
        pass

    def equal(self, one: torch.nn.Parameter, other: torch.nn.Parameter) -> bool:
        return torch.equal(one, other)

    def share(self, tensor: torch.Tensor) -> None:
        self.shared.append(tensor)


def test_buffers_reach_all_ranks_when_rank_0_alone_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("buffers")
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    noted = Noted()
    divider: Divider = noted
    load_model(ModelConfig(path=str(tmp_path)), str(tmp_path), divider)
    (shared,) = noted.shared
    assert torch.equal(shared, model.model.layers[1].mlp.gate.e_score_correction_bias)


def test_a_reference_follows_in_its_buffers_too(tmp_path: Path) -> None:
    policy, reference = (kind.__new__(kind) for kind in (PolicyWorker, ReferenceWorker))
    policy.rank = reference.rank = 0
    reference.group = FrozenGroupConfig()
    policy.hf_model, reference.hf_model = built("buffers"), MODELS["buffers"]()
    policy.write_weights(tmp_path / "sent")
    bias = reference.hf_model.model.layers[1].mlp.gate.e_score_correction_bias
    assert not bias.any()
    for factor in (0.25, 1.0):
        reference.follow(tmp_path / "sent", factor)
        expected = factor * policy.hf_model.model.layers[1].mlp.gate.e_score_correction_bias
        torch.testing.assert_close(bias, expected)
    assert reference.save(tmp_path / "kept")[0][0] == "weights.safetensors"
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in load_file(tmp_path / "kept/weights.safetensors")
    assert parameter_metas(reference.hf_model) == parameter_metas(policy.hf_model)


def test_an_index_lists_what_the_files_have(tmp_path: Path) -> None:
    model = built("several of one")
    model.save_pretrained(tmp_path, state_dict={})
    save_weights(model, *weights_of(model), tmp_path, shard_bytes=3000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    in_files = {name: file.name for file in tmp_path.glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == in_files
    assert index["metadata"]["total_parameters"] == sum(each.numel() for each in model.parameters())


def test_nothing_is_gathered_that_is_no_ones() -> None:
    """Buffers come with parameters, each tensor once, in the order of a state dict."""
    model = built("buffers")
    tied = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2, tie_word_embeddings=True))
    assert [name for name, _ in state_tensors(model)] == list(model.state_dict())
    assert [name for name, _ in state_tensors(tied)] == [name for name, _ in tied.named_parameters()]
    assert set(tied.state_dict()) - {name for name, _ in state_tensors(tied)} == {"lm_head.weight"}
