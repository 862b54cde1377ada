"""Losses of preference optimisation (DPO, arXiv 2305.18290, and its family), of KTO and of pairwise reward models.

They work on sums of logprobs over response tokens, one number per sequence, in nats; here [P] is pairs of a chosen and
a rejected response and [S] single responses. Every loss is a vector: the caller divides its sum by the count of the
whole optimizer step, so micro-batches add up however the step is divided.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from algorithms.config_offline import LENGTH_AVERAGED, DPOConfig, PreferenceLossName
from algorithms.losses import bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogprobs:
    """Logprobs of pairs, summed over response tokens (nats), and their token counts; all [P]."""

    policy_chosen: Tensor
    """With gradient."""
    policy_rejected: Tensor
    """With gradient."""
    reference_chosen: Tensor
    """Without gradient; not read by losses without a reference."""
    reference_rejected: Tensor
    """Without gradient; not read by losses without a reference."""
    chosen_tokens: Tensor
    """Response tokens; read by losses of averaged logprobs only."""
    rejected_tokens: Tensor
    """Response tokens; read by losses of averaged logprobs only."""


def preference_loss(name: PreferenceLossName, pairs: PairLogprobs, config: DPOConfig) -> Tensor:
    """Loss of each pair, [P].

    a and r are the log-ratios policy - reference of chosen and rejected, d = a - r, b = beta, e = label_smoothing.
    cpo and orpo are their preference terms only: `nll_weight` gives the rest. aot and aot_unpaired need the references
    of `matched_references`; the value of aot_unpaired is right in its sum over the update, its gradient pair by pair.

    Args:
        name: the loss.
        pairs: sums of logprobs.
        config: beta, label_smoothing (above 0 for robust and exo), simpo_gamma and discopop_tau.

    Raises:
        ValueError: kto and sft, which do not compare pairs, or an unknown name.
    """
    if name in LENGTH_AVERAGED:
        return _averaged_loss(name, pairs, config)
    e = config.label_smoothing
    if name == "cpo":  # arXiv 2401.08417
        return _smoothed(config.beta * (pairs.policy_chosen - pairs.policy_rejected), e)
    a = config.beta * (pairs.policy_chosen - pairs.reference_chosen)
    r = config.beta * (pairs.policy_rejected - pairs.reference_rejected)
    d = a - r
    match name:
        case "sigmoid" | "aot":  # arXiv 2305.18290, smoothed: https://ericmitchell.ai/cdpo.pdf; 2406.05882
            return _smoothed(d, e)
        case "aot_unpaired":  # arXiv 2406.05882
            return _two_sided(a, -r, e)
        case "hinge":  # arXiv 2305.10425
            return torch.relu(1 - d)
        case "robust":  # arXiv 2403.00409
            return (e * logsigmoid(-d) - (1 - e) * logsigmoid(d)) / (1 - 2 * e)
        case "exo":  # arXiv 2402.00856, pairs
            return _exo(d, e)
        case "nca":  # arXiv 2402.05369, pairs
            return -logsigmoid(a) - (logsigmoid(-a) + logsigmoid(-r)) / 2
        case "bco":  # arXiv 2404.04656, pairs, without the shift of rewards
            return -logsigmoid(a) - logsigmoid(-r)
        case "sppo":  # arXiv 2405.00675, labels as probabilities 1 and 0
            return ((a - 0.5) ** 2 + (r + 0.5) ** 2) / config.beta**2
        case "apo_zero":  # arXiv 2408.06266
            return torch.sigmoid(-a) + torch.sigmoid(r)
        case "apo_down":  # arXiv 2408.06266
            return torch.sigmoid(a) + torch.sigmoid(-d)
        case "discopop":  # arXiv 2406.08414
            return _discopop(d, config.discopop_tau)
        case _:
            raise ValueError(f"preference_loss compares pairs, got {name}, which does not")


def _smoothed(margin: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def _two_sided(chosen_margin: Tensor, rejected_margin: Tensor, label_smoothing: float) -> Tensor:
    """Margins at the ranks of chosen and rejected: each carries half of its rank's loss, but all of its gradient.

    For the other side of either margin is a constant: that response's gradient comes where it is itself trained.
    """
    both = _smoothed(chosen_margin, label_smoothing) + _smoothed(rejected_margin, label_smoothing)
    return both - both.detach() / 2  # half the value, all of the gradient


def _exo(margin: Tensor, label_smoothing: float) -> Tensor:
    """KL(policy's choice || smoothed labels)."""
    chosen, rejected = logsigmoid(margin), logsigmoid(-margin)
    labels = math.log1p(-label_smoothing), math.log(label_smoothing)
    return chosen.exp() * (chosen - labels[0]) + rejected.exp() * (rejected - labels[1])


def _discopop(margin: Tensor, tau: float) -> Tensor:
    """Logistic and exponential loss, mixed by the sigmoid of margin / tau."""
    # The exponential loss times its share is one exponent: the first alone overflows float32 at margins below -88.
    exponential = torch.exp(bounded(logsigmoid(margin / tau) - margin))
    return exponential - logsigmoid(margin) * torch.sigmoid(-margin / tau)


def _averaged_loss(name: PreferenceLossName, pairs: PairLogprobs, config: DPOConfig) -> Tensor:
    """Losses of logprobs averaged over tokens; the mean of an empty response is 0."""
    chosen_tokens, rejected_tokens = pairs.chosen_tokens.clamp(min=1), pairs.rejected_tokens.clamp(min=1)
    if name in ("ipo", "sigmoid_norm"):
        chosen = (pairs.policy_chosen - pairs.reference_chosen) / chosen_tokens
        margin = chosen - (pairs.policy_rejected - pairs.reference_rejected) / rejected_tokens
        if name == "ipo":  # arXiv 2310.12036
            return (margin - 1 / (2 * config.beta)) ** 2
        return -logsigmoid(config.beta * margin)  # arXiv 2411.15124
    chosen, rejected = pairs.policy_chosen / chosen_tokens, pairs.policy_rejected / rejected_tokens
    if name == "simpo":  # arXiv 2405.14734
        return -logsigmoid(config.beta * (chosen - rejected) - config.simpo_gamma)
    log_odds = (chosen - _log1mexp(chosen)) - (rejected - _log1mexp(rejected))
    return -config.beta * logsigmoid(log_odds)  # orpo, arXiv 2403.07691


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) of logprobs x <= 0."""
    # Logprobs nearer to 0 than the dtype resolves at 1 are rounding; 0 itself would give infinities.
    return torch.log(-torch.expm1(x.clamp(max=-torch.finfo(x.dtype).eps)))


def nll_weight(name: PreferenceLossName, config: DPOConfig) -> float:
    """Weight of the chosen responses' negative log-likelihood in a loss, 0 where there is none.

    It multiplies a mean over tokens, not over pairs: the sum over the chosen responses' tokens (prompts excluded)
    divided by the number of such tokens in the whole update. That is TRL's in cpo and sft, where the batch is the
    micro-batch of one device; TRL's orpo also counts prompt tokens, the paper (arXiv 2403.07691) responses only.
    """
    return {"cpo": config.cpo_alpha, "orpo": 1.0, "sft": 1.0}.get(name, 0.0)


def matched_references(
    name: Literal["aot", "aot_unpaired"],
    *,
    policy_chosen: NDArray[np.float64],
    policy_rejected: NDArray[np.float64],
    reference_chosen: NDArray[np.float64],
    reference_rejected: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """References with which `preference_loss` gives the sorted losses of alignment by optimal transport, 2406.05882.

    The losses compare quantiles, so they need all pairs of the optimizer update, over all ranks: the caller first
    computes the policy's sums without gradient and with the weights of the update, calls this once, then gives
    each micro-batch its pairs' entries as `reference_chosen` and `reference_rejected` for this loss only (other losses
    of a weighted sum, and logged rewards, keep the real ones).

    aot: the pair whose policy difference (chosen - rejected) has rank k gets the references of the pair whose reference
    difference has rank k.
    aot_unpaired: D_k = (k-th smallest log-ratio of chosen) - (k-th smallest of rejected). A chosen response gets its
    own reference + the log-ratio of the rejected one at its rank, so that policy - reference is D at that rank; a
    rejected one its own + the log-ratio of the chosen one at its rank, so that policy - reference is -D at that rank.
    Policy values in these references are constants: each sequence's gradient is exact, though its partner is elsewhere.

    Equal values keep their order.

    Args:
        name: the loss.
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: sums of logprobs of the update, [P].

    Returns:
        reference_chosen and reference_rejected, [P], in the order of the pairs given.

    Raises:
        ValueError: another name, or arrays of different lengths.
    """
    lengths = [len(x) for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)]
    if len(set(lengths)) > 1:
        raise ValueError(f"policy and reference must have the same pairs, got lengths {lengths}")
    if name == "aot":
        partner = _same_rank(policy_chosen - policy_rejected, reference_chosen - reference_rejected)
        return reference_chosen[partner], reference_rejected[partner]
    if name != "aot_unpaired":
        raise ValueError(f"only aot and aot_unpaired match references, got {name}")
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return (
        reference_chosen + rejected[_same_rank(chosen, rejected)],
        reference_rejected + chosen[_same_rank(rejected, chosen)],
    )


def _same_rank(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each of `values` the index of the one of `others` with the same rank."""
    partner = np.empty(len(values), dtype=np.int64)
    partner[np.argsort(values, kind="stable")] = np.argsort(others, kind="stable")
    return partner


