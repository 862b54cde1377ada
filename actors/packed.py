"""Sequences packed into one row of tokens, as the model reads them. Attention never crosses sequence borders.

Responses to one prompt may share it: its tokens are then in the row once, and attention gathers whole sequences.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.attention import PACKED_SDPA, PackedLayout
from actors.batch import Sequence


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
    fields: dict[str, torch.Tensor]
    """float32 [T] each: what the loss needs, such as advantages, rollout_logprobs, reference_logprobs."""

    @cached_property
    def action_indices(self) -> torch.Tensor:
        """int64 [A], positions of the action tokens."""
        return self.action_mask.nonzero(as_tuple=True)[0]

    @cached_property
    def predecessors(self) -> torch.Tensor:
        """int64 [A], positions of the tokens at which the action tokens are predicted."""
        if self.sources is None:
            return self.action_indices - 1
        # Each action token is at one position; of the positions of a shared prompt token, any will do.
        before = np.zeros(len(self.token_ids), dtype=np.int64)
        before[self.sources[1:]] = self.sources[:-1]
        return torch.from_numpy(before).to(self.token_ids.device)[self.action_indices]

    def attention_arguments(self, implementation: str) -> dict[str, Any]:
        """Keyword arguments by which an attention implementation learns the sequence borders.

        Raises:
            ValueError: prompts are shared, and the implementation is not packed_sdpa, which alone gathers sequences.
        """
        if implementation == PACKED_SDPA:
            return {"packed_layout": PackedLayout.of(self.lengths, self.token_ids.device, self.sources)}
        if self.sources is not None:
            raise ValueError(f"{implementation} cannot read sequences that share their prompts, only {PACKED_SDPA} can")
        borders = torch.tensor(np.cumsum([0, *self.lengths]), dtype=torch.int32, device=self.token_ids.device)
        longest = max(self.lengths)
        return {
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def split(self, per_token: torch.Tensor) -> list[np.ndarray]:
        """Cut a [T] tensor into one array per sequence, its prompt included."""
        values = per_token.detach().cpu().numpy()
        values = values if self.sources is None else values[self.sources]
        return np.split(values, np.cumsum(self.lengths)[:-1])


def pack(
    sequences: Seq[Sequence], fields: dict[str, Seq[np.ndarray]], device: torch.device, *, share_prompts: bool = False
) -> PackedBatch:
    """Pack sequences and per-token fields (one array per sequence) into a micro-batch on `device`.

    With `share_prompts`, sequences that agree in all tokens before their first action token hold these once; their
    fields are those of the first such sequence. Under causal attention this changes no logprob.

    An empty list gives a single token without action: a rank that has run out of work still takes part in every
    collective, and adds nothing to the loss.
    """
    lengths = [len(sequence) for sequence in sequences]
    if not lengths:
        sequences = [Sequence(token_ids=np.zeros(1, dtype=np.int64), action_mask=np.zeros(1, dtype=np.bool_))]
        fields = {name: [np.zeros(1, dtype=np.float32)] for name in fields}
        lengths = [1]
    kept, sources = _shared_prompts(sequences) if share_prompts else (slice(None), None)

    def row(arrays: Seq[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays)[kept]).to(device)

    return PackedBatch(
        token_ids=row([sequence.token_ids for sequence in sequences]),
        position_ids=row([np.arange(length) for length in lengths]),
        action_mask=row([sequence.action_mask for sequence in sequences]),
        sequence_ids=row([np.repeat(np.arange(len(lengths)), lengths)]),
        lengths=lengths,
        sources=sources,
        fields={name: row(arrays).float() for name, arrays in fields.items()},
    )


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
