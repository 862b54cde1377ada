"""Adapters of experts: they reach all but the router, are merged by their formula, and are those of PEFT on disk."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from actors.config import LoraConfig, UserError
from actors.models.adapter_files import adapter_config, adapter_state, merge_adapter, reach_note, write_adapter
from actors.models.experts import experts_in_order
from actors.models.lora import (
    MergeError,
    adapters_disabled,
    add_adapters,
    has_adapters,
    parameter_metas,
    plain_parameters,
)
from actors.models.state import state_tensors
from tests.mixtures import config_of, saved_mixture

TOKENS = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(0))
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "gpt_oss": {},
    "qwen2_moe": {},
    "qwen3_moe": {"mlp_only_layers": [0]},
    "glm4_moe": {},
    "phimoe": {},
    "granitemoe": {},
}
"""Families with other fields: a layer without experts, layers beside the experts, transposed ones, biases."""


def whole(_: object) -> Any:
    """A model that is whole in this process needs no gathering."""
    return nullcontext()


def fresh(model_type: str, dtype: torch.dtype = torch.float32) -> Any:
    """A new model, always the same."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config_of(model_type, **KINDS[model_type]), dtype=dtype)
    experts_in_order(model)
    return model.eval()


def adapted(model: Any, **settings: Any) -> Any:
    """The model with adapters that have learned something."""
    add_adapters(model, LoraConfig.model_validate({"rank": 3, "alpha": 7} | settings), seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def written(model: Any, base: Path | None, directory: Path) -> Path:
    write_adapter(directory, adapter_config(model, str(base)), adapter_state(model, whole, keep=True))
    return directory


@pytest.mark.parametrize("model_type", KINDS)
def test_all_linear_reaches_all_matrices_but_routers_and_embeddings(model_type: str) -> None:
    """Nothing changes at first; of the weights that are no embeddings, all but a few get adapters."""
    model = fresh(model_type)
    before, sizes = logits(model), {name: p.numel() for name, p in state_tensors(model)}
    add_adapters(model, LoraConfig(rank=4), seed=1)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-6)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_A" in name or "lora_B" in name for name in trained)
    assert not any(part in name for name in trained for part in ("router", ".gate.", "lm_head", "embed"))
    layers = {name.partition(".lora_A")[0].removesuffix(".base_layer") for name in trained if "lora_A" in name}
    plain = dict(plain_parameters(model, whole, merged=False))
    assert {name: tensor.numel() for name, tensor in plain.items()} == sizes
    reached = {
        name
        for name in sizes
        if name.removesuffix(".weight") in layers
        or any(f"{name.rpartition('.')[0]}.lora_A_{name.rpartition('.')[2]}" == each for each in trained)
    }
    left = {name: size for name, size in sizes.items() if name not in reached}
    apart = ("embed", "lm_head", "gate.weight", "router", "bias")
    assert [name for name, size in left.items() if size >= 256 and not any(part in name for part in apart)] == []
    assert any("experts" in name for name in reached)


@pytest.mark.parametrize("model_type", KINDS)
def test_an_adapted_model_is_the_merged_one(model_type: str) -> None:
    """Same names and shapes as without adapters; with their adapters disabled, the base answers."""
    plain, model = fresh(model_type), fresh(model_type)
    expected = [(name, p.dtype, tuple(p.shape)) for name, p in state_tensors(plain)]
    base = logits(plain)
    adapted(model)
    assert has_adapters(model) and parameter_metas(model) == expected
    merged = {name: tensor.clone() for name, tensor in plain_parameters(model, whole, merged=True)}
    assert [(name, t.dtype, tuple(t.shape)) for name, t in merged.items()] == expected
    with torch.no_grad():
        for name, tensor in state_tensors(plain):
            tensor.copy_(merged[name])
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)
    with adapters_disabled(model):
        torch.testing.assert_close(logits(model), base, rtol=0, atol=1e-6)
    assert (logits(model) - base).abs().max() > 1e-2


@pytest.mark.parametrize("targets", [["down_proj"], ["experts.gate_up_proj"], ["q_proj", "experts.down_proj"]])
def test_experts_can_be_named(targets: list[str], tmp_path: Path) -> None:
    """Whole names and their ends, as of layers; PEFT finds them in a directory."""
    base = saved_mixture(tmp_path / "base", "qwen2_moe")
    model = adapted(AutoModelForCausalLM.from_pretrained(base), targets=targets)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert ("q_proj" in targets) == any("q_proj" in name for name in names)
    assert any(f"lora_A_{targets[-1].rpartition('.')[2]}" in name for name in names)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), written(model, base, tmp_path / "a"))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("model_type", KINDS)
