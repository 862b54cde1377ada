"""Attention over packed sequences through torch's SDPA, for machines without flash attention and models that it lacks.

Each sequence is attended to in its slots (see actors/models/layout.py): there is no mask over the row. Beside causal
attention it computes what layers of today's families ask for: a sliding window or chunks of positions, scores that are
capped, sinks (a logit of each head that takes probability and gives no value), and values of another size than keys.

Shapes: T tokens of the row, N slots, S sequences and L padded length of a segment, H heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from actors.models.layout import EqualLengths, FromSlots, PackedLayout, ToSlots

PACKED_ATTENTION = "packed_attention"
"""Its name in transformers. Not sdpa: that name is refused for classes that lack transformers' own use of SDPA."""

_SHORT = 64
"""Tokens up to which torch's CPU kernel is slower than plain products, by 20 to 60 % forward and backward."""
_LONG = 1024
"""Tokens from which plain products go query block by query block, and are computed again in the backward pass."""
_HARMLESS = frozenset(
    {
        *("is_causal", "position_ids", "cache_position", "position_embeddings", "past_key_values", "use_cache"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "deterministic"),
        *("cu_seq_lens_k", "max_length_q", "max_length_k", "num_items_in_batch"),
    }
)
"""Arguments that layers hand through and that change nothing here."""


