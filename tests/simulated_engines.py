"""Simulated engines under `algorithms.rollouts.engines.Engines`, with a clock that goes on as fast as nothing happens.

For tests of what depends on time and order: weeks of rollouts in a second, the same every time.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.config_rollout import OnUpdate
from actors.group import GroupError
from actors.rollout.host import EngineHost
from actors.rollout.simulated import SimulatedEngine, Table
from actors.rollout.types import EngineStats, Request, Segment
from algorithms.rollouts.engines import NONE_BEGUN, Back, Ended, Event, Lost
from algorithms.rollouts.groups import BegunGroup


class Clock:
    """Seconds that pass when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SimulatedEngines:
    """Several of them; `rollouts` are what was collected, by request."""

    def __init__(self, tables: Sequence[Table], clock: Clock, on_update: OnUpdate = "recompute") -> None:
        self.clock = clock
        self._tables, self._on_update = tables, on_update
        self.engines = [SimulatedEngine(table, clock, on_update) for table in tables]
        self.hosts = [Host(engine) for engine in self.engines]
        self.submitted: dict[int, Request] = {}
        self.rollouts: dict[int, Any] = {}
        self.most_running = 0
        self.dies_at: dict[int, float] = {}
        """Engine -> when it is lost."""
        self.back_after_s: float | None = None
        """Seconds until an engine that was lost is back, with the weights of the others; None: none comes back."""
        self.deaths = 0
        self._lost: set[int] = set()
        self._back_at: dict[int, float] = {}
        self.held: Callable[[], bool] = lambda: False
        """Whether the clock stands still: nobody waits, or for what is there already."""
        self._until = 0.0
        self._version = 0

    def __len__(self) -> int:
        return len(self.engines)

    def submit(self, engine: int, requests: list[Request], seed: int | None, begun: Any = NONE_BEGUN) -> None:
        requests = [replace(each, begun=begun[each.id]) if each.id in begun else each for each in requests]
        for request in requests:
            assert request.id not in self.submitted, "no two requests have one id"
            self.submitted[request.id] = request
        self.hosts[engine].add(requests)
        self.most_running = max(self.most_running, sum(len(host.open) for host in self.hosts))

    def abort(self, engine: int, requests: list[int], *, keep: bool = False) -> None:
        self.hosts[engine]._end(requests, keep=keep)

    def abort_older(self, engine: int, version: int) -> None:
        self.engines[engine].abort_older(version)

    def collect(self, engine: int, requests: list[int]) -> list[Any]:
        self.rollouts |= {request: self.hosts[engine].ended.pop(request) for request in requests}
        return requests

    def progress(self, requests: Mapping[int, list[int]], timeout_s: float) -> dict[int, BegunGroup]:
        found: dict[int, BegunGroup] = {}
        for engine, own in requests.items():
            host: Any = self.hosts[engine]  # ray.method hides from type checkers that they are functions
            told, *samples = asyncio.run(host.progress(own))
            references: Any = dict(zip(own, samples, strict=True))  # what is there itself
            found |= {each: BegunGroup(samples=references[each], infos=infos) for each, infos in told.items()}
        return found

    def condemn(self, engine: int, error: GroupError) -> None:
        self.dies_at[engine] = self.clock.now

    def lacking_weights(self) -> int:
        return 0

    def stats(self, within_s: float) -> Callable[[], list[EngineStats | None]]:
        lost = self._lost
        found = [None if number in lost else engine.stats() for number, engine in enumerate(self.engines)]
        return lambda: found

    def go_on(self, seconds: float) -> None:
        """So much time passes, with whatever ends in it."""
        self._until = self.clock.now + seconds
        deadline = time.monotonic() + 5
        while self.clock.now < self._until and any(host.open for host in self.hosts) and time.monotonic() < deadline:
            time.sleep(0.0001)
        self.clock.now = max(self.clock.now, self._until)

    def use(self, version: int) -> None:
        """All engines get weights of this version."""
        self._version = version
        for engine in self.engines:
            engine.use(version)

    def wait(self, others: Sequence[Any], timeout_s: float) -> list[Event]:
        until = time.monotonic() + 5
        while self.held() and self.clock.now >= self._until and time.monotonic() < until:
            time.sleep(0.0001)
        next_end = min((engine.next_end() for engine in self.engines), default=self.clock.now)
        dying = [when for each, when in self.dies_at.items() if each not in self._lost]
        next_death = min([*dying, *self._back_at.values()], default=next_end)
        # Not beyond what is being trained on meanwhile, which then looks at what there is.
        ahead = self._until if self._until > self.clock.now else float("inf")
        self.clock.now = max(self.clock.now, min(next_end, next_death, self.clock.now + timeout_s, ahead))
        events: list[Event] = []
        for number, host in enumerate(self.hosts):
            if number in self._lost:
                events += self._back(number)
                continue
            if self.clock.now >= self.dies_at.get(number, float("inf")):
                self._lost.add(number)
                self.engines[number].lose("it died")
                host.open.clear()
                self.deaths += 1
                if self.back_after_s is not None:
                    self._back_at[number] = self.clock.now + self.back_after_s
                events.append(Lost(number, GroupError(f"rollout[{number}].poll: it died")))
                continue
            events += (Ended(number, finished) for finished in host.poll())
        return events

    def _back(self, engine: int) -> list[Event]:
        """A lost engine whose time has come has a new process."""
        if self._back_at.get(engine, float("inf")) > self.clock.now:
            return []
        del self._back_at[engine], self.dies_at[engine]
        self._lost.discard(engine)
        self.engines[engine] = SimulatedEngine(self._tables[engine], self.clock, self._on_update)
        self.engines[engine].use(self._version)
        self.hosts[engine] = Host(self.engines[engine])
        return [Back(engine)]


class Host(EngineHost):
    """The half of an engine's actor that makes groups of segments, without an actor."""

    def __init__(self, engine: SimulatedEngine) -> None:
        super().__init__(lambda segment: f"{len(segment.token_ids)} tokens")
        self.engine = engine
        self.open, self.ended = self._open, self._ended

    def add(self, requests: list[Request]) -> None:
        for request in requests:
            self._open[request.id] = request, []
        self.engine.submit(requests, None)

    def poll(self) -> Any:  # type: ignore[override]
        segments: list[Segment] = [each for each in self.engine.poll(0) if each.request in self._open]
        return [self._finish(request) for request in self._completed(segments)]
