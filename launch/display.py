"""What a person sees while a run is going: a live panel on a terminal, one plain line now and then elsewhere.

The loops know only `Display`; nothing else imports rich for progress.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

Metrics = Mapping[str, float]

PLAIN_INTERVAL_S = 5.0
"""Shortest time between two lines of steps when the output is no terminal, in seconds."""
DURATIONS_KEPT = 20
TEXT_WIDTH = 60
SHOWN = (
    ("reward", "reward/mean", ".3f"),
    ("accuracy", "reward_model/accuracy", ".3f"),
    ("accuracy", "rewards/accuracy", ".3f"),
    ("accuracy", "embedding/accuracy", ".3f"),
    ("accuracy", "reranker/accuracy", ".3f"),
    ("KL", "policy/kl", ".3g"),
    ("explained", "critic/explained_variance", ".2f"),
    ("grad norm", "grad_norm", ".3g"),
    ("entropy", "policy/entropy", ".3f"),
    ("tokens/s", "tokens_per_second", ",.0f"),
    ("s/step", "time/step", ".2f"),
)
MANY, HEADLINES = 4, ("ndcg@10", "recall@1", "base_ndcg@10", "spearman")
"""Of more evaluation metrics than `MANY`, only these are shown, if any of them is there."""


class Display:
    """Progress of one run. Methods may be called from any thread; `close` must be called in the end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._live: Live | None = None
        self._title, self._total, self._step = "", 0, 0
        self._phase, self._detail, self._phase_started = "", "", time.monotonic()
        self._spinner = Spinner("dots")
        self._metrics: Metrics = {}
        self._evaluation: dict[str, float] = {}
        self._durations: deque[float] = deque(maxlen=DURATIONS_KEPT)
        self._step_started: float | None = None
        self._printed_at = -math.inf
        self._pending = False

    def start(self, title: str, total_steps: int, done_steps: int = 0) -> None:
        """Show the panel of a run of `total_steps` steps, of which a resumed run has `done_steps` behind it."""
        self._title, self._total, self._step, self._step_started = title, total_steps, done_steps, None
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._panel, refresh_per_second=4, transient=True)
            self._live.start()
        else:
            self._console.print(escape(f"{title}: {total_steps} steps"))

    def phase(self, name: str, detail: str = "") -> None:
        """Say what is running now, for example `rollout`, or `waiting for resources` with what is missing."""
        new = name != self._phase
        if new:
            self._phase_started = time.monotonic()
        self._phase, self._detail = name, detail
        # Phases of later steps would flood a log file; those of the start, and waits, explain a silence.
        if not self._console.is_terminal and (detail or (new and not self._metrics)):
            self._plain(f"{name}{f': {detail}' if detail else ''} ...", force=new)
        if self._step_started is None:
            self._step_started = time.monotonic()

    def step(self, step: int, metrics: Metrics) -> None:
        """Show the results of a finished step; evaluation metrics stay visible until the next evaluation."""
        now = time.monotonic()
        if self._step_started is not None:
            self._durations.append(now - self._step_started)
        first = not self._metrics
        self._step_started, self._step, self._metrics = now, step, metrics
        self._evaluation.update({name: value for name, value in metrics.items() if name.startswith("eval/")})
        if not self._console.is_terminal:
            self._pending = not self._plain(self._line(), force=first or step >= self._total)

    def samples(self, rows: list[dict[str, Any]]) -> None:
        """Print a table of completions; rows hold `prompt`, `completion`, `reward` and `version`."""
        table = Table("prompt", "completion", "reward", "version", title=f"samples at step {self._step}")
        for row in rows:
            reward = row.get("reward")
            table.add_row(
                escape(_short(str(row.get("prompt", "")))),
                escape(_short(str(row.get("completion", "")))),
                f"{reward:.3g}" if isinstance(reward, int | float) else "failed",
                str(row.get("version", "")),
            )
        self._console.print(table)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(escape(text))

    def warning(self, text: str) -> None:
        """Print a warning that stays."""
        self._console.print(f"[yellow]warning:[/] {escape(text)}")

    def close(self) -> None:
        """Leave the terminal as it was, with a last line of the results."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._pending = bool(self._metrics)
        if self._pending:
            self._console.print(escape(self._line()))
            self._pending = False

    def _plain(self, line: str, *, force: bool) -> bool:
        """Print unless the last line was a moment ago; whether it was printed."""
        now = time.monotonic()
        if not force and now - self._printed_at < PLAIN_INTERVAL_S:
            return False
        self._console.print(escape(line))
        self._printed_at = now
        return True

    def _line(self) -> str:
        parts = [f"step {self._step}/{self._total}", *self._figures()]
        if self._step < self._total and self._durations:
            parts.append(f"ETA {_clock(self._remaining())}")
        return "  ".join(parts)

    def _figures(self) -> list[str]:
        shown = [f"{label} {self._metrics[name]:{form}}" for label, name, form in SHOWN if name in self._metrics]
        if "reward/mean" not in self._metrics:
            # The loss of a reinforcement step says nothing; that of an imitation step is the headline.
            losses = [f"{name} {value:.4g}" for name, value in self._metrics.items() if name.startswith("loss/")]
            shown = losses[:1] + shown
        held_out = sorted(self._evaluation.items())
        if len(held_out) > MANY:
            held_out = [item for item in held_out if item[0].rpartition("/")[2] in HEADLINES] or held_out
        return shown + [f"{name} {value:.3f}" for name, value in held_out]

    def _remaining(self) -> float:
        return (self._total - self._step) * sum(self._durations) / len(self._durations)

    def _panel(self) -> RenderableType:
        head = Table.grid(padding=(0, 1))
        eta = f"ETA {_clock(self._remaining())}" if self._durations else "ETA -"
        bar = ProgressBar(total=max(1, self._total), completed=self._step, width=30)
        head.add_row(Text(self._title, style="bold"), bar, f"{self._step}/{self._total}", eta)
        self._spinner.update(text=escape(self._phase_text()))
        rows: list[RenderableType] = [head, self._spinner]
        if figures := self._figures():
            rows.append(Text("  ".join(figures)))
        return Group(*rows)

    def _phase_text(self) -> str:
        seconds = time.monotonic() - self._phase_started
        detail = f": {self._detail}" if self._detail else ""
        return f"{self._phase or 'starting'}{detail} ({seconds:.0f} s)"


def _short(text: str) -> str:
    """One line of at most TEXT_WIDTH characters, with newlines and control characters escaped."""
    line = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return line if len(line) <= TEXT_WIDTH else f"{line[: TEXT_WIDTH - 3]}..."


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
