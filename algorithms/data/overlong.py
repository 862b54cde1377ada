"""Cutting what is longer than the limit: prompts, sequences with their mask, responses to one prompt."""

import itertools
from dataclasses import replace
from typing import Literal

import numpy as np

from actors.episodes import Sequence

Side = Literal["left", "right"]


def shortened(ids: list[int], limit: int, bos: int | None) -> list[int]:
    """The last `limit` token ids, of which the first stays what it is where it is the BOS token."""
    if len(ids) <= limit:
        return ids
    if bos is not None and ids[0] == bos and limit > 1:
        return [bos, *ids[len(ids) - limit + 1 :]]
    return ids[len(ids) - limit :]


def cut_sequence(sequence: Sequence, limit: int, side: Side, bos: int | None) -> Sequence | None:
    """A sequence with its mask, cut at `side`; None when no trained token is left."""
    keep = np.arange(len(sequence)) < limit
    if side == "left":
        has_bos = bos is not None and int(sequence.token_ids[0]) == bos and limit > 1
        keep = np.arange(len(sequence)) >= len(sequence) - limit + has_bos
        keep[0] |= has_bos
    mask = sequence.action_mask[keep].copy()
    mask[:1] = False  # nothing comes before it that would predict it
    return replace(sequence, token_ids=sequence.token_ids[keep], action_mask=mask) if mask.any() else None


def cut_responses(sequences: list[Sequence], limit: int, side: Side, bos: int | None) -> list[Sequence] | None:
    """Responses to one prompt, which they begin with: the prompt cut at its left, or the responses at their right.

    None when no token of the prompt, or of a response, would be left, or when two responses become the same.
    """
    prompt = int(sequences[0].action_mask.argmax())
    if side == "left":
        # As much of the prompt as the longest response leaves: all must go on beginning alike.
        kept = min(prompt, limit - max(len(sequence) - prompt for sequence in sequences))
        if kept < 1:
            return None
        ids = shortened(sequences[0].token_ids[:prompt].tolist(), kept, bos)
        return [_joined(ids, sequence.token_ids[prompt:].tolist()) for sequence in sequences]
    if prompt >= limit:
        return None
    cut = [
        _joined(sequence.token_ids[:prompt].tolist(), sequence.token_ids[prompt:limit].tolist())
        for sequence in sequences
    ]
    # What told them apart may have been cut off: such a pair teaches nothing.
    same = any(np.array_equal(one.token_ids, other.token_ids) for one, other in itertools.combinations(cut, 2))
    return None if same else cut


def _joined(prompt: list[int], response: list[int]) -> Sequence:
    mask = np.arange(len(prompt) + len(response)) >= len(prompt)
    return Sequence(token_ids=np.array([*prompt, *response], dtype=np.int64), action_mask=mask)
