"""How a run is: running, finished, stopped, failed or died, by what it has left and by its driver's process."""

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from launch.page.files import Below, Stamp
from launch.page.rows import as_json, number, text, whole_number
from launch.tracking.events import GIVEN_UP, NOTICED, RECOVERED
from launch.tracking.now import END, NOW, pid_namespace

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
DIED, UNKNOWN = "died", "unknown"
_QUIET_S = 120.0
"""Of a run whose process cannot be seen, so many seconds without a word leave open how it is: it says one every 30."""
_OURS = ("tandem", "launch")
"""One of them is in the command line of a driver."""
_LARGEST = 2**20


class StopError(Exception):
    """A run cannot be stopped: one line says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """What a run's now.json says; what it does not is None or empty."""

    at: float
    """Seconds since 1970."""
    since: float
    """When the phase began."""
    attempt: int | None
    step: int | None
    steps: int | None
    phase: str
    driver: int | None
    starter: int | None
    """The process that starts the driver again, which may be the driver."""
    host: str
    namespace: str
    """Of the numbers of processes, as `pid_namespace` has it."""
    began_step: int | None
    """Step that this start went on from."""
    began_at: float | None
    elapsed_s: float | None
    ended: str
    why: str


@dataclass(frozen=True, slots=True)
class RunState:
    """How a run is, and why in one line; empty where there is nothing to say."""

    name: str
    why: str = ""


def current(below: Below, directory: Path) -> Current | None:
    """What now.json says; None where there is none that can be read."""
    try:
        found = as_json(below.read(directory / NOW, _LARGEST)) or {}
    except FileNotFoundError:
        return None
    at = seconds_of(found.get("at"))
    if at is None:
        return None
    return Current(
        at=at,
        since=seconds_of(found.get("since")) or at,
        attempt=whole_number(found.get("attempt")),
        step=whole_number(found.get("step")),
        steps=whole_number(found.get("steps")),
        phase=text(found.get("phase"), 80),
        driver=whole_number(found.get("driver")),
        starter=whole_number(found.get("starter")),
        namespace=text(found.get("namespace"), 80),
        began_step=whole_number(found.get("began_step")),
        began_at=seconds_of(found.get("began_at")),
        host=text(found.get("host"), 300),
        elapsed_s=number(found.get("elapsed_s")),
        ended=text(found.get("ended"), 80),
        why=text(found.get("why")),
    )


