"""Where the sequences of a packed row lie, and the slots into which their tokens are copied to be attended to.

Sequences lie one after another in a single row of T tokens. Neighbours of the same length are attended to as a batch
that is a view of the row. Else all tokens are copied into slots, in which sequences are sorted by length and short ones
of similar length right-padded to a batch: harmless under causal attention. So there is never a mask over the row, and
padding stays small.

Sequences may share tokens, such as responses to one prompt: a shared token is copied into a slot of each of its
sequences. The layers around attention then compute it once. Keys and values of the copies are read by different
sequences, so their gradients are added up; outputs of the copies are equal, so that of one is taken.

Shapes: T tokens of the row, N slots, S sequences and L padded length of a segment, H heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class EqualLengths:
    """Neighbouring sequences that are attended to in one call."""

    sequences: int
    """S"""
    length: int
    """L, tokens of the longest sequence."""

    @property
    def slots(self) -> int:
        """S * L, tokens and padding."""
        return self.sequences * self.length


@dataclass(frozen=True, eq=False)
class SlotMap:
    """Which token is in which slot. A token is read from one of its slots, and may have copies in others."""

    sources: Tensor
    """Token in each slot, 0 at padding, int64 [N]."""
    slots: Tensor
    """Slot that each token is read from, int64 [T]."""
    copies: Tensor
    """All slots of token 0, then of token 1 and so on, int64 [N without padding]."""
    copies_start: Tensor
    """Where the slots of each token start in `copies`, int64 [T]."""
    read: Tensor
    """Tokens in the order of their `slots`, int64 [T]."""
    read_start: Tensor
    """Number of slots that tokens are read from before each slot, int64 [N]."""

    @classmethod
    def of(cls, sources: NDArray[np.int64], slots: NDArray[np.int64], count: int, device: torch.device) -> "SlotMap":
        """Map of `count` slots, of which slots[i] holds token sources[i].

        Raises:
            ValueError: the tokens are not 0 to T - 1, each at least once.
        """
        copies = np.bincount(sources)
        if not copies.all():
            raise ValueError(f"token {int(copies.argmin())} of {len(copies)} is in no sequence")
        starts = np.cumsum(copies) - copies
        # Stable: the copies of a token are then added up in the same order in every run.
        grouped = slots[np.argsort(sources, kind="stable")]
        tokens, is_read = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        tokens[slots] = sources
        is_read[grouped[starts]] = 1
        arrays = (tokens, grouped[starts], grouped, starts, tokens[is_read == 1], np.cumsum(is_read) - is_read)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Where the sequences of a micro-batch lie: built once, used by every layer, forward and backward.

    A plain object, so that it travels untouched through DeepSpeed, which rebuilds the tuples and lists it is given.
    """

    tokens: int
    """T"""
    segments: tuple[EqualLengths, ...]
    """In the order of their slots."""
    slot_map: SlotMap | None
    """None if the slots are the tokens: nothing is padded and nothing shared."""

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device | str = "cpu", sources: NDArray[np.int64] | None = None
    ) -> "PackedLayout":
        """Layout of packed sequences of these lengths, in tokens.

        Args:
            lengths: tokens of each sequence, shared ones included.
            device: of the tokens.
            sources: number of the token at each position of the sequences, end to end, int64 [sum of lengths]: where
                sequences share tokens. Without it, every position has its own.

        Raises:
            ValueError: no sequence, or one without tokens; `sources` do not fit `lengths`, or leave a token out.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(f"packed sequences need at least 1 token each, got lengths {list(lengths)}")
        if sources is not None and len(sources) != sum(lengths):
            raise ValueError(f"sequences have {sum(lengths)} positions, got sources of {len(sources)}")
        device = torch.device(device)
        if sources is None:
            segments = _segments(lengths, device)
            if sum(segment.slots for segment in segments) == sum(lengths):
                return cls(sum(lengths), segments, None)
            sources = np.arange(sum(lengths))
        # Stable: the layout, and with it how sums are rounded, is the same in every run.
        order = np.argsort(lengths, kind="stable")
        segments = _segments([lengths[i] for i in order], device)
        slots = _slots(np.array(lengths), order, segments)
        slot_map = SlotMap.of(sources, slots, sum(segment.slots for segment in segments), device)
        return cls(len(slot_map.slots), segments, slot_map)


def _segments(lengths: Sequence[int], device: torch.device) -> tuple[EqualLengths, ...]:
    """Sequences in this order, cut where one call for both neighbours would cost more than two."""
    # Measured on CPU: from about 48 tokens on, a call costs less than the padding it saves. GPU launches cost more.
    alone = 48 if device.type == "cpu" else 1024
    segments: list[EqualLengths] = []
    count, low, high = 0, lengths[0], lengths[0]
    for length in lengths:
        shortest, longest = min(low, length), max(high, length)
        if shortest == longest or (longest < alone and longest <= 1.25 * shortest + 8):
            count, low, high = count + 1, shortest, longest
        else:
            segments.append(EqualLengths(count, high))
            count, low, high = 1, length, length
    return (*segments, EqualLengths(count, high))


def _slots(lengths: NDArray[np.int64], order: NDArray[np.int64], segments: Sequence[EqualLengths]) -> NDArray[np.int64]:
    """Slot of each position of the sequences, which lie in the segments in this order."""
    padded = np.repeat([segment.length for segment in segments], [segment.sequences for segment in segments])
    first_slots = np.empty_like(lengths)
    first_slots[order] = np.cumsum(padded) - padded
    first_positions = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(first_slots - first_positions, lengths)


def _sum_rows(rows: Tensor, indices: Tensor, starts: Tensor) -> Tensor:
    """Sum of the rows that each bag of `indices` names, 0 for an empty one; a bag ends where the next starts."""
    # Adds in parallel and in a fixed order; index_add_ goes row after row on CPU and in any order on GPU.
    return F.embedding_bag(indices, rows.flatten(1), starts, mode="sum").unflatten(1, rows.shape[1:])


def _select_rows(rows: Tensor, indices: Tensor) -> Tensor:
    return rows.flatten(1).index_select(0, indices).unflatten(1, rows.shape[1:])


class _OfMap(Protocol):
    """What the passes of a function below tell each other."""

    slot_map: SlotMap


class ToSlots(torch.autograd.Function):
    """[T, H, D] of tokens -> [N, H, D] of slots. The gradient of a token is the sum over its copies."""

    @staticmethod
    def forward(ctx: _OfMap, tokens: Tensor, slot_map: SlotMap) -> Tensor:
        ctx.slot_map = slot_map
        return _select_rows(tokens, slot_map.sources)

    @staticmethod
    @once_differentiable
    def backward(ctx: _OfMap, grad: Tensor) -> tuple[Tensor, None]:
        slot_map = ctx.slot_map
        if len(slot_map.copies) == len(slot_map.slots):
            return _select_rows(grad, slot_map.slots), None
        return _sum_rows(grad, slot_map.copies, slot_map.copies_start), None


class FromSlots(torch.autograd.Function):
    """[N, H, D] of slots -> [T, H, D] of tokens. Slots that no token is read from get gradient 0."""

    @staticmethod
    def forward(ctx: _OfMap, slots: Tensor, slot_map: SlotMap) -> Tensor:
        ctx.slot_map = slot_map
        return _select_rows(slots, slot_map.slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: _OfMap, grad: Tensor) -> tuple[Tensor, None]:
        return _sum_rows(grad, ctx.slot_map.read, ctx.slot_map.read_start), None
