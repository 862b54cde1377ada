"""What an engine's time goes to: each moment is of one state, so the seconds of all states add up to all there are.

Written by one thread, at the moments at which the state may change; read by others at any moment, in the middle of a
long step too.
"""

import time
from collections.abc import Callable
from typing import Literal, TypedDict

State = Literal["idle", "busy", "underfilled", "paused"]
"""idle: no sample to work on; busy: steps, with at least half of its slots filled; underfilled: steps, with fewer;
paused: has samples and does not step."""


class Seconds(TypedDict):
    """Of an engine since it was made; see `EngineStats`. idle_s + busy_s + paused_s are all of them."""

    idle_s: float
    busy_s: float
    underfilled_s: float
    paused_s: float


class Occupancy:
    """Adds up the seconds of each state."""

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`slots`: samples that the engine can work on at one time."""
        self._slots = slots
        self._clock = clock
        # One tuple, set at once: a reader never sees the state of one moment with the seconds of another.
        self._now: tuple[State, float, dict[str, float]] = "idle", clock(), {}

    def note(self, samples: int, *, steps: bool, at: float | None = None) -> None:
        """From now on, or since `at` by the clock, the engine has so many samples and works on them, or does not."""
        state = self._state(samples, steps)
        known, since, spent = self._now
        if state == known:  # most steps: nothing is added up, and no clock asked
            return
        now = max(since, self._clock() if at is None else at)
        self._now = state, now, spent | {known: spent.get(known, 0.0) + now - since}

    def seconds(self) -> Seconds:
        """All seconds until now."""
        state, since, spent = self._now
        # The state may have changed while the clock was read.
        spent = spent | {state: spent.get(state, 0.0) + max(0.0, self._clock() - since)}
        underfilled = spent.get("underfilled", 0.0)
        return Seconds(
            idle_s=spent.get("idle", 0.0),
            busy_s=spent.get("busy", 0.0) + underfilled,
            underfilled_s=underfilled,
            paused_s=spent.get("paused", 0.0),
        )

    def _state(self, samples: int, steps: bool) -> State:
        if not samples:
            return "idle"
        if not steps:
            return "paused"
        return "underfilled" if 2 * samples < self._slots else "busy"
