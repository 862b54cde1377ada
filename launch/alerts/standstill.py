"""Whether a run stands still: no step for longer than its steps usually take, by a deadline beside the loop."""

from collections import deque
from statistics import median

from launch.alerts.config import StalledAlert
from launch.alerts.rules import Finding

STEPS_KEPT = 50
"""Durations from which the median is taken."""


class Standstill:
    """The time since the last step of one attempt at a run. All times are seconds of one clock.

    Example:
        standstill.begin(now=0.0)       # the loop begins
        standstill.step(now=3.0)        # a step is done
        standstill.finding(now=700.0)   # stalled, and None when it is asked again before the next step
    """

    def __init__(self, rule: StalledAlert) -> None:
        self._rule = rule
        self._since: float | None = None
        self._durations: deque[float] = deque(maxlen=STEPS_KEPT)
        self._told = False

    def begin(self, now: float) -> None:
        """The loop begins, or goes on."""
        self._since, self._told = now, False

    def step(self, now: float) -> None:
        """A step is done."""
        if self._since is not None:
            self._durations.append(now - self._since)
        self.begin(now)

    def end(self) -> None:
        """No further step is to come."""
        self._since = None

    @property
    def longest_s(self) -> float:
        """Seconds that may pass without a step."""
        usual = median(self._durations) if self._durations else 0.0
        return max(self._rule.after_s, self._rule.times_median * usual)

    @property
    def deadline(self) -> float | None:
        """When the run counts as stalled, unless a step comes; None where that is told already, or none is to come."""
        return None if self._since is None or self._told else self._since + self.longest_s

    def finding(self, now: float, doing: str = "") -> Finding | None:
        """What to tell, once until the next step; `doing`: what the run does."""
        deadline = self.deadline
        if deadline is None or self._since is None or now < deadline:
            return None
        self._told = True
        usual = f", which usually takes {_minutes(median(self._durations))}" if self._durations else ""
        text = f"no step for {_minutes(now - self._since)}{usual}{f'; the run is in {doing}' if doing else ''}"
        return Finding(rule="stalled", level=self._rule.level, text=text, value=now - self._since)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.3g} s"
