"""FakeEngines and FakePool: engines and the reward pool, without Ray and without waiting.

They are `algorithms.rollouts.engines.Engines`, the pool and the clock in one, so that a script says what ends and when.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from actors.episodes import EpisodeStatus, Prompt
from actors.group import GroupError
from actors.rollout.types import Finished, Request, RolloutInfo
from algorithms.rewards.pool import RewardPool, _Job
from algorithms.rewards.scores import Score, failed_score
from algorithms.rollouts.engines import NONE_BEGUN, Ended, Event, Lost
from algorithms.rollouts.groups import BegunGroup


@dataclass(frozen=True)
class After:
    """What happens next, so many seconds after what happened before; a status for each response of a group."""

    seconds: float
    generated: dict[int, str] = field(default_factory=dict)
    """Number of a group, as they were started -> statuses of its responses, as "ok failed", or else of what its engine
    died."""
    scored: dict[int, str] = field(default_factory=dict)
    """Index of a prompt -> "ok" or "failed" for each response."""
    refused: dict[int, str] = field(default_factory=dict)
    """Number of a group -> why its engine does not take it."""
    happens: list[Event] = field(default_factory=list)
    """What else is told."""


class FakeEngines:
    """`starts` are the calls that gave engines their prompts: (engine, ids of the requests, seed)."""

    def __init__(self, *script: After, engines: int = 3, version: int = 0) -> None:
        self.script = deque(script)
        self.engines = engines
        self.version = version
        """Of the weights in service."""
        self.now = 5000.0
        self.starts: list[tuple[int, list[int], int | None]] = []
        self.given: dict[int, Request] = {}
        self.on: dict[int, int] = {}
        """Id of a request that has not ended -> its engine."""
        self.collected: list[tuple[int, int]] = []
        self.collects: list[tuple[int, list[int]]] = []
        """Call by call."""
        self.aborted: list[tuple[int, list[int]]] = []
        self.aborted_older: list[tuple[int, int]] = []
        self.pool: FakePool | None = None
        self.condemned: list[Lost] = []
        self.lacking = 0
        """How many engines are back but for weights."""
        self.awaited: Callable[[], bool] = lambda: True
        """Nothing happens before this holds."""
        self.begun: dict[int, BegunGroup] = {}
        """What is known of requests when their engine is lost."""

    def __len__(self) -> int:
        return self.engines

    def submit(self, engine: int, requests: list[Request], seed: int | None, begun: Any = NONE_BEGUN) -> None:
        self.starts.append((engine, [request.id for request in requests], seed))
        requests = [replace(each, begun=begun[each.id]) if each.id in begun else each for each in requests]
        for request in requests:
            assert request.id not in self.given, "no two requests have one id"
            self.given[request.id], self.on[request.id] = request, engine

    def abort(self, engine: int, requests: list[int], *, keep: bool = False) -> None:
        self.aborted.append((engine, requests))

    def abort_older(self, engine: int, version: int) -> None:
        self.aborted_older.append((engine, version))

    def collect(self, engine: int, requests: list[int]) -> list[Any]:
        assert not self.on.keys() & requests, "they have ended"
        self.collects.append((engine, requests))
        self.collected += [(engine, request) for request in requests]
        return [f"rollouts {request}" for request in requests]

    def condemn(self, engine: int, error: GroupError) -> None:
        self.condemned.append(Lost(engine, error))

    def lacking_weights(self) -> int:
        return self.lacking

    def stats(self, within_s: float) -> Callable[[], list[Any]]:
        return lambda: [None] * self.engines

    def wait(self, others: Sequence[Any], timeout_s: float) -> list[Event]:
        """The next line of the script comes true."""
        assert timeout_s is not None, "a wait without an end"
        until = time.monotonic() + 10
        while not self.awaited() and time.monotonic() < until:
            time.sleep(0.001)
        if self.condemned:
            return [self.condemned.pop()]
        if not self.script:
            raise AssertionError("the driver would wait for ever")
        return self._happen(self.script.popleft())

    def monotonic(self) -> float:
        return self.now

    def _happen(self, event: After) -> list[Event]:
        self.now += event.seconds
        events: list[Event] = []
        for number, said in event.generated.items():
            engine, statuses = self.on.pop(number), said.split()
            if not set(statuses) <= set(get_args(EpisodeStatus)):
                events.append(Lost(engine, GroupError(f"rollout[{engine}].poll: {said}"), self.begun))
                continue
            infos = [
                RolloutInfo(
                    tokens=number + index,
                    prompt_tokens=number,
                    sampled_tokens=index,
                    status=status,  # type: ignore[arg-type]
                    oldest_version=self.version,
                )
                for index, status in enumerate(statuses)
            ]
            events.append(Ended(engine, Finished(request=number, infos=infos)))
        for number, why in event.refused.items():
            events.append(Ended(self.on.pop(number), Finished(request=number, infos=[], error=why)))
        for index, said in event.scored.items():
            assert self.pool is not None
            self.pool.score(index, said.split())
        return events + event.happens


class FakePool(RewardPool):
    """Scores what its engines' script says, at once unless it is `slow`."""

    def __init__(self, engines: FakeEngines, *, slow: bool = False) -> None:
        self._finished = []
        self.jobs: dict[int, _Job] = {}
        """Index of a prompt -> what is scored."""
        self.submitted: list[int] = []
        self.slow = slow
        engines.pool = self

    def submit(self, prompt: Prompt, rollouts: Any, samples: int) -> int:
        ticket = 700 + len(self.submitted)
        self.submitted.append(prompt.index)
        self.jobs[prompt.index] = _Job(ticket=ticket, prompt=prompt, rollouts=rollouts, samples=samples)
        if not self.slow:
            self.score(prompt.index, ["ok"] * samples)
        return ticket

    def refs(self) -> list[Any]:
        return [index for index, job in self.jobs.items() if not job.scores]

    def score(self, index: int, statuses: Sequence[str]) -> None:
        job = self.jobs[index]
        job.scores += [
            failed_score(f"cause {index}", job.prompt.text, "")
            if status == "failed"
            else Score(reward=index + number / 10, parts={}, status="ok")
            for number, status in enumerate(statuses)
        ]
        self._finish(job)

    def ready(self, timeout_s: float) -> list[tuple[int, list[Score]]]:
        assert timeout_s == 0
        finished, self._finished = self._finished, []
        return finished
