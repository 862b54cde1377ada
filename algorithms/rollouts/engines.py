"""The engines as the driver sees them: requests go to one, what ended comes from any; a dead one is only told of.

Behind the protocol are the actors of a group here; in tests of what depends on time, engines with a clock of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import ray
from ray import ObjectRef

from actors.episodes import Episode
from actors.group import ActorGroup, Countdown, GroupError
from actors.rollout.host import EngineHost
from actors.rollout.types import Begun, EngineStats, Finished, Request
from algorithms.rollouts.groups import BegunGroup

T = TypeVar("T")

NONE_BEGUN: "Mapping[int, ObjectRef[tuple[Begun, ...]]]" = {}
_POLL_S = 5.0
"""How long a poll waits within the engine's process; one that has nothing to tell is asked again."""
_PLACES = 8
"""Most requests whose responses come with the news that they have ended, which saves a call and its way: a place that
stays empty costs a thirtieth of a call."""
Had = list[Episode] | tuple[Begun, ...]
"""The responses to a request, or what each of its samples has where it is held."""
_HOST: Any = EngineHost
"""Its methods as plain functions: ray.method hides from type checkers that they are."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A request has ended on an engine, or is held."""

    engine: int
    finished: Finished


@dataclass(frozen=True, slots=True)
class Lost:
    """An engine has died or cannot go on; what was running on it never ends."""

    engine: int
    error: GroupError


class Engines(Protocol):
    """Several engines. Only `wait` and `progress` wait; one thread makes them all but `progress` and `stats`."""

    def __len__(self) -> int: ...

    def submit(
        self,
        engine: int,
        requests: list[Request],
        seed: int | None,
        begun: "Mapping[int, ObjectRef[tuple[Begun, ...]]]" = NONE_BEGUN,
    ) -> None:
        """Give an engine requests; see `actors.rollout.types.Engine`.

        `begun`: id of a request -> reference to what its samples have, of those that go on from there.
        """

    def abort(self, engine: int, requests: list[int], *, keep: bool = False) -> None:
        """End requests of an engine; `wait` tells of each that they are aborted.

        What they have so far can be collected with `keep`, and must not be without: then also one that has ended by
        itself meanwhile, or before, is told of as aborted, and what it has is gone.
        """

    def abort_older(self, engine: int, version: int) -> None:
        """End the requests of an engine of which weights before this version have sampled any token, whenever they were
        submitted; `wait` tells of each that it is aborted, and what it has is gone."""

    def progress(self, requests: Mapping[int, list[int]], timeout_s: float) -> dict[int, BegunGroup]:
        """Id of a request -> what its samples have so far; they go on all the same.

        Args:
            requests: engine -> which of its requests.
            timeout_s: seconds until all engines have answered.

        Requests of which `wait` tells, or will tell, are left out. Raises GroupError when an engine is lost or late.
        """
        ...

    def wait(self, others: Sequence[ObjectRef], timeout_s: float) -> list[Ended | Lost]:
        """What has happened since the last call; waits up to `timeout_s` seconds for something, or for any of `others`
        (references)."""
        ...

    def collect(self, engine: int, requests: list[int]) -> "list[ObjectRef[Had]]":
        """References to the responses to each of these requests, which have ended, or to what the samples of a held one
        have; to be asked for once."""
        ...

    def stats(self, within_s: float) -> Callable[[], list[EngineStats | None]]:
        """Ask every engine how it is. What is returned gives their answers: None for one that is lost, or has not
        answered within `within_s` seconds after the question, for which it waits. Another thread may ask."""
        ...


