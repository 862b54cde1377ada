"""Rollouts that run ahead of training, on simulated engines: how old samples are, and what becomes of them.

The engines are real code with a clock of their own (`actors.rollout.simulated`); no Ray, and nothing is waited for.
"""

import random
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.episodes import Prompt
from actors.group import GroupError
from actors.rollout.simulated import Table
from actors.rollout.types import Sampling
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from tests.simulated_engines import Clock, SimulatedEngines

HOURS = Limits(silence_s=3600.0, max_failed=0.0)


def prompts() -> Iterator[Prompt]:
    for number in count():
        yield Prompt(index=number, token_ids=[number % 90, 7], text=f"row {number}", row={})


def made(
    engines: SimulatedEngines,
    *,
    groups: int,
    ahead: int,
    samples: int = 2,
    limits: Limits = HOURS,
    drawn: Iterator[Prompt] | None = None,
    waits: bool = True,
) -> Rollouts:
    """Over rows 0, 1 and so on, unless others are `drawn`."""
    rollouts = Rollouts(
        engines,
        None,
        prompts() if drawn is None else drawn,
        Sampling(samples=samples, temperature=1.0, max_tokens=500),
        limits,
        groups_per_step=groups,
        max_staleness=ahead,
        waits=waits,
        prompt_of=lambda _, row: Prompt(index=row, token_ids=[row % 90, 7], text=f"row {row}", row={}),
        clock=engines.clock,
    )

    def held() -> bool:
        wanted = rollouts._wanted
        return not rollouts._closed and (wanted is None or wanted.lane.can_give(wanted.groups, wanted.version))

    engines.held = held
    return rollouts


def train(rollouts: Rollouts, engines: SimulatedEngines, steps: int, groups: int) -> list[list[ScoredGroup]]:
    """Steps with half a second of training each and a publish at its end."""
    taken = []
    for version in range(steps):
        taken.append(rollouts.take(groups, version, seed=version))
        engines.go_on(0.5)
        engines.use(version + 1)
        rollouts.published(version + 1)
    rollouts.close()
    return taken


def ages(step: list[ScoredGroup], version: int) -> list[int]:
    return [version - info.oldest_version for group in step for info in group.infos]


def test_at_staleness_2_groups_are_made_ahead_and_none_is_older(request: Any) -> None:
    """Training takes its first step from what it has asked for, the next ones from what ran beside it: up to two
    versions old, and really so; every prompt is used once, in its step, where all responses are as long."""
    engines = SimulatedEngines([Table(lengths=(120,), token_s=0.01)] * 3, Clock())
    rollouts = made(engines, groups=4, ahead=2)
    steps = train(rollouts, engines, 14, 4)
    used = [group.prompt.index for step in steps for group in step]
    assert len(used) == len(set(used)) == 56
    assert all(abs(row - place) < 12 for place, row in enumerate(used)), (
        "as they were complete, which is nearly in order"
    )
    oldest = [max(ages(step, version)) for version, step in enumerate(steps)]
    assert oldest[0] == 0 and max(oldest) == 2 and oldest[-1] > 0
    assert 8 < engines.most_running <= 12, "up to three steps' groups at a time, no more"


def test_no_more_is_made_ahead_than_keeps_training_busy() -> None:
    """Engines that are quicker than training stay about a step ahead, whatever is allowed; slow ones go up to it."""
    for token_s, training_s, depth in ((0.001, 0.5, (4, 9)), (0.02, 0.01, (16, 16))):
        engines = SimulatedEngines([Table(lengths=(30, 20, 40), token_s=token_s)] * 2, Clock())
        rollouts = made(engines, groups=4, ahead=4)
        found = []
        for version in range(16):
            found.append(rollouts.take(4, version, seed=version))
            engines.go_on(training_s)
            engines.use(version + 1)
            rollouts.published(version + 1)
        assert depth[0] <= rollouts.training.depth <= depth[1]
        oldest = [max(ages(step, version)) for version, step in enumerate(found)][8:]
        assert max(oldest) <= (3 if training_s > 0.1 else 4)
        rollouts.close()


def test_without_staleness_nothing_runs_beside_training() -> None:
    engines = SimulatedEngines([Table(lengths=(30, 5, 400), token_s=0.01)] * 2, Clock())
    rollouts = made(engines, groups=4, ahead=0)
    for version in range(5):
        step = rollouts.take(4, version, seed=version)
        assert set(ages(step, version)) == {0}
        assert not any(host.open for host in engines.hosts), "the engines stand still while training runs"
        engines.use(version + 1)
    assert len(engines.submitted) == 20
    rollouts.close()


