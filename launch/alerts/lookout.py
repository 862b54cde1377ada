"""A thread beside the loop that notices what the loop cannot tell: that it stands still, and that the disk fills."""

import threading
import time
from collections.abc import Callable

from launch.alerts.room import Room
from launch.alerts.rules import Finding
from launch.alerts.standstill import Standstill

DISK_EVERY_S = 60.0
"""Between two looks at the disk, which may be far away."""


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            standstill: None where nobody asks for it.
            room: the same.
            sizes: gives bytes that are free, and those of the last checkpoint; None of what is not known.
            doing: gives what the run does.
            tell: hears what is found, from this thread.
            clock: seconds.
        """
        self._standstill, self._room = standstill, room
        self._sizes, self._doing, self._tell, self._clock = sizes, doing, tell, clock
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ended, self._disk_at = False, clock()

    def begin(self) -> None:
        """The loop begins."""
        with self._changed:
            if self._standstill:
                self._standstill.begin(self._clock())
            self._changed.notify()
        if self._thread is None and (self._standstill or self._room):
            self._thread = threading.Thread(target=self._look_on, name="lookout", daemon=True)
            self._thread.start()

    def step(self) -> None:
        """A step is done."""
        with self._changed:
            if self._standstill:
                self._standstill.step(self._clock())
            self._changed.notify()

    def end(self) -> None:
        """The loop has ended, or is being ended: no further step is to come. May be called again."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def look(self) -> float:
        """Look once; returns the seconds until the next look."""
        now = self._clock()
        with self._changed:
            found = self._standstill.finding(now, self._doing()) if self._standstill and not self._ended else None
            deadline = self._standstill.deadline if self._standstill else None
        if found:
            self._tell(found)
        if self._room and now >= self._disk_at:
            self._disk_at = now + DISK_EVERY_S
            if filled := self._room.finding(*self._sizes()):
                self._tell(filled)
        waits = [DISK_EVERY_S] + ([deadline - now] if deadline is not None else [])
        return max(0.0, min(waits))

    def _look_on(self) -> None:
        while not self._ended:
            wait_s = self.look()
            with self._changed:
                # A step that came since only moves the deadline away.
                self._changed.wait_for(lambda: self._ended, wait_s)
