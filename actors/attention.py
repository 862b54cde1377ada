"""Attention over packed sequences through torch's SDPA: "packed_sdpa", for machines without flash attention.

Sequences lie one after another in a single row of T tokens. Neighbours of the same length are attended to as a batch
that is a view of the row; short neighbours of similar length are copied into a right-padded batch, which is harmless
under causal attention. So there is never a mask, and padding stays small.

Shapes: T tokens of the row, S sequences and L padded length of a segment, H heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PACKED_SDPA = "packed_sdpa"


@dataclass(frozen=True, eq=False)
class Segment:
    """Neighbouring sequences that are attended to in one call."""

    sequences: int
    """S"""
    length: int
    """L, tokens of the longest sequence."""
    tokens: int
    """t, tokens of all sequences; S * L if none is padded."""
    sources: Tensor
    """Token of the segment in each slot of the padded batch, 0 at padding, int64 [S * L]; [0] if none is padded."""
    padding: Tensor
    """Slots without a token, int64 [S * L - t]."""
    slots: Tensor
    """Slot of each token, int64 [t]; [0] if none is padded."""


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Where the sequences of a micro-batch lie: built once, used by every layer, forward and backward.

    A plain object, so that it travels untouched through DeepSpeed, which rebuilds the tuples and lists it is given.
    """

    tokens: int
    """T"""
    segments: tuple[Segment, ...]
    """In packed order. They are few if sequences are sorted by length, as the planner leaves them."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "PackedLayout":
        """Layout of packed sequences of these lengths, in tokens.

        Raises:
            ValueError: no sequence, or one without tokens.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(f"packed sequences need at least 1 token each, got lengths {list(lengths)}")
        device = torch.device(device)
        return cls(sum(lengths), tuple(_segment(group, device) for group in _similar_neighbours(lengths, device)))


def register_packed_sdpa() -> None:
    """Make `attn_implementation="packed_sdpa"` known to transformers.

    transformers builds no mask for an implementation without a registered mask function, so none is registered.
    """
    from transformers import AttentionInterface  # takes seconds; layouts are built without it

    AttentionInterface.register(PACKED_SDPA, packed_sdpa)


def packed_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_layout: PackedLayout | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each packed sequence; transformers' attention-function signature.

    Args:
        query: [1, H, T, D]; key and value may have fewer heads (grouped-query attention).
        packed_layout: `PackedLayout.of(lengths)`; without it, each layer builds its own from cu_seq_lens_q.
        cu_seq_lens_q: borders of the sequences, int32 [S + 1].

    Returns:
        Attention output [1, T, H, D], and None in place of attention weights.

    Raises:
        ValueError: the model asks for anything but causal attention over whole packed sequences.
    """
    _refuse_unsupported(module, query, key, attention_mask, kwargs)
    if packed_layout is None:
        if cu_seq_lens_q is None:
            raise ValueError(f"{PACKED_SDPA} needs packed_layout or cu_seq_lens_q passed to the model's forward")
        packed_layout = PackedLayout.of(cu_seq_lens_q.diff().tolist(), query.device)
    if packed_layout.tokens != query.shape[2]:
        raise ValueError(f"packed_layout describes {packed_layout.tokens} tokens, the model got {query.shape[2]}")
    dtype = query.dtype
    if query.device.type == "cpu" and dtype == torch.bfloat16:
        # The CPU kernel's bf16 backward is slower than its fp32 one: 17 against 4 ms for 128 sequences of 14 tokens.
        query, key, value = query.float(), key.float(), value.float()
    segments, options = packed_layout.segments, {"dropout_p": dropout, "scale": scaling}
    if len(segments) == 1:
        return _attend(segments[0], query, key, value, options).to(dtype), None
    sizes = [segment.tokens for segment in segments]
    pieces = zip(segments, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    return torch.cat([_attend(*piece, options) for piece in pieces], dim=1).to(dtype), None


def _refuse_unsupported(
    module: torch.nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    model = type(module).__name__
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{PACKED_SDPA} cannot serve {model} with {name} {kwargs[name]}: use flash_attention_2")
    is_causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ValueError(f"{PACKED_SDPA} is causal only, {model} is bidirectional")
    if attention_mask is not None:
        raise ValueError(f"{PACKED_SDPA} takes no attention_mask: packed sequences have no padding")
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise ValueError(
            f"{PACKED_SDPA} reads one row of whole sequences without a key-value cache, "
            f"got query {list(query.shape)} and key {list(key.shape)}"
        )


def _similar_neighbours(lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """Lengths in packed order, cut where one call for both neighbours would cost more than two."""
    # Measured on CPU: from about 48 tokens on, a call costs less than the padding it saves. GPU launches cost more.
    alone = 48 if device.type == "cpu" else 1024
    groups = [[lengths[0]]]
    low = high = lengths[0]
    for length in lengths[1:]:
        low, high = min(low, length), max(high, length)
        equal = low == high
        if equal or (high < alone and high <= 1.25 * low + 8):
            groups[-1].append(length)
        else:
            groups.append([length])
            low = high = length
    return groups


def _segment(lengths: list[int], device: torch.device) -> Segment:
    longest, tokens = max(lengths), sum(lengths)
    if tokens == longest * len(lengths):
        none = torch.empty(0, dtype=torch.int64, device=device)
        return Segment(len(lengths), longest, tokens, none, none, none)
    real = (torch.arange(longest) < torch.tensor(lengths)[:, None]).flatten()
    slots = real.nonzero().flatten()
    sources = torch.zeros(len(real), dtype=torch.int64)
    sources[slots] = torch.arange(tokens)
    padding = (~real).nonzero().flatten()
    return Segment(len(lengths), longest, tokens, sources.to(device), padding.to(device), slots.to(device))


def _attend(segment: Segment, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    """[1, H, t, D] -> [1, t, H, D], causal within each sequence of the segment."""
    tensors = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]
    padded = len(segment.slots) > 0
    if padded:
        batch = [_Pad.apply(tensor, segment) for tensor in tensors]
    else:
        batch = [tensor.unflatten(0, (segment.sequences, segment.length)) for tensor in tensors]
    q, k, v = (tensor.transpose(1, 2) for tensor in batch)
    grouped = k.shape[1] != q.shape[1]
    output = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped, **options).transpose(1, 2)
    return (_Unpad.apply(output, segment) if padded else output.flatten(0, 1)).unsqueeze(0)


def _pad(tokens: Tensor, segment: Segment) -> Tensor:
    """[t, H, D] -> [S, L, H, D], zero at padding."""
    slots = tokens.flatten(1).index_select(0, segment.sources).index_fill_(0, segment.padding, 0)
    return slots.view(segment.sequences, segment.length, *tokens.shape[1:])


def _unpad(batch: Tensor, segment: Segment) -> Tensor:
    """[S, L, H, D] -> [t, H, D]; the adjoint of _pad."""
    return batch.flatten(0, 1).flatten(1).index_select(0, segment.slots).unflatten(1, batch.shape[2:])


class _Pad(torch.autograd.Function):
    """_pad with a gather as its backward: autograd's own backward of index_select adds row after row."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, segment: Segment) -> Tensor:
        ctx.segment = segment
        return _pad(tokens, segment)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _unpad(grad, ctx.segment), None


class _Unpad(torch.autograd.Function):
    """_unpad with a gather as its backward."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, segment: Segment) -> Tensor:
        ctx.segment = segment
        return _unpad(batch, segment)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _pad(grad, ctx.segment), None
