"""Brings rollout engines back that are lost, and new ones into being, beside everything else that goes on.

A process starts in the same place, or in another one where the node is gone or about to go. It ends where an engine
lacks nothing but weights; `launch.run.weights` gives it those.
"""

import threading
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

from actors.group import ActorGroup, Countdown, GroupError, Slot, first_line
from actors.group_errors import RankLost
from actors.rollout.worker import RolloutWorker
from algorithms.rollouts.membership import Membership, Parted
from launch.run.places import Asked, Places
from launch.run.ray_lost import ray_is_dead
from launch.tracking.events import DRAINED, JOINED, LEFT, Fault
from launch.tracking.now import Now

_LONGEST_PAUSE_S = 60.0
_CLOSE_S = 10.0
_ROOM_S = 1
"""Between two looks whether there is room."""
_ENGINE: Any = RolloutWorker
"""Its methods as plain functions: ray.method hides from type checkers that they are."""


class Fleet:
    """Restarts the engines of a run. An engine that is lost again and again, before it has ended any request, ends the
    run with the cause.

    Example:
        fleet = Fleet(roster["rollout"], members, now, start_timeout_s=600, max_restarts=3)
        ...
        fleet.close()
    """

    def __init__(
        self,
        group: ActorGroup[RolloutWorker],
        members: Membership,
        now: Now,
        *,
        start_timeout_s: float,
        max_restarts: int,
        had: Callable[[int], list[str]] = lambda _: [],
        places: Places | None = None,
        excuse: Callable[[], bool] = ray_is_dead,
    ) -> None:
        """
        Args:
            group: the engines.
            members: which of them serve; it tells of those that are lost.
            now: takes notes of faults, and of how many engines serve.
            start_timeout_s: longest start of one.
            max_restarts: of one engine in a row.
            had: names of the prompts that an engine had when it was lost last.
            places: where engines may be, where they have bundles of their own.
            excuse: whether something else has died that takes all engines along: theirs is no fault then, and none is
                started again.
        """
        self._group, self._members, self._events, self._time = group, members, now.events, now.lost
        self._start_timeout_s, self._max_restarts, self._had = start_timeout_s, max_restarts, had
        self._places, self._excuse = places, excuse
        self._arriving: set[int] = set()
        """Engines that are to serve and were not lost by a fault: they are new, or move."""
        self._draining: dict[int, int] = {}
        """Engine -> its generation that was told to go."""
        self._homeless: set[int] = set()
        """Engines that wait for room."""
        self._faults: dict[int, list[int]] = {}
        """Engine -> numbers of its faults that are not over."""
        self._threads: dict[int, threading.Thread] = {}
        self._at_work: set[int] = set()
        """Engines of which a thread looks once more whether they are lost."""
        self._busy = threading.Lock()
        self._lock = threading.Lock()
        """Held while a process is started: none is, once it is closed."""
        self._closed = threading.Event()
        members.on_lost, members.on_served = self._lost, self._served
        now.engines = members.counts

    def hear(self, engine: int, generation: int, text: str) -> None:
        """An engine's process of this generation is no more, as somebody has noticed who looks at processes."""
        self._members.lose(engine, RankLost(text, self._group.name, engine), generation)

    @property
    def waits_for_room(self) -> bool:
        """Whether an engine that was lost asks for a bundle."""
        return bool(self._homeless)

    def join(self, slot: Slot) -> None:
        """Start one more engine in a slot, without waiting for it."""
        assert self._places, "there are others to be had"
        with self._lock:
            if self._closed.is_set():
                return
            engine = self._members.join()
            self._places.settle(engine, slot)
            if engine < len(self._group):
                self._group.replace(engine, slot)
            else:
                self._group.add(slot)
        self._arriving.add(engine)
        with self._busy:
            self._at_work.add(engine)
        self._begin(engine, self._bring_in)

    def drain(self, engine: int, within_s: float) -> None:
        """An engine's node is about to go: within so many seconds it hands over what it has; returns at once, and may
        be told again."""
        generation = self._members.generation(engine)
        if self._draining.get(engine) != generation:
            self._draining[engine] = generation
            threading.Thread(target=self._part, args=(engine, generation, within_s), daemon=True).start()

    def close(self) -> None:
        """Start nothing any more. Faults that are not over are for whoever knows how the run goes on."""
        with self._lock:
            self._closed.set()
        left = Countdown(_CLOSE_S)
        for thread in list(self._threads.values()):
            thread.join(left.left_s)

    def _lost(self, engine: int, error: GroupError) -> None:
        """Called by whoever has noticed it: it must not wait."""
        if self._excuse():
            return
        self._count()
        who, generation = f"{self._group.name}[{engine}]", self._members.generation(engine)
        if isinstance(error, Parted) and self._places:
            self._arriving.add(engine)
            self._events.tell(DRAINED, who, self._places.where(engine))
        else:
            cause = first_line(str(error))
            fault = Fault(who=who, what="died", noticed_by="call", generation=generation, cause=cause)
            number = self._events.noticed(fault, "restarting")
            self._faults.setdefault(engine, []).append(number)
        # One that is lost while it restarts is so to its thread, too, unless that has seen it come back.
        with self._busy:
            if engine in self._at_work:
                return
            self._at_work.add(engine)
        self._begin(engine, self._bring_back)

    def _begin(self, engine: int, work: Callable[[int], None]) -> None:
        name = f"start of {self._group.name}[{engine}]"
        self._threads[engine] = threading.Thread(target=work, args=(engine,), name=name, daemon=True)
        self._threads[engine].start()

    def _served(self, engine: int) -> None:
        self._count()
        for number in self._faults.pop(engine, []):
            self._events.recovered(number, "restarted", samples=self._had(engine))
        if engine in self._arriving and self._places:
            self._arriving.discard(engine)
            self._events.tell(JOINED, f"{self._group.name}[{engine}]", self._places.where(engine))

    def _count(self) -> None:
        self._time.engines(*self._members.counts())

    def _part(self, engine: int, generation: int, within_s: float) -> None:
        """Let an engine note what it has, and end it."""
        if self._members.part(engine):
            self._count()
            self._members.wait_until_noted(engine, within_s)
        self._members.lose(engine, Parted(f"rollout[{engine}]: its node is about to go"), generation)

    def _bring_in(self, engine: int) -> None:
        """Wait until a new engine's process is ready; bring it back where it is lost before."""
        try:
            self._wait_until_ready(engine)
        except GroupError as failed:
            self._members.lose(engine, failed, self._members.generation(engine))
        self._bring_back(engine)

    def _bring_back(self, engine: int) -> None:
        """Start an engine until its process is ready, or has failed too often."""
        failures, failure = 0, None  # of Ray's, before there was a process
        moves = False
        while self._is_needed(engine):
            error, streak = failure or self._members.error(engine), self._members.streaks[engine] + failures
            if streak > self._max_restarts:
                self._give_up(engine, error, streak)
                return
            # At once for the first time: what has killed it is mostly nothing that stays.
            self._closed.wait(min(_LONGEST_PAUSE_S, 2.0 ** (streak - 2)) if streak > 1 else 0)
            try:
                slot = None
                moves = bool(self._places) and (moves or self._must_move(engine))
                if moves and (slot := self._other_slot(engine)) is None:
                    return  # it has left, or all is over
                moves = False  # before, its place may have been given back already
                self._start(engine, slot)
            except GroupError as failed:
                self._members.lose(engine, failed, self._members.generation(engine))
            except (RayError, ConnectionError) as failed:  # its head may be away
                failure = GroupError(f"rollout[{engine}]: {type(failed).__name__}: {first_line(str(failed))}")
                if not self._members.lose(engine, failure, self._members.generation(engine)):
                    failures += 1
            except Exception as failed:  # Whatever it is: nobody else waits for this engine, and all wait for it.
                text = f"rollout[{engine}] could not be restarted: {type(failed).__name__}: {first_line(str(failed))}"
                self._members.give_up(GroupError(text))
                return

    def _is_needed(self, engine: int) -> bool:
        """Whether a thread has more to do for an engine; it is not at work any more where not."""
        with self._busy:
            needed = self._members.state(engine) == "lost" and not self._closed.is_set()
            if not needed:
                self._at_work.discard(engine)
            return needed

    def _must_move(self, engine: int) -> bool:
        assert self._places
        # Now: its loss is the first that is heard of its node's.
        self._places.look()
        return self._places.must_move(engine)

    def _other_slot(self, engine: int) -> Slot | None:
        """A slot elsewhere, as soon as there is room; None where the engine leaves instead, or all is closed."""
        assert self._places
        with self._lock:
            if self._closed.is_set():
                return None
            # What is left of it ends now: its node may stay for a while.
            self._group.retire(engine)
            self._members.ended(engine)
            self._places.vacate(engine)
        self._homeless.add(engine)
        asked: Asked | None = None
        slot: Slot | None = None
        try:
            while slot is None and not self._leaves(engine):
                if asked and self._places.is_outdated(asked):
                    asked.give_up()
                    asked = None
                asked = asked or self._places.ask()
                slot = asked.slot(_ROOM_S)
            if slot and not self._settled(engine, slot):
                slot = None
        finally:
            self._homeless.discard(engine)
            if asked and slot is None:
                asked.give_up()
        return slot

    def _settled(self, engine: int, slot: Slot) -> bool:
        with self._lock:
            if self._closed.is_set() or self._places is None:
                return False
            self._places.settle(engine, slot)
            return True

    def _leaves(self, engine: int) -> bool:
        """Whether all is closed, or a lost engine that has no place goes for good, as there are enough without it."""
        assert self._places
        with self._lock:
            if self._closed.is_set():
                return True
            if not self._places.may_shrink(len(self._members.alive())):
                return False
            self._members.leave(engine)
        self._arriving.discard(engine)
        self._count()
        for number in self._faults.pop(engine, []):
            self._events.recovered(number, LEFT, samples=self._had(engine))
        self._events.tell(LEFT, f"{self._group.name}[{engine}]", self._places.where(engine))
        return True

    def _start(self, engine: int, slot: Slot | None = None) -> None:
        """A new process, up to where it is ready; raises GroupError."""
        with self._lock:
            if self._closed.is_set():
                return
            self._group.replace(engine, slot)
            self._members.restarting(engine)
        self._tell(engine, "restarting")
        self._wait_until_ready(engine)

    def _wait_until_ready(self, engine: int) -> None:
        ready = self._group.submit(engine, _ENGINE.ready)
        self._group.gather([ready], "ready", self._start_timeout_s, [engine])
        self._members.ready(engine)
        self._tell(engine, "stale")

    def _tell(self, engine: int, state: str) -> None:
        for number in self._faults.get(engine, [])[-1:]:
            self._events.state(number, state)

    def _give_up(self, engine: int, error: GroupError, streak: int) -> None:
        for number in self._faults.pop(engine, []):
            self._events.given_up(number, f"lost {streak} times in a row")
        text = f"rollout[{engine}] was lost {streak} times in a row (run.max_restarts {self._max_restarts}); the last"
        self._members.give_up(GroupError(f"{text}: {error}"))
