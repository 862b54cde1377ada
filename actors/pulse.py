"""What a process says of itself while it works, so that one that is slow can be told from one that hangs.

A worker answers `pulse` from a thread beside the one that works (see `actors.group`); it neither waits for the work nor
touches it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from inspect import iscoroutinefunction, isfunction, isgeneratorfunction
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

MICRO_BATCHES = "micro-batches"
"""What most methods count."""

P = ParamSpec("P")
T = TypeVar("T")
W = TypeVar("W", bound="Watched")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told from all others: of other machines, and of those that have its number before or after it.

    Example: ProcessId(pid=4711, started=188_120, pids="0f3a...-4026531836")
    """

    pid: int
    started: int
    """Clock ticks between the machine's start and its own."""
    pids: str
    """Whose numbers they are: the machine's, as it was started last, or those of a container there."""


def own_process() -> ProcessId:
    """Of this process."""
    return _identified(os.getpid())


@lru_cache(maxsize=1)
def _identified(pid: int) -> ProcessId:
    # By number: whoever is forked finds that of its parent here.
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ProcessId(pid, started, f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What one process does at the moment.

    Example: Pulse(method="update", seconds=3.2, done=5)
    """

    process: ProcessId = field(default_factory=own_process)
    method: str | None
    """What it runs; None when it waits for a call."""
    seconds: float
    """Since this method, or the waiting, began: by its own clock, as those of two nodes differ."""
    done: int
    """Micro-batches of this method, or of the last one, that it has read; of an engine, all its steps so far."""
    of: int = 0
    """All there are, where the method has said so; then `what` they are."""
    what: str = ""
    """Example: tensors"""

    @property
    def pid(self) -> int:
        """The process's number on its node."""
        return self.process.pid


class Work:
    """Notes what a process does. Written by the thread that works and read by others."""

    def __init__(self) -> None:
        # One tuple, set at once: a reader never sees a method with the time of another.
        self._now: tuple[str | None, float] = None, time.monotonic()
        self._done = 0
        self._all: tuple[int, str] = 0, ""

    @contextmanager
    def on(self, method: str, *, goes_on: bool = False) -> Iterator[None]:
        """Within it, the process runs this method; what that calls is a part of it. `goes_on`: `done` is not reset."""
        if self._now[0] is not None:  # a method that another one calls is a part of that
            yield
            return
        if not goes_on:
            self._done = 0
        self._now = method, time.monotonic()
        try:
            yield
        finally:
            self._now, self._all = (None, time.monotonic()), (0, "")

    def expect(self, count: int, what: str) -> None:
        """Count from 0 again: so many of these are to be done, in the method that runs now."""
        self._done, self._all = 0, (count, what)

    def progressed(self) -> None:
        """Count a micro-batch, a step, or whatever is expected, that is done."""
        # No lock: one thread writes, and a reader may as well see the count before.
        self._done += 1

    def pulse(self) -> Pulse:
        """What this process does now."""
        (method, began), (count, what) = self._now, self._all
        return Pulse(method=method, seconds=time.monotonic() - began, done=self._done, of=count, what=what)


def beside(method: Callable[P, T]) -> Callable[P, T]:
    """A method that runs while others do, on a thread of its own: its pulse tells of the others, not of this one."""
    method.beside = True  # pyright: ignore[reportFunctionMemberAccess]
    return method


def is_beside(method: object) -> bool:
    """Whether a method runs while others do."""
    return getattr(method, "beside", False)


class Watched:
    """A worker of whose public methods its pulse tells."""

    work = Work()
    """Of the process: it has one worker."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        # Of the class itself only: what it inherits was noted where it was defined, and would be noted twice.
        for name, method in list(vars(cls).items()):  # a copy: setattr changes it
            if isfunction(method) and not name.startswith("_") and not is_beside(method):
                setattr(cls, name, _noted(method))

    def pulse(self) -> Pulse:
        """What this rank does now; answered while it works."""
        return self.work.pulse()


def _noted(method: Callable[Concatenate[W, P], T]) -> Callable[Concatenate[W, P], T]:
    assert not iscoroutinefunction(method) and not isgeneratorfunction(method), f"{method} would end before its work"

    @wraps(method)
    def noted(self: W, *arguments: P.args, **options: P.kwargs) -> T:
        with self.work.on(method.__name__):
            return method(self, *arguments, **options)

    return noted
