"""What a driver knows of the process that starts it again, and tells it: one line of JSON each, through a pipe.

    {"restarts": 3, "heartbeat_s": 4.0, "directory": "/runs/first"}    once, when the configuration is loaded
    {"attempt": 2}                                                     once: its number in events.jsonl
    {"leaves": ["/tmp/tandem-x"]}                                      directories that it removes when it ends
    {"step": 7}                                                        after each finished step

A driver without such a parent, as in tests and programs that call `run`, tells nobody, and is not started again. Only
the standard library: the parent imports this, too.
"""

import ctypes
import json
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launch.run.leftovers import MARK

AGAIN = 76
"""Exit code of a driver that has met a fault which the next attempt survives; only the parent sees it."""
_PR_SET_PDEATHSIG = 1


@dataclass
class _Link:
    """This driver's parent."""

    pipe: int
    restarted: bool
    in_a_row: int
    """Faults since a step was finished, in attempts before this one."""
    restarts: int = 0


_link: _Link | None = None
"""None: there is no parent. Set by the fork."""


def become_driver(parent: int, pipe: int, mark: str, *, restarted: bool, in_a_row: int) -> None:
    """Make this process, which was forked a moment ago, the driver: it ends when its parent does.

    Args:
        parent: process id.
        pipe: descriptor to write to.
        mark: of this attempt, in the environment of all that it starts.
        restarted: there was an attempt before.
        in_a_row: faults since a step was finished.
    """
    global _link
    os.setpgid(0, 0)  # signals of a terminal come by way of the parent, and only once
    # In the background of a terminal, as the kernel has it: it may write there, and whoever reads is told.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before that
        os.kill(os.getpid(), signal.SIGKILL)
    os.set_blocking(pipe, False)  # a parent that stands still shall not hold up the run
    os.environ[MARK] = mark
    _link = _Link(pipe, restarted, in_a_row)


def say_loaded(restarts: int, heartbeat_s: float, directory: Path) -> None:
    """The configuration is loaded: from here on, a fault may start another attempt.

    Args:
        restarts: most faults in a row that are survived.
        heartbeat_s: longest time that this process may be stopped, in seconds.
        directory: of the run.
    """
    if _link:
        _link.restarts = restarts
        _say({"restarts": restarts, "heartbeat_s": heartbeat_s, "directory": str(directory.absolute())})


def say_attempt(number: int) -> None:
    """Which attempt this is in events.jsonl."""
    _say({"attempt": number})


def say_leaves(directories: Iterable[Path]) -> None:
    """What stays behind when this process is killed, and is nobody's then."""
    _say({"leaves": [str(path.absolute()) for path in directories]})


def say_step(step: int) -> None:
    """A step is finished: faults are no longer in a row."""
    if _link:
        _link.in_a_row = 0
    _say({"step": step})


def is_restarted() -> bool:
    """Whether an earlier attempt of the same command has ended by a fault."""
    return _link is not None and _link.restarted


def owner() -> int:
    """The process that ends when the run does: the one that starts its attempts, or else this one."""
    return os.getppid() if _link else os.getpid()


def survives_faults() -> bool:
    """Whether this run is one that goes on after a fault, be it not after the next one."""
    return _link is not None and _link.restarts > 0


def may_restart() -> bool:
    """Whether there is another attempt when this one ends with `AGAIN`."""
    return _link is not None and _link.in_a_row < _link.restarts


def _say(line: dict[str, object]) -> None:
    # A pipe that is full: the parent stands still, and learns of later steps. One that is broken: this process ends.
    if _link:
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(_link.pipe, json.dumps(line).encode() + b"\n")
