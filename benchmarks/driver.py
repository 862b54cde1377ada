"""What the driver does for a sample, in microseconds: python -m benchmarks.driver [--rounds 9]

Real actors and Ray calls around engines that sample nothing and ranks that learn nothing. As in a step of GRPO, prompts
are admitted, polled, collected, scored where there is a reward process, and dealt to ranks, which then have their
episodes. The processor time of this process is counted, that of Ray's threads in it included, and not what it waits
for.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
from ray.util.placement_group import placement_group

from actors.episodes import Episode, Prompt
from actors.group import ActorGroup, Slot
from actors.rollout.host import EngineHost
from actors.rollout.simulated import SimulatedRolloutWorker, Table
from actors.rollout.types import Sampling
from actors.rollout.worker import CONCURRENCY
from actors.train.worker import Held, Totals
from algorithms.config import RewardConfig
from algorithms.division.deals import Updates, hand_episodes, split_by
from algorithms.division.work import divide, samples_of, split_updates, totals_of
from algorithms.rewards.pool import RewardPool
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.ray_engines import RayEngines
from algorithms.rollouts.rollouts import Rollouts
from benchmarks import results

ENGINES, RANKS, PROMPT_TOKENS, UPDATES = 2, 2, 32, 2
SIZES = {1: 512, 8: 128}
"""Samples of a prompt -> prompts of a step."""
ROOT = Path(__file__).resolve().parent.parent
_HOST: Any = EngineHost
"""Its methods as plain functions: ray.method hides from type checkers that they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What responses are like."""

    name: str
    table: Table
    scored: bool = False
    """Whether a process scores them."""


def at_once(tokens: int) -> Table:
    """All responses are there when they are asked for."""
    return Table(lengths=(tokens,), token_s=0, slots=10**4)


# 97 and 256 have no common factor: every length comes once.
_SPREAD = Table(lengths=[97 * number % 256 + 1 for number in range(256)], token_s=2 / 256, slots=10**4)
SETTINGS = (
    Setting(name="64 tokens, all at once", table=at_once(64)),
    Setting(name="512 tokens, all at once", table=at_once(512)),
    Setting(name="64 tokens, all at once, scored", table=at_once(64), scored=True),
    Setting(name="1 to 256 tokens, one after the other, 2 s", table=_SPREAD),
)


class Rank:
    """Has its episodes, and learns nothing from them."""

    def __init__(self, rank: int, ranks: int) -> None:
        pass

    def update(
        self, plans: list[list[list[tuple[int, int, float]]]], held: Held, totals: list[Totals], *groups: list[Episode]
    ) -> int:
        """How many there are."""
        assert [len(indices) for _, indices in held] == [len(episodes) for episodes in groups]
        return sum(map(len, groups))


@dataclass(frozen=True, slots=True)
class Seconds:
    """Processor time of the driver in a step, and how long it took."""

    rollouts: float
    """From prompts to groups."""
    plan: float
    """From groups to what each rank works on."""
    hand: float
    """Until ranks have their episodes."""
    drop: float
    """Until nothing is left of the step."""
    ours: float
    """Within all that, of the threads that run the driver's code; the others are Ray's."""
    wall: float
    """Without the last part."""

    @property
    def all(self) -> float:
        """Processor time of the step."""
        return self.rollouts + self.plan + self.hand + self.drop


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Engines, ranks, and what lies between them in a run."""

    engines: ActorGroup[SimulatedRolloutWorker]
    ranks: ActorGroup[Rank]
    rollouts: Rollouts
    samples: int
    groups: int

    def step(self, version: int) -> Seconds:
        """One step, with weights of this version."""
        self.engines.call(SimulatedRolloutWorker.use, version)
        marks, ours, began = [time.process_time()], own_threads_s(), time.perf_counter()
        taken = self.rollouts.take(self.groups, version, seed=version)
        marks.append(time.process_time())
        updates = self._plan(taken, version)
        marks.append(time.process_time())
        had = self._hand(taken, updates)
        marks.append(time.process_time())
        wall = time.perf_counter() - began
        assert had >= self.groups * self.samples
        del taken, updates
        time.sleep(0.2)
        marks.append(time.process_time())
        rollouts, plan, hand, drop = np.diff(marks).tolist()
        return Seconds(rollouts, plan, hand, drop, own_threads_s() - ours, wall)

    def _plan(self, groups: list[ScoredGroup], seed: int) -> Updates:
        advantages = [np.ones(self.samples) if np.isnan(each.rewards).any() else each.rewards for each in groups]
        everything = samples_of(groups, advantages)
        updates = split_updates(everything, len(everything) // UPDATES, seed)
        work = divide(updates, RANKS, token_budget=8192)
        return Updates.of(self.ranks, "policy", [totals_of(each, each) for each in updates], work, {"advantages"})

    def _hand(self, groups: list[ScoredGroup], updates: Updates) -> int:
        given = hand_episodes(groups, updates.work, split_by(self.engines, _HOST.split))
        calls = [
            self.ranks.submit(rank, Rank.update, share.plans, held, updates.totals, *episodes)
            for rank, (share, (held, episodes)) in enumerate(zip(updates.work, given, strict=True))
        ]
        return sum(self.ranks.gather(calls, "update"))


def main() -> None:
    """Measure, print and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    rows = []
    with tempfile.TemporaryDirectory() as logs:
        for setting in SETTINGS:
            for samples, groups in SIZES.items():
                with started(setting, samples, groups, logs) as driver:
                    found = [driver.step(version) for version in range(arguments.rounds + 2)][2:]
                rows.append([setting.name, samples, groups, *row(found, samples * groups)])
                print(results.table(HEADER, rows[-1:]), flush=True)
    ray.shutdown()
    text = (
        "## Driver, microseconds per sample\n\n"
        f"`python -m benchmarks.driver --rounds {arguments.rounds}` on {results.machine()}. Processor time, the median "
        f"of the rounds; {ENGINES} engines, {RANKS} ranks, {UPDATES} updates a step, prompts of {PROMPT_TOKENS} "
        "tokens.\n\n" + results.table(HEADER, rows)
    )
    results.write_section("driver", text)


HEADER = (
    "responses", "samples a prompt", "prompts", "driver", "of that in Ray's threads", "rollouts", "plan", "hand out",
    "let go", "wall",
)  # fmt: skip


def row(found: list[Seconds], samples: int) -> list[str]:
    """Microseconds per sample."""
    columns = [
        [each.all, each.all - each.ours, each.rollouts, each.plan, each.hand, each.drop, each.wall] for each in found
    ]
    return [f"{1e6 * median(values) / samples:.0f}" for values in zip(*columns, strict=True)]


@contextmanager
def started(setting: Setting, samples: int, groups: int, logs: str) -> Iterator[Driver]:
    """A driver of so many prompts a step, and its processes."""
    placement = placement_group([{"CPU": 0.5}] * (ENGINES + RANKS))
    assert placement.wait(60)
    slots = [Slot(placement=placement, bundle=n, cpus=0.5, gpus=0, threads=1) for n in range(ENGINES + RANKS)]
    engines: ActorGroup[SimulatedRolloutWorker] = ActorGroup(
        "rollout", SimulatedRolloutWorker, slots[:ENGINES], timeout_s=60, log_directory=logs, concurrency=CONCURRENCY
    )
    engines.spawn(setting.table)
    ranks: ActorGroup[Rank] = ActorGroup("policy", Rank, slots[ENGINES:], timeout_s=60, log_directory=logs)
    ranks.spawn()
    config = RewardConfig.model_validate({"functions": ["benchmarks.reward:score"]})
    pool = RewardPool(config, cpus_per_worker=0.1) if setting.scored else None
    sampling = Sampling(samples=samples, temperature=1.0, max_tokens=max(setting.table.lengths))
    limits = Limits(silence_s=60)
    rollouts = Rollouts(RayEngines(engines), pool, prompts(), sampling, limits, groups_per_step=groups)
    try:
        yield Driver(engines=engines, ranks=ranks, rollouts=rollouts, samples=samples, groups=groups)
    finally:
        rollouts.close()
        if pool:
            pool.close()
        for group in (engines, ranks):
            group.shutdown()
        ray.util.remove_placement_group(placement)


def prompts() -> Iterator[Prompt]:
    """Without an end."""
    for number in count():
        token_ids = [(number + place) % 90 for place in range(PROMPT_TOKENS)]
        yield Prompt(index=number, token_ids=token_ids, text=f"row {number}", row={"prompt": f"row {number}"})


def own_threads_s() -> float:
    """Processor time of this thread and of that of the rollouts."""
    own = [thread for thread in threading.enumerate() if thread.name in ("MainThread", "rollouts")]
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in own if thread.ident]
    return sum(map(time.clock_gettime, clocks))


if __name__ == "__main__":
    main()
