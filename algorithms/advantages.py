"""Advantages: how much better a sample is than what was to be expected."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def group_relative(rewards: ArrayLike, *, normalize_std: bool) -> NDArray[np.float64]:
    """Advantages of one prompt's samples: reward minus the group's mean (GRPO, arXiv 2402.03300).

    A group without a winner teaches nothing: if its rewards differ by at most 1e-6 of their magnitude, advantages are
    exactly 0. (The rounding error of the mean, divided by an equally small deviation, would look like a signal.)

    Args:
        rewards: [N], N >= 2.
        normalize_std: divide by the Bessel-corrected standard deviation + 1e-4, as TRL does.

    Returns:
        Advantages, [N].

    Raises:
        ValueError: fewer than two rewards, not a vector, or a reward that is not finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"a group needs at least 2 rewards in a vector, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"rewards must be finite, got {values.tolist()}")
    if np.ptp(values) <= 1e-6 * np.abs(values).max():
        return np.zeros_like(values)
    centred = values - values.mean()
    return centred / (values.std(ddof=1) + 1e-4) if normalize_std else centred