class RayEngines:
    """The actors of a group, each with one outstanding poll while it has requests."""

    def __init__(self, group: ActorGroup[Any]) -> None:
        self.group = group
        self._waiting: list[set[int]] = [set() for _ in range(len(group))]
        """Requests of each engine that have not ended."""
        self._unwanted: set[int] = set()
        """Of these, what was aborted and nobody will collect."""
        self._polls: dict[ObjectRef[list[Finished]], tuple[int, list[ObjectRef[Had]]]] = {}
        """Its engine, and what takes the responses to the first requests that it tells of."""
        self._here: dict[int, ObjectRef[Had]] = {}
        """Request -> its responses, which a poll has brought along."""
        self._calls: dict[ObjectRef[None], tuple[int, str]] = {}
        """Of which only failures matter."""
        self._lost: set[int] = set()
        self._late: dict[int, ObjectRef[EngineStats]] = {}
        """Engine -> its answer, which did not come in time; not asked again before it has come."""

    def __len__(self) -> int:
        return len(self.group)

    def is_lost(self, engine: int) -> bool:
        """Whether an engine has died or cannot go on, as far as `wait` has told. Any thread may ask."""
        return engine in self._lost

    def submit(
        self,
        engine: int,
        requests: list[Request],
        seed: int | None,
        begun: "Mapping[int, ObjectRef[tuple[Begun, ...]]]" = NONE_BEGUN,
    ) -> None:
        """See `Engines`."""
        # Arguments of their own: within another one, Ray would leave them references.
        call = self.group.submit(engine, _HOST.submit, requests, seed, [*begun], *begun.values())
        self._calls[call] = engine, "submit"
        waited = bool(self._waiting[engine])
        self._waiting[engine].update(request.id for request in requests)
        # One poll at a time: it tells of these as well, if there is one.
        if not waited:
            self._poll(engine)

    def abort(self, engine: int, requests: list[int], *, keep: bool = False) -> None:
        """See `Engines`."""
        self._calls[self.group.submit(engine, _HOST.abort, requests, keep)] = engine, "abort"
        if not keep:
            self._unwanted |= self._waiting[engine].intersection(requests)
            for request in requests:
                self._here.pop(request, None)

    def abort_older(self, engine: int, version: int) -> None:
        """See `Engines`."""
        self._calls[self.group.submit(engine, _HOST.abort_older, version)] = engine, "abort_older"

    def collect(self, engine: int, requests: list[int]) -> "list[ObjectRef[Had]]":
        """See `Engines`."""
        # One call, whatever the number: it takes the driver as long as all that it does for a sample beside.
        if away := [request for request in requests if request not in self._here]:
            found = self.group.submit(engine, _HOST.collect, *away, num_returns=len(away))
            self._here.update(zip(away, found if len(away) > 1 else [found], strict=True))
        return [self._here.pop(request) for request in requests]

    def progress(self, requests: Mapping[int, list[int]], timeout_s: float) -> dict[int, BegunGroup]:
        """See `Engines`."""
        asked = {engine: own for engine, own in requests.items() if own}
        calls, samples = [], dict[int, ObjectRef[tuple[Begun, ...]]]()
        for engine, own in asked.items():
            told, *found = self.group.submit(engine, _HOST.progress, own, num_returns=1 + len(own))
            calls.append(told)
            samples |= zip(own, found, strict=True)
        answers = self.group.gather(calls, "progress", timeout_s, list(asked))
        return {
            request: BegunGroup(samples=samples[request], infos=infos)
            for answer in answers
            for request, infos in answer.items()
        }

    def wait(self, others: Sequence[ObjectRef], timeout_s: float) -> list[Ended | Lost]:
        """See `Engines`."""
        if waits_for := [*self._polls, *others]:  # Ray refuses to wait for nothing
            ray.wait(waits_for, num_returns=1, timeout=timeout_s)
        events: list[Ended | Lost] = []
        done = _done([*self._calls, *self._polls])
        # Calls first: an engine that could not take its requests has nothing to tell of them.
        for call in [call for call in self._calls if call in done]:
            engine, method = self._calls.pop(call)
            self._answer(engine, call, method, events)
        for call in [call for call in self._polls if call in done]:
            engine, places = self._polls.pop(call)
            # A lost engine has told of nothing.
            finished = self._answer(engine, call, "poll", events) or []
            # Not strict: there may be more of them than places, or fewer.
            first = [each.request for each in finished if not each.error and not each.aborted]
            self._here.update(zip(first, places, strict=False))
            events += (Ended(engine, self._ended(engine, each)) for each in finished)
            if self._waiting[engine] and engine not in self._lost:
                self._poll(engine)
        return events

    def _ended(self, engine: int, finished: Finished) -> Finished:
        """It is no longer waited for; one that nobody wants may have ended by itself before it could be aborted."""
        self._waiting[engine].discard(finished.request)
        if finished.request not in self._unwanted:
            return finished
        self._unwanted.discard(finished.request)
        self._here.pop(finished.request, None)
        return replace(finished, aborted=True)

    def stats(self, within_s: float) -> Callable[[], list[EngineStats | None]]:
        """See `Engines`."""
        deadline = Countdown(within_s)
        answered = _done([*self._late.values()])
        # One that hangs shall cost a wait once, not in every step.
        self._late = {engine: call for engine, call in self._late.items() if call not in answered}
        asked = [engine for engine in range(len(self)) if engine not in self._lost and engine not in self._late]
        calls = {engine: self.group.submit(engine, _HOST.stats) for engine in asked}

        def answers() -> list[EngineStats | None]:
            waits_for = list(calls.values())
            done = set(ray.wait(waits_for, num_returns=len(calls), timeout=deadline.left_s)[0]) if calls else set()
            self._late |= {engine: call for engine, call in calls.items() if call not in done}
            found = range(len(self))
            return [self._told(engine, calls[engine]) if calls.get(engine) in done else None for engine in found]

        return answers

    def _told(self, engine: int, call: "ObjectRef[EngineStats]") -> EngineStats | None:
        try:
            found = self.group.answer(engine, call, "stats")
        except GroupError:  # `wait` tells of it, where it matters
            return None
        return None if found.lost else found

    def _poll(self, engine: int) -> None:
        places = min(_PLACES, len(self._waiting[engine]))
        told, *found = self.group.submit(engine, _HOST.poll, _POLL_S, places, num_returns=1 + places)
        self._polls[told] = engine, found

    def _answer(self, engine: int, call: "ObjectRef[T]", method: str, events: list[Ended | Lost]) -> T | None:
        try:
            return self.group.answer(engine, call, method)
        except GroupError as error:
            if engine not in self._lost:
                self._lost.add(engine)
                events.append(Lost(engine, error))
            return None


def _done(calls: Sequence[ObjectRef]) -> set[ObjectRef]:
    return set(ray.wait(list(calls), num_returns=len(calls), timeout=0)[0]) if calls else set()
