"""What happens to rewards before baselines, and to the coefficient of a KL penalty that is part of them."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actors.files.parts import Entry


def overlong_penalty(tokens: int, limit: int, *, buffer: int, penalty: float) -> float:
    """DAPO's soft penalty (arXiv 2503.14476), to be added to the reward: 0 to -`penalty`.

    Args:
        tokens: length of the response.
        limit: length at which the penalty is full.
        buffer: tokens before `limit` over which it grows from 0, 1 to `limit`.
        penalty: its size at the limit, in units of reward.

    Raises:
        ValueError: a buffer that is not between 1 and `limit`.
    """
    if not 1 <= buffer <= limit:
        raise ValueError(f"buffer must be from 1 to {limit}, the longest response, got {buffer}")
    excess = tokens - (limit - buffer)
    return -penalty * min(1.0, excess / buffer) if excess > 0 else 0.0


@dataclass
class RunningMoments:
    """Mean and variance of all rewards of a run, merged batch by batch.

    Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983: exact also when the mean is large.
    """

    count: int = 0
    mean: float = 0.0
    squared_distances: float = 0.0
    """Sum of squared distances from the mean."""

    def update(self, values: ArrayLike) -> None:
        """Count in `values` [N]; raises ValueError if one of them is not finite."""
        batch = _finite(values)
        if not len(batch):
            return
        mean, total = float(batch.mean()), self.count + len(batch)
        shift = mean - self.mean
        self.squared_distances += float(np.square(batch - mean).sum()) + shift**2 * self.count * len(batch) / total
        self.mean += shift * len(batch) / total
        self.count = total

    def normalise(self, values: ArrayLike) -> NDArray[np.float64]:
        """`values` [N] minus the mean, divided by the Bessel-corrected standard deviation.

        While that is 0 (equal rewards so far, or only one), the mean is subtracted and nothing divided. What differs
        from the mean by rounding errors alone gives exactly 0. Raises ValueError if a value is not finite.
        """
        distances = _finite(values) - self.mean
        noise = 1e-9 * abs(self.mean)
        # So close to the mean a distance is all rounding, which advantages of equal rewards would take for a signal.
        distances[np.abs(distances) <= noise] = 0
        std = math.sqrt(self.squared_distances / (self.count - 1)) if self.count > 1 else 0.0
        return distances if std <= noise else distances / std

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps, as JSON values."""
        return {"count": self.count, "mean": self.mean, "squared_distances": self.squared_distances}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from `state`."""
        self.count, self.mean = int(state["count"]), state["mean"]
        self.squared_distances = state["squared_distances"]


@dataclass
class AdaptiveKL:
    """Coefficient of a KL penalty that keeps the KL near a target (arXiv 1909.08593, section 2.2)."""

    coef: float
    target: float | None
    """KL per response in nats; None: the coefficient stays as it is."""
    horizon: int
    """Samples over which the coefficient reacts."""

    def update(self, kl: float, samples: int) -> None:
        """Adjust `coef` after a step: times 1 + clip(kl / target - 1, -0.2, 0.2) samples / horizon.

        Args:
            kl: mean over the step's samples of KL per response, in nats.
            samples: samples of the step.

        Raises:
            ValueError: a KL that is not finite, or 5 x horizon samples, with which the coefficient could become 0.
        """
        if self.target is None:
            return
        if not math.isfinite(kl):
            raise ValueError(f"KL must be finite, got {kl}")
        if samples >= 5 * self.horizon:
            raise ValueError(f"horizon must be above a fifth of the {samples} samples of a step, got {self.horizon}")
        error = min(0.2, max(-0.2, kl / self.target - 1))  # the paper's bounds
        self.coef *= 1 + error * samples / self.horizon

    def save(self, directory: Path) -> Entry:
        """What a checkpoint keeps."""
        return {"coef": self.coef}

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from `entry`; a fixed coefficient is the configuration's."""
        if self.target is not None:
            self.coef = entry["coef"]


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"rewards must be finite, got {array.tolist()}")
    return array