def test_a_directory_is_that_of_peft(model_type: str, rslora: bool, tmp_path: Path) -> None:
    """PEFT 0.21 loads it on the base, and merging it is merging ours."""
    base = saved_mixture(tmp_path / "base", model_type, **KINDS[model_type])
    model = adapted(AutoModelForCausalLM.from_pretrained(base), rslora=rslora)
    directory = written(model, base, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    assert merge_adapter(directory, str(base), tmp_path / "merged") < 1e-6
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    for name, tensor in plain_parameters(model, whole, merged=True):
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_gradients_are_those_of_peft(tmp_path: Path) -> None:
    """Of A and B, through weights that PEFT would make: ours go over the tokens of each expert."""
    base = saved_mixture(tmp_path / "base", "mixtral")
    model = adapted(AutoModelForCausalLM.from_pretrained(base))
    directory = written(model, base, tmp_path / "adapter")
    theirs: Any = AutoModelForCausalLM.from_pretrained(base)
    theirs = PeftModel.from_pretrained(theirs, directory, is_trainable=True)
    for each in (model, theirs):
        each(TOKENS, labels=TOKENS).loss.backward()
    wrapped = theirs.base_model.model.model.layers[1].mlp.experts
    ours = model.model.layers[1].mlp.experts
    for layer, name in ((wrapped, "down_proj"), (wrapped.base_layer, "gate_up_proj")):
        a, b = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
        torch.testing.assert_close(getattr(ours, f"lora_A_{name}").grad.flatten(0, 1), a, rtol=1e-4, atol=1e-6)
        own = getattr(ours, f"lora_B_{name}").grad.permute(1, 2, 0).flatten(1, 2)
        torch.testing.assert_close(own, b, rtol=1e-4, atol=1e-6)


def test_bf16_experts_are_merged_in_float32_and_rounded_once() -> None:
    """The nearest bf16 of the formula, and what rounding takes is counted."""
    model, error = adapted(fresh("gpt_oss", torch.bfloat16)), MergeError()
    merged = {name: tensor.clone() for name, tensor in plain_parameters(model, whole, merged=True, error=error)}
    experts = model.model.layers[0].mlp.experts
    for name in ("gate_up_proj", "down_proj"):
        a, b = (getattr(experts, f"lora_{part}_{name}").detach().double() for part in "AB")
        exact = getattr(experts, name).detach().double() + 7 / 3 * (b @ a).transpose(1, 2)
        found = merged[f"model.layers.0.mlp.experts.{name}"].double()
        assert ((found - exact).abs() <= 2.0 ** (torch.frexp(exact)[1].double() - 9) * 1.01).all()
    assert 0 < error.value < 0.1


SHARES = [("dbrx", 21, 63), ("jetmoe", 6, 85), ("llama4_text", 32, 55)]
"""Families whose experts get no adapters, and percents of the weights: with adapters, and in experts."""


@pytest.mark.parametrize(("model_type", "reached", "left"), SHARES)
def test_experts_that_adapters_do_not_reach_are_told(model_type: str, reached: int, left: int) -> None:
    """Their share of the weights, before training; of others there is nothing to tell."""
    model: Any = AutoModelForCausalLM.from_config(config_of(model_type))
    assert reach_note(model) is None
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    add_adapters(model, LoraConfig(rank=2), seed=0)
    layers = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert round(100 * sum(sizes[f"{name}.weight"] for name in layers) / sum(sizes.values())) == reached
    assert reach_note(model) == (
        f"adapters reach {reached}% of the weights: the experts of {type(model).__name__} ({left}%) compute in a way "
        f"of their own and get none"
    )
    assert reach_note(adapted(fresh("mixtral"))) is None


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("mixtral", {"dora": True}, r"^model\.lora\.dora: must be left out where adapters are in experts .*got true$"),
        (
            "qwen3_moe",
            {"dropout": 0.1},
            r"^model\.lora\.dropout: .*\(model\.layers\.0\.mlp\.down_proj\.weight; .*0\.1$",
        ),
        ("glm4_moe", {"dropout": 0.1, "targets": ["shared_experts.up_proj"]}, r"^model\.lora\.dropout: "),
    ],
)
def test_variants_that_peft_could_not_load_are_refused(model_type: str, settings: dict[str, Any], message: str) -> None:
    """One line; adapters of attention may have them."""
    with pytest.raises(UserError, match=message):
        add_adapters(fresh(model_type), LoraConfig.model_validate(settings), seed=0)
    add_adapters(fresh(model_type), LoraConfig.model_validate(settings | {"targets": ["q_proj"]}), seed=0)
