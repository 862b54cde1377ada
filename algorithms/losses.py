"""Losses on flat token vectors: all sequences of a micro-batch one after another, [T]; only tokens in `mask` count.

Losses are sums divided by counts of the whole optimizer step, so micro-batch losses add up to the step's loss however
the step is divided. What only reinforcement learning has stands in `algorithms.rl.losses`.
"""

from typing import Literal

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 40.0
"""Nats. Beyond 88 its exponential overflows float32; one thing that is e^40 times likelier says nothing more."""


def bounded(log_ratio: Tensor) -> Tensor:
    """`log_ratio` cut from above to LARGEST_LOG_RATIO, but with its gradient: beyond, a loss keeps its direction."""
    # What is beyond is subtracted as a constant: clamp alone would leave no gradient there.
    cut = log_ratio - (log_ratio.detach() - LARGEST_LOG_RATIO).clamp(min=0)
    return torch.where(log_ratio.isposinf(), LARGEST_LOG_RATIO, cut)  # inf - inf is NaN


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` [T] where `mask` (bool [T]) is true, even if values elsewhere are not finite."""
    return torch.where(mask, values, 0).sum()


def nll_loss(policy_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of each token in nats, 0 outside `mask`, [T]."""
    return torch.where(mask, -policy_logprobs, 0)


def sequence_sums(values: Tensor, sequence_ids: Tensor) -> Tensor:
    """Sums of `values` [T] by sequence, [S]."""
    size = int(sequence_ids.max()) + 1 if len(sequence_ids) else 0
    return values.new_zeros(size).index_add(0, sequence_ids, values)


def aggregate(
    loss_tokens: Tensor,
    mask: Tensor,
    sequence_ids: Tensor,
    *,
    mode: Literal["token", "sequence", "constant"],
    tokens: int | float,
    sequences: int | float,
    constant: int | None = None,
) -> Tensor:
    """A micro-batch's share of the step's loss.

    token: sum over action tokens / tokens (DAPO, arXiv 2503.14476).
    sequence: sum over sequences of their mean over action tokens / sequences (GRPO, arXiv 2402.03300).
    constant: sum over action tokens / (sequences x constant) (Dr. GRPO, arXiv 2503.20783).

    Args:
        loss_tokens: [T].
        mask: action tokens, bool [T].
        sequence_ids: number of the sequence each token belongs to, from 0, int64 [T]; a sequence is never divided.
        mode: "token", "sequence" or "constant".
        tokens, sequences: counts of action tokens and of sequences in the whole optimizer step, over all ranks.
        constant: tokens that stand for a sequence's length; only mode constant reads it.

    Raises:
        ValueError: unknown mode, a step without action tokens or sequences, or mode constant without a positive one.
    """
    if mode not in ("token", "sequence", "constant"):
        raise ValueError(f"mode must be token, sequence or constant, got {mode!r}")
    # Counts of the whole update: a mean of the micro-batch's own would weigh the tokens of small ones more.
    unit, count = ("token", tokens) if mode == "token" else ("sequence", sequences)
    if count <= 0:
        raise ValueError(f"an optimizer step needs at least one {unit} to learn from, got {count}")
    if mode == "constant":
        if constant is None or constant <= 0:
            raise ValueError(f"constant must be above 0 with mode constant, got {constant}")
        return masked_sum(loss_tokens, mask) / (count * constant)
    if mode == "token":
        return masked_sum(loss_tokens, mask) / count
    action_tokens = sequence_sums(mask.to(loss_tokens.dtype), sequence_ids)
    # A sequence without actions has no mean: divided by 1 it adds 0, and no NaN.
    return masked_sum(loss_tokens / action_tokens[sequence_ids].clamp(min=1), mask) / count
