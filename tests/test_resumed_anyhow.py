"""Rollouts that end at any step and go on with other settings, again and again: no prompt is lost, none comes twice.

Real rollouts, checkpoints and row order on simulated engines; no Ray, and nothing is waited for.
"""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from actors.episodes import Prompt
from actors.files.parts import Entry
from actors.rollout.simulated import Table
from actors.rollout.types import Sampling
from algorithms.batches import Batches
from algorithms.rollouts.ahead import read_ahead
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from algorithms.rollouts.tail import Tail
from tests.simulated_engines import Clock, SimulatedEngines
from tests.test_saved_rollouts import here

__all__ = ["here"]  # the fixture: references are the episodes themselves

HELD_OUT = [Prompt(index=-1 - number, token_ids=[1, 2], text="", row={}) for number in range(3)]
ROWS = 100_000


def prompt(_: str, row: int) -> Prompt:
    return Prompt(index=row, token_ids=[row % 90, 7], text="", row={})


class Run:
    """From one start to the next kill."""

    def __init__(self, random_: random.Random, steps: int) -> None:
        self.random = random_
        self.staleness, self.groups = random_.choice([0, 0, 1, 2, 4]), random_.choice([1, 2, 3, 5])
        self.sampling = Sampling(
            samples=random_.choice([1, 2, 3]),
            temperature=1.0,
            max_tokens=random_.choice([9, 200, 500]),
            max_step_tokens=random_.choice([None, 1, 10, 60]) if self.staleness else None,
        )
        self.tailed = not self.staleness and random_.random() < 0.6
        self.dynamic = random_.random() < 0.3
        self.engines = SimulatedEngines([self._table() for _ in range(random_.randint(1, 3))], Clock())
        self.engines.collect = lambda engine, own: [self.engines.hosts[engine].ended.pop(each) for each in own]  # type: ignore[method-assign]
        order = Batches(ROWS, seed=0, shuffle=False)
        self.rollouts = Rollouts(
            self.engines,
            None,
            self._prompts(order),
            self.sampling,
            Limits(silence_s=1e9, starts=random_.choice([1, 2, 3]) if self.staleness else 3),
            groups_per_step=self.groups,
            max_staleness=self.staleness,
            groups_in_run=steps * self.groups,
            most_each=random_.choice([None, 3, 9]) if self.staleness else None,
            judge=(lambda group: group if group.prompt.index % 3 else None) if self.dynamic else None,
            most_drawn=random_.choice([1, 5]) if self.dynamic else None,
            tail=Tail(random_.choice([0.25, 1.0]), lambda: order.left, order.rows) if self.tailed else None,
            order=order,
            prompt_of=prompt,
            clock=self.engines.clock,
        )
        self.engines.held = self._is_held

    def _table(self) -> Table:
        lengths = [min(300, int(self.random.lognormvariate(3, 1)) + 1) for _ in range(30)]
        return Table(lengths=lengths, token_s=self.random.choice([0.005, 0.02]), slots=self.random.randint(1, 9))

    def _prompts(self, order: Batches) -> Iterator[Prompt]:
        for _ in count():
            yield prompt("", order.next(1)[0])

    def _is_held(self) -> bool:
        wanted = self.rollouts._wanted
        return not self.rollouts._closed and (wanted is None or wanted.lane.can_give(wanted.groups, wanted.version))

    def step(self, version: int) -> tuple[list[int], list[int], int]:
        """Rows that are trained on and left out, and the version afterwards; an update that moves nothing has none."""
        taken = self.rollouts.take(self.groups, version, seed=version)
        assert len(taken) == self.groups or (self.dynamic and len(taken) < self.groups)
        for group in taken:
            assert len(group.infos) == self.sampling.samples
            assert max(info.sampled_tokens for info in group.infos) <= self.sampling.max_tokens
            assert all(0 <= version - info.oldest_version <= self.staleness for info in group.infos)
        self.engines.go_on(self.random.choice([0, 0.1, 0.5]))
        named = [each.prompt.index for each in self.rollouts.report()[1].left_out]
        if self.random.random() < 0.8:
            version += 1
            self.engines.use(version)
            self.rollouts.published(version)
        if self.random.random() < 0.3:
            found, _ = self.rollouts.evaluate(HELD_OUT, Sampling(samples=1, temperature=1.0, max_tokens=5), seed=1)
            assert len(found) == len(HELD_OUT)
        if not self.staleness and not self.tailed:
            assert not any(host.open for host in self.engines.hosts), "on-policy, nothing runs beside training"
        return [group.prompt.index for group in taken], named, version


@pytest.mark.parametrize("seed", range(40))
def test_every_prompt_is_trained_on_once_or_named_whatever_changes_at_a_resume(seed: int, tmp_path: Path) -> None:
    """Staleness, partial rollouts, tail batching, dynamic sampling, sizes of steps and groups, lengths, engines:
    whatever a run goes on with, it makes its steps, within the bounds of its own settings; every row that was drawn is
    trained on once, named, or in the last checkpoint, but for those that dynamic sampling leaves out."""
    random_ = random.Random(seed)
    steps, step, version = random_.randint(6, 20), 0, 0
    places: Counter[int] = Counter()
    order: Entry = {}
    entry: Entry = {}
    alike = False
    while step < steps:
        run = Run(random_, steps)
        alike = alike or run.dynamic
        run.engines.use(version)
        if step:
            run.rollouts.order_part.load(tmp_path, order)
            run.rollouts.load(tmp_path, entry)
        for _ in range(min(random_.randint(1, 4), steps - step)):
            trained, named, version = run.step(version)
            places.update(trained + named)
            step += 1
        order, entry = run.rollouts.order_part.save(tmp_path), run.rollouts.save(tmp_path)
        run.rollouts.close()
    kept = read_ahead(tmp_path, entry, prompt, go_on=True)
    ahead: list[Any] = [*kept.ready, *kept.unscored, *kept.begun, *kept.left_out]
    places.update(each.prompt.index for each in ahead)
    assert not [row for row, times in places.items() if times > 1]
    assert not [row for row in range(order["position"]) if row not in places and (row % 3 or not alike)]