def kto_loss(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    kl: float,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """Kahneman-Tversky loss of single labelled responses (arXiv 2402.01306), [S].

    With x = policy - reference: desirable_weight * (1 - s(beta (x - kl))) for desirable responses,
    undesirable_weight * (1 - s(beta (kl - x))) for the others, s the sigmoid.

    Args:
        policy, reference: logprobs summed over response tokens, the first with gradient, [S].
        desirable: bool [S].
        kl: reference point in nats: max(0, mean of policy - reference over mismatched prompts and responses).
        beta, desirable_weight, undesirable_weight: as in DPOConfig.

    Raises:
        ValueError: a negative or undefined `kl`.
    """
    if not kl >= 0:  # nor NaN
        raise ValueError(f"kl must be at least 0, got {kl}")
    reward = beta * (policy - reference - kl)
    return torch.where(desirable, desirable_weight * torch.sigmoid(-reward), undesirable_weight * torch.sigmoid(reward))


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
    """-log s(chosen - rejected - margin) of reward-model scores [P] (arXiv 2203.02155; margins: 2307.09288), [P]."""
    return -logsigmoid(chosen - rejected - margins)


def centering_penalty(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(chosen + rejected)^2 of reward-model scores [P], smallest for scores centred on 0 (arXiv 2312.09244), [P]."""
    return (chosen + rejected) ** 2


def expected_calibration_error(probabilities: NDArray[np.float64], bins: int = 10) -> float:
    """Gap between confidence and accuracy of predicted winners, averaged over bins by their size (arXiv 1706.04599).

    The predicted winner has confidence max(p, 1 - p); it is right if p > 0.5, half right if p is 0.5 (a coin's toss).

    Args:
        probabilities: p = s(chosen - rejected) that the chosen response wins, which it did, [P].
        bins: intervals of equal width between confidences 0.5 and 1.

    Returns:
        The error, 0 to 1.

    Raises:
        ValueError: no probabilities, one outside 0 to 1, or fewer than 1 bin.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if bins < 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"calibration needs probabilities between 0 and 1 and at least 1 bin, got {len(p)} and {bins}")
    confidence = np.maximum(p, 1 - p)
    correct = np.where(p == 0.5, 0.5, p > 0.5)  # a coin's toss is right half of the time
    bin_of = np.minimum((confidence - 0.5) * 2 * bins, bins - 1).astype(np.int64)
    # The mean gap of a bin times its share of the pairs is the sum of its gaps over all pairs.
    return float(np.abs(np.bincount(bin_of, weights=correct - confidence)).sum() / len(p))
