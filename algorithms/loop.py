"""What the training loops share: whom they report to, how they time their verbs, and when they may stop early."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from actors.config import UserError
from actors.files.parts import Entry
from algorithms.config_stop import StopWhen

Metrics = dict[str, float]
T = TypeVar("T")


class Reporter(Protocol):
    """Where a loop's progress goes: the screen, metrics.jsonl, W&B."""

    def start(self, title: str, total_steps: int, done_steps: int) -> None: ...
    def phase(self, name: str) -> None: ...
    def progress(self, done: int, total: int, what: str) -> None: ...
    def step(self, step: int, metrics: Metrics, left_out: Mapping[str, list[str]] | None = None) -> None: ...
    def samples(self, step: int, rows: list[dict[str, Any]], shown: list[dict[str, Any]]) -> None: ...
    def tokens(self, step: int, rows: list[dict[str, Any]]) -> None: ...
    def evaluation(self, step: int, rows: list[dict[str, Any]]) -> None: ...
    def note(self, text: str) -> None: ...


class Checkpointer(Protocol):
    """What a run needs to go on later."""

    def save(self, step: int, last: bool, best: bool = False) -> None:
        """Copy all parts of the run after this step, when it is time, and when it is the best so far; they are written
        beside the next steps."""
        ...

    def keep(self) -> None:
        """From here on, a run that is killed may go on from what `save` has copied, once it is written. The step is
        reported before, so that its metrics are never missing."""
        ...

    def end_if_asked(self) -> None:
        """Raise what ends the run, when it should make no further step; `keep` has kept this one."""
        ...

    def close(self, within_s: float | None = None) -> bool:
        """The run ends: wait, for so many seconds at most, until what was copied is written, or given up; returns
        whether it is."""
        ...


class Clock:
    """Times the verbs of a step; the same words are the phases on the screen and the keys `time/<verb>`."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._started = time.perf_counter()
        self._seconds: Metrics = {}

    @contextmanager
    def __call__(self, verb: str) -> Iterator[None]:
        self._reporter.phase(verb)
        started = time.perf_counter()
        yield
        self._seconds[f"time/{verb}"] = self._seconds.get(f"time/{verb}", 0.0) + time.perf_counter() - started

    def lap(self) -> Metrics:
        """Seconds of each verb and of the whole step since the last lap."""
        now = time.perf_counter()
        # The whole is measured, not added up: what no verb covers is in it.
        seconds = self._seconds | {"time/step": now - self._started}
        self._started, self._seconds = now, {}
        return seconds


LESS_IS_BETTER = ("loss", "perplexity", "calibration_error")
"""Last parts of the names of metrics of which the lowest value is the best."""


def tokens_per_second(tokens: float, seconds: Metrics) -> float:
    """Of a step, whatever its job: `tokens` by the step's `time/*` without evaluation."""
    # Evaluation does not train: steps with and without one are to be comparable.
    return tokens / (seconds["time/step"] - seconds.get("time/evaluate", 0.0))


def good_enough(stop_when: StopWhen | None, metrics: Metrics) -> bool:
    """Whether an evaluation has reached the value at which training may end."""
    if stop_when is None or not any(name.startswith("eval/") for name in metrics):  # nothing was evaluated yet
        return False
    return stop_when.met_by(evaluated(metrics, stop_when.metric, "algorithm.stop_when.metric"))


def evaluated(metrics: Metrics, name: str, field: str) -> float:
    """The value of an evaluation metric; NaN where prompts, and with them the metric, are missing from this evaluation.

    Raises UserError with `field` when there is none of this name.
    """
    if name not in metrics and metrics.get("eval/failed"):
        return math.nan
    if name not in metrics:
        known = ", ".join(sorted(name for name in metrics if name.startswith("eval/")))
        raise UserError(f"{field}: no such evaluation metric, got {name}; there are {known}")
    return metrics[name]


@dataclass
class Best:
    """The best value so far of the evaluation metric that `algorithm.best_by` names, if it names one."""

    metric: str | None
    value: float | None = None

    def improved_by(self, evaluation: Metrics) -> bool:
        """Whether an evaluation, which is empty when there was none, is the best so far.

        Raises:
            UserError: it has no such metric.
        """
        if self.metric is None or not evaluation:
            return False
        value = evaluated(evaluation, self.metric, "algorithm.best_by")
        if not improves(self.metric, value, self.value):
            return False
        self.value = value
        return True

    def save(self, directory: Path) -> Entry:
        """What a checkpoint keeps, which the launcher reads too: whose checkpoint the best one is."""
        return {"metric": self.metric, "value": self.value}

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from `entry`, {} where there was none; the best by another metric says nothing about this one."""
        self.value = entry["value"] if entry and entry["metric"] == self.metric else None


def improves(name: str, value: float, best: float | None) -> bool:
    """Whether a metric has never been better; of a loss or perplexity, less is better. One that is not finite never
    is."""
    if not math.isfinite(value):
        return False
    if best is None or not math.isfinite(best):
        return True
    return value < best if less_is_better(name) else value > best


def less_is_better(name: str) -> bool:
    """Whether the lowest value of a metric is the best."""
    return name.rpartition("/")[2] in LESS_IS_BETTER  # eval/loss and eval/NAME/loss alike


def spread_over(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, evenly spaced, the last and the first included; one alone is the last.

    Example: spread_over([5, 4, 3, 2, 1], 3) is [5, 3, 1].
    """
    if count >= len(items):
        return list(items)
    # Counted from the end, so that one alone is the last.
    last, gaps = len(items) - 1, max(1, count - 1)
    return [items[last - round((count - 1 - place) * last / gaps)] for place in range(count)]