@dataclass(frozen=True, eq=False)
class Scores:
    """How a layer scores, and which positions a query sees beside being causal."""

    scaling: float | None
    """Factor of the products; None: 1 / sqrt(D)."""
    dropout: float = 0.0
    window: int | None = None
    """A query sees so many positions, its own the last of them."""
    chunk: int | None = None
    """A query sees those of its own chunk of so many positions, which are counted from the sequence's first."""
    cap: float | None = None
    """Scores become cap * tanh(score / cap)."""
    sinks: Tensor | None = None
    """[H] logits that take part in the softmax and have no value."""

    @property
    def is_plain(self) -> bool:
        """Whether SDPA can compute it."""
        return self.cap is None and self.sinks is None

    def sees_all(self, length: int) -> bool:
        """Whether causality alone decides in a sequence of so many positions."""
        return all(size is None or length <= size for size in (self.window, self.chunk))

    def hidden(self, queries: range, keys: range, device: torch.device) -> Tensor:
        """Which of these keys each of these queries does not see, bool [queries, keys]."""
        query = torch.arange(queries.start, queries.stop, device=device)[:, None]
        key = torch.arange(keys.start, keys.stop, device=device)
        hidden = key > query
        if self.window is not None:
            hidden = hidden | (key <= query - self.window)
        if self.chunk is not None:
            hidden = hidden | (key // self.chunk != query // self.chunk)
        return hidden


def register_packed_attention() -> None:
    """Make `attn_implementation=PACKED_ATTENTION` known to transformers.

    transformers builds no mask for an implementation without a registered mask function, so none is registered.
    """
    from transformers import AttentionInterface  # takes seconds; layouts are built without it

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    packed_layout: PackedLayout | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention within each packed sequence; transformers' attention-function signature.

    Args:
        query: [1, H, T, D]; key and value may have fewer heads (grouped-query attention), value another size than D.
        packed_layout: `PackedLayout.of(lengths)`; without it, each layer builds its own from cu_seq_lens_q.
        cu_seq_lens_q: borders of the sequences, int32 [S + 1].

    Returns:
        Attention output [1, T, H, size of a value], and None in place of attention weights.

    Raises:
        ValueError: the model asks for something that is not computed here.
    """
    _refuse_unsupported(module, query, key, attention_mask, kwargs)
    if packed_layout is None:
        if cu_seq_lens_q is None:
            raise ValueError(f"{PACKED_ATTENTION} needs packed_layout or cu_seq_lens_q passed to the model's forward")
        packed_layout = PackedLayout.of(cu_seq_lens_q.diff().tolist(), query.device)
    if packed_layout.tokens != query.shape[2]:
        raise ValueError(f"packed_layout describes {packed_layout.tokens} tokens, the model got {query.shape[2]}")
    dtype = query.dtype
    if query.device.type == "cpu" and dtype == torch.bfloat16:
        # The CPU kernel's bf16 backward is slower than its fp32 one: 17 against 4 ms for 128 sequences of 14 tokens.
        query, key, value = query.float(), key.float(), value.float()
    window, chunk = _reach(module, sliding_window)
    scores = Scores(scaling, dropout, window, chunk, softcap, s_aux)
    rows = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]
    if packed_layout.slot_map is None:
        return _attend(packed_layout.segments, *rows, scores=scores).to(dtype).contiguous().unsqueeze(0), None
    slots = [ToSlots.apply(row, packed_layout.slot_map) for row in rows]
    output = _attend(packed_layout.segments, *slots, scores=scores)
    return FromSlots.apply(output, packed_layout.slot_map).to(dtype).unsqueeze(0), None


def _refuse_unsupported(
    module: torch.nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, kwargs: dict[str, object]
) -> None:
    model = type(module).__name__
    for name, value in kwargs.items():
        if value is not None and name not in _HARMLESS:
            raise ValueError(f"{PACKED_ATTENTION} cannot serve {model}, which attends with {name}")
    is_causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ValueError(f"{PACKED_ATTENTION} is causal only, {model} is bidirectional")
    if attention_mask is not None:
        raise ValueError(f"{PACKED_ATTENTION} takes no attention_mask: packed sequences have no padding")
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise ValueError(
            f"{PACKED_ATTENTION} reads one row of whole sequences without a key-value cache, "
            f"got query {list(query.shape)} and key {list(key.shape)}"
        )


def _reach(module: torch.nn.Module, sliding_window: int | None) -> tuple[int | None, int | None]:
    """Window and chunk of a layer. What a class leaves to the masks, which are not built here, its config says."""
    config: Any = getattr(module, "config", None)
    kinds, number = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    kind = kinds[number] if kinds and isinstance(number, int) and number < len(kinds) else None
    if kind == "sliding_attention" and sliding_window is None:
        sliding_window = config.sliding_window
    return sliding_window, config.attention_chunk_size if kind == "chunked_attention" else None


def _attend(segments: Sequence[EqualLengths], query: Tensor, key: Tensor, value: Tensor, *, scores: Scores) -> Tensor:
    """[N, H, size of a value] of slots, causal within each sequence."""
    sizes = [segment.slots for segment in segments]
    outputs = []
    for segment, *pieces in zip(segments, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
        q, k, v = (piece.unflatten(0, (segment.sequences, segment.length)).transpose(1, 2) for piece in pieces)
        short = query.device.type == "cpu" and segment.length <= _SHORT and not scores.dropout
        if short or not scores.is_plain:
            output = _attend_by_products(q, k, v, scores)
        else:
            output = _attend_by_sdpa(q, k, v, scores)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    # A single one is whole already: cat would copy it.
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_by_sdpa(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    length = range(query.shape[2])
    whole = scores.sees_all(len(length))
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if whole else ~scores.hidden(length, length, query.device),
        is_causal=whole,
        enable_gqa=key.shape[1] != query.shape[1],
        dropout_p=scores.dropout,
        scale=scores.scaling,
    )


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    length = query.shape[2]
    if length <= _LONG:
        return _block_by_products(query, key, value, scores, range(length), range(length))
    outputs = []
    for start in range(0, length, _LONG // 2):
        queries = range(start, min(length, start + _LONG // 2))
        keys = range(0 if scores.window is None else max(0, start - scores.window + 1), queries.stop)
        pieces = (query[:, :, queries.start : queries.stop], key[:, :, keys.start : keys.stop])
        # What of the scores is kept would be as large as all of them.
        outputs.append(
            checkpoint(
                *(_block_by_products, *pieces, value[:, :, keys.start : keys.stop], scores, queries, keys),
                use_reentrant=False,
            )
        )
    return torch.cat(outputs, dim=2)


def _block_by_products(
    query: Tensor, key: Tensor, value: Tensor, scores: Scores, queries: range, keys: range
) -> Tensor:
    """Causal attention [S, H, L, D] with all scores at once: query heads of a group are rows of one product."""
    sequences, heads, length, size = query.shape
    kv_heads, seen = key.shape[1:3]
    rows = query.reshape(sequences * kv_heads, -1, size)
    columns, values = key.reshape(-1, seen, size), value.reshape(-1, seen, value.shape[-1])
    if scores.sees_all(seen) and length == seen:
        hidden = torch.full((length, length), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
    else:
        hidden = torch.zeros(length, seen, dtype=query.dtype, device=query.device)
        hidden.masked_fill_(scores.hidden(queries, keys, query.device), -torch.inf)
    hidden = hidden.repeat(rows.shape[1] // length, 1).expand(len(rows), -1, -1)
    scale = size**-0.5 if scores.scaling is None else scores.scaling
    if scores.cap is None:
        # Mask and scale are part of the product: no further pass over the scores.
        found = torch.baddbmm(hidden, rows, columns.transpose(1, 2), alpha=scale)
    else:
        found = scores.cap * torch.tanh(rows @ columns.transpose(1, 2) * (scale / scores.cap)) + hidden
    weights = found.softmax(-1) if scores.sinks is None else _with_sinks(found, scores.sinks, sequences, length)
    if scores.dropout:
        weights = F.dropout(weights, scores.dropout)
    return (weights @ values).view(sequences, heads, length, value.shape[-1])


def _with_sinks(found: Tensor, sinks: Tensor, sequences: int, length: int) -> Tensor:
    """Softmax of scores [S * key heads, query heads of a group * L, keys] beside the sink [H] of each query head."""
    beside = sinks.to(found.dtype).view(-1, found.shape[1] // length, 1).expand(-1, -1, length).flatten(1)
    beside = beside.repeat(sequences, 1).unsqueeze(-1)
    return torch.cat([found, beside], dim=-1).softmax(-1)[..., :-1]
