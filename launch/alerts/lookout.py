"""Threads beside the loop that notice what the loop cannot tell: that it stands still, and that the disk fills."""

import contextlib
import threading
import time
from collections.abc import Callable

from launch.alerts.room import Room
from launch.alerts.rules import Finding
from launch.alerts.standstill import Standstill

DISK_EVERY_S = 60.0
"""Between two looks at the disk, which may be far away."""
_LONGEST_S = 60.0
"""Between two looks at the steps."""
STOOD_S = 60.0
"""So much later than planned a look comes only where all of the process was stopped, as by Ctrl-Z."""


class Lookout:
    """Looks at times; `begin`, `step` and `end` are called by the loop, and return at once."""

    def __init__(
        self,
        standstill: Standstill | None,
        room: Room | None,
        *,
        sizes: Callable[[], tuple[int | None, int | None]],
        doing: Callable[[], str],
        tell: Callable[[Finding], None],
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            standstill: None where nobody asks for it.
            room: the same.
            sizes: gives bytes that are free, and those of the last checkpoint; None of what is not known. It may take
                for ever, where storage hangs.
            doing: gives what the run does.
            tell: hears what is found, from a thread of this.
            warn: hears one line, from such a thread, when looking fails.
            clock: seconds.
        """
        self._standstill, self._room = standstill, room
        self._sizes, self._doing, self._tell, self._warn, self._clock = sizes, doing, tell, warn, clock
        self._changed = threading.Condition()
        self._begun, self._ended, self._warned = False, False, False
        self._look_at: float | None = None
        """When the steps are to be looked at next."""

    def begin(self) -> None:
        """The loop begins."""
        with self._changed:
            if self._standstill:
                self._standstill.begin(self._clock())
            self._changed.notify_all()
        if not self._begun:
            self._begun = True
            # Each its own: who looks at a disk that hangs, hangs, and that the run stalls is then to be told.
            looks = ([self.look] if self._standstill else []) + ([self.look_at_disk] if self._room else [])
            for look in looks:
                threading.Thread(target=self._look_on, args=(look,), name="lookout", daemon=True).start()

    def step(self) -> None:
        """A step is done."""
        with self._changed:
            if self._standstill:
                now = self._clock()
                self._heed_stop(now)
                self._standstill.step(now)
            self._changed.notify_all()

    def end(self) -> None:
        """The loop has ended, or is being ended: no further step is to come. May be called again."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def look(self) -> float:
        """Look once at the steps; returns the seconds until the next look."""
        with self._changed:
            now, found, deadline = self._clock(), None, None
            if self._standstill and not self._ended:
                self._heed_stop(now)
                found = self._standstill.finding(now, self._doing())
                deadline = self._standstill.deadline
            wait_s = _LONGEST_S if deadline is None else max(0.0, min(_LONGEST_S, deadline - now))
            self._look_at = now + wait_s
        if found:
            self._tell(found)
        return wait_s

    def look_at_disk(self) -> float:
        """Look once at the disk; returns the seconds until the next look."""
        if self._room and (filled := self._room.finding(*self._sizes())):
            self._tell(filled)
        return DISK_EVERY_S

    def _heed_stop(self, now: float) -> None:
        """Let the time not count in which the process was stopped: its threads were, too."""
        if self._standstill and self._look_at is not None and now > self._look_at + STOOD_S:
            self._look_at = now
            self._standstill.stood(now)

    def _look_on(self, look: Callable[[], float]) -> None:
        while not self._ended:
            try:
                wait_s = look()
            except Exception as error:  # whatever it is: nobody else notices what this is there for
                wait_s = _LONGEST_S
                self._say(f"alerts: looking at the run failed: {type(error).__name__}; looking goes on")
            with self._changed:
                # A step that came since only moves the deadline away.
                self._changed.wait_for(lambda: self._ended, wait_s)

    def _say(self, line: str) -> None:
        """A warning, once."""
        if not self._warned:
            self._warned = True
            with contextlib.suppress(Exception):  # a terminal that is gone must not end the thread
                self._warn(line)
