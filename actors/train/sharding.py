"""Dividing a model over the ranks of a group while it is loaded: ZeRO-3 for models that no rank could hold."""

import ctypes
from typing import Any

import torch
import torch.distributed as dist

from actors.config import Dtype, GroupConfig
from actors.models.precision import TORCH_DTYPES
from actors.train.engine import deepspeed_config, joined_library

_MMAP_THRESHOLD, _MMAP_MAX = -3, -4
"""Options of mallopt(3)."""
_LARGE = 2**18
"""Bytes of a block that is given back."""


class Sharding:
    """Divides a model over the ranks, parameter by parameter, while it is being loaded: ZeRO-3.

    No rank ever holds more than its share and the parameter at hand; whole, a model of ZeRO-3's size fits none.
    Every rank must divide the same parameters in the same order.
    """

    def __init__(self, group: GroupConfig, dtype: Dtype) -> None:
        self._dtype = TORCH_DTYPES[dtype]
        # DeepSpeed divides what it meets by way of a parameter that it has divided already; this one is no model's.
        self._first: Any = torch.nn.Parameter(torch.zeros(1, dtype=self._dtype), requires_grad=False)
        joined_library(group.timeout_s).zero.Init(
            module=torch.nn.ParameterList([self._first]), config_dict_or_path=deepspeed_config(group, dtype)
        )

    def divide(self, parameter: torch.nn.Parameter) -> None:
        """Keep this rank's share of what rank 0 has in the parameter, in the dtype of the group; collective."""
        parameter.data = parameter.data.to(self._dtype)  # before it is divided: shares are of this dtype
        self._first.convert_to_zero_parameters(param_list=[parameter])

    def equal(self, one: torch.nn.Parameter, other: torch.nn.Parameter) -> bool:
        """Whether two divided parameters have the same values; collective."""
        same = torch.tensor(float(torch.equal(_share(one), _share(other))), device=_device())
        dist.all_reduce(same, dist.ReduceOp.MIN)
        return bool(same)

    def share(self, tensor: torch.Tensor) -> None:
        """Give every rank what rank 0 has in a tensor that is not divided; in place, collective."""
        there = tensor.to(_device())
        dist.broadcast(there, 0)
        tensor.copy_(there)


def _device() -> str:
    """Where the ranks exchange tensors."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _share(parameter: Any) -> torch.Tensor:
    return parameter.ds_tensor


def sharding(group: GroupConfig, dtype: Dtype) -> Sharding | None:
    """How a model of the group is divided while it is loaded; None where every rank holds the whole of it.

    The ranks must have met.
    """
    if group.zero_stage < 3:
        return None
    if not torch.cuda.is_available():
        _give_back_memory()
    return Sharding(group, dtype)


def _give_back_memory() -> None:
    """Have this process give large blocks back when they are freed.

    Processes on CPUs keep them (see `actors.group`). Whole parameters, which come and go in many sizes between shares
    that stay, would leave so many holes that a rank held more than without sharding.
    """
    set_option: Any = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc
    if set_option:
        set_option(_MMAP_THRESHOLD, _LARGE)
        set_option(_MMAP_MAX, 2**16)
