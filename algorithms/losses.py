"""Losses on flat token vectors: all sequences of a micro-batch one after another, [T]; only tokens in `mask` count.

Losses are sums divided by counts of the whole optimizer step, so micro-batch losses add up to the step's loss however
the step is divided.
"""

from typing import Literal

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` [T] where `mask` (bool [T]) is true, even if values elsewhere are not finite."""
    return torch.where(mask, values, 0).sum()


def nll_loss(policy_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of each token in nats, 0 outside `mask`, [T]."""
    return torch.where(mask, -policy_logprobs, 0)


def grpo_policy_loss(
    policy_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(policy - rollout).

    PPO, arXiv 1707.06347; separate bounds as in DAPO, arXiv 2503.14476.

    Args:
        policy_logprobs: with gradient, [T].
        rollout_logprobs: the sampler's, [T].
        advantages: of each token's sequence, [T].
        mask: action tokens, bool [T].
        clip_low, clip_high: distances of the bounds from 1.

    Returns:
        loss of each token, 0 outside `mask`, [T]; tokens whose gradient the clip cuts off, bool [T].
    """
    ratio = torch.exp(policy_logprobs - rollout_logprobs)
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return torch.where(mask, torch.maximum(unclipped, clipped), 0), mask & (clipped > unclipped)


def k3_kl(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) at tokens the policy sampled: exp(q) - 1 - q, q = reference - policy, [T].

    Unbiased and never negative: k3 of http://joschu.net/blog/kl-approx.html, as in GRPO (arXiv 2402.03300).
    """
    difference = reference_logprobs - policy_logprobs
    return torch.expm1(difference) - difference


def aggregate(
    loss_tokens: Tensor,
    mask: Tensor,
    sequence_ids: Tensor,
    *,
    mode: Literal["token", "sequence"],
    tokens: int | float,
    sequences: int | float,
) -> Tensor:
    """A micro-batch's share of the step's loss.

    token: sum over action tokens / tokens (DAPO, arXiv 2503.14476).
    sequence: sum over sequences of their mean over action tokens / sequences (GRPO, arXiv 2402.03300).

    Args:
        loss_tokens: [T].
        mask: action tokens, bool [T].
        sequence_ids: number of the sequence each token belongs to, from 0, int64 [T]; a sequence is never divided.
        mode: "token" or "sequence".
        tokens, sequences: counts of action tokens and of sequences in the whole optimizer step, over all ranks.

    Raises:
        ValueError: unknown mode, or a step without action tokens or sequences.
    """
    if mode not in ("token", "sequence"):
        raise ValueError(f"mode must be token or sequence, got {mode!r}")
    count = tokens if mode == "token" else sequences
    if count <= 0:
        raise ValueError(f"an optimizer step needs at least one {mode} to learn from, got {count}")
    if mode == "token":
        return masked_sum(loss_tokens, mask) / count
    size = int(sequence_ids.max()) + 1 if len(sequence_ids) else 0
    action_tokens = loss_tokens.new_zeros(size).index_add_(0, sequence_ids, mask.to(loss_tokens.dtype))
    return masked_sum(loss_tokens / action_tokens[sequence_ids].clamp(min=1), mask) / count


@torch.no_grad()
def mismatch(policy_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How far trainer and sampler disagree about the same weights, as sums over action tokens (to be added over ranks).

    Args:
        policy_logprobs, rollout_logprobs: of the sampled tokens, [T].
        mask: action tokens, bool [T].

    Returns:
        float64 scalars: `logprob_abs_sum` and `logprob_abs_max` of policy - rollout; `kl_sum`, the k3 estimate of
        KL(rollout || policy); `tokens`, their number.
    """
    # float64: at differences of 1e-6 the estimate is 5e-13, which float32 cannot tell from its own rounding.
    policy, rollout = policy_logprobs.double(), rollout_logprobs.double()
    difference = torch.where(mask, policy - rollout, 0)
    return {
        "logprob_abs_sum": difference.abs().sum(),
        "logprob_abs_max": torch.cat([difference.abs(), difference.new_zeros(1)]).max(),
        "kl_sum": masked_sum(k3_kl(rollout, policy), mask),
        "tokens": mask.sum().double(),
    }