def seconds_of(at: object) -> float | None:
    """Seconds since 1970 of a time as events have it; None for anything else."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return datetime.fromisoformat(str(at)).timestamp()
    return None


def state_of(below: Below, directory: Path, now: Current | None, events: list[dict[str, Any]]) -> RunState:
    """How a run is.

    Args:
        below: what may be read.
        directory: of the run.
        now: what `current` gives.
        events: lines of its events.
    """
    metrics, config = (below.stamp(directory / name) for name in ("metrics.jsonl", "config.json"))
    changed = max((stamp.mtime for stamp in (metrics, config) if stamp), default=0.0)
    exported = _exported(below, directory, config)
    if now is None:
        if exported:
            return RunState(FINISHED)
        return RunState(RUNNING if time.time() - changed < _QUIET_S else UNKNOWN)
    changed = max(changed, now.at)
    if now.ended:
        known = now.ended if now.ended in (FINISHED, STOPPED, FAILED) else STOPPED
        return RunState(known, now.why)
    lives = _lives(now, metrics)
    quiet_s = time.time() - changed
    if lives or (lives is None and quiet_s < _QUIET_S):
        return RunState(RUNNING)
    if lives is False and (_is_starting(now) or (quiet_s < _QUIET_S and _starts_again(events))):
        return RunState(RUNNING, "is about to be started again")
    if now.phase == END:
        if exported:
            return RunState(FINISHED)
        if death := _death(now, events):
            return RunState(FAILED, death)
        log = below.stamp(directory / "logs/driver.log")
        if log and config and log.mtime >= config.mtime:
            return RunState(FAILED, _last_line(below, directory / "logs/driver.log"))
        return RunState(STOPPED)
    if lives is None:
        host = f" on {now.host}" if now.host else ""
        return RunState(UNKNOWN, f"no word for {_roughly(quiet_s)} from the driver{host}")
    where = f"in step {now.step}, {now.phase}" if now.step else f"in {now.phase}"
    return RunState(DIED, _death(now, events) or f"the driver has ended without a word {where}")


def driver_to_stop(below: Below, directory: Path, now: Current | None) -> int:
    """A pidfd of the run's driver, verified to be that of this run; the caller closes it.

    Raises:
        StopError: there is no such process on this machine, or it is ending already.
    """
    if now is None or now.driver is None or now.ended:
        raise StopError("the run is not running")
    if now.host not in ("", socket.gethostname()):
        raise StopError(f"the run's driver is on {now.host}: stop it there")
    if now.namespace not in ("", pid_namespace()):
        raise StopError("the run's driver is in another container: stop it there")
    try:
        file = os.pidfd_open(now.driver)  # first: the process that is looked at is the one that gets the signal
    except (OSError, OverflowError):
        raise StopError("the run is not running") from None
    try:
        if not _is_one_of_ours(now.driver, now.at) or not _holds(now.driver, below.stamp(directory / "metrics.jsonl")):
            raise StopError("the run is not running, or ending already")
    except BaseException:
        os.close(file)
        raise
    return file


def can_stop(below: Below, directory: Path, now: Current | None) -> bool:
    """Whether `stop_run` would reach a process."""
    try:
        os.close(driver_to_stop(below, directory, now))
    except StopError:
        return False
    return True


def stop_run(below: Below, directory: Path) -> None:
    """Let the run finish its step, save a checkpoint and end. Raises StopError."""
    file = driver_to_stop(below, directory, current(below, directory))
    try:
        signal.pidfd_send_signal(file, signal.SIGTERM)
    except OSError as error:
        raise StopError(f"the run's driver takes no signal ({error.strerror})") from None
    finally:
        os.close(file)


def _lives(now: Current, metrics: Stamp | None) -> bool | None:
    """Whether the driver lives and is that of this run; None where that cannot be seen from here."""
    if now.driver is None or now.host != socket.gethostname() or now.namespace != pid_namespace():
        return None
    lives = _is_one_of_ours(now.driver, now.at)
    # As it ends, it closes its files; a copy of the run has others.
    if lives and now.phase != END and _holds(now.driver, metrics) is False:
        return None
    return lives


def _is_starting(now: Current) -> bool:
    """Whether the process lives that starts the driver again; the driver is known to be gone."""
    return now.starter not in (None, now.driver) and _is_one_of_ours(now.starter, now.at) is True


def _is_one_of_ours(pid: int, at: float) -> bool | None:
    """Whether a process of this number lives that was there at that time, and is Tandem's; None where there is one that
    cannot be looked at."""
    if not _is_there(pid):
        return False
    try:
        process = psutil.Process(pid)
        # A process that has begun later has only the same number.
        if process.create_time() > at + 1 or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return any(word in part for part in process.cmdline() for word in _OURS)
    except (psutil.Error, OSError, ValueError, OverflowError):
        return None if _is_there(pid) else False


def _is_there(pid: int) -> bool:
    """Whether the kernel knows a process of this number: /proc may hide those of other users."""
    if pid < 1:  # which would mean others
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _roughly(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"


def _holds(pid: int, metrics: Stamp | None) -> bool | None:
    """Whether a process has this file open, as a driver has its metrics; None where that cannot be seen."""
    if metrics is None:
        return False
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    for name in names:
        with contextlib.suppress(OSError):
            if os.stat(f"{folder}/{name}").st_ino == metrics.inode and "metrics.jsonl" in os.readlink(
                f"{folder}/{name}"
            ):
                return True
    return False


def _exported(below: Below, directory: Path, config: Stamp | None) -> bool:
    """Whether this start has come to its export: each writes config.json anew as it begins."""
    export = below.stamp(directory / "export/config.json")
    return export is not None and (config is None or export.mtime >= config.mtime)


def _starts_again(events: list[dict[str, Any]]) -> bool:
    over = {whole_number(line.get("fault")) for line in events if line.get("event") in (RECOVERED, GIVEN_UP)}
    return any(line.get("event") == NOTICED and whole_number(line.get("fault")) not in over for line in events)


def _death(now: Current, events: list[dict[str, Any]]) -> str:
    """What is known of the fault that has ended the run; empty where there is none."""
    for line in reversed(events):
        if line.get("event") == GIVEN_UP and line.get("attempt") == now.attempt:
            return f"{text(line.get('who'), 80)} {text(line.get('what'), 80)}: {text(line.get('did'))}"
    return ""


def _last_line(below: Below, log: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        size = (below.stamp(log) or Stamp(0, 0, 0)).size
        lines = below.read(log, 2**14, end=size).decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:2000] if lines else ""
    return ""
