"""What a person sees from the command to the end: a live panel on a terminal, plain lines now and then elsewhere.

The loops know only `Display`; nothing else imports rich for progress. On a terminal, what is worth keeping
(evaluations, samples, notes, warnings) is printed above the panel and stays in the scrollback.
"""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TextIO, cast

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from launch.screen.console import VisibleConsole
from launch.screen.figures import held_out_figures, step_figures
from launch.screen.shown import clock, fitted, flowed, visible
from launch.screen.stdout import LastingOutput, behind, lasting_stdout

Metrics = Mapping[str, float]

PLAIN_INTERVAL_S = 5.0
"""Shortest time between two lines of steps when the output is no terminal, in seconds."""
HEARTBEAT_S, LATER_HEARTBEAT_S = 30.0, 60.0
"""Longest silence there, before the first step and after it, in seconds."""
HISTORY_LINES = 10
"""Lines about steps that a run without evaluations leaves on a terminal."""
DURATIONS_KEPT = 20  # steps from whose mean the ETA is made
TEXT_CELLS = 60
PHASE_LINES, FIGURE_LINES, BAR_CELLS, SHORTEST_BAR_CELLS = 3, 4, 30, 8
LONGEST_TEXT = 500  # characters of a sample that are looked at, before it is cut to its cells
PLAIN_WIDTH = 200  # cells of a line in a log file

BEGINNING = {
    "sync": "warming up: the engines get their first weights",
    "evaluate": "first evaluation",
    "prepare": "preparing",
}
"""Phases of a loop that mean something else before its first step."""


