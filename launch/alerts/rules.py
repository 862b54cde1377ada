"""When a metric is worth an alert: not finite, out of a range, falling; each once, until it was not so in between."""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from launch.alerts.config import AlertsConfig, FallingAlert, LimitAlert, NotFiniteAlert

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A condition that has begun to hold."""

    rule: str
    """Field of `tracking.alerts`."""
    level: str
    text: str
    """For people, in one line."""
    metric: str | None = None
    value: float | None = None


class Spells:
    """For how long conditions hold, by any key; each is to be told once in a spell.

    Example:
        spells.begins("a", True, for_steps=2)  # False: it holds for the first time
        spells.begins("a", True, for_steps=2)  # True
        spells.begins("a", True, for_steps=2)  # False: it has been told
    """

    def __init__(self) -> None:
        self._held: dict[object, int] = {}

    def begins(self, key: object, holds: bool, for_steps: int = 1) -> bool:
        """Take in whether a condition holds; returns whether it now does for `for_steps` in a row, for the first time
        since it did not."""
        self._held[key] = self._held.get(key, 0) + 1 if holds else 0
        return self._held[key] == for_steps


class MetricRules:
    """Judges the steps of one attempt at a run, in their order."""

    def __init__(self, config: AlertsConfig) -> None:
        self._config, self._spells = config, Spells()
        falling = config.falling
        self._values = deque[tuple[int, float]](maxlen=2 * falling.window_steps if falling else 0)
        """(step, value) of the falling metric, the finite ones."""

    def step(self, step: int, metrics: Metrics) -> list[Finding]:
        """What begins to hold with this step; a metric that it lacks is not judged."""
        found = list(self._limits(metrics))
        if rule := self._config.not_finite:
            found += self._not_finite(rule, metrics)
        if rule := self._config.falling:
            found += self._falling(rule, step, metrics)
        return found

    def _not_finite(self, rule: NotFiniteAlert, metrics: Metrics) -> Iterable[Finding]:
        """All that begin in one step are one finding: where a loss is NaN, the gradient's norm is, too."""
        names = [
            name
            for name, value in metrics.items()
            if must_be_finite(name) and self._spells.begins(("nan", name), not math.isfinite(value), rule.for_steps)
        ]
        if names:
            first, *others = names
            more = f", as {'is' if len(others) == 1 else 'are'} {', '.join(others)}" if others else ""
            text = f"{first} is {in_words(metrics[first])}{more}"
            yield Finding(rule="not_finite", level=rule.level, text=text, metric=first, value=metrics[first])

    def _limits(self, metrics: Metrics) -> Iterable[Finding]:
        for number, rule in enumerate(self._config.limits):
            value = metrics.get(rule.metric)
            if value is None:
                continue
            if not self._spells.begins(("limit", number), not within_limit(rule, value), rule.for_steps):
                continue
            bound = f"above {rule.above:g}" if rule.above is not None else f"below {rule.below:g}"
            steps = f" for {rule.for_steps} steps in a row" if rule.for_steps > 1 else ""
            told = bound if not math.isnan(value) else f"to be told when {bound}"
            text = f"{rule.metric} is {in_words(value)}, {told}{steps} (tracking.alerts.limits.{number})"
            yield Finding(rule="limits", level=rule.level, text=text, metric=rule.metric, value=value)

    def _falling(self, rule: FallingAlert, step: int, metrics: Metrics) -> Iterable[Finding]:
        value = metrics.get(rule.metric)
        # One that is not finite would make every mean so, for two windows: `not_finite` tells it.
        if value is None or not math.isfinite(value):
            return
        self._values.append((step, value))
        window = rule.window_steps
        if len(self._values) < 2 * window:
            return
        values = list(self._values)
        before, after = ([item for _, item in part] for part in (values[:window], values[window:]))
        fall = deviations_below(before, after)
        if self._spells.begins("falling", fall > rule.deviations, rule.for_steps):
            text = (
                f"{rule.metric} fell from {in_words(_mean(before))} to {in_words(_mean(after))} in means over {window} "
                f"steps, by {_times(fall)} standard deviations of a step (told above {rule.deviations:g}); the last "
                f"are steps {values[window][0]} to {step}"
            )
            yield Finding(rule="falling", level=rule.level, text=text, metric=rule.metric, value=value)


def must_be_finite(name: str) -> bool:
    """Whether a metric is a loss, a gradient norm or a reward; those of evaluations may lack a value."""
    parts = name.split("/")
    return parts[0] in ("loss", "reward", "rewards") or parts[-1] in ("loss", "grad_norm")


def within_limit(rule: LimitAlert, value: float) -> bool:
    """Whether a value is one that needs no telling; NaN is not."""
    # In this order: a comparison with NaN is false.
    return value <= rule.above if rule.above is not None else rule.below is not None and value >= rule.below


def deviations_below(before: Sequence[float], after: Sequence[float]) -> float:
    """By how many standard deviations of a value within its window the mean of `after` is below that of `before`.

    The deviation is that of both windows, pooled (Cohen's d): one of them alone may hold equal values. 0 where the mean
    is not below; infinite where all values within each window are equal.
    """
    fall = _mean(before) - _mean(after)
    if not fall > 0:
        return 0.0
    spread = math.sqrt((_variance(before) + _variance(after)) / 2)
    return fall / spread if spread else math.inf


def in_words(value: float) -> str:
    """A value as people read it."""
    return "NaN" if math.isnan(value) else f"{value:.3g}".replace("inf", "infinity")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(value / len(values) for value in values)  # a sum of large ones would overflow


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    distances = [value - mean for value in values]
    return sum(distance * distance for distance in distances) / (len(values) - 1)  # infinite, where it is too large


def _times(fall: float) -> str:
    return "infinitely many" if math.isinf(fall) else f"{fall:.1f}"
