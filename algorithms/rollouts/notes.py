"""What the samples of requests had when they were last asked: from there they go on, should their engine be lost.

An engine is asked beside its work, and rarely: about requests that have run for a while. What it answers stays where it
is, as an object that outlives the engine's process.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray import ObjectRef

from actors.group import ActorGroup, GroupError
from actors.rollout.host import EngineHost
from actors.rollout.types import Begun, BegunInfo
from algorithms.rollouts.groups import BegunGroup

_HOST: Any = EngineHost
"""Its methods as plain functions: ray.method hides from type checkers that they are."""
_Told = ObjectRef[dict[int, tuple[BegunInfo, ...]]]


class Notes:
    """Of the engines of a group; one thread makes all calls."""

    def __init__(
        self, group: ActorGroup[Any], every_s: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`every_s`: between two questions to an engine, and the time that requests have run by then; None: nothing is
        noted."""
        self._group, self._every_s, self._clock = group, every_s, clock
        self._given: dict[int, float] = {}
        """Request -> when its engine got it."""
        self._asked: dict[int, float] = {}
        """Engine -> when it was asked last."""
        self._calls: dict[_Told, tuple[int, dict[int, ObjectRef[tuple[Begun, ...]]]]] = {}
        self._last: set[int] = set()
        """Engines that were asked for the last time."""
        self._noted: dict[int, BegunGroup] = {}

    def given(self, engine: int, requests: Collection[int]) -> None:
        """An engine has got these requests."""
        if self._every_s is not None:
            self._given.update(dict.fromkeys(requests, self._clock()))

    def ask(self, engine: int, requests: Collection[int], *, last: bool = False) -> bool:
        """Ask an engine of these requests, all that it has, when it is time.

        `last`: it is about to go, and is asked of all of them, once. Returns whether it was, and has answered, or there
        is nothing to ask it.
        """
        if last and (self._every_s is None or not requests):
            return True
        now = self._clock()
        if self._every_s is None or any(of == engine for of, _ in self._calls.values()):  # it has not answered yet
            return False
        if last:
            asked = engine in self._last
            if not asked:
                self._last.add(engine)
                self._ask(engine, list(requests))
            return asked
        if now - self._asked.get(engine, -self._every_s) < self._every_s:
            return False
        old = [request for request in requests if now - self._given.get(request, now) >= self._every_s]
        if old:
            self._asked[engine] = now
            self._ask(engine, old)
        return False

    def _ask(self, engine: int, requests: list[int]) -> None:
        told, *samples = self._group.submit(engine, _HOST.progress, requests, num_returns=1 + len(requests))
        self._calls[told] = engine, dict(zip(requests, samples, strict=True))

    def take_in(self) -> None:
        """Note what was answered meanwhile."""
        if not self._calls:
            return
        for told in ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)[0]:
            engine, samples = self._calls.pop(told)
            try:
                infos = self._group.answer(engine, told, "progress")
            except GroupError:  # whoever waits for its responses hears of it
                continue
            for request, info in infos.items():
                if request in self._given and any(sample.tokens for sample in info):
                    self._noted[request] = BegunGroup(samples=samples[request], infos=info)

    def ended(self, requests: Collection[int]) -> None:
        """These need no notes any more."""
        for request in requests if self._given else ():
            self._given.pop(request, None)
            self._noted.pop(request, None)

    def lost(self, engine: int, requests: Collection[int]) -> dict[int, BegunGroup]:
        """An engine is lost with these requests: what is noted of them."""
        self._asked.pop(engine, None)
        self._last.discard(engine)
        # What has come just before its end is the newest.
        self.take_in()
        self._calls = {call: each for call, each in self._calls.items() if each[0] != engine}
        found = {request: self._noted[request] for request in requests if request in self._noted}
        self.ended(requests)
        return found
