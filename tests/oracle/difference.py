"""Largest differences between our losses and a peer's, gradient included, and the table of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-5


@dataclass(slots=True)
class Difference:
    """One line of the table: the largest differences over all random inputs of a method."""

    source: str
    """What ours was compared with."""
    value: float = 0.0
    gradient: float | None = None
    cases: int = 0


TABLE: dict[str, Difference] = {}
"""Method -> difference, in the order in which the tests ran."""


def assert_same(method: str, source: str, ours: Tensor, theirs: Tensor, *leaves: Tensor) -> None:
    """Compare two values (any shape) and the gradients of their sums with respect to `leaves`.

    The tolerance is 1e-5, absolute up to magnitude 1 and relative above. Gradients of the peer that are all zero would
    agree with anything that is cut off from its inputs, so they are refused.
    """
    difference = TABLE.setdefault(method, Difference(source))
    assert difference.source == source, f"{method} is compared with {difference.source} and with {source}"
    difference.value = max(difference.value, _largest(ours.detach(), theirs.detach(), f"{method}: value"))
    difference.cases += 1
    if leaves:
        expected = _gradients(theirs, leaves)
        assert any((gradient != 0).any() for gradient in expected), f"{method}: the peer's gradient is zero everywhere"
        for gradient, wanted in zip(_gradients(ours, leaves), expected, strict=True):
            largest = _largest(gradient, wanted, f"{method}: gradient")
            difference.gradient = max(difference.gradient or 0.0, largest)


def _gradients(value: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    found = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if one is None else one for one, leaf in zip(found, leaves, strict=True)]


def _largest(ours: Tensor, theirs: Tensor, what: str) -> float:
    assert ours.shape == theirs.shape, f"{what} has shape {tuple(ours.shape)}, the peer's {tuple(theirs.shape)}"
    ours, theirs = ours.double(), theirs.double()
    assert torch.isfinite(theirs).all(), f"{what} of the peer is not finite"
    difference = ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().item()
    assert difference <= TOLERANCE, f"{what} differs by {difference:.3g}: {ours} and {theirs}"
    return difference


def table() -> list[str]:
    """Lines of the table, widths fitted."""
    names = max(map(len, TABLE), default=0)
    sources = max((len(line.source) for line in TABLE.values()), default=0)
    lines = [f"{'method':{names}}  {'compared with':{sources}}  cases    value  gradient"]
    for name, line in TABLE.items():
        gradient = "-" if line.gradient is None else f"{line.gradient:.1e}"
        lines.append(f"{name:{names}}  {line.source:{sources}}  {line.cases:5}  {line.value:.1e}  {gradient:>8}")
    return lines
