"""What an earlier start has left in a run's directory: moved aside within it, or removed where that was asked for."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from launch.alerts.record import NAME as ALERTS
from launch.tracking.events import NAME as EVENTS
from launch.tracking.now import NOW

_LINES = ("metrics.jsonl", "samples.jsonl", "tokens.jsonl", "eval_samples.jsonl", EVENTS, ALERTS)
_RESULTS = (*_LINES, "curves.png", "export", "mteb")
_MOST_NAMED = 6


def results_in(directory: Path) -> list[Path]:
    """Metrics, samples, curves and models that are there."""
    found = [directory / name for name in _RESULTS] + sorted(directory.glob("export-step-*"))
    # exists() follows a link; one that leads nowhere is in the way, too.
    return [path for path in found if path.exists() or path.is_symlink()]


def remove_results(directory: Path, checkpoints: Iterable[Path]) -> str | None:
    """Remove what a new start must not find, as `checkpoint.resume` false asks for it; returns what has gone."""
    gone = [*checkpoints, *results_in(directory)]
    for path in (*gone, directory / NOW):
        remove(path)
    return f"checkpoint.resume is false: removed {_named(gone)} of an earlier run in {directory}" if gone else None


def set_results_aside(directory: Path, *, same_command: bool = False) -> str | None:
    """Move what an earlier start without a checkpoint has left; returns where to.

    Where that was an attempt of the `same_command`, its faults and alerts are this one's, too, and stay.
    """
    found = [path for path in results_in(directory) if not (same_command and path.name in (EVENTS, ALERTS))]
    # An empty file is all that a start leaves which ended before its first step: nothing to keep.
    found = [path for path in found if not path.exists() or path.is_dir() or path.stat().st_size]
    if not found:
        return None
    aside = place_aside(directory)
    for path in found:
        move(path, directory, aside)
    # Says nothing without the results, and goes with them.
    if not same_command and (directory / NOW).exists():
        move(directory / NOW, directory, aside)
    # What made them; this start has written no configuration yet.
    _copy(directory, aside, ["config.json"])
    return f"no checkpoint to go on from: what an earlier start left is kept in {aside} ({_named(found)})"


def set_newer_aside(directory: Path, newer: list[Path], reached: str) -> str | None:
    """Move checkpoints that the run, which goes on from an older one, would write over; returns where to."""
    if not newer:
        return None
    aside = place_aside(directory)
    for path in newer:
        move(path, directory, aside)
    # Copies: the run goes on writing these files.
    _copy(directory, aside, ["config.json", *_LINES])
    those = "it is" if len(newer) == 1 else "they are"
    return (
        f"{_named(newer)}: newer than {reached}, which the run goes on from; {those} kept in {aside}, with the metrics"
    )


def remove(path: Path) -> None:
    """Remove a file, link or directory, if it is there."""
    # A link goes, not what it leads to.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def place_aside(directory: Path) -> Path:
    """A new directory for what is moved aside."""
    number = 1
    while (directory / f"set-aside-{number}").exists():
        number += 1
    aside = directory / f"set-aside-{number}"
    aside.mkdir()
    return aside


def move(path: Path, directory: Path, aside: Path) -> None:
    """Move a file or directory of the run's to the same place below `aside`."""
    target = aside / path.relative_to(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def _copy(directory: Path, aside: Path, names: Iterable[str]) -> None:
    for name in names:
        if (directory / name).is_file():
            shutil.copy2(directory / name, aside / name)


def _named(paths: list[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:_MOST_NAMED]) + f" and {len(names) - _MOST_NAMED} more" * (len(names) > _MOST_NAMED)
