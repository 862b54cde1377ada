"""Settings of what a run alerts to: rules over its metrics and events, each kind with its own fields."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from actors.config_base import Config, Seconds
from actors.config_numbers import PositiveFactor, Steps, Threshold

AlertLevel = Literal["warn", "error"]
"""warn: somebody should look; error: the run is lost, or stands still."""
Window = Annotated[int, Field(ge=2, le=10_000)]
"""Steps over which a mean is taken."""


class NotFiniteAlert(Config):
    """NaN or infinity in a loss, a gradient norm or a reward."""

    for_steps: Steps = 1
    """Steps in a row in which the metric is so before it is told."""
    level: AlertLevel = "error"
    """How bad it is."""


class LimitAlert(Config):
    """A metric that leaves a range of yours; NaN is in none."""

    metric: str
    """Name in metrics.jsonl, for example policy/kl."""
    above: Threshold | None = None
    """Told when the metric is above this value."""
    below: Threshold | None = None
    """Told when the metric is below this value."""
    for_steps: Steps = 1
    """Steps in a row, of those that have the metric, in which it is so before it is told."""
    level: AlertLevel = "warn"
    """How bad it is."""

    @model_validator(mode="after")
    def _one_bound(self) -> "LimitAlert":
        if (self.above is None) == (self.below is None):
            got = "neither" if self.above is None else "both (a rule each)"
            raise ValueError(f"above or below must be given, one of the two, got {got}")
        return self


class FallingAlert(Config):
    """A metric whose mean over the last steps is below that of the steps before."""

    metric: str = "reward/mean"
    """Name in metrics.jsonl, of a metric of which more is better."""
    window_steps: Window = 20
    """Steps of each of the two means."""
    deviations: PositiveFactor = 2.0
    """Told when the later mean is lower by more than so many standard deviations of a step within its window."""
    for_steps: Steps = 1
    """Steps in a row in which it is so before it is told."""
    level: AlertLevel = "warn"
    """How bad it is."""


class StalledAlert(Config):
    """No step for long."""

    after_s: Seconds = 600.0
    """Seconds without a step before it is told, at least."""
    times_median: PositiveFactor = 10.0
    """And so many times the median duration of the last steps, where there have been some; and twice the longest."""
    level: AlertLevel = "error"
    """How bad it is."""


class FaultAlert(Config):
    """A process, node or disk that fails; the screen has a line of its own for each of these."""

    noticed: AlertLevel | None = "warn"
    """How bad a fault is that the run may survive; null: not told."""
    given_up: AlertLevel | None = "error"
    """How bad one is that has ended the run; null: not told."""


class DiskAlert(Config):
    """Too little room on the disk of the run's directory for the next checkpoint."""

    checkpoints: PositiveFactor = 1.0
    """Told when the free space is below that of so many checkpoints like the last one."""
    level: AlertLevel = "warn"
    """How bad it is."""


class AlertsConfig(Config):
    """What is told of a run beside its metrics; of any kind, null switches it off."""

    health: AlertLevel | None = "warn"
    """Health warnings, of metrics out of the range in which training usually works; null: on the screen alone. A rule
    of `limits` on the same metric takes the warning's place."""
    not_finite: NotFiniteAlert | None = NotFiniteAlert()
    """NaN or infinity in a loss, a gradient norm or a reward."""
    limits: list[LimitAlert] = []
    """Ranges of yours: [{metric: policy/kl, above: 0.3, for_steps: 5}]"""
    falling: FallingAlert | None = FallingAlert()
    """A reward that falls."""
    stalled: StalledAlert | None = StalledAlert()
    """No step for long."""
    faults: FaultAlert = FaultAlert()
    """Processes, nodes and disks that fail."""
    disk: DiskAlert | None = DiskAlert()
    """Too little room for the next checkpoint."""
    failed: AlertLevel | None = "error"
    """The run has ended by an error that is no such fault."""
