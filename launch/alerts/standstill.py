"""Whether a run stands still: no step for longer than its steps take, by a deadline beside the loop."""

from collections import deque
from statistics import median

from launch.alerts.config import StalledAlert
from launch.alerts.rules import Finding

STEPS_KEPT = 50
"""Durations from which the median is taken."""
LONGEST_KEPT = 1000
"""Durations of which the longest counts: of evaluations there is one in many steps."""
_TIMES_LONGEST = 2.0


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
        self._durations: deque[float] = deque(maxlen=LONGEST_KEPT)
        self._told = False

    def begin(self, now: float) -> None:
        """The loop begins, or goes on."""
        self._since, self._told = now, False

    def stood(self, now: float) -> None:
        """Nothing could have run up to now: what has passed since the last step says nothing."""
        if self._since is not None:
            self.begin(now)

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
        if not self._durations:
            return self._rule.after_s
        by_median, by_longest = self._rule.times_median * self._usual, _TIMES_LONGEST * max(self._durations)
        return max(self._rule.after_s, by_median, by_longest)

    @property
    def _usual(self) -> float:
        return median(list(self._durations)[-STEPS_KEPT:])

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
        usual = f", which usually takes {_minutes(self._usual)}" if self._durations else ""
        text = f"no step for {_minutes(now - self._since)}{usual}{f'; the run is in {doing}' if doing else ''}"
        return Finding(rule="stalled", level=self._rule.level, text=text, value=now - self._since)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.3g} s"
