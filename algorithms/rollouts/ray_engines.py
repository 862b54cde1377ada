"""Rollout engines that are the actors of a group, each with one outstanding poll while it has requests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from actors.group import ActorGroup, Countdown, GroupError
from actors.rollout.host import EngineHost, NoWeights
from actors.rollout.types import Begun, EngineStats, Finished, Request
from algorithms.rollouts.engines import NONE_BEGUN, Back, BegunOf, Ended, Event, Had, Lost, Out, Refused
from algorithms.rollouts.groups import BegunGroup
from algorithms.rollouts.membership import Membership
from algorithms.rollouts.notes import Notes

T = TypeVar("T")
U = TypeVar("U")

_POLL_S = 5.0
"""How long a poll waits within the engine's process; one that has nothing to tell is asked again."""
_SOON_S = 0.1
"""Longest wait where engines are missing, and may be back."""
_PLACES = 8
"""Most requests whose responses come with the news that they have ended, which saves a call and its way: a place that
stays empty costs a thirtieth of a call."""
_HOST: Any = EngineHost
"""Its methods as plain functions: ray.method hides from type checkers that they are."""


class RayEngines:
    """Implements `Engines`."""

    def __init__(
        self, group: ActorGroup[Any], members: Membership | None = None, note_every_s: float | None = None
    ) -> None:
        """`members`: which of them serve; None: all do, until one is lost. `note_every_s`: see `Notes`."""
        self.notes = Notes(group, note_every_s)
        self.group = group
        self.members = members or Membership(len(group))
        self._waiting: list[set[int]] = [set() for _ in range(len(group))]
        """Requests of each engine that have not ended."""
        self._unwanted: set[int] = set()
        """Of these, what was aborted and nobody will collect."""
        self._polls: dict[ObjectRef[list[Finished]], tuple[int, list[ObjectRef[Had]]]] = {}
        """Its engine, and what takes the responses to the first requests that it tells of."""
        self._here: dict[int, ObjectRef[Had]] = {}
        """Request -> its responses, which a poll has brought along."""
        self._collected: dict[ObjectRef[None], tuple[int, list[Finished], list[ObjectRef[Had]]]] = {}
        """Ended requests, of which nothing is told before their responses have left the engine's process."""
        self._arriving: dict[ObjectRef[Had], tuple[int, Finished]] = {}
        """Responses of ended requests, of which nothing is told before the driver's node has a copy of them: that of
        the engine may be lost. Ray sends small ones along with the answer, and keeps the others where they were made
        until somebody reads them."""
        self._calls: dict[ObjectRef[None], tuple[int, str, list[int]]] = {}
        """Of which only failures matter: engine, method, and requests that were submitted."""
        self._told_changes = -1
        self._told_losses = [0] * len(group)
        """Of each engine: as far as `wait` has told."""
        self._open = [True] * len(group)
        """The same of whether it gets requests."""
        self._missed: set[int] = set()
        """Engines that were given requests when they could not take any."""
        self._late: dict[int, ObjectRef[EngineStats]] = {}
        """Engine -> its late answer; not asked again before it has come: one that hangs costs one wait."""

    def __len__(self) -> int:
        return len(self._open)

    def submit(self, engine: int, requests: list[Request], seed: int | None, begun: BegunOf = NONE_BEGUN) -> None:
        """See `Engines`."""
        if not self._takes(engine):
            self._missed.add(engine)  # `wait` says that they are lost
            return
        # Arguments of their own: within another one, Ray would leave them references.
        call = self.group.submit(engine, _HOST.submit, requests, seed, [*begun], *begun.values())
        self._calls[call] = engine, "submit", [request.id for request in requests]
        self.notes.given(engine, [request.id for request in requests])
        waited = bool(self._waiting[engine])
        self._waiting[engine].update(request.id for request in requests)
        # One poll at a time: it tells of these as well, if there is one.
        if not waited:
            self._poll(engine)

    def abort(self, engine: int, requests: list[int], *, keep: bool = False) -> None:
        """See `Engines`."""
        if not self._takes(engine):
            return
        self._calls[self.group.submit(engine, _HOST.abort, requests, keep)] = engine, "abort", []
        if not keep:
            self._unwanted |= self._known(engine).intersection(requests)
            for request in requests:
                self._here.pop(request, None)

    def abort_older(self, engine: int, version: int) -> None:
        """See `Engines`."""
        if self._takes(engine):
            self._calls[self.group.submit(engine, _HOST.abort_older, version)] = engine, "abort_older", []

    def collect(self, engine: int, requests: list[int]) -> "list[ObjectRef[Had]]":
        """See `Engines`."""
        # Only what was aborted and kept is still there.
        if away := [request for request in requests if request not in self._here]:
            _, *found = self._fetch(engine, away)
            self._here.update(zip(away, found, strict=True))
        return [self._here.pop(request) for request in requests]

    def progress(self, requests: Mapping[int, list[int]], timeout_s: float) -> dict[int, BegunGroup]:
        """See `Engines`."""
        asked = {engine: own for engine, own in requests.items() if own and self._takes(engine)}
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

    def wait(self, others: Sequence[ObjectRef], timeout_s: float) -> list[Event]:
        """See `Engines`."""
        missing = not all(self._open)
        # Ray refuses to wait for nothing.
        if waits_for := [*self._polls, *self._collected, *self._arriving, *others]:
            # That one is back is no answer to any call. Waiting for responses brings them here.
            ray.wait(waits_for, num_returns=1, timeout=min(timeout_s, _SOON_S) if missing else timeout_s)
        elif missing:
            self.members.wait(timeout_s, self._told_changes)
        events: list[Event] = []
        done = _done([*self._calls, *self._polls, *self._collected])
        # Calls first: an engine that could not take its requests has nothing to tell of them.
        for call in [call for call in self._calls if call in done]:
            events += self._called(call)
        for call in [call for call in self._polls if call in done]:
            events += self._polled(call)
        for call in [call for call in self._collected if call in done]:
            engine, finished, found = self._collected.pop(call)
            if self._answer(engine, call, "collect", False) is None:
                self._arrive(engine, finished, found)
        arrived = _done([*self._arriving])
        for ref in [ref for ref in self._arriving if ref in arrived]:
            engine, ended = self._arriving[ref]
            # What is left of a lost engine may have been lost with it, which waiting does not tell.
            if self._takes(engine) or _is_there(ref):
                del self._arriving[ref]
                events.append(Ended(engine, self._ended(ended)))
        # Last: what has ended before an engine was lost has ended.
        events += self._changes()
        self.notes.take_in()
        for engine, requests in enumerate(self._waiting):
            last = self.members.state(engine) == "parting"
            if last and self._known(engine) != requests:
                continue  # its node goes once it has handed over what it has: some is on its way here
            if self._takes(engine) and self.notes.ask(engine, requests, last=last):
                self.members.noted(engine)
        return events

    def _called(self, call: "ObjectRef[None]") -> list[Event]:
        """Take in that an engine has done what it was told, or has not."""
        engine, method, requests = self._calls.pop(call)
        try:
            self.group.answer(engine, call, method)
        except GroupError as error:
            lacks_weights = isinstance(getattr(error.__cause__, "cause", None), NoWeights)
            if lacks_weights and self.members.come_back:
                self.members.doubt([engine])  # a transfer has failed, of which its maker does not know yet
                self._waiting[engine].difference_update(requests)
                self.notes.ended(requests)
                return [Refused(engine, requests)]
            self.members.lose(engine, error, self.group.origin(call)[1])
        return []

    def _polled(self, call: "ObjectRef[list[Finished]]") -> list[Event]:
        """Take in what a poll tells of, as far as its responses are here."""
        engine, places = self._polls.pop(call)
        # A lost engine has told of nothing.
        finished = self._answer(engine, call, "poll", [])
        self._waiting[engine].difference_update(each.request for each in finished)
        self.notes.ended([each.request for each in finished])
        sampled = [each for each in finished if not each.error and not each.aborted]
        # There may be more of them than places, or fewer.
        self._arrive(engine, sampled, places)
        rest = sampled[len(places) :]
        if away := [each for each in rest if each.request not in self._unwanted]:
            # One call, whatever the number: it takes the driver as long as all that it does for a sample beside.
            told, *found = self._fetch(engine, [each.request for each in away])
            self._collected[told] = engine, away, found
        if sampled and self.members.streaks[engine]:
            self.members.proved(engine)
        if self._waiting[engine] and self._takes(engine):
            self._poll(engine)
        later = {each.request for each in (*sampled[: len(places)], *away)}
        return [Ended(engine, self._ended(each)) for each in finished if each.request not in later]

    def _arrive(self, engine: int, finished: Sequence[Finished], found: "Sequence[ObjectRef[Had]]") -> None:
        """Responses to these requests are somewhere: not strict, as one of both may be longer."""
        for each, ref in zip(finished, found, strict=False):
            self._here[each.request] = ref
            self._arriving[ref] = engine, each

    def _fetch(self, engine: int, requests: list[int]) -> list[Any]:
        """References to None, and then to the responses to each of these requests."""
        return self.group.submit(engine, _HOST.collect, *requests, num_returns=1 + len(requests))

    def _takes(self, engine: int) -> bool:
        """Whether an engine has the process that it had when `wait` told of it last, and that process goes on."""
        members = self.members
        goes_on = members.state(engine) in ("serving", "stale", "parting")
        return goes_on and members.losses[engine] == self._told_losses[engine]

    def _changes(self) -> list[Event]:
        """What has become of engines since the last call."""
        missed, self._missed, members, changes = self._missed, set(), self.members, self.members.changes
        if changes == self._told_changes and not missed:
            return []
        if members.failure:
            raise members.failure
        events: list[Event] = []
        for engine in range(len(members)):
            if engine == len(self):  # a new one
                self._waiting.append(set())
                self._told_losses.append(members.losses[engine])
                self._open.append(False)
            losses, is_open = members.losses[engine], members.state(engine) == "serving"
            if losses != self._told_losses[engine] or engine in missed:
                begun = self.notes.lost(engine, self._waiting[engine])
                self._forget(engine)
                events.append(Lost(engine, members.error(engine), begun))
                self._open[engine] = False
            if is_open != self._open[engine]:
                events.append(Back(engine) if is_open else Out(engine))
            self._told_losses[engine], self._open[engine] = losses, is_open
        self._told_changes = changes
        return events

    def _known(self, engine: int) -> set[int]:
        """Requests of which `wait` will tell."""
        collected = (each.request for of, ended, _ in self._collected.values() if of == engine for each in ended)
        arriving = (ended.request for of, ended in self._arriving.values() if of == engine)
        return self._waiting[engine].union(collected, arriving)

    def _forget(self, engine: int) -> None:
        """Nothing that a process that is gone was asked for comes any more."""
        known = self._known(engine)
        self._unwanted -= known
        self._here = {request: each for request, each in self._here.items() if request not in known}
        self._arriving = {ref: each for ref, each in self._arriving.items() if each[0] != engine}
        self._waiting[engine].clear()
        self._polls = {call: each for call, each in self._polls.items() if each[0] != engine}
        self._calls = {call: each for call, each in self._calls.items() if each[0] != engine}
        self._collected = {call: each for call, each in self._collected.items() if each[0] != engine}
        self._late.pop(engine, None)

    def _ended(self, finished: Finished) -> Finished:
        """One that nobody wants may have ended by itself before it could be aborted."""
        if finished.request not in self._unwanted:
            return finished
        self._unwanted.discard(finished.request)
        self._here.pop(finished.request, None)
        return replace(finished, aborted=True)

    def condemn(self, engine: int, error: GroupError) -> None:
        """See `Engines`."""
        self.members.lose(engine, error, self.members.generation(engine))

    def lacking_weights(self) -> int:
        """See `Engines`."""
        return len(self.members.stale())

    def stats(self, within_s: float) -> Callable[[], list[EngineStats | None]]:
        """See `Engines`."""
        deadline = Countdown(within_s)
        answered = _done([*self._late.values()])
        self._late = {engine: call for engine, call in self._late.items() if call not in answered}
        asked = [engine for engine in self.members.serving() if engine not in self._late]
        calls = {engine: self.group.submit(engine, _HOST.stats) for engine in asked}

        def answers() -> list[EngineStats | None]:
            done = _done([*calls.values()], deadline.left_s)
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

    def _answer(self, engine: int, call: "ObjectRef[T]", method: str, failed: U) -> T | U:
        """What an engine says; `failed` where it is lost."""
        try:
            return self.group.answer(engine, call, method)
        except GroupError as error:
            # An answer of a process that was replaced since says nothing of its successor.
            self.members.lose(engine, error, self.group.origin(call)[1])
            return failed


def _is_there(ref: ObjectRef) -> bool:
    try:
        ray.get(ref, timeout=0)
    except RayError:
        return False
    return True


def _done(calls: Sequence[ObjectRef], within_s: float = 0) -> set[ObjectRef]:
    return set(ray.wait(list(calls), num_returns=len(calls), timeout=within_s)[0]) if calls else set()
