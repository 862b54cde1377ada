"""Which layers of a model can have low-rank adapters."""

import inspect
import re
from collections import Counter
from functools import cache

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from actors.models.experts import ROUTER

_WEIGHT = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|size|is_cuda))")


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers that can have adapters: all but the output embedding, score heads, the pooler of a
    bare encoder, which is not read, routers of experts, and layers whose weight others take, or share."""
    output = model.get_output_embeddings()
    heads = score_heads(model)
    routers = [name for name, module in model.named_modules() if ROUTER.search(type(module).__name__)]
    apart = tuple(f"{name}." for name in [*(heads or ["pooler"]), *routers])
    linear = {name: each for name, each in model.named_modules() if isinstance(each, (torch.nn.Linear, Conv1D))}
    uses = Counter(id(module.weight) for module in linear.values())
    return [
        name
        for name, module in linear.items()
        if module is not output and _is_called(model, name) and uses[id(module.weight)] == 1
        if not f"{name}.".startswith(apart) and not name.endswith(".router")
    ]


def _is_called(model: PreTrainedModel, name: str) -> bool:
    """Whether a linear layer, and so its adapter, computes what its weight is used for: Mamba's, for one, are read by
    the module around them, and layers of groups only look like linear ones."""
    parent, _, last = name.rpartition(".")
    grouped = "Grouped" in type(model.get_submodule(name)).__name__
    return not grouped and last not in _weights_read(type(model.get_submodule(parent)))


@cache
def _weights_read(kind: type) -> frozenset[str]:
    """Submodules of which the code of a class takes the weight itself."""
    return frozenset(_WEIGHT.findall(inspect.getsource(kind)))


def score_heads(model: PreTrainedModel) -> list[str]:
    """Names of the modules between a classifier's body and its scores: what a new head has no trained weights for."""
    body = model.base_model_prefix
    if model.get_output_embeddings() is not None or not isinstance(getattr(model, body, None), torch.nn.Module):
        return []
    behind = [name for name, module in model.named_children() if name != body and list(module.parameters())]
    pooler = getattr(getattr(model, body), "pooler", None)
    return behind + [f"{body}.pooler"] * isinstance(pooler, torch.nn.Module)
