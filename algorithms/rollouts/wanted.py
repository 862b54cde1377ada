"""What somebody waits for, and when to wake him."""

import time
from dataclasses import dataclass

from algorithms.rollouts.lane import Lane

_SHOW_S = 0.1
"""Seconds between two looks of whoever waits for groups, as long as there are too few."""


@dataclass(slots=True)
class Wanted:
    """What somebody waits for."""

    lane: Lane
    groups: int
    least: int | None
    """Oldest version that they may have; None: any."""
    version: int | None
    """Of the policy that trains on them."""
    _shown: float = 0.0

    def drop_older(self) -> None:
        """Leave out what is too old."""
        if self.least is not None:
            self.lane.drop_older_than(self.least)

    def is_news(self) -> bool:
        """Whether to wake who waits: all is there, or no progress has been shown for a while."""
        # After every group, waking would take as long as all else that is done for it.
        now = time.monotonic()
        if now < self._shown + _SHOW_S and not self.lane.can_give(self.groups, self.version):
            return False
        self._shown = now
        return True
