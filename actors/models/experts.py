"""Experts of a layer in one tensor, [E, out, in]: their products in a fixed order, and low-rank adapters for each.

    y = W_e x + scaling B_e A_e x       A [E, r, in], B [E, out, r] (trained)

PEFT adapts such tensors too (`target_parameters`), by making W + scaling B A of all experts at every pass, which is as
large as they are; here all products are over the tokens of each expert. Adapters are parameters of the module itself:
ZeRO-3 gathers a module's own. A PEFT directory has them in its form; see `peft_state`.

Letters: N tokens, D hidden size, k experts of a token, E experts.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import Parameter, functional
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _grouped_mm

_IN_ORDER = "grouped_mm_in_order"
ROUTER = re.compile(r"Router|TopKGating|MoEV1Gate")
"""In the names of classes that choose experts; jamba has a plain layer, called router."""


@dataclass(eq=False)
class ExpertAdapters:
    """What a module of experts has as `adapters`; the tensors are its parameters `lora_A_...` and `lora_B_...`."""

    names: tuple[str, ...]
    """Of its tensors, those that are adapted, in the order in which it has them: gate_up_proj, down_proj."""
    scaling: float
    enabled: bool = True


def fused_experts(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of all experts of a layer, of those that can have adapters."""
    for name, module in model.named_modules():
        # Marks of transformers' own interface of experts; others (dbrx, jetmoe, llama4) compute in ways of their own.
        if hasattr(module, "has_gate") and hasattr(module, "is_transposed"):
            yield name, module


def expert_tensors(model: torch.nn.Module) -> list[str]:
    """Names of the tensors of experts that can have adapters: model.layers.0.mlp.experts.down_proj."""
    return [f"{name}.{tensor}" for name, module in fused_experts(model) for tensor in _matrices(module)]


def _matrices(experts: Any) -> tuple[str, str]:
    return "gate_up_proj" if experts.has_gate else "up_proj", "down_proj"


def experts_in_order(model: PreTrainedModel) -> None:
    """Let experts on a CPU add up gradients in a fixed order, without which runs would not resume bit for bit."""
    # On a GPU, those of transformers are.
    if model.device.type == "cpu" and model.config._experts_implementation == "grouped_mm":
        model.set_experts_implementation(_IN_ORDER)


def routers(model: torch.nn.Module) -> Iterator[Any]:
    """What chooses among the experts of a layer, of those that `fused_experts` gives."""
    beside = {name.rpartition(".")[0] for name, _ in fused_experts(model)}
    for name, module in model.named_modules():
        parent, _, own = name.rpartition(".")
        if parent in beside and (ROUTER.search(type(module).__name__) or own == "router"):
            yield module


def route_in_float32(model: PreTrainedModel) -> None:
    """Let routers compute their logits in float32, whatever the model's precision: a rounded logit chooses another
    expert than the sampler's, which rounds others; in place."""
    if model.dtype == torch.float32:
        return
    for router in routers(model):
        router.forward = partial(_with_float32, router.forward)


@contextmanager
def _linear_in_float32() -> Iterator[None]:
    """Within it, linear layers compute in float32: also where DeepSpeed has put its own function for ZeRO-3 in place of
    torch's, whose backward pass takes one precision alone."""
    given = functional.linear

    def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        own: Any = torch._C
        return own._nn.linear(rows.float(), weight.float(), None if bias is None else bias.float())

    functional.linear = linear  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.linear = given


