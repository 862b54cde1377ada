"""Looks at processes of another node than the driver's, and ends those that are to end: one small actor on each.

What it sees there is what `launch.run.signs` sees here; times travel as ages, as clocks of two nodes differ.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actors.pulse import ProcessId, own_process
from launch.run.signs import Signs

LOOK_S = 1.0
"""Between two looks."""
LATE_S = 3.0
"""By how much a look may be late: beyond, who looks has stood still itself, and with it what it was to see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A process that is to be looked at.

    Example: Order(process=ProcessId(4711, 188_120, "0f3a...-4026531836"), family=True, quiet=False)
    """

    process: ProcessId
    family: bool
    """Whether what it has started is a part of it, too."""
    quiet: bool
    """Whether it leaves a question unanswered, so that it matters whether it is at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one look at a process has shown.

    Example: Sight(found="stopped", halted=True, still_s=0.0, alive_s=1.1, moved_s=1.1)
    """

    found: str | None
    """exit, stopped, or None where neither can be said."""
    halted: bool
    """Whether it stands still just now."""
    still_s: float
    """Seconds for which it has been still; 0 where that was not asked for."""
    alive_s: float
    """Seconds since it was seen neither gone nor halted."""
    moved_s: float
    """Seconds since it was seen at work, of those looks that asked whether it is."""


class Warden:
    """Of one node; asked about once a second. It forgets what it is not asked about any more."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._signs: dict[ProcessId, Signs] = {}
        self._looked: float | None = None

    def node(self) -> ProcessId:
        """Its own process: whose numbers it has are those that it can look at."""
        return own_process()

    def look(self, orders: Sequence[Order]) -> list[Sight]:
        """One look at each of these processes, in order."""
        now = self._clock()
        late = self._looked is not None and now - self._looked > LOOK_S + LATE_S
        self._looked = now
        before = self._signs
        self._signs = {
            order.process: before.get(order.process) or Signs(order.process, now, family=order.family)
            for order in orders
        }
        for signs in self._signs.values() if late else ():
            signs.begin_anew()
        return [self._see(order, now) for order in orders]

    def kill(self, processes: Sequence[ProcessId]) -> None:
        """SIGKILL these with all that they have started, those included of which only that has been left."""
        now = self._clock()
        for process in processes:
            (self._signs.pop(process, None) or Signs(process, now)).kill()

    def _see(self, order: Order, now: float) -> Sight:
        signs = self._signs[order.process]
        found = signs.look(now)
        still_s = signs.still_s(now) if order.quiet and found is None else 0.0
        return Sight(
            found=found, halted=signs.is_halted, still_s=still_s,
            alive_s=now - signs.alive_at, moved_s=now - signs.moved_at,
        )  # fmt: skip


class DistantSigns:
    """Signs of life of a process on another node, as its warden has told of them last: what `Signs` is for one here."""

    def __init__(
        self, process: ProcessId, now: float, end: Callable[[ProcessId], None], *, node: str, family: bool = True
    ) -> None:
        """As of `Signs`; `end`: lets its warden end it, as soon as that can be reached; `node`: address of its node."""
        self.process, self.node, self.family, self._end = process, node, family, end
        self.alive_at = self.moved_at = now
        self.is_halted = False
        """Whether the last look has found it, or what it has started, halted."""
        self.quiet = False
        """Whether it shall be told whether it is at work."""
        self._found: str | None = None
        self._still_s = 0.0

    @property
    def order(self) -> Order:
        """What its warden is asked."""
        return Order(process=self.process, family=self.family, quiet=self.quiet)

    def take_in(self, sight: Sight, now: float) -> None:
        """The warden has answered."""
        self._found, self.is_halted = sight.found, sight.halted
        self._still_s = sight.still_s
        self.alive_at = max(self.alive_at, now - sight.alive_s)
        self.moved_at = max(self.moved_at, now - sight.moved_s)
        self.quiet = False  # until it is asked again

    def look(self, now: float) -> str | None:
        """EXIT, STOPPED, or None, when neither can be said."""
        return self._found

    def still_s(self, now: float) -> float:
        """Seconds for which it had been still when its warden looked last; 0 when it was not, or has not been told."""
        self.quiet = True
        return self._still_s

    def begin_anew(self) -> None:
        """Nobody has looked for long."""
        self._found, self._still_s, self.is_halted = None, 0.0, False

    def kill(self) -> None:
        """SIGKILL it and its descendants, as soon as its warden can be reached."""
        self._end(self.process)
