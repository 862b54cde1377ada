"""Losses of reinforcement learning: the importance ratio is clipped here, capped or gated; with KL and the critic's.

All on flat token vectors, [T], as in `algorithms.losses`, whose `aggregate` makes a step's loss of them.
"""

from typing import Literal

import torch
from torch import Tensor

from algorithms.losses import bounded, masked_sum, sequence_sums


def clipped_policy_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(policy - old).

    PPO, arXiv 1707.06347; separate bounds as in DAPO, arXiv 2503.14476; dual clip: arXiv 1912.09729.

    Args:
        policy_logprobs: with gradient, [T].
        old_logprobs: of the policy that the update started from, or of the sampler, [T].
        advantages: of each token, [T].
        mask: action tokens, bool [T].
        clip_low, clip_high: distances of the bounds from 1.
        dual_clip: where A < 0, the loss is at most dual_clip |A|; above 1 + clip_high, or it would be the only clip.

    Returns:
        loss of each token, 0 outside `mask`, [T]; tokens whose gradient the clip cuts off, bool [T].
    """
    # Masked before exp: beside the actions it may overflow, and the gradient of inf x 0 is NaN.
    log_ratio = torch.where(mask, policy_logprobs - old_logprobs, 0)
    ratio, advantages = torch.exp(bounded(log_ratio)), torch.where(mask, advantages, 0)
    unclipped, within = -ratio * advantages, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    # Losses are the surrogate's negative, so that the paper's minimum is a maximum.
    losses, clipped = torch.maximum(unclipped, within), within > unclipped
    if dual_clip is None:
        return losses, clipped
    bound = -dual_clip * advantages
    cut = mask & (advantages < 0) & (losses > bound)
    return torch.where(cut, bound, losses), clipped | cut


def gspo_policy_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    sequence_ids: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate of one ratio per sequence, exp(mean over its action tokens of policy - old).

    GSPO, arXiv 2507.18071. Every action token carries the value of its sequence, so that `aggregate` with mode sequence
    gives the mean over sequences; its gradient reaches all tokens of the sequence alike.

    Args:
        policy_logprobs, old_logprobs, advantages, mask, clip_low, clip_high: as in `clipped_policy_loss`.
        sequence_ids: as in `aggregate`, int64 [T].

    Returns:
        loss of each token, 0 outside `mask`, [T]; tokens of sequences whose gradient the clip cuts off, bool [T].
    """
    log_ratio = torch.where(mask, policy_logprobs - old_logprobs, 0)
    action_tokens = sequence_sums(mask.to(log_ratio.dtype), sequence_ids)
    means = sequence_sums(log_ratio, sequence_ids) / action_tokens.clamp(min=1)  # a sequence may have no action
    # The clip of tokens, each of which has the log ratio of its sequence.
    zeros, bounds = torch.zeros_like(log_ratio), {"clip_low": clip_low, "clip_high": clip_high}
    return clipped_policy_loss(means[sequence_ids], zeros, advantages, mask, **bounds)


def cispo_policy_loss(
    policy_logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, cispo_max_ratio: float
) -> tuple[Tensor, Tensor]:
    """REINFORCE with capped importance ratios as weights: -min(rho, cap) A log pi, the weight without gradient.

    CISPO, arXiv 2506.13585. Unlike a clip, the cap leaves every token its gradient.

    Args:
        policy_logprobs, old_logprobs, advantages, mask: as in `clipped_policy_loss`.
        cispo_max_ratio: largest weight, the cap.

    Returns:
        loss of each token, 0 outside `mask`, [T]; tokens whose ratio was capped, bool [T].
    """
    policy = torch.where(mask, policy_logprobs, 0)
    # A weight: with a gradient of its own this would no longer be REINFORCE.
    ratio = torch.exp(bounded(torch.where(mask, policy_logprobs - old_logprobs, 0))).detach()
    losses = -ratio.clamp(max=cispo_max_ratio) * advantages * policy
    return torch.where(mask, losses, 0), mask & (ratio > cispo_max_ratio)