def _with_float32(forward: Callable[..., Any], hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    with _linear_in_float32():
        outputs = forward(hidden_states, *args, **kwargs)
    if not isinstance(outputs, tuple):
        return outputs
    # What comes behind logits, weights and indices is not for experts, which take weights in float32.
    return outputs[:3] + tuple(each.to(hidden_states.dtype) for each in outputs[3:])


def _experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What the experts of each token make of it, weighted; an implementation of transformers' interface of experts.

    Args:
        hidden_states: [N, D]
        top_k_index, top_k_weights: [N, k]

    Returns:
        [N, D]
    """
    count, k = top_k_index.shape
    chosen, order = top_k_index.reshape(-1).sort(stable=True)
    offsets = torch.bincount(chosen, minlength=self.num_experts).cumsum(0, dtype=torch.int32)
    # Gradients of index_select are added up in order; those of rows[indices], on a CPU, as threads come.
    rows = hidden_states.index_select(0, order.div(k, rounding_mode="floor"))
    inner, outer = _matrices(self)
    rows = _product(self, inner, rows, offsets, chosen)
    rows = self._apply_gate(rows) if self.has_gate else self.act_fn(rows)
    rows = _product(self, outer, rows, offsets, chosen) * top_k_weights.reshape(-1).index_select(0, order).unsqueeze(-1)
    # Back in the order of tokens, in which each has its k rows side by side.
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return rows.index_select(0, places).view(count, k, -1).sum(1).to(hidden_states.dtype)


def _product(experts: Any, name: str, rows: torch.Tensor, offsets: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Rows, sorted by their expert, times the tensor of that name; `offsets`: where each expert's rows end."""
    weight = getattr(experts, name)
    product = _grouped(rows, weight if experts.is_transposed else weight.transpose(1, 2), offsets)
    if experts.has_bias:
        product = product + getattr(experts, f"{name}_bias").index_select(0, chosen)
    adapters = getattr(experts, "adapters", None)
    if adapters and adapters.enabled and name in adapters.names:
        a, b = (tensor.transpose(1, 2) for tensor in adapter_of(experts, name))
        product = product + adapters.scaling * _grouped(_grouped(rows, a, offsets), b, offsets)
    return product


def _grouped(rows: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """[rows, in] times each expert's own [in, out] of [E, in, out]."""
    # The kernels read 16 bytes at a time, of which a small rank has fewer.
    if any(size * weight.element_size() % 16 for size in weight.shape[1:]):
        return torch.ops.transformers.grouped_mm_fallback(rows, weight, offs=offsets)
    return _grouped_mm(rows, weight, offsets)


ALL_EXPERTS_FUNCTIONS.register(_IN_ORDER, _experts_forward)


def add_expert_adapters(model: PreTrainedModel, tensors: list[str], rank: int, scaling: float) -> None:
    """Freeze the experts and give the named tensors of theirs adapters that change nothing yet, as PEFT draws them."""
    for name, module in fused_experts(model):
        names = tuple(each for each in _matrices(module) if f"{name}.{each}" in tensors)
        if not names:
            continue
        module.adapters = ExpertAdapters(names, scaling)
        for each in names:
            weight = getattr(module, each)
            count, first, second = getattr(weight, "ds_shape", weight.shape)
            outputs, inputs = (second, first) if module.is_transposed else (first, second)
            options = {"dtype": weight.dtype, "device": weight.device}
            a = torch.empty(count, rank, inputs, **options).uniform_(-(inputs**-0.5), inputs**-0.5)
            setattr(module, f"lora_A_{each}", Parameter(a))
            setattr(module, f"lora_B_{each}", Parameter(torch.zeros(count, outputs, rank, **options)))
    model.set_experts_implementation(_IN_ORDER)


def adapter_of(experts: Any, name: str) -> tuple[Parameter, Parameter]:
    """A [E, r, in] and B [E, out, r] of a tensor that is adapted."""
    return getattr(experts, f"lora_A_{name}"), getattr(experts, f"lora_B_{name}")


def adapted_experts(model: torch.nn.Module) -> dict[str, Any]:
    """Name -> module of experts of which some tensors have adapters."""
    return {name: module for name, module in fused_experts(model) if hasattr(module, "adapters")}


def merged_expert(experts: Any, name: str, number: int) -> torch.Tensor:
    """One expert's part of the tensor of that name with its adapter in it, in float32."""
    a, b = (tensor[number].float() for tensor in adapter_of(experts, name))
    change = experts.adapters.scaling * b @ a
    return getattr(experts, name)[number].float() + (change.T if experts.is_transposed else change)


def peft_names(name: str, experts: Any) -> dict[str, tuple[str, str]]:
    """Tensor that is adapted -> names in a PEFT directory of its A and B: PEFT wraps the module once for each."""
    names = experts.adapters.names
    places = {each: name + ".base_layer" * (len(names) - 1 - number) for number, each in enumerate(names)}
    return {each: (f"{place}.lora_A.weight", f"{place}.lora_B.weight") for each, place in places.items()}


def peft_form(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A [E, r, in] and B [E, out, r] as PEFT has them: [E r, in], [out, r E]."""
    return a.flatten(0, 1), b.permute(1, 2, 0).flatten(1, 2)
