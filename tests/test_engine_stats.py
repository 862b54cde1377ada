"""How engines are, asked by the driver: real actors around simulated engines, of which one dies and one hangs."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors.group import ActorGroup, GroupError, Slot
from actors.rollout.simulated import SimulatedRolloutWorker, Table
from actors.rollout.types import EngineStats, Request, Sampling
from actors.rollout.worker import CONCURRENCY
from algorithms.rl.bubbles import Bubbles
from algorithms.rollouts.engines import Ended
from algorithms.rollouts.ray_engines import RayEngines

DEADLINE_S = 60


class Engine(SimulatedRolloutWorker):
    """Answers late when it is told so; counts how often it was asked."""

    def __init__(self, rank: int, world_size: int, table: Table) -> None:
        super().__init__(rank, world_size, table)
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    @ray.method(concurrency_group="control")
    async def stats(self) -> EngineStats:
        self.asked += 1
        await self.answers.wait()
        return self.engine.stats()

    @ray.method(concurrency_group="control")
    async def answer(self, answers: bool) -> int:
        """Answer from now on, or not; returns how often it was asked."""
        (self.answers.set if answers else self.answers.clear)()
        return self.asked


METHODS: Any = Engine


@pytest.fixture
def group(local_ray: None, tmp_path: Path) -> Iterator[ActorGroup[Engine]]:
    placement = placement_group([{"CPU": 0.3}])
    assert placement.wait(30)
    slots = [Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)] * 3
    engines = ActorGroup(
        "rollout", Engine, slots, timeout_s=DEADLINE_S, log_directory=str(tmp_path), concurrency=CONCURRENCY
    )
    engines.spawn(Table(lengths=(6,), token_s=0.01, slots=2))
    engines.call(METHODS.answer, True)  # all have started
    yield engines
    engines.shutdown()
    remove_placement_group(placement)


def test_engines_that_are_dead_or_late_are_left_out_and_end_nothing(group: ActorGroup[Engine]) -> None:
    """One that hangs is waited for once, and not asked again before it has answered."""
    engines = RayEngines(group)
    bubbles = Bubbles(engines)
    bubbles.begin()
    sampling = Sampling(samples=4, temperature=1.0, max_tokens=9)
    engines.submit(0, [Request(id=7, token_ids=[1], sampling=sampling)], None)
    events: list[Any] = []
    until = time.monotonic() + DEADLINE_S
    while not events and time.monotonic() < until:
        events = engines.wait((), 1.0)
    assert [type(each) for each in events] == [Ended]
    first, *others = engines.stats(DEADLINE_S)()
    assert first and first.sampled_tokens == 24 and first.busy_s > 0 and first.idle_s > 0
    assert all(each and each.busy_s == 0 and each.lost == "" for each in others)
    group.answer(2, group.submit(2, METHODS.answer, False), "answer")
    ray.kill(group.handles[1])
    with pytest.raises(GroupError):  # until then it may still answer
        while True:
            group.answer(1, group.submit(1, METHODS.stats), "stats")
    bubbles.ask()
    found = bubbles.metrics({"time/rollout": 1.0})
    assert found["bubble/engines_unheard"] == 2 and 0 < found["bubble/engine_idle_fraction"] < 1
    # Longer than any test may take: it does not wait for the one that is late already.
    alive, dead, late = engines.stats(10_000)()
    assert alive and dead is None and late is None
    asked = group.answer(2, group.submit(2, METHODS.answer, True), "answer")
    assert asked == 3, "before the first step, by the test, and once in the step"
    until = time.monotonic() + DEADLINE_S
    while not late and time.monotonic() < until:
        alive, dead, late = engines.stats(DEADLINE_S)()
    assert alive and dead is None and late
    # Whoever waits for responses hears of it, and from then on nothing is asked of it.
    assert engines.members.serving() == [0, 1, 2]
    engines.submit(1, [Request(id=8, token_ids=[1], sampling=sampling)], None)
    while engines.members.state(1) != "lost" and time.monotonic() < until:
        engines.wait((), 1.0)
    assert engines.members.serving() == [0, 2]
