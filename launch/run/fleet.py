"""Brings rollout engines back that are lost: a new process in the same place, beside everything else that goes on.

It ends where an engine lacks nothing but weights; `launch.run.weights` gives it those.
"""

import threading
from collections.abc import Callable
from typing import Any

from actors.group import ActorGroup, GroupError, first_line
from actors.group_errors import RankLost
from actors.rollout.worker import RolloutWorker
from algorithms.rollouts.membership import Membership
from launch.tracking.events import Fault
from launch.tracking.now import Now

_LONGEST_PAUSE_S = 60.0
_CLOSE_S = 10.0
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
    ) -> None:
        """
        Args:
            group: the engines.
            members: which of them serve; it tells of those that are lost.
            now: takes notes of faults, and of how many engines serve.
            start_timeout_s: longest start of one.
            max_restarts: of one engine in a row.
            had: names of the prompts that an engine had when it was lost last.
        """
        self._group, self._members, self._events, self._time = group, members, now.events, now.lost
        self._start_timeout_s, self._max_restarts, self._had = start_timeout_s, max_restarts, had
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

    def hear(self, engine: int, generation: int, text: str) -> None:
        """An engine's process of this generation is no more, as somebody has noticed who looks at processes."""
        self._members.lose(engine, RankLost(text, self._group.name, engine), generation)

    def close(self) -> None:
        """Start nothing any more. Faults that are not over are for whoever knows how the run goes on."""
        with self._lock:
            self._closed.set()
        for thread in list(self._threads.values()):
            thread.join(_CLOSE_S)

    def _lost(self, engine: int, error: GroupError) -> None:
        """Called by whoever has noticed it: it must not wait."""
        self._count()
        who, generation = f"{self._group.name}[{engine}]", self._members.generation(engine)
        cause = first_line(str(error))
        fault = Fault(who=who, what="died", noticed_by="call", generation=generation, cause=cause)
        number = self._events.noticed(fault, "restarting")
        self._faults.setdefault(engine, []).append(number)
        # One that is lost while it restarts is so to its thread, too, unless that has seen it come back.
        with self._busy:
            if engine in self._at_work:
                return
            self._at_work.add(engine)
        thread = threading.Thread(target=self._bring_back, args=(engine,), name=f"restart of {who}", daemon=True)
        self._threads[engine] = thread
        thread.start()

    def _served(self, engine: int) -> None:
        self._count()
        for number in self._faults.pop(engine, []):
            self._events.recovered(number, "restarted", samples=self._had(engine))

    def _count(self) -> None:
        self._time.engines(len(self._members.serving()), len(self._members))

    def _bring_back(self, engine: int) -> None:
        """Start an engine until its process is ready, or has failed too often."""
        while self._is_needed(engine):
            error, streak = self._members.error(engine), self._members.streaks[engine]
            if streak > self._max_restarts:
                self._give_up(engine, error, streak)
                return
            # At once for the first time: what has killed it is mostly nothing that stays.
            self._closed.wait(min(_LONGEST_PAUSE_S, 2.0 ** (streak - 2)) if streak > 1 else 0)
            try:
                self._start(engine)
            except GroupError as failed:
                self._members.lose(engine, failed, self._members.generation(engine))
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

    def _start(self, engine: int) -> None:
        """A new process, up to where it is ready; raises GroupError."""
        with self._lock:
            if self._closed.is_set():
                return
            self._group.replace(engine)
            self._members.restarting(engine)
        self._tell(engine, "restarting")
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