def sapo_policy_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    sapo_temperatures: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Soft gate instead of a clip: -(4 / tau) sigmoid(tau (rho - 1)) A, whose gradient at rho = 1 is PPO's.

    SAPO, arXiv 2511.20347.

    Args:
        policy_logprobs, old_logprobs, advantages, mask: as in `clipped_policy_loss`.
        sapo_temperatures: tau where A > 0, and elsewhere.

    Returns:
        loss of each token, 0 outside `mask`, [T]; bool [T] that is false everywhere: nothing is cut off.
    """
    ratio = torch.exp(bounded(torch.where(mask, policy_logprobs - old_logprobs, 0)))
    positive, negative = (torch.full_like(ratio, tau) for tau in sapo_temperatures)
    tau = torch.where(advantages > 0, positive, negative)  # 0 gives no loss, whatever tau is
    losses = -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages
    return torch.where(mask, losses, 0), torch.zeros_like(mask)


def kl_penalty(policy_logprobs: Tensor, reference_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimate of KL(policy || reference) at tokens the policy sampled, by http://joschu.net/blog/kl-approx.html, [T].

    With d = policy - reference, in nats: k1 = d, unbiased but noisy and often negative; k2 = d^2 / 2, biased; k3 =
    exp(-d) - 1 + d, unbiased and never negative, as in GRPO (arXiv 2402.03300). As a term of the loss only k2 has KL's
    gradient in expectation: k1's vanishes, k3's is that of KL(reference || policy) (arXiv 2510.01555).

    Args:
        policy_logprobs, reference_logprobs: of the sampled tokens, [T]. An infinite one has no usable gradient, even
            if the result is masked afterwards.
        estimator: "k1", "k2" or "k3".

    Raises:
        ValueError: unknown estimator.
    """
    difference = reference_logprobs - policy_logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        # In both terms: with the second alone, the gradient would lead away from the reference.
        difference = bounded(difference)
        return torch.expm1(difference) - difference  # exact also where it is nearly 0
    raise ValueError(f"estimator must be k1, k2 or k3, got {estimator!r}")


def weighted_kl_penalty(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor,
    estimator: Literal["k1", "k2", "k3"],
) -> Tensor:
    """`kl_penalty` times the importance ratio rho = exp(policy - old), for tokens that an older policy sampled, [T].

    The mean of rho k1 and of rho k3 over the old policy's tokens is KL(policy || reference), and so is that of their
    gradients, as the ratio has its own (DeepSeek-V3.2, arXiv 2512.02556). NeMo-RL's use_on_policy_kl_approximation is
    the same value. Where the estimate is below 0, as k1 may be, the ratio lowers the loss of likelier tokens.

    Args:
        policy_logprobs, old_logprobs, reference_logprobs: of the sampled tokens, [T].
        mask: action tokens, bool [T]; elsewhere the result is 0.
        estimator: as in `kl_penalty`.
    """
    policy = torch.where(mask, policy_logprobs, 0)
    ratio = torch.exp(bounded(policy - torch.where(mask, old_logprobs, 0)))
    return torch.where(mask, ratio * kl_penalty(policy, torch.where(mask, reference_logprobs, 0), estimator), 0)


@torch.no_grad()
def importance_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    sequence_ids: Tensor,
    *,
    level: Literal["token", "sequence"],
    mode: Literal["truncate", "mask"],
    cap: float,
) -> Tensor:
    """Factors exp(old - rollout) for the loss of tokens that the sampler drew with slightly other probabilities.

    Truncated: https://fengyao.notion.site/off-policy-rl; masked: IcePop, arXiv 2510.18855, here without a lower bound.

    Args:
        old_logprobs: the trainer's, for the weights that sampled, [T].
        rollout_logprobs: the sampler's, [T].
        mask: action tokens, bool [T].
        sequence_ids: as in `aggregate`, int64 [T].
        level: one weight per token, or for all of a sequence's tokens the product over its action tokens.
        mode: above `cap`, truncate cuts the weight to it, mask makes it 0.
        cap: largest weight.

    Returns:
        Weights without gradient, 0 outside `mask`, [T].

    Raises:
        ValueError: unknown level or mode.
    """
    if level not in ("token", "sequence"):
        raise ValueError(f"level must be token or sequence, got {level!r}")
    if mode not in ("truncate", "mask"):
        raise ValueError(f"mode must be truncate or mask, got {mode!r}")
    log_ratio = torch.where(mask, old_logprobs - rollout_logprobs, 0)
    if level == "sequence":
        log_ratio = sequence_sums(log_ratio, sequence_ids)[sequence_ids]
    weights = torch.exp(bounded(log_ratio))
    # A weight that is NaN is kept, as it is not above the cap: masked, it would hide what is wrong with the logprobs.
    kept = mask if mode == "truncate" else mask & ~(weights > cap)
    return torch.where(kept, weights.clamp(max=cap), 0)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Squared error of the critic, max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2 (arXiv 2005.12729).

    Args:
        values: with gradient, [T].
        old_values: before the update, [T].
        returns: what the values should be, [T].
        mask: action tokens, bool [T].
        clip: largest change of a value, in units of reward; None: no clip.

    Returns:
        loss of each token, 0 outside `mask`, [T]; tokens whose gradient the clip cuts off, bool [T].
    """
    values, old_values, returns = (torch.where(mask, item, 0) for item in (values, old_values, returns))
    errors = (values - returns).square()
    if clip is None:
        return errors / 2, torch.zeros_like(mask)
    bounded = (values.clamp(old_values - clip, old_values + clip) - returns).square()
    # The larger error counts: a value that has moved too far gains nothing by moving on.
    return torch.maximum(errors, bounded) / 2, bounded > errors


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
        # An idle rank has no token, and max of none fails.
        "logprob_abs_max": torch.cat([difference.abs(), difference.new_zeros(1)]).max(),
        "kl_sum": masked_sum(kl_penalty(rollout, policy, "k3"), mask),
        "tokens": mask.sum().double(),
    }
