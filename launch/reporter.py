"""One place to report to: the screen, the files and trackers, and warnings when a metric leaves its healthy range."""

from typing import Any

from launch.display import Display
from launch.health import HISTORY, warnings_for
from launch.tracking import Tracker

Metrics = dict[str, float]


class RunReporter:
    """Implements `algorithms.loop.Reporter`."""

    def __init__(self, display: Display, tracker: Tracker) -> None:
        self._display = display
        self._tracker = tracker
        self._history: list[Metrics] = []

    def start(self, title: str, total_steps: int, done_steps: int) -> None:
        """Begin the progress display."""
        self._display.start(title, total_steps, done_steps)

    def phase(self, name: str) -> None:
        """Say what runs now."""
        self._display.phase(name)

    def step(self, step: int, metrics: Metrics) -> None:
        """Write and show a step's metrics, and warn about those out of range."""
        self._tracker.log(step, metrics)
        self._display.step(step, metrics)
        for line in warnings_for(metrics, self._history):
            self._display.warning(line)
        self._history = [*self._history[-HISTORY:], metrics]

    def samples(self, step: int, rows: list[dict[str, Any]], show: bool) -> None:
        """Write completions with their rewards, and show a few."""
        self._tracker.samples(step, rows)
        if show:
            self._display.samples(rows[:4])

    def evaluation(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write the completions of an evaluation."""
        self._tracker.evaluation(step, rows)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._display.note(text)
