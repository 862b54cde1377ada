"""The trained weights in float32, which DeepSpeed's optimizers keep in places of their own at every ZeRO stage.

What these optimizers have is looked up by name: importing DeepSpeed takes seconds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_MASTERS = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition")
"""Where a rank's are: ZeRO 1 and 2, ZeRO 3, and ZeRO 1 with bf16."""


def masters(optimizer: Any) -> Sequence[torch.Tensor]:
    """The trained weights in float32, those that this rank updates: parameters, or flat shares of them."""
    for name in _MASTERS:
        if hasattr(optimizer, name):
            return getattr(optimizer, name)
    assert type(optimizer).__module__.startswith("torch.optim"), type(optimizer)  # ZeRO 0 in float32
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@torch.no_grad()
def set_masters(optimizer: Any, values: Sequence[torch.Tensor]) -> None:
    """Give the trained weights these values, and the model's parameters those of the trained weights; collective."""
    for weights, value in zip(masters(optimizer), values, strict=True):
        weights.copy_(value)
    if hasattr(optimizer, "update_lp_params"):  # ZeRO 1 and 2
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO 3
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if whole := optimizer.persistent_parameters:
            whole[0].partition(whole)
            whole[0].all_gather(whole)


@contextmanager
def of_masters(optimizer: Any) -> Iterator[torch.optim.Optimizer]:
    """torch's optimizer below DeepSpeed's; within it, its parameters are the masters, in their order."""
    below = getattr(optimizer, "optimizer", optimizer)
    if not hasattr(optimizer, "_set_fp32_optimizer_param_groups"):
        yield below
        return
    # Between its steps, ZeRO-3 leaves torch's optimizer without parameters.
    optimizer._set_fp32_optimizer_param_groups()
    try:
        yield below
    finally:
        optimizer._clear_fp32_optimizer_param_groups()
