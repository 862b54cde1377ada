"""How long a run has stood because something had died or frozen: seconds that are lost, counted as they pass.

Lost is, of every second,
    all of it from a fault that has ended an attempt at the run until the next attempt trains on,
    all of it while the loop waits for a group of ranks that is mended,
    while it waits for groups of responses, the share of the engines that do not serve,
    and else nothing: what is mended beside other work costs no time.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What attempts at a run before this one have come to."""

    lost_s: float = 0.0
    """Lost in the steps that are kept."""
    elapsed_s: float = 0.0
    """Passed until the last of them was done."""
    gap_s: float | None = None
    """Passed since then, where a fault has ended the attempt before: all of it is lost, as what was trained meanwhile
    is trained again. None where nothing has: such a run was stopped, and may have rested for days."""
    redone_steps: int = 0
    """Steps that were trained meanwhile."""


class LostTime:
    """Counts the lost seconds of one attempt at a run, and adds those of earlier ones. Any thread may tell it of
    changes.

    Example:
        lost.engines(1, 2)
        lost.waiting(True)  # from here on, half of the time is lost
        lost.engines(2, 2)
        seconds = lost.read_step()
    """

    def __init__(self, earlier: Earlier | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            earlier: attempts.
            clock: seconds.
        """
        earlier = earlier or Earlier()
        self._clock, self._lock = clock, threading.Lock()
        self._began = self._counted = clock()
        self._before_s = earlier.elapsed_s + (earlier.gap_s or 0.0)
        self._unread_s = self._gap_s = earlier.gap_s or 0.0
        self._standing = earlier.gap_s is not None
        self._waiting = self._mending = False
        self._missing = 0.0
        """Share of the engines that do not serve."""
        self.lost_s, self.elapsed_s = earlier.lost_s, self._before_s
        """Of all attempts, as of the last `read_step`."""

    def engines(self, serving: int, engines: int) -> None:
        """So many of so many engines serve from now on; the others are lost, restarting, or have old weights."""
        if not 0 <= serving <= engines:
            raise ValueError(f"serving must be between 0 and the {engines} engines, got {serving}")
        with self._lock:
            self._count()
            self._missing = 1 - serving / engines if engines else 0.0

    def waiting(self, for_groups: bool) -> None:
        """Whether the loop waits for groups of responses from now on."""
        with self._lock:
            self._count()
            self._waiting = for_groups

    def mending(self, mended: bool) -> None:
        """Whether the loop waits for a group of ranks that is mended from now on."""
        with self._lock:
            self._count()
            self._mending = mended

    def trains_on(self) -> None:
        """From now on this attempt trains; does nothing where it does already, or goes on after no fault."""
        with self._lock:
            self._count()
            self._standing = False

    def go_back(self, earlier: Earlier) -> None:
        """The run goes on from an earlier step than was said: of what attempts before this one have come to, less is
        kept; before the first `read_step`."""
        with self._lock:
            before_s = earlier.elapsed_s + (earlier.gap_s or 0.0)
            self._unread_s += (earlier.gap_s or 0.0) - self._gap_s
            self._gap_s, self._before_s = earlier.gap_s or 0.0, before_s
            self.lost_s, self.elapsed_s = earlier.lost_s, before_s

    def now_s(self) -> float:
        """Seconds since the run began, over all attempts, without the time in which a run that was stopped has
        rested."""
        return self._before_s + self._clock() - self._began

    def read_step(self) -> float:
        """Seconds lost since the last call, or since the last step of earlier attempts that is kept."""
        with self._lock:
            self._count()
            seconds, self._unread_s = self._unread_s, 0.0
            # Added up as whoever reads them from the file does, to the last bit.
            self.lost_s += seconds
            self.elapsed_s = self._before_s + self._counted - self._began
            return seconds

    @property
    def effective(self) -> float:
        """Share of the run's time that was not lost, in [0, 1], as of the last `read_step`; exactly 1 where none is."""
        if not self.lost_s:
            return 1.0
        # Rounding may make the parts more than the whole.
        return max(0.0, 1 - self.lost_s / self.elapsed_s) if self.elapsed_s > 0 else 0.0

    def _count(self) -> None:
        now = self._clock()
        self._unread_s += (now - self._counted) * self._rate
        self._counted = now

    @property
    def _rate(self) -> float:
        if self._standing or self._mending:
            return 1.0
        return self._missing if self._waiting else 0.0
