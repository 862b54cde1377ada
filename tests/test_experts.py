"""Experts in one tensor: computed as transformers does, in a fixed order, and chosen in float32."""

from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from transformers import AutoModelForCausalLM

from actors.models.experts import experts_in_order, fused_experts, route_in_float32, routers
from tests.mixtures import MIXTURES, config_of

TOKENS = torch.randint(3, 60, (4, 32), generator=torch.Generator().manual_seed(0))
OTHERS = ("jetmoe", "dbrx", "llama4_text")
"""Families whose experts compute in ways of their own."""


def fresh(model_type: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config_of(model_type), dtype=dtype).eval()


def passed(model: Any, implementation: str | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and all gradients."""
    if implementation:
        model.set_experts_implementation(implementation)
    model.zero_grad()
    outputs = model(TOKENS, labels=TOKENS, use_cache=False)
    outputs.loss.backward()
    return outputs.logits.detach(), [torch.zeros(1) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("model_type", [name for name in MIXTURES if name not in OTHERS])
def test_experts_compute_what_transformers_computes(model_type: str) -> None:
    """Expert by expert: logits and gradients, of biases and of transposed tensors, too."""
    model = fresh(model_type)
    eager = passed(model, "eager")
    model.set_experts_implementation("grouped_mm")
    experts_in_order(model)
    assert model.config._experts_implementation == "grouped_mm_in_order"
    ours = passed(model)
    torch.testing.assert_close(ours[0], eager[0], rtol=1e-4, atol=1e-5)
    for found, expected in zip(ours[1], eager[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_type", OTHERS)
def test_others_are_left_alone(model_type: str) -> None:
    model = fresh(model_type)
    before = passed(model)[0]
    experts_in_order(model)
    assert not [*fused_experts(model)] and torch.equal(passed(model)[0], before)


@pytest.fixture
def two_threads() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
@pytest.mark.usefixtures("two_threads")
def test_gradients_are_the_same_in_every_run(model_type: str) -> None:
    """Bit for bit, with several threads and experts enough that their order could show."""
    torch.manual_seed(3)
    sizes = {"num_experts": 32, "num_local_experts": 32, "num_experts_per_tok": 8, "hidden_size": 64}
    model: Any = AutoModelForCausalLM.from_config(config_of(model_type, **sizes))
    experts_in_order(model)
    tokens = torch.randint(3, 60, (16, 100))
    found = []
    for _ in range(6):
        model.zero_grad()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "jamba", "deepseek_v3"])
def test_routers_of_bf16_models_choose_in_float32(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the exact product of what the model holds; in bf16, some tokens get another expert."""
    model = fresh(model_type, torch.bfloat16)
    found = [*routers(model)]
    assert len(found) == len([*fused_experts(model)])
    hidden = torch.randn(4000, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    router, weight = found[0], found[0].weight.double()
    bias = getattr(router, "bias", None)
    exact = torch.nn.functional.linear(hidden.double(), weight, None if bias is None else bias.double())
    before = _error(router(hidden), exact)
    route_in_float32(model)
    assert _error(router(hidden), exact) < 1e-5
    assert before > 1e-3 or model_type == "deepseek_v3"  # which does so itself
    assert passed(model)[0].isfinite().all() and model.dtype == torch.bfloat16
    # DeepSpeed puts a function of its own in place of torch's, for the rest of a process that has used ZeRO-3.
    monkeypatch.setattr("torch.nn.functional.linear", zero3_linear_wrap)
    answer = router(hidden)
    parts = answer if isinstance(answer, tuple) else (answer,)
    torch.cat([part.float().flatten() for part in parts if part.requires_grad]).sum().backward()
    assert _error(router(hidden), exact) < 1e-5 and router.weight.grad.isfinite().all()


def _error(outputs: Any, exact: torch.Tensor) -> float:
    """Largest difference of the logits, wherever a router has them among its outputs."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    logits = [each for each in outputs if each.shape == exact.shape and each.is_floating_point()]
    return min(float((each.double() - exact).abs().max()) for each in logits)
