"""Which groups must be given out now, so that none is too old later: earliest deadline first, counted by version.

A group that started under version u can be trained on at versions u to u + n. A step takes G groups and makes one
version, so of those that started under u or before, all but (u + n - v) G have to be in the step of version v.
"""

from collections import Counter
from collections.abc import Iterable


class Ages:
    """Groups that have started and were not taken, by the version under which they did."""

    def __init__(self) -> None:
        self._version_of: dict[int, int] = {}
        """By the order of their prompts."""
        self._started: Counter[int] = Counter()
        self._complete: Counter[int] = Counter()
        self._completed: set[int] = set()

    def start(self, order: int, version: int) -> None:
        """A group starts, perhaps again, and only what it has from now on counts."""
        self.remove(order)
        self._version_of[order] = version
        self._started[version] += 1

    def complete(self, order: int) -> None:
        """A group can be taken; one that has not started here counts as young."""
        if order in self._version_of and order not in self._completed:
            self._completed.add(order)
            self._complete[self._version_of[order]] += 1

    def remove(self, order: int) -> None:
        """A group was taken, or nothing becomes of it."""
        version = self._version_of.pop(order, None)
        if version is None:
            return
        self._started[version] -= 1
        if order in self._completed:
            self._completed.discard(order)
            self._complete[version] -= 1

    def clear(self) -> None:
        """Nothing is on its way any more."""
        self._version_of.clear()
        self._started.clear()
        self._complete.clear()
        self._completed.clear()

    def of(self, order: int) -> int | None:
        """Version under which a group has started; None where it was not here."""
        return self._version_of.get(order)

    def too_many_wait(self, orders: Iterable[int], version: int, most: int, groups: int) -> int:
        """How many of these, the oldest first, cannot be left to later steps than that of this version.

        As `enough_are_complete` counts them: of those that started under u or before, all but (u + most - version)
        steps' worth have to be in this one, unless it is full of others of that age.
        """
        waiting = Counter(self._version_of[order] for order in orders)
        waits = started = found = 0
        for each in sorted(number for number, count in self._started.items() if count):
            started += self._started[each]
            waits += waiting[each]
            later = max(0, each + most - version) * groups
            found = max(found, waits - max(later, started - groups))
        return found

    def enough_are_complete(self, version: int, most: int, groups: int) -> bool:
        """Whether a step of this version can take `groups` groups and leave none that no later one could, where they
        may be `most` versions old."""
        started = complete = 0
        for each in sorted(number for number, count in self._started.items() if count):
            started += self._started[each]
            complete += self._complete[each]
            due = started - max(0, each + most - version) * groups
            if complete < min(groups, due):
                return False
        return True
