"""Shares of a loss and of its metrics, added up over micro-batches, calls and ranks, and gradients of such sums."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

COMPUTED_TOKENS = "tokens/trained"
"""Metric: tokens that went through the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divisors:
    """What the sums of an update are divided by, where losses were computed before anybody knew its counts."""

    loss: float
    """Of the loss and its gradient: tokens or sequences."""
    metrics: float
    """Of its metrics, which are means: trained tokens."""
    counts: frozenset[str]
    """Metrics that are no means, and stay as they are."""


class Sums:
    """The shares that came so far, by name; a metric may be a vector."""

    def __init__(self) -> None:
        self._values: dict[str, torch.Tensor] = {}
        self.seconds = 0.0
        """That it took to compute them."""

    def add(self, shares: Mapping[str, torch.Tensor]) -> None:
        """Add the shares of a micro-batch, which has the same names in the same order as all others."""
        for name, share in shares.items():
            # An update has any number of micro-batches: in float32 the later shares would lose digits.
            share = share.detach().double()
            self._values[name] = self._values[name] + share if name in self._values else share

    def divide(self, divisors: Divisors) -> None:
        """Make means of what was added as sums."""
        for name in self._values.keys() - divisors.counts - {COMPUTED_TOKENS}:
            self._values[name] = self._values[name] / (divisors.loss if name == "loss" else divisors.metrics)

    def over_ranks(self, add: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> dict[str, float]:
        """The metrics of all ranks; of a vector, NAME/0, NAME/1. `add` sums a vector over ranks: collective."""
        # One sum for all: every rank has the same names in the same order, as the loss function gives them.
        values = add(torch.cat([value.reshape(-1) for value in self._values.values()]).cpu().numpy())
        names = [each for name, value in self._values.items() for each in _element_names(name, value.shape)]
        return dict(zip(names, values.tolist(), strict=True))


@contextmanager
def gradients_divided(optimizer: Any, module: torch.nn.Module, divisor: float) -> Iterator[None]:
    """Within it, the step of a DeepSpeed engine with this optimizer is that of gradients divided by `divisor`, wherever
    they are."""
    if divisor == 1.0:
        yield
    elif hasattr(optimizer, "loss_scale"):  # ZeRO 1 to 3: what they divide by before they clip
        optimizer.loss_scale = divisor
        try:
            yield
        finally:
            optimizer.loss_scale = 1.0
    else:
        gradients = getattr(optimizer, "fp32_groups_gradients_flat", None)  # of bf16 without ZeRO
        if gradients is None:
            gradients = [each.grad for each in module.parameters() if each.grad is not None]
        for each in gradients:
            each.div_(divisor)
        yield


@cache
def _element_names(name: str, shape: torch.Size) -> tuple[str, ...]:
    """Names under which a share of a metric is told: of a vector, one for each of its elements."""
    return tuple(f"{name}/{index}" for index in range(shape[0])) if shape else (name,)