def test_what_is_too_old_is_left_out_and_replaced() -> None:
    """One response takes as long as three steps: its group is never trained on, and its place is taken."""
    engines = SimulatedEngines([Table(lengths=(160, *[4] * 39), token_s=0.01, slots=8)], Clock())
    rollouts = made(engines, groups=2, ahead=1, waits=False)
    steps = train(rollouts, engines, 30, 2)
    assert rollouts.training.stale > 0
    assert max(age for version, step in enumerate(steps) for age in ages(step, version)) == 1
    used = [group.prompt.index for step in steps for group in step]
    assert len(used) == len(set(used)) == 60
    assert 0 not in used[2:], "the long one, which was asked for at version 0"


def test_a_step_waits_for_what_would_be_too_old_for_the_next() -> None:
    """The same engines: the long one is trained on, in its time, and nothing is thrown away."""
    engines = SimulatedEngines([Table(lengths=(160, *[4] * 39), token_s=0.01, slots=8)], Clock())
    rollouts = made(engines, groups=2, ahead=1)
    steps = train(rollouts, engines, 30, 2)
    discards = rollouts.report()[1]
    assert rollouts.training.stale == discards.dropped == discards.aborted == 0 and not discards.left_out
    assert max(age for version, step in enumerate(steps) for age in ages(step, version)) == 1
    used = [group.prompt.index for step in steps for group in step]
    assert len(used) == len(set(used)) == 60 and 0 in used[2:], "not in the first step, for which there were others"


def test_an_evaluation_beside_running_groups_gets_its_own_and_disturbs_none() -> None:
    engines = SimulatedEngines([Table(lengths=(60, 10, 25), token_s=0.01)] * 2, Clock())
    rollouts = made(engines, groups=3, ahead=2)
    held_out = [Prompt(index=1000 + n, token_ids=[n, 3, 2], text="", row={}) for n in range(5)]
    used, sampling = [], Sampling(samples=3, temperature=0.5, max_tokens=40)
    for version in range(6):
        used += [group.prompt.index for group in rollouts.take(3, version, seed=version)]
        found, failures = rollouts.evaluate(held_out, sampling, seed=9)
        assert [group.prompt.index for group in found] == [1000, 1001, 1002, 1003, 1004]
        assert all(len(group.infos) == 3 for group in found) and failures.samples == 0
        engines.use(version + 1)
        rollouts.published(version + 1)
    assert sorted(used) == list(range(18)), "each prompt once, and all of them"
    rollouts.close()


def test_an_engine_that_dies_in_the_middle_of_a_step_leaves_its_requests_to_the_others() -> None:
    """The step is whole, in order, with every prompt once; the witness is the engine's last words."""
    engines = SimulatedEngines([Table(lengths=(50,), token_s=0.01, slots=2)] * 3, Clock())
    engines.dies_at = {1: 0.8}
    rollouts = made(engines, groups=12, ahead=0, limits=Limits(silence_s=3600.0, attempts=3))
    first = rollouts.take(12, 0, seed=1)
    assert engines._lost == {1} and engines.engines[1].stats().lost == "it died"
    assert [group.prompt.index for group in first] == list(range(12))
    assert 12 < len(engines.submitted) < 24, "some were given twice, not all"
    second = rollouts.take(12, 0, seed=2)
    assert [group.prompt.index for group in second] == list(range(12, 24))
    rollouts.close()


def test_the_last_engines_death_ends_the_run() -> None:
    engines = SimulatedEngines([Table(lengths=(50,), token_s=0.01)] * 2, Clock())
    engines.dies_at = {0: 0.2, 1: 0.3}
    rollouts = made(engines, groups=4, ahead=0, limits=Limits(silence_s=3600.0, attempts=9))
    with pytest.raises(GroupError, match=r"^rollout\[1\]\.poll: it died$"):
        rollouts.take(4, 0, seed=1)
    rollouts.close()