class Display:
    """Progress of one run. Methods may be called from any thread; `close` must be called in the end."""

    def __init__(
        self, console: Console | None = None, started: float | None = None, *, plain_every_s: float = PLAIN_INTERVAL_S
    ) -> None:
        """
        Args:
            console: where to (default: standard output).
            started: when the command was given, by time.monotonic (default: now).
            plain_every_s: shortest time between two lines where there is no panel; where it is longer than that of
                steps, phases have no line of their own.
        """
        self._console = console or VisibleConsole(file=lasting_stdout(), soft_wrap=True, highlight=False)
        self._lively = self._console.is_terminal and not self._console.is_dumb_terminal
        self._ascii = not self._console.encoding.lower().startswith("utf")
        self._started = time.monotonic() if started is None else started
        self._live: Live | None = None
        self._open, self._ended = False, threading.Event()
        self._lock = threading.RLock()
        self._held: list[str] = []  # lines of `open` that wait for the first one after them
        self._title, self._total, self._step, self._first, self._begun = "", 0, 0, 0, False
        self._beginning = True  # until a phase has come that is one of a step
        self._phase, self._detail, self._phase_started = "", "", self._started
        self._within = ""
        self._spent: dict[tuple[str, str], float] = {}  # see `time_spent`
        self._metrics: Metrics = {}
        self._evaluation: Metrics = {}
        self._durations: deque[float] = deque(maxlen=DURATIONS_KEPT)
        self._step_started: float | None = None
        self._plain_every_s = plain_every_s
        self._names_phases = plain_every_s <= PLAIN_INTERVAL_S
        self._printed_at = -math.inf if self._names_phases else time.monotonic()
        self._kept_step = -1  # the step whose line was printed last

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def open(self, lines: Sequence[str] = ()) -> None:
        """Say what is going to run, and begin to show what is being done.

        Where there is no panel, the lines come with the next one: a mistake found by then is all that is printed.
        """
        self._open = True
        if self._lively:
            width = self._console.width
            for line in lines:
                for part in flowed(line.split("  "), width, cut=False):
                    self._print(escape(part))
            # Transient: what is worth keeping is printed above the panel, which leaves nothing itself.
            self._live = Live(_Panel(self), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        else:
            self._held = list(lines)
            threading.Thread(target=self._beat, name="display", daemon=True).start()

    def start(self, title: str, total_steps: int, done_steps: int = 0) -> None:
        """Begin with the steps: of `total_steps`, a resumed run has `done_steps` behind it."""
        self._title, self._total, self._step_started = title, total_steps, None
        self._step = self._first = done_steps
        if not self._open:
            self.open()
        if not self._lively:
            self._print(escape(f"{title}: {total_steps} steps"))
        self._end_phase()
        self._begun = True

    def phase(self, name: str, detail: str = "") -> None:
        """Say what is running now, for example `rollout`, or `waiting for resources` with what is missing."""
        with self._lock:
            new = name != self._phase
            if new:
                self._end_phase()
            self._phase, self._detail = name, detail
            self._beginning = self._beginning and (not self._begun or name in BEGINNING)
            if self._step_started is None and self._begun:
                self._step_started = time.monotonic()
        # Phases of later steps would flood a log file; those of the start, and waits, explain a silence.
        if not self._lively and not self._held and (detail or (new and not self._metrics)):
            self._plain(self._doing(), force=new and self._names_phases)

    def progress(self, done: int, total: int, what: str) -> None:
        """How far the phase that is running now has come; where there is no panel, a line now and then."""
        self._detail = f"{done:,} of {total:,} {what}"
        if not self._lively and not self._held and not self._metrics:
            self._plain(self._doing(), force=False, after_s=HEARTBEAT_S)

    def within(self, told: str) -> None:
        """How far a process has come that works in this phase; shown beside, and no line of its own."""
        self._within = told

    def step(self, step: int, metrics: Metrics) -> None:
        """Show the results of a finished step; evaluation metrics stay visible until the next evaluation."""
        now = time.monotonic()
        if self._step_started is not None and step > self._first:  # an evaluation before the first step is none
            self._durations.append(now - self._step_started)
        first = not self._metrics
        self._step_started, self._step, self._metrics = now, step, metrics
        evaluation = {name: value for name, value in metrics.items() if name.startswith("eval/")}
        self._evaluation = evaluation or self._evaluation
        with self._lock:
            self._end_phase()
        worth_keeping = bool(evaluation) or step >= self._total
        if self._lively:
            # A run without evaluations leaves a line now and then.
            if worth_keeping or step - max(self._kept_step, self._first) >= max(1, self._total / HISTORY_LINES):
                self._keep()
        elif first or worth_keeping or time.monotonic() - self._printed_at >= PLAIN_INTERVAL_S:
            self._keep()

    def samples(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Print a table of completions; rows hold `prompt`, `completion`, `reward` and `version`."""
        numbers = [_sample_numbers(row) for row in rows]
        room = (self.width - 8 - max((len(line) for line in numbers), default=0)) // 2  # 8: indent, gap and arrow
        cells = max(8, min(TEXT_CELLS, room))
        self._print(f"[italic]samples at step {self._step}[/]")
        for row, line in zip(rows, numbers, strict=True):
            texts = (str(row.get(name, ""))[:LONGEST_TEXT] for name in ("prompt", "completion"))
            prompt, completion = (fitted(visible(text), cells) for text in texts)
            text = Text("  ").append(f"{line}  ", "cyan").append(f"{prompt} -> ", "dim").append(completion)
            self._console.print(text)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        for line in self._worded(visible(text)):
            self._print(escape(line))

    def lines(self, lines: Sequence[str]) -> None:
        """Print lines that stay as they are."""
        for line in lines:
            self._print(escape(visible(line)))

    def warning(self, text: str) -> None:
        """Print a warning that stays."""
        self._marked("warning", "yellow", text)

    def alert(self, level: str, text: str) -> None:
        """Print an alert that stays; one of level `warn` is a warning like others."""
        self._marked(*(("warning", "yellow") if level == "warn" else ("alert", "red")), text)

    def _marked(self, word: str, colour: str, text: str) -> None:
        first, *others = self._worded(f"{word}: {visible(text)}")
        self._print(f"[{colour}]{word}:[/]{escape(first.removeprefix(f'{word}:'))}")
        for line in others:
            self._print(escape(line))

    def _worded(self, text: str) -> list[str]:
        """Broken between words where a terminal would break it within one."""
        return flowed(text.split(" "), self.width, gap=" ", cut=False) if self._lively else [text]

    def close(self) -> None:
        """Leave the terminal as it was, with a last line of the results; may be called again."""
        self._ended.set()
        with self._lock:
            self._end_phase()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._metrics and self._kept_step != self._step:
            self._keep()

    def discard(self) -> None:
        """Close; what has not been printed yet of what was to run is not printed."""
        self._held = []
        self.close()

    @property
    def steps(self) -> tuple[int, int, int]:
        """Steps done before this start, steps done now, and all of them; zeros before `start`."""
        return self._first, self._step, self._total

    @property
    def began(self) -> bool:
        """Whether there were steps to come: `start` was called."""
        return self._begun

    @property
    def elapsed_s(self) -> float:
        """Seconds since the command."""
        return time.monotonic() - self._started

    def time_spent(self) -> dict[tuple[str, str], float]:
        """Seconds of every phase, by (`start` or `steps`, name); they add up to all the time so far."""
        with self._lock:
            self._end_phase()
            return dict(self._spent)

    def _end_phase(self) -> None:
        now = time.monotonic()
        key = ("steps" if self._begun else "start", self._phase or "other")
        self._spent[key] = self._spent.get(key, 0.0) + now - self._phase_started
        self._phase, self._detail, self._within, self._phase_started = "", "", "", now

    @property
    def width(self) -> int:
        """Cells of a line; the last one stays free, as terminals differ in what they do behind it."""
        return self._console.width - 1 if self._lively else PLAIN_WIDTH

    def _print(self, markup: str) -> None:
        self._release()
        self._console.print(markup)
        self._printed_at = time.monotonic()

    def _release(self) -> None:
        held, self._held = self._held, []
        for line in held:
            self._console.print(escape(line))

    def _plain(self, line: str, *, force: bool, after_s: float = 0.0) -> None:
        """Print unless the last line was a moment ago."""
        if force or time.monotonic() - self._printed_at >= max(after_s, self._plain_every_s):
            self._print(escape(line))

    def _beat(self) -> None:
        """Where there is no panel: break a silence that lasts."""
        while not self._ended.wait(1.0):
            # Before the first step, people wonder whether anything happens at all.
            longest = HEARTBEAT_S if not self._metrics else LATER_HEARTBEAT_S
            if self._phase and max(self._printed_at, self._phase_started) + longest < time.monotonic():
                self._print(escape(self._doing()))

    def _keep(self) -> None:
        """Print the line of the step that was last."""
        self._kept_step = self._step
        # The panel has shown all figures of every step: what stays of it is short.
        own = step_figures(self._metrics)[: 1 if self._lively else None]
        figures = [f"step {self._step}/{self._total}", *own, *held_out_figures(self._metrics)]
        figures.append(f"elapsed {clock(self.elapsed_s)}")
        if self._step < self._total and self._durations:
            figures.append(f"ETA {clock(self._remaining())}")
        for line in flowed(figures, self.width) if self._lively else ["  ".join(figures)]:
            self._print(escape(line))

    def _remaining(self) -> float:
        return (self._total - self._step) * sum(self._durations) / len(self._durations)

    def _doing(self) -> str:
        """Example: starting engines: 1 of 2 ready (12 s)"""
        name = self._phase or ("starting" if not self._begun else "between steps")
        if self._begun and self._beginning:
            name = BEGINNING.get(name, name)
        told = ", ".join(visible(part) for part in (self._detail, self._within) if part)
        detail = f": {told}" if told else ""
        seconds = time.monotonic() - self._phase_started
        told = f"{name}{detail} ({seconds:.0f} s)" if self._lively or seconds >= 1 else f"{name}{detail} ..."
        return told if self._begun else f"{told}  elapsed {clock(self.elapsed_s)}"

    def panel_lines(self, width: int, height: int) -> Iterator[Text]:
        """Lines of the panel, none wider than `width`: how far, what is running, the last metrics."""
        if self._begun:
            elapsed = f"elapsed {clock(self.elapsed_s)}"
            eta = f"ETA {clock(self._remaining())}" if self._durations and self._step < self._total else ""
            tail = "  ".join(filter(None, (f"{self._step}/{self._total}", elapsed, eta)))
            room = width - cell_len(tail) - 2
            title = fitted(self._title, room)
            line, cells = Text(title, "bold"), min(BAR_CELLS, room - cell_len(title) - 2)
            if cells >= SHORTEST_BAR_CELLS:
                line.append("  ").append_text(self._bar(cells))
            line.append(f"  {tail}")
            line.truncate(width)
            yield line
        frames = "-\\|/" if self._ascii else "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
        # By the clock: it turns evenly, however often it is drawn.
        frame = frames[int(time.monotonic() * 8) % len(frames)]
        for place, line in enumerate(_wrapped(self._doing(), width - 2)):
            yield Text(f"{frame} " if not place else "  ", "green").append(line, "none")
        figures = step_figures(self._metrics) + held_out_figures(self._evaluation)
        room = max(0, min(FIGURE_LINES, height - PHASE_LINES - 2))
        for line in flowed(figures, width)[:room]:
            yield Text(line)

    def _bar(self, cells: int) -> Text:
        full = round(cells * self._step / max(1, self._total))
        done, left = ("#", "-") if self._ascii else ("━", "─")
        return Text(done * full, "green").append(left * (cells - full), "dim")


@contextmanager
def working_on_stderr() -> Iterator[Display]:
    """A display of what a verb does that takes long and prints its result: on standard error, and gone in the end."""
    console = VisibleConsole(file=cast(TextIO, LastingOutput(behind(sys.stderr))), soft_wrap=True, highlight=False)
    with Display(console, plain_every_s=HEARTBEAT_S) as display:
        display.open()
        yield display


class _Panel:
    """The display as rich draws it, each time anew, for a terminal that may have changed its size."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._display.panel_lines(console.width - 1, console.height)


def _wrapped(text: str, cells: int) -> list[str]:
    """Lines of whole words; what is more than PHASE_LINES is cut with dots."""
    lines = flowed(text.split(" "), cells, indent=0, gap=" ")
    if len(lines) > PHASE_LINES:
        lines = [*lines[: PHASE_LINES - 1], fitted(f"{lines[PHASE_LINES - 1]} {' '.join(lines[PHASE_LINES:])}", cells)]
    return lines


def _sample_numbers(row: Mapping[str, object]) -> str:
    """Reward and, where there is one, advantage of a sample."""
    reward, advantage = row.get("reward"), row.get("advantage")
    told = f"reward {reward:<6.3g}" if isinstance(reward, int | float) else "failed       "
    return f"{told} advantage {advantage:<+6.2f}" if isinstance(advantage, int | float) else told
