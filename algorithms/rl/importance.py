"""Importance weights of a step, pi_trainer / pi_sampler, as counts that add up, and the quantiles that these tell.

Counts of whole numbers in fixed bins are the same however an update is divided into micro-batches and over ranks, and
those of several updates are one distribution. A bin is a 16th of an octave, so that a quantile is within 2.2 % of the
exact one, from 1/64 to 64; the outermost bins hold all that is beyond. A weight of 1 is told as 1.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from algorithms.losses import bounded, masked_sum, sequence_sums
from algorithms.rl.losses import kl_penalty

_PER_OCTAVE = 16
_FARTHEST = 6 * _PER_OCTAVE
"""Bins on each side of that of weight 1."""
BINS = 2 * _FARTHEST + 1


@torch.no_grad()
def weight_sums(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    sequence_ids: Tensor,
    *,
    level: Literal["token", "sequence"],
    cap: float | None,
) -> dict[str, Tensor]:
    """What the weights of `importance_weights`, before anything is cut, add to those of other micro-batches.

    Args:
        old_logprobs, rollout_logprobs, mask, sequence_ids, level: as in `importance_weights`.
        cap: largest weight; None: nothing is cut.

    Returns:
        float64: `counts`, weights in each bin, [BINS], NaN everywhere if a weight is NaN; `cut`, those above `cap`;
        `kl`, over action tokens, the k3 estimate of KL(rollout || old). At level token every action token has a weight,
        at level sequence every sequence with actions.
    """
    log_ratio = torch.where(mask, old_logprobs - rollout_logprobs, 0)
    if level == "token":
        log_weights = log_ratio[mask]
    else:
        acts = sequence_sums(mask.to(log_ratio.dtype), sequence_ids) > 0
        log_weights = sequence_sums(log_ratio, sequence_ids)[acts]
    # As the weights are compared with the cap that are multiplied with.
    cut = torch.exp(bounded(log_weights)) > (torch.inf if cap is None else cap)
    # float64, as in `mismatch`: near 0 the estimate is less than the rounding of float32.
    penalties = kl_penalty(rollout_logprobs.double(), old_logprobs.double(), "k3")
    return {"counts": _counts(log_weights), "cut": cut.sum().double(), "kl": masked_sum(penalties, mask)}


def _counts(log_weights: Tensor) -> Tensor:
    steps = (log_weights.double() * (_PER_OCTAVE / math.log(2))).round()
    wrong = torch.isnan(steps)
    places = torch.where(wrong, 0, steps).clamp(-_FARTHEST, _FARTHEST).long() + _FARTHEST
    counts = torch.bincount(places, minlength=BINS).double()
    # In no bin a NaN would be lost: with it, nothing is known of the distribution.
    return torch.where(wrong.any(), torch.nan, counts)


def quantile(counts: Sequence[float], share: float) -> float:
    """The weight that `share` (above 0, at most 1) of all weights do not exceed; NaN for counts that are NaN.

    `counts`: weights in each bin, [BINS], not all 0.
    """
    least, below = share * sum(counts) * (1 - 1e-12), 0.0  # 0.07 x 100 is a little above 7
    for place, count in enumerate(counts):
        below += count
        if below >= least:
            return 2.0 ** ((place - _FARTHEST) / _PER_OCTAVE)
    return math.nan