@settings(max_examples=60, deadline=None)
@given(
    ahead=st.integers(0, 8),
    engines=st.integers(1, 16),
    groups=st.integers(1, 12),
    samples=st.integers(1, 4),
    slots=st.integers(1, 9),
    evaluations=st.booleans(),
    draw=st.integers(0, 2**20),
)
def test_no_sample_is_too_old_none_comes_twice_and_none_is_lost(
    ahead: int, engines: int, groups: int, samples: int, slots: int, evaluations: bool, draw: int
) -> None:
    """Whatever engines, lengths and speeds there are: at each update no token is more than `ahead` versions old, no
    prompt is trained on twice, all that were drawn are trained on, running, ready or counted as stale, and never more
    run than may."""
    random_ = random.Random(draw)
    tables = [
        Table(
            lengths=[min(500, int(random_.lognormvariate(3, 1)) + 1) for _ in range(50)],
            token_s=random_.choice([0.005, 0.01, 0.03]),
            start_s=random_.choice([0.0, 0.2]),
            slots=slots,
        )
        for _ in range(engines)
    ]
    simulated = SimulatedEngines(tables, Clock())
    rollouts = made(simulated, groups=groups, ahead=ahead, samples=samples)
    used: list[int] = []
    for version in range(10):
        step = rollouts.take(groups, version, seed=version)
        assert len(step) == groups
        assert max(ages(step, version)) <= ahead
        used += [group.prompt.index for group in step]
        if evaluations and version % 3 == 0:
            held_out = [Prompt(index=-1 - n, token_ids=[1], text="", row={}) for n in range(3)]
            found, _ = rollouts.evaluate(held_out, Sampling(samples=1, temperature=1.0, max_tokens=5), seed=1)
            assert [group.prompt.index for group in found] == [-1, -2, -3]
        simulated.use(version + 1)
        rollouts.published(version + 1)
    rollouts.close()
    assert len(used) == len(set(used)) == 10 * groups
    lane = rollouts.training
    drawn = sum(1 for request in simulated.submitted.values() if request.token_ids[-1] == 7)
    assert drawn == lane.taken + len(lane.ready) + lane.on_the_way + lane.stale
    most = (ahead + 1) * groups + 3
    assert simulated.most_running <= most


@settings(max_examples=60, deadline=None)
@given(
    ahead=st.integers(0, 3),
    engines=st.integers(1, 5),
    groups=st.integers(1, 8),
    back_after_s=st.sampled_from([0.1, 1.0, 4.0]),
    draw=st.integers(0, 2**20),
)
def test_engines_that_die_and_come_back_lose_no_prompt(
    ahead: int, engines: int, groups: int, back_after_s: float, draw: int
) -> None:
    """All of them at one time, too, and again and again; on-policy, steps are in the order of their prompts."""
    random_ = random.Random(draw)
    tables = [Table(lengths=[random_.randint(1, 90) for _ in range(20)], token_s=0.01, slots=3) for _ in range(engines)]
    simulated = SimulatedEngines(tables, Clock())
    simulated.back_after_s = back_after_s
    limits = Limits(silence_s=3600.0, attempts=50, restart_s=3600.0)
    rollouts = made(simulated, groups=groups, ahead=ahead, limits=limits)
    used: list[int] = []
    for version in range(8):
        for engine in random_.sample(range(engines), random_.randint(0, engines)):
            simulated.dies_at.setdefault(engine, simulated.clock.now + random_.random() * 2)
        step = rollouts.take(groups, version, seed=version)
        assert len(step) == groups and max(ages(step, version)) <= ahead
        used += [group.prompt.index for group in step]
        simulated.use(version + 1)
        rollouts.published(version + 1)
    rollouts.close()
    assert len(used) == len(set(used)) == 8 * groups
    if not ahead:
        assert used == list(range(8 * groups))
    assert simulated.most_running <= (ahead + 1) * groups


def test_a_step_that_waits_ends_when_the_thread_fails() -> None:
    """An error of the pool or of the engines' plumbing reaches whoever waits, at once."""
    engines = SimulatedEngines([Table(lengths=(50,), token_s=0.01)], Clock())
    engines.wait = lambda *_: [][0]  # type: ignore[method-assign]
    rollouts = made(engines, groups=1, ahead=0)
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(IndexError):
            rollouts.take(1, 0, seed=0)
    assert time.monotonic() - started < 20
    rollouts.close()


def test_engines_that_keep_old_weights_end_the_run() -> None:
    """Else what is too old would be replaced by what is too old, for ever."""
    engines = SimulatedEngines([Table(lengths=(5,), token_s=0.01)], Clock())
    rollouts = made(engines, groups=2, ahead=0)
    with pytest.raises(GroupError, match=r"^rollout\.take: \d+ groups in a row .* older than version 3: the"):
        rollouts.take(2, 3, seed=0)
    rollouts.close()
