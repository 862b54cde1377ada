"""Where a run is: `logs/now.json`, written anew whenever what it does changes, and what follows from it.

A reader finds the file as a whole. It tells the events where they happen, the clock of lost time what the loop waits
for, and the next attempt at the run how far this one has come.
"""

import contextlib
import errno
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.tracking.curves import read_metrics
from launch.tracking.events import NAME, NOTICED, RECOVERED, Events, read_events
from launch.tracking.lost_time import Earlier, LostTime

NOW = "logs/now.json"
START, ROLLOUT, SCORE, REFERENCE, UPDATE = "start", "rollout", "score", "reference", "update"
SYNC, EVALUATE, CHECKPOINT, END = "sync", "evaluate", "checkpoint", "end"
_WORDS = {name: name for name in (ROLLOUT, SCORE, REFERENCE, UPDATE, SYNC, EVALUATE, CHECKPOINT)}
_WORDS |= {"values": REFERENCE, "advantages": REFERENCE, "data": UPDATE, "exporting": END, "ending processes": END}
"""What the screen calls a phase -> its word here; whatever else there is comes before the first step."""
_PATIENCE_S = 1.0
"""For storage that takes long."""
_TRAINS, _WAITS = {ROLLOUT, SCORE, REFERENCE, UPDATE}, {ROLLOUT, EVALUATE}
"""Phases that only a step has; and those in which the loop waits for groups of responses."""


