"""One place to report to: the screen, the files and trackers, and warnings when a metric leaves its healthy range."""

from collections.abc import Mapping, Sequence

from algorithms.loop import spread_over
from launch.alerts.alerts import Alerts
from launch.run.faults import Faults
from launch.screen.display import Display
from launch.screen.health import Health
from launch.storage.uploads import Uploads
from launch.tracking.now import END, Now
from launch.tracking.redraw import CurveDrawer
from launch.tracking.tracker import Tracker

Metrics = dict[str, float]

SAMPLES_SHOWN = 4


class RunReporter:
    """Implements `algorithms.loop.Reporter`."""

    def __init__(
        self,
        display: Display,
        tracker: Tracker,
        now: Now,
        curves: CurveDrawer | None = None,
        faults: Faults | None = None,
        uploads: Uploads | None = None,
        alerts: Alerts | None = None,
    ) -> None:
        self._display = display
        self._tracker = tracker
        self.now = now
        self.uploads = uploads
        """What puts checkpoints into storage; None where there is none."""
        self._curves = curves
        self._faults = faults
        self._alerts = alerts
        self._health = Health(unless=alerts.replaced if alerts else ())

    def start(self, title: str, total_steps: int, done_steps: int) -> None:
        """Begin the progress display."""
        self._display.start(title, total_steps, done_steps)
        self.now.start(done_steps, total_steps)
        if self._alerts:
            self._alerts.begin()

    def phase(self, name: str) -> None:
        """Say what runs now."""
        self._display.phase(name)
        self.now.phase(name)
        if self._alerts and self.now.events.phase == END:
            self._alerts.end_of_loop()

    def progress(self, done: int, total: int, what: str) -> None:
        """How far what runs now has come."""
        self._display.progress(done, total, what)

    def step(self, step: int, metrics: Metrics, left_out: Mapping[str, list[str]] | None = None) -> None:
        """Write and show a step's metrics, and warn about those out of range; why -> prompts that are `left_out` are in
        metrics.jsonl."""
        metrics = metrics | self.now.step(step)
        self._tracker.log(step, metrics, left_out)  # written before it is shown: the terminal may be gone
        if self._faults and step:  # 0 is an evaluation before the first
            self._faults.finish_step(step)
        self._display.step(step, metrics)
        for metric, line in self._health.out_of_range(metrics).items():
            self._display.warning(line)
            if self._alerts:
                self._alerts.health(metric, metrics[metric], line)
        if self._alerts:
            self._alerts.step(step, metrics)
        if news := self._health.good_news(metrics):
            self._display.note(news)
        if self._curves:
            self._curves.step()

    def samples(self, step: int, rows: Sequence[Mapping[str, object]], shown: Sequence[Mapping[str, object]]) -> None:
        """Write completions with their rewards, and show a few of those that are `shown`: from the best to the
        worst."""
        self._tracker.samples(step, rows)
        if shown:
            self._display.samples(spread_over(shown, SAMPLES_SHOWN))

    def tokens(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Write the tokens of some of these completions."""
        self._tracker.tokens(step, rows)

    def evaluation(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Write the completions of an evaluation."""
        self._tracker.evaluation(step, rows)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._display.note(text)

    def warning(self, text: str) -> None:
        """Print a warning that stays."""
        self._display.warning(text)

    def rewind(self, step: int) -> None:
        """The run goes on from an earlier step than it was said to, and nothing was reported yet."""
        self._tracker.rewind(step)
        self.now.rewind(step)
