"""The table of a sweep, best trial first: at its end, and while it runs by `tandem sweep --table DIRECTORY`."""

import fcntl
import os
import sys
from contextlib import suppress
from pathlib import Path

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from actors.config import UserError
from launch.screen.console import VisibleConsole
from launch.sweep.record import ENDED, FAILED, INTERRUPTED, LOCK, RUNNING, STOPPING, Record, SweepTrial, read_record

_PLAIN_WIDTH = 160
_LONGEST_CAUSE = 80


def show_table(directory: Path) -> int:
    """Print the table of a sweep's directory, running or not. Raises UserError."""
    record = read_record(directory)
    if record is None:
        raise UserError(f"--table: must be the directory of a sweep, with sweep.json, got {directory}")
    running = _is_run(directory)
    print_sweep(record, directory, running=running)
    return 0


def print_sweep(record: Record, directory: Path, *, running: bool) -> None:
    """Print the trials, the best first, and what there is to know of the whole."""
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH  # rich takes 80 for a file
    console = VisibleConsole(soft_wrap=True, highlight=False, emoji=False, width=width)
    console.print(_table(record, running=running))
    for line in summary(record, directory, running=running):
        console.print(escape(line))


def summary(record: Record, directory: Path, *, running: bool) -> list[str]:
    """What is to be said below the table."""
    ended = sum(trial.state in ENDED for trial in record.trials)
    failed = sum(trial.state == FAILED for trial in record.trials)
    lines = [f"{directory}: {ended} of {record.count} trials have ended" + (f", {failed} failed" if failed else "")]
    if not running and ended < record.count:
        lines[0] += "; the same command goes on"
    best = record.ordered()[0] if record.trials else None
    if best and best.value is not None:
        values = " ".join(f"{name}={text}" for name, text in best.point.items())
        lines.append(f"best: {directory / best.name}, {record.metric} {best.value:.6g}, with {values}")
    return lines


def _table(record: Record, *, running: bool) -> Table:
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    for name in ("trial", *_short(list(record.varied)), record.metric, "step", "state"):
        table.add_column(escape(name), overflow="fold")
    for trial in record.ordered():
        cells = [str(trial.number), *(_number(trial.point.get(name, "")) for name in record.varied)]
        cells.append("" if trial.value is None else f"{trial.value:.6g}")
        cells += [str(trial.reached if trial.step is None else trial.step), _state(trial, running=running)]
        table.add_row(*map(escape, cells))
    return table


def _state(trial: SweepTrial, *, running: bool) -> str:
    state = trial.state
    if state in (RUNNING, STOPPING) and not running:
        state = INTERRUPTED
    if state == RUNNING:
        return f"{state}, step {trial.reached}"
    return f"{state}: {trial.cause[:_LONGEST_CAUSE]}" if trial.cause else state


def _short(fields: list[str]) -> list[str]:
    """The last part of each name, or all of it where two end alike."""
    ends = [name.rpartition(".")[2] for name in fields]
    return [name if ends.count(end) > 1 else end for name, end in zip(fields, ends, strict=True)]


def _number(text: str) -> str:
    """A drawn number, whose last digits nobody reads, in four of them."""
    if len(text) > 10:
        with suppress(ValueError):
            return f"{float(text):.4g}"
    return text


def _is_run(directory: Path) -> bool:
    """Whether a process holds the sweep's lock."""
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
