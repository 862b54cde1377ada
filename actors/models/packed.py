"""Sequences packed into one row of tokens, as the loss reads them, and what of it the model has to compute.

Attention never crosses sequence borders. Responses to one prompt may share it: its tokens are then in the row once, and
attention gathers whole sequences. Tokens from the last action token of a sequence on predict nothing that is asked for,
and no other token sees them: the model does not compute them.
"""

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from actors.episodes import Sequence
from actors.models.attention import PACKED_ATTENTION
from actors.models.layout import PackedLayout

Read = Literal["before", "end"]


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """The tokens of a micro-batch that go through the model."""

    token_ids: torch.Tensor
    """int64 [I]"""
    position_ids: torch.Tensor
    """int64 [I], from 0 in every sequence."""
    read: torch.Tensor
    """int64 [A], which of these tokens is read for each action token: the one before it, or itself."""
    lengths: list[int]
    """Tokens of each sequence, its prompt included, without those that need not be computed, [S]."""
    whole_lengths: list[int]
    """The same with those that need not be computed, [S]."""
    sources: NDArray[np.int64] | None
    """Token at each position of the sequences, end to end, [sum of lengths]; None if no prompt is shared."""

    idle: bool = False
    """Whether its lone token is that of a rank without work."""

    def attention_arguments(self, implementation: str) -> dict[str, object]:
        """Keyword arguments by which an attention implementation learns the sequence borders.

        Raises:
            ValueError: prompts are shared, and the implementation is not ours, which alone gathers sequences.
        """
        if implementation == PACKED_ATTENTION:
            return {"packed_layout": PackedLayout.of(self.lengths, self.token_ids.device, self.sources)}
        if self.sources is not None:
            raise ValueError(f"{implementation} cannot read sequences that share prompts, only {PACKED_ATTENTION} can")
        borders = torch.tensor(np.cumsum([0, *self.lengths]), dtype=torch.int32, device=self.token_ids.device)
        longest = max(self.lengths)
        return {
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": longest,
            "max_length_k": longest,
        }


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One micro-batch: all tokens of its sequences, end to end, and fields per token.

    Example: two sequences of 3 and 2 tokens give token_ids [5], position_ids [0,1,2,0,1], sequence_ids [0,0,0,1,1].
    If both begin with the same prompt token, they may share it: token_ids [4], position_ids [0,1,2,1],
    sequence_ids [0,0,0,1], sources [0,1,2,0,3].
    """

    token_ids: torch.Tensor
    """int64 [T]"""
    position_ids: torch.Tensor
    """int64 [T], from 0 in every sequence."""
    action_mask: torch.Tensor
    """bool [T], True where the token is learned from."""
    sequence_ids: torch.Tensor
    """int64 [T], number of the sequence within the micro-batch; of the first one at a shared prompt."""
    lengths: list[int]
    """Tokens of each sequence with its prompt, [S]."""
    sources: NDArray[np.int64] | None
    """Token at each position of the sequences, end to end, [sum of lengths]; None if no prompt is shared."""
    inputs: ModelInputs
    fields: Mapping[str, torch.Tensor]
    """float32 [T] each: what the loss needs, such as advantages, rollout_logprobs, reference_logprobs."""
    labels: Mapping[str, torch.Tensor]
    """float32 [S] each: numbers per sequence that the loss needs."""
    idle: bool
    """Whether it has no sequences, S = 0, but the lone token of a rank that has run out of work."""

    @cached_property
    def action_indices(self) -> torch.Tensor:
        """int64 [A], positions of the action tokens."""
        return self.action_mask.nonzero(as_tuple=True)[0]

    def sequence_sums(self, per_token: torch.Tensor) -> torch.Tensor:
        """Sum of a [T] tensor over the action tokens of each sequence, [S]."""
        sums = per_token.new_zeros(len(self.lengths))  # index_add: sequences without actions stay 0
        # where, not a product: NaN x 0 is NaN, and what lies beside the actions may be anything.
        sums = sums.index_add(0, self.sequence_ids, torch.where(self.action_mask, per_token, 0))
        return sums[:0] if self.idle else sums

    @cached_property
    def action_counts(self) -> torch.Tensor:
        """Action tokens of each sequence, float32 [S]."""
        return self.sequence_sums(torch.ones(len(self.token_ids), device=self.token_ids.device))

    def of_sequence(self, per_token: torch.Tensor, sequence: int) -> torch.Tensor:
        """The part of a [T] tensor that is of one sequence, its prompt included, [L]."""
        start = sum(self.lengths[:sequence])
        end = start + self.lengths[sequence]
        if self.sources is None:
            return per_token[start:end]
        return per_token[torch.from_numpy(self.sources[start:end]).to(per_token.device)]

    def split(self, per_token: torch.Tensor) -> list[np.ndarray]:
        """Cut a [T] tensor into one array per sequence, its prompt included."""
        values = per_token.detach().cpu().numpy()
        values = values if self.sources is None else values[self.sources]
        return np.split(values, np.cumsum(self.lengths)[:-1])


def pack(
    sequences: Seq[Sequence],
    fields: Mapping[str, Seq[np.ndarray]],
    device: torch.device,
    *,
    labels: Mapping[str, Seq[float]] | None = None,
    share_prompts: bool = False,
    read: Read = "before",
    whole: bool = False,
) -> PackedBatch:
    """Pack sequences, per-token fields (one array per sequence) and labels into a micro-batch on `device`.

    With `share_prompts`, sequences that agree in all tokens before their first action token hold these once; their
    fields are those of the first such sequence. Under causal attention this changes no logprob. `read` says where the
    model is read: before each action token, where it is predicted, or at the end, which makes the last action token of
    each sequence its only one. With `whole`, the model computes all tokens, also those that nobody reads.

    An empty list gives a single token without action: a rank that has run out of work still takes part in every
    collective, and adds nothing to the loss. Every field of it is 0, every label empty.
    """
    idle = not sequences
    if idle:
        # Not token 0, in many families padding with an embedding of zeros: Gemma 3n's gradient there is NaN.
        sequences = [Sequence(token_ids=np.ones(1, dtype=np.int64), action_mask=np.zeros(1, dtype=np.bool_))]
    lengths = [len(sequence) for sequence in sequences]
    kept, sources = _shared_prompts(sequences) if share_prompts else (slice(None), None)

    def row(arrays: Seq[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays)[kept]).to(device)

    # Whoever has run out of work does not know which fields the others have: any that is asked for is there.
    no_fields: Mapping[str, torch.Tensor] = defaultdict(lambda: torch.zeros(1, device=device))
    no_labels: Mapping[str, torch.Tensor] = defaultdict(lambda: torch.zeros(0, device=device))
    token_ids = row([sequence.token_ids for sequence in sequences])
    position_ids = row([np.arange(length) for length in lengths])
    action_mask = np.concatenate([sequence.action_mask for sequence in sequences])
    if read == "end":
        action_mask = _only_last(action_mask, np.array(lengths))
    return PackedBatch(
        token_ids=token_ids,
        position_ids=position_ids,
        action_mask=torch.from_numpy(action_mask[kept]).to(device),
        sequence_ids=row([np.repeat(np.arange(len(lengths)), lengths)]),
        lengths=lengths,
        sources=sources,
        inputs=replace(
            _model_inputs(token_ids, position_ids, np.array(lengths), action_mask, kept, sources, read, whole=whole),
            idle=idle,
        ),
        fields=no_fields if idle else {name: row(arrays).float() for name, arrays in fields.items()},
        labels=no_labels if idle else {name: torch.tensor(x, device=device) for name, x in (labels or {}).items()},
        idle=idle,
    )


def _only_last(action_mask: NDArray[np.bool_], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each sequence, its last action token, if it has one; all positions of the sequences, end to end."""
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(action_mask))
    last = np.maximum.reduceat(np.where(action_mask, places, -1), starts)
    return action_mask & (places == np.repeat(last, lengths))


