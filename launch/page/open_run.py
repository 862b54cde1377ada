"""A run that is open on a page: what was read of its files, and read on."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from launch.page.files import Below, run_of
from launch.page.metric_table import MetricTable
from launch.page.rows import as_json
from launch.page.samples import HeldOut
from launch.page.step_lines import StepLines
from launch.page.tail import FileTail

MOST_OPEN = 8
"""Runs that are kept in memory."""
MOST_BESIDE = MOST_OPEN - 1
"""That are drawn over one: with more, each question would read another one anew."""
_FILES = (
    *("config.json", "metrics.jsonl", "events.jsonl", "alerts.jsonl", "samples.jsonl", "eval_samples.jsonl"),
    *("tokens.jsonl", "logs/now.json", "logs/driver.log", "export/config.json"),
)
_FOLDERS = "logs", "logs/ray", "checkpoints"
_MOST_LINES = 20_000


class EventLines:
    """All lines of a short file, such as events.jsonl, read on as it grows; what is no mapping is left out."""

    def __init__(self, below: Below, path: Path) -> None:
        self.lines: list[dict[str, Any]] = []
        self.read = FileTail(below, path, self._take, self.lines.clear).read

    def _take(self, _: int, line: bytes) -> None:
        found = as_json(line)
        if found is not None and len(self.lines) < _MOST_LINES:
            self.lines.append(found)


class OpenRun:
    """What is known of one run. Whoever reads its metrics and events holds its `lock`, and calls `read` first where it
    wants what is new; whoever reads its samples, their tokens or held-out prompts holds `rows_lock`: files that take
    long are not in the way of its steps.

    Raises (the constructor): FileNotFoundError where there is no such run.
    """

    def __init__(self, below: Below, name: str) -> None:
        self.below, self.id, self.directory = below, name, run_of(below, name)
        self.lock, self.rows_lock = threading.RLock(), threading.RLock()
        self.table = MetricTable(below, self.directory)
        self.events = EventLines(below, self.directory / "events.jsonl")
        self.alerts = EventLines(below, self.directory / "alerts.jsonl")
        self.samples = StepLines(below, self.directory / "samples.jsonl")
        self.tokens = StepLines(below, self.directory / "tokens.jsonl")
        self.held_out = HeldOut(below, self.directory)
        self.answer: dict[str, Any] | None = None
        """What was told of it last, of what that was made, and when it was looked at (`time.monotonic`)."""
        self.answer_of: object = None
        self.answer_at = 0.0

    def read(self) -> None:
        """Take what is new of the small files. Raises FileNotFoundError where the run is gone."""
        run_of(self.below, self.id)
        self.table.read()
        self.events.read()
        self.alerts.read()

    def stamps(self) -> tuple[object, ...]:
        """What tells whether something of it has changed."""
        files = [self.below.stamp(self.directory / name) for name in _FILES]
        return (*files, *(self.below.changed(self.directory / name) for name in _FOLDERS))

    def has(self, name: str) -> bool:
        """Whether there is something in one of its files."""
        stamp = self.below.stamp(self.directory / name)
        return stamp is not None and stamp.size > 0


class OpenRuns:
    """The runs that are open, at most so many: the one that was not asked for longest goes first."""

    def __init__(self, below: Below) -> None:
        self._below, self._lock = below, threading.Lock()
        self._open: OrderedDict[str, OpenRun] = OrderedDict()

    def get(self, name: str) -> OpenRun:
        """The run of this id. Raises FileNotFoundError where there is none."""
        with self._lock:
            found = self._open.pop(name, None)
            if found is None:
                found = OpenRun(self._below, name)
            self._open[name] = found
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
            return found