class Now:
    """Where this attempt at a run is. The loop's thread tells it; `write` may be called from any."""

    def __init__(
        self,
        directory: Path,
        events: Events,
        reached: int = 0,
        *,
        starter: int | None = None,
        clock: Callable[[], float] = time.time,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            directory: of the run, with `logs/`; metrics.jsonl has the steps that are kept, and no others.
            events: of this attempt.
            reached: step that it goes on from.
            starter: the process that starts the driver again when it dies; None: there is none.
            clock: seconds since 1970.
            seconds: for what this attempt takes.
        """
        self._path, self._partial = directory / NOW, directory / f"{NOW}.partial"
        self.events, self._clock, self._lock = events, clock, threading.Lock()
        self._directory, self._done, self._trains = directory, reached, False
        self._open = events.open()
        """Faults of earlier attempts, which are over once this one trains."""
        self._earlier = earlier_attempts(directory, reached, clock())
        self.lost = LostTime(self._earlier, clock=seconds)
        """Clock of lost time."""
        self.processes: Callable[[], Mapping[str, int]] = dict
        """Gives the processes of the run's groups: `policy[0]` -> pid."""
        self.engines: Callable[[], tuple[int, int]] | None = None
        """Gives how many engines serve, and how many do or are to do so again."""
        self._since, self._steps = clock(), None
        self._began_step, self._began_at, self._starter = reached, self._since, starter
        self._ended: tuple[str, str] | None = None
        self.phase(START)

    def rewind(self, reached: int) -> None:
        """The run goes on from an earlier step than was said, where metrics.jsonl was cut; before its loop begins."""
        before, again = self._earlier, self._done - reached
        lost_s, elapsed_s = _kept_times(self._directory)
        self._done = self._began_step = reached
        self._earlier = Earlier(lost_s=lost_s, elapsed_s=elapsed_s)
        if before.gap_s is not None:  # a fault has ended the attempt before: what came since is trained again
            gap_s = before.gap_s + before.elapsed_s - elapsed_s
            redone_steps = before.redone_steps + again
            self._earlier = replace(self._earlier, gap_s=gap_s, redone_steps=redone_steps)
        self.lost.go_back(self._earlier)

    def start(self, done: int, steps: int | None = None) -> None:
        """The loop begins, with so many steps behind it, of so many that there are to be."""
        self._done, self._steps = done, steps
        self._began_step = done

    def phase(self, name: str) -> None:
        """What the run does from now on, by the screen's name for it."""
        word = _WORDS.get(name, START)
        if not self._trains and (word in _TRAINS or name == "exporting"):  # there may be nothing left to train
            self._trains = True
            self._train_on()
        self.lost.waiting(word in _WAITS)
        if word != self.events.phase:
            self._since = self._clock()
        # A step is being made until the loop has ended.
        self.events.step = self._done + (self._trains and word != END)
        self.events.phase = word
        self.write()

    def step(self, step: int) -> dict[str, float]:
        """A step is done; returns its `time/lost`, `time/effective` and `time/elapsed` of the run, and how many engines
        serve, where they are followed."""
        self._done = step
        self.lost.waiting(False)  # until the next phase
        lost = self.lost.read_step()
        found = {"time/lost": lost, "time/effective": self.lost.effective, "time/elapsed": self.lost.elapsed_s}
        return found | ({"rollout/engines": float(self.engines()[0])} if self.engines else {})

    def end(self, how: str, why: str) -> None:
        """The run, or this attempt at it, has ended: finished, stopped or failed, and why in one line."""
        self._ended = how, why
        self.write()

    def write(self) -> None:
        """Write where the run is: also for whoever has changed `processes`."""
        with self._lock, contextlib.suppress(OSError):  # a full disk ends no run: the next change writes all of it
            content: dict[str, Any] = {
                "at": _written(self._clock()),
                "attempt": self.events.attempt,
                "step": self.events.step,
            }
            content |= {"phase": self.events.phase, "since": _written(self._since), "driver": os.getpid()}
            content |= {"host": socket.gethostname(), "namespace": pid_namespace()}
            content |= {"began_step": self._began_step, "began_at": _written(self._began_at)}
            content |= {} if self._starter is None else {"starter": self._starter}
            content |= {} if self._steps is None else {"steps": self._steps}
            content |= {"elapsed_s": round(self.lost.now_s(), 3), "processes": dict(self.processes())}
            if self.engines:
                content |= dict(zip(("engines_serving", "engines_expected"), self.engines(), strict=True))
            if self._ended:
                content |= dict(zip(("ended", "why"), self._ended, strict=True))
            _put(self._path, self._partial, json.dumps(content).encode())

    @contextlib.contextmanager
    def kept_fresh(self, every_s: float = 30.0) -> Iterator[None]:
        """Within the block it is written anew now and then: who cannot see the driver knows that it lives."""
        over = threading.Event()

        def go_on() -> None:
            while not over.wait(every_s):
                self.write()

        thread = threading.Thread(target=go_on, name="now", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_PATIENCE_S)

    def _train_on(self) -> None:
        """The restart is over: from here on this attempt does what no earlier one has done, or has lost."""
        self.lost.trains_on()
        for number in self._open:
            self.events.recovered(number, "resumed", redone_steps=self._earlier.redone_steps)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where an attempt at a run was when it was last heard of."""

    at: float
    """Seconds since 1970."""
    attempt: int
    step: int
    """That was being made, or was done last, as the phase tells."""
    phase: str
    elapsed_s: float
    """Seconds since the run began, see `LostTime.now_s`."""

    @property
    def trained(self) -> int:
        """Steps whose updates had been made."""
        return max(0, self.step - (self.phase in _TRAINS))


def read_now(directory: Path) -> Whereabouts | None:
    """What a run's now.json says; None where it says nothing, as after a power cut."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, OverflowError, AttributeError):
        found: dict[str, Any] = json.loads((directory / NOW).read_bytes())
        at, elapsed_s = datetime.fromisoformat(found["at"]).timestamp(), float(found["elapsed_s"])
        if math.isfinite(elapsed_s):
            return Whereabouts(at, int(found["attempt"]), int(found["step"]), str(found["phase"]), elapsed_s)
    return None


def earlier_attempts(directory: Path, reached: int, at: float) -> Earlier:
    """What earlier attempts at a run have come to, of which this one goes on from a step.

    Args:
        directory: of the run; its metrics are those of the steps up to `reached`.
        reached: that step; 0 where there is none, as of a run that has ended before its first checkpoint.
        at: seconds since 1970.
    """
    lost_s, elapsed_s = _kept_times(directory)
    before = read_now(directory)
    if before is None or not _ended_by_fault(directory / NAME, before.attempt):
        return Earlier(lost_s=lost_s, elapsed_s=elapsed_s)
    # The attempt's own clock up to its last sign of life, and the wall's from there on.
    gap_s = before.elapsed_s - elapsed_s + at - before.at
    redone = max(0, before.trained - reached)
    return Earlier(lost_s=lost_s, elapsed_s=elapsed_s, gap_s=max(0.0, gap_s), redone_steps=redone)


def _kept_times(directory: Path) -> tuple[float, float]:
    """Seconds that were lost, and that had passed, by the metrics of the steps that are kept."""
    rows, lost_s, elapsed_s = [], 0.0, 0.0
    with contextlib.suppress(OSError, ValueError):  # of metrics that are gone, nothing can be carried over
        rows = read_metrics(directory)
    for row in rows:
        lost_s += row.get("time/lost") or 0.0
        elapsed_s = row.get("time/elapsed") or elapsed_s
    return lost_s, elapsed_s


def _ended_by_fault(events: Path, attempt: int) -> bool:
    """Whether something was not mended in this attempt, or in what has come after it: in starting it again."""
    lines = [line for line in read_events(events) if line["attempt"] >= attempt]
    over = {line["fault"] for line in lines if line["event"] == RECOVERED}
    return any(line["event"] == NOTICED and line["fault"] not in over for line in lines)


def pid_namespace() -> str:
    """Of the numbers of processes here: two containers may each have a process 7. Empty where it cannot be said."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _written(at: float) -> str:
    """Seconds since 1970 as events have them."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _put(path: Path, partial: Path, content: bytes) -> None:
    """Put a file in place as a whole. Raises OSError."""
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        # Of a file without blocks, ext4 begins to write out the data when it takes another one's name: twice the time.
        with contextlib.suppress(OSError):
            os.posix_fallocate(file, 0, len(content))
        if os.write(file, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial))
    finally:
        os.close(file)
    os.replace(partial, path)