def _shared_prompts(sequences: Seq[Sequence]) -> tuple[NDArray[np.bool_] | slice, NDArray[np.int64] | None]:
    """Which positions of the sequences, end to end, are kept as tokens, and the `sources` of a PackedBatch."""
    count = sum(map(len, sequences))
    kept, originals = np.ones(count, dtype=np.bool_), np.arange(count)
    starts: dict[bytes, int] = {}
    position = 0
    for sequence in sequences:
        # Without an action token, nothing is shared: argmax is 0.
        prompt = int(sequence.action_mask.argmax())
        start = starts.setdefault(sequence.token_ids[:prompt].tobytes(), position)
        if start != position:
            kept[position : position + prompt] = False
            originals[position : position + prompt] = np.arange(start, start + prompt)
        position += len(sequence)
    return (slice(None), None) if kept.all() else (kept, (np.cumsum(kept) - 1)[originals])


def _model_inputs(
    token_ids: torch.Tensor,
    position_ids: torch.Tensor,
    lengths: NDArray[np.int64],
    action_mask: NDArray[np.bool_],
    kept: NDArray[np.bool_] | slice,
    sources: NDArray[np.int64] | None,
    read: Read,
    *,
    whole: bool,
) -> ModelInputs:
    """Of each sequence, the tokens up to the last one that is read, or its first token; with `whole` all.

    `action_mask` is that of all positions of the sequences, end to end; `kept` says which of these are tokens.
    """
    starts = np.cumsum(lengths) - lengths
    places = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    last = np.maximum.reduceat(np.where(action_mask, places, 0), starts)
    computed_lengths = lengths if whole else last + 1 if read == "end" else np.maximum(last, 1)
    computed = places < np.repeat(computed_lengths, lengths)
    tokens = np.arange(len(places)) if sources is None else sources
    is_input = np.zeros(len(token_ids), dtype=np.bool_)
    is_input[tokens[computed]] = True
    # Where a kept token is among the inputs; of the others, nobody asks.
    renumbered = np.cumsum(is_input) - 1
    # Each action token is at one position; of the positions of a shared prompt token, any will do.
    is_read = np.arange(len(token_ids))
    if read == "before":
        is_read[tokens[1:]] = tokens[:-1]

    def chosen(indices: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(indices).to(token_ids.device)

    inputs = chosen(np.flatnonzero(is_input))
    return ModelInputs(
        token_ids=token_ids.index_select(0, inputs),
        position_ids=position_ids.index_select(0, inputs),
        read=chosen(renumbered[is_read[np.flatnonzero(action_mask[kept])]]),
        lengths=computed_lengths.tolist(),
        whole_lengths=lengths.tolist(),
        sources=None if sources is None else renumbered[sources[computed]],
    )
