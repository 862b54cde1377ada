"""Which prompts may start, on which engine."""

import heapq


def capacity(asked: int, ahead: int, taken: int, waiting: int) -> int:
    """How many more groups may start now so that none is older than the bound when it is trained on.

    asked + ahead - (taken + waiting), which is (n + version + 1) x groups per step - (accepted + running) of
    arXiv 2505.24298 where `ahead` is n x the groups of a step and every step asks for as many.

    Args:
        asked: groups that all steps so far have asked for.
        ahead: groups that may be made before somebody asks for them; 0 is on-policy.
        taken: groups that steps have got.
        waiting: groups that are running, being scored, or ready.
    """
    return asked + ahead - (taken + waiting)


class Loads:
    """How many samples each engine has; gives the one with the fewest, of equal ones the first."""

    def __init__(self, engines: int) -> None:
        self._loads = [0] * engines
        self._out: set[int] = set()
        self._heap = [(0, engine) for engine in range(engines)]

    def __getitem__(self, engine: int) -> int:
        return self._loads[engine]

    @property
    def left(self) -> int:
        """Engines that get something."""
        return len(self._loads) - len(self._out)

    def least(self, most: int | None = None, samples: int = 1) -> int | None:
        """An engine, which from now on has so many samples more; None where every one has `most` already, or none is
        left."""
        # Entries whose load is no longer that are left in the heap, and dropped when they come up: a change costs
        # log(engines), where looking for the least of 1,000 engines costs 36 microseconds a prompt.
        while self._heap:
            load, engine = self._heap[0]
            if engine in self._out or self._loads[engine] != load:
                heapq.heappop(self._heap)
                continue
            if most is not None and load >= most:
                return None
            heapq.heappop(self._heap)
            self._set(engine, load + samples)
            return engine
        return None

    def ended(self, engine: int, samples: int = 1) -> None:
        """An engine has so many samples less."""
        self._set(engine, self._loads[engine] - samples)

    def out(self, engine: int) -> None:
        """An engine gets nothing, until it is back."""
        self._out.add(engine)

    def back(self, engine: int) -> None:
        """An engine gets something again, or for the first time; of others that are new with it, that is told, too."""
        new = range(len(self._loads), engine + 1)
        self._loads += [0] * len(new)
        self._out.update(new)
        self._out.discard(engine)
        self._set(engine, self._loads[engine])

    def _set(self, engine: int, load: int) -> None:
        self._loads[engine] = load
        heapq.heappush(self._heap, (load, engine))
        # Where loads fall more often than they are asked for, nothing else would drop old entries.
        if len(self._heap) > 8 * len(self._loads) + 64:
            self._heap = [(now, each) for each, now in enumerate(self._loads) if each not in self._out]
            heapq.heapify(self._heap)
