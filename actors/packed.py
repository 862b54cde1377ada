"""Sequences packed into one row of tokens, as the model reads them. Attention never crosses sequence borders."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from actors.attention import PACKED_SDPA, PackedLayout
from actors.batch import Sequence


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One micro-batch: all tokens of its sequences, end to end, and fields per token.

    Example: two sequences of 3 and 2 tokens give token_ids [5], position_ids [0,1,2,0,1], sequence_ids [0,0,0,1,1].
    """

    token_ids: torch.Tensor
    """int64 [T]"""
    position_ids: torch.Tensor
    """int64 [T], from 0 in every sequence."""
    action_mask: torch.Tensor
    """bool [T], True where the token is learned from."""
    sequence_ids: torch.Tensor
    """int64 [T], number of the sequence within the micro-batch."""
    lengths: list[int]
    """Tokens of each sequence, [S]."""
    fields: dict[str, torch.Tensor]
    """float32 [T] each: what the loss needs, such as advantages, rollout_logprobs, reference_logprobs."""

    @cached_property
    def action_indices(self) -> torch.Tensor:
        """int64 [A], positions of the action tokens."""
        return self.action_mask.nonzero(as_tuple=True)[0]

    def attention_arguments(self, implementation: str) -> dict[str, Any]:
        """Keyword arguments by which an attention implementation learns the sequence borders."""
        if implementation == PACKED_SDPA:
            return {"packed_layout": PackedLayout.of(self.lengths, self.token_ids.device)}
        borders = torch.tensor(np.cumsum([0, *self.lengths]), dtype=torch.int32, device=self.token_ids.device)
        longest = max(self.lengths)
        return {
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def split(self, per_token: torch.Tensor) -> list[np.ndarray]:
        """Cut a [T] tensor into one array per sequence."""
        return np.split(per_token.detach().cpu().numpy(), np.cumsum(self.lengths)[:-1])


def pack(sequences: Seq[Sequence], fields: dict[str, Seq[np.ndarray]], device: torch.device) -> PackedBatch:
    """Pack sequences and per-token fields (one array per sequence) into a micro-batch on `device`.

    An empty list gives a single token without action: a rank that has run out of work still takes part in every
    collective, and adds nothing to the loss.
    """
    lengths = [len(sequence) for sequence in sequences]
    if not lengths:
        sequences = [Sequence(token_ids=np.zeros(1, dtype=np.int64), action_mask=np.zeros(1, dtype=np.bool_))]
        fields = {name: [np.zeros(1, dtype=np.float32)] for name in fields}
        lengths = [1]
    return PackedBatch(
        token_ids=torch.from_numpy(np.concatenate([sequence.token_ids for sequence in sequences])).to(device),
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(device),
        action_mask=torch.from_numpy(np.concatenate([sequence.action_mask for sequence in sequences])).to(device),
        sequence_ids=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device),
        lengths=lengths,
        fields={
            name: torch.from_numpy(np.concatenate(arrays).astype(np.float32)).to(device)
            for name, arrays in fields.items()
        },
    )
