"""Sampler.collect, whose engines end in a given order, fail, fall silent or die; no Ray and no waiting."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest

from actors.batch import Prompt
from actors.group import GroupError
from actors.rollout.types import Sampling
from algorithms.rewards.pool import RewardFailure
from algorithms.rewards.scores import Score
from algorithms.rollouts import sampler
from algorithms.rollouts.sampler import Sampler, ScoredGroup, ShapedGroup, capacity
from tests.fake_engines import After, FakeEngines, FakePool, generated, start

PAIR = Sampling(samples=2, temperature=0.7, max_tokens=9)
ONE = Sampling(samples=1, temperature=1.0, max_tokens=9)
OK = "ok ok"


def prompts(most: int | None = None) -> Iterator[Prompt]:
    """Rows 100, 101 and so on; token ids tell them apart."""
    for number in count() if most is None else range(most):
        yield Prompt(index=100 + number, token_ids=[number, 7], text=f"row {number}", row={})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a sampler over engines, whose clock and `wait` are its own."""

    def make(engines: FakeEngines, pool: FakePool | None = None, max_failed: float = 0.25, **more: Any) -> Sampler:
        monkeypatch.setattr(sampler, "ray", engines)
        monkeypatch.setattr(sampler, "time", engines)
        group: Any = engines
        return Sampler(group, start, generated, pool, max_failed=max_failed, max_staleness=0, **more)

    return make


def rows(groups: list[ScoredGroup]) -> list[int]:
    return [group.prompt.index - 100 for group in groups]


def test_each_engine_gets_an_equal_share_in_one_call_and_a_seed_of_its_own(made: Any) -> None:
    for seed in (40, 50):
        engines = FakeEngines(After(1, dict.fromkeys(range(7), OK)))
        made(engines).collect(prompts(), 7, PAIR, seed)
        assert engines.starts == [(0, [0, 3, 6], seed), (1, [1, 4], seed + 1), (2, [2, 5], seed + 2)]
        assert engines.given == {number: ([number, 7], PAIR) for number in range(7)}


def test_groups_come_in_the_order_of_their_prompts_whichever_ends_first(made: Any) -> None:
    engines = FakeEngines(
        After(3, {5: OK}), After(1, {2: "ok truncated", 4: OK}), After(1, {1: OK}), After(9, {0: OK, 3: OK})
    )
    told: list[int] = []
    groups = made(engines).collect(prompts(), 6, PAIR, 0, told=told.append)
    assert rows(groups) == [0, 1, 2, 3, 4, 5]
    assert told == [1, 3, 4, 6]
    for number, group in enumerate(groups):
        assert group.rollouts == f"rollouts {number}"
        assert [info.prompt_tokens for info in group.infos] == [number, number]
        assert [info.status for info in group.infos] == ["ok", "truncated" if number == 2 else "ok"]


def test_a_failed_group_is_replaced_by_the_next_prompt_on_the_engine_with_the_least_to_do(made: Any) -> None:
    """Which goes on with its seed: the others' samples do not depend on what has failed."""
    engines = FakeEngines(
        After(1, {2: OK, 5: "failed ok"}),
        After(1, {6: "ok failed", 0: OK}),
        After(1, {7: OK, 1: OK, 3: OK, 4: OK}),
    )
    drawn = prompts()
    driver = made(engines)
    assert rows(driver.collect(drawn, 6, PAIR, 11)) == [0, 1, 2, 3, 4, 7]
    assert engines.starts[3:] == [(2, [6], None), (2, [7], None)]
    assert driver.failed == 2
    assert next(drawn).index == 108, "no prompt is drawn that is not asked for"


def test_engines_are_equally_loaded_again_in_the_next_step(made: Any) -> None:
    """Also by groups that have failed."""
    engines = FakeEngines(
        After(1, {0: OK, 3: "ok failed"}), After(1, {1: OK, 2: OK, 4: OK}), After(1, dict.fromkeys(range(4), OK))
    )
    driver = made(engines, max_failed=0.5)
    driver.collect(prompts(), 4, PAIR, 0)
    engines.starts.clear()
    driver.collect(prompts(), 4, PAIR, 5)
    assert engines.starts == [(0, [0, 3], 5), (1, [1], 6), (2, [2], 7)]


def test_fewer_groups_come_when_the_prompts_end(made: Any) -> None:
    assert made(FakeEngines()).collect(prompts(0), 5, PAIR, 0) == []
    engines = FakeEngines(After(1, {1: OK, 0: "ok failed"}), After(1, {2: OK}))
    assert rows(made(engines).collect(prompts(3), 5, PAIR, 0)) == [1, 2]


@pytest.mark.parametrize(("step_samples", "allowed"), [(None, 2), (16, 4)])
def test_failures_up_to_the_limit_are_replaced_and_one_more_ends_the_run(
    made: Any, step_samples: int | None, allowed: int
) -> None:
    """Responses count, not groups: a quarter of the 8 that are asked for, or of the step's."""

    def collect(failures: int) -> Sampler:
        script = [After(1, {number: "ok failed"}) for number in range(failures)]
        driver = made(FakeEngines(*script, After(1, dict.fromkeys(range(failures, failures + 4), OK))))
        assert len(driver.collect(prompts(), 4, PAIR, 0, step_samples=step_samples)) == 4
        return driver

    assert collect(allowed).failed == allowed
    samples = step_samples or 8
    line = rf"^{allowed + 1} of {samples} rollouts .* \(reward.max_failed_fraction 0.25 allows {allowed}\)$"
    with pytest.raises(GroupError, match=line):
        collect(allowed + 1)


def test_all_failed_responses_of_a_group_count(made: Any) -> None:
    with pytest.raises(GroupError, match=r"^2 of 6 rollouts of a step failed in the engines \("):
        made(FakeEngines(After(1, {0: "failed failed"}))).collect(prompts(), 3, PAIR, 0)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_further_part_of_a_step_remembers_its_failures(made: Any, goes_on: bool) -> None:
    part = [After(1, {0: "ok failed"}), After(1, {1: "failed ok"}), After(1, dict.fromkeys((2, 3, 4, 5), OK))]
    driver = made(FakeEngines(*part, *part))
    driver.collect(prompts(), 4, PAIR, 0, step_samples=8)
    if goes_on:  # 4 of 16, which are allowed, and then one of 2 more
        driver.collect(prompts(), 4, PAIR, 0, goes_on=True)
        assert driver.failed == 4
        driver.rollout.script.append(After(1, {0: "failed ok"}))
        with pytest.raises(GroupError, match=r"^5 of 18 rollouts"):
            driver.collect(prompts(), 1, PAIR, 0, goes_on=True)
    else:
        driver.collect(prompts(), 4, PAIR, 0, step_samples=8)
        assert driver.failed == 2


def test_an_engine_that_is_silent_beyond_its_deadline_ends_the_run(made: Any) -> None:
    """Others that are heard do not speak for it; the line names the row that has waited longest for it."""
    script = [After(1, {0: OK}), After(28, {2: OK}), After(1, {3: OK}), After(0.5)]
    engines = FakeEngines(*script)
    line = r"^rollout\[1\].generated: nothing heard, while data row 101 waits, for 30 s \(rollout.timeout_s\)$"
    with pytest.raises(GroupError, match=line):
        made(engines).collect(prompts(), 6, PAIR, 0)
    assert engines.now == 5030.5


def test_an_engine_that_is_heard_at_its_deadline_is_not_late(made: Any) -> None:
    engines = FakeEngines(After(30, {0: OK, 2: OK}), After(0, {1: OK}))
    assert rows(made(engines).collect(prompts(), 3, PAIR, 0)) == [0, 1, 2]


def test_silence_is_counted_from_the_last_sign_of_life(made: Any) -> None:
    """An engine may take longer for all its groups than its deadline for one; between steps none is late."""
    script = [After(29, {number: OK}) for number in range(4)]
    engines = FakeEngines(*script, *script, engines=1)
    driver = made(engines)
    assert len(driver.collect(prompts(), 4, PAIR, 0)) == 4
    engines.now += 500
    assert len(driver.collect(prompts(), 4, PAIR, 0)) == 4


@pytest.mark.parametrize("deadline", [57, 58, None])
def test_a_prompt_has_a_deadline_of_its_own_where_one_is_set(made: Any, deadline: float | None) -> None:
    """Counted from when its engine got it, whatever else that finishes; none is late at its deadline."""
    script = [After(29, {0: OK}), After(29, {1: OK}), After(0, {2: OK})]  # at 58 the last one still runs
    driver = made(FakeEngines(*script, engines=1), prompt_timeout_s=deadline)
    if deadline == 57:
        line = (
            r"^rollout\[0\].generated: the responses to data row 102 took more than 57 s \(rollout.prompt_timeout_s\)$"
        )
        with pytest.raises(GroupError, match=line):
            driver.collect(prompts(), 3, PAIR, 0)
    else:
        assert rows(driver.collect(prompts(), 3, PAIR, 0)) == [0, 1, 2]


def test_an_engine_that_failed_all_it_had_is_heard_all_the_same(made: Any) -> None:
    script = [After(20, {0: "failed"}), After(20, {1: "failed"}), After(20, {2: "ok"})]
    driver = made(FakeEngines(*script, engines=1), max_failed=1.0)
    assert rows(driver.collect(prompts(), 1, ONE, 0, step_samples=8)) == [2]


def test_an_engine_that_dies_is_named(made: Any) -> None:
    engines = FakeEngines(After(1, {0: OK, 5: "the process died"}))
    with pytest.raises(GroupError, match=r"^rollout\[2\].generated: the process died$"):
        made(engines).collect(prompts(), 6, PAIR, 0)


def test_an_engine_that_cannot_start_its_prompts_is_named_at_once(made: Any) -> None:
    engines = FakeEngines(After(1), After(29), After(9), broken={2: "out of memory"})
    with pytest.raises(GroupError, match=r"^rollout\[2\].start: out of memory$"):
        made(engines).collect(prompts(), 6, PAIR, 0)
    assert engines.now == 5001


def test_without_a_pool_nothing_is_said_of_a_group_yet(made: Any) -> None:
    driver = made(FakeEngines(After(1, {0: OK, 1: OK})))
    [first, second] = driver.collect(prompts(), 2, PAIR, 0)
    assert [score.status for score in first.scores + second.scores] == ["abstained"] * 4
    assert np.isnan(first.rewards).tolist() == [True, True] and driver.errors == []


def test_groups_are_scored_while_others_are_generated_and_awaited_to_the_last(made: Any) -> None:
    """A slow reward is no silent engine."""
    engines = FakeEngines(
        After(1, {2: OK, 0: OK}), After(1, scored={102: "ok ok"}), After(1, {1: OK}), After(400, scored={101: "ok ok"}),
        After(1, scored={100: "ok ok"}),
    )  # fmt: skip
    pool = FakePool(engines, max_failed=0.25, slow=True)
    told: list[int] = []
    groups = made(engines, pool).collect(prompts(), 3, PAIR, 0, told=told.append)
    assert rows(groups) == [0, 1, 2]
    assert [group.rewards.tolist() for group in groups] == [[100, 100.1], [101, 101.1], [102, 102.1]]
    assert pool.submitted == [100, 102, 101]
    jobs = [pool.jobs[100 + number][0] for number in range(3)]
    assert [(job.rollouts, job.samples) for job in jobs] == [(f"rollouts {number}", 2) for number in range(3)]
    assert told == [0, 1, 1, 2, 3]


def test_a_group_that_could_not_be_scored_is_replaced(made: Any) -> None:
    engines = FakeEngines(
        After(1, {0: OK, 1: "failed ok"}), After(1, {2: OK}, scored={100: "ok failed"}),
        After(1, {3: OK}, scored={102: "ok ok"}), After(1, scored={103: "ok ok"}),
    )  # fmt: skip
    pool = FakePool(engines, max_failed=0.5, slow=True)
    driver = made(engines, pool, max_failed=0.5)
    assert rows(driver.collect(prompts(), 2, PAIR, 0)) == [2, 3]
    assert pool.submitted == [100, 102, 103], "what an engine has failed is not scored"
    assert (driver.failed, pool.failed) == (2, 1)
    [error] = driver.errors
    assert error.startswith("cause 100; prompt 'row 0'")


def test_failures_of_engines_and_rewards_are_one_sum(made: Any) -> None:
    """Of 8 samples 2 may fail: one in an engine and one in a reward, but then none more in either."""
    script = [After(1, {0: "ok failed", 1: OK}), After(1, scored={101: "failed ok"})]
    for last, error, line in (
        (
            {102: "failed failed"},
            RewardFailure,
            r"^3 samples could not be scored .* 8 .*; 1 more failed in the engines",
        ),
        ({}, GroupError, r"^2 of 8 rollouts of a step failed in the engines, and 1 more could not be scored \("),
    ):
        engines = FakeEngines(*script, After(1, {2: OK} if last else {2: "failed ok"}), After(1, scored=last))
        driver = made(engines, FakePool(engines, max_failed=0.25, slow=True))
        with pytest.raises(error, match=line):
            driver.collect(prompts(), 4, PAIR, 0)
        assert driver.failed == (4 if last else 3)


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_pools_counts_are_those_of_a_step(made: Any, goes_on: bool) -> None:
    part = [After(1, {0: OK}), After(1, scored={100: "failed failed"}), After(1, {1: OK}), After(1, scored={101: OK})]
    engines = FakeEngines(*part, *part)
    pool = FakePool(engines, max_failed=1.0, slow=True)
    driver = made(engines, pool, max_failed=1.0)
    for further in (False, goes_on):
        pool.jobs.clear()
        driver.collect(prompts(), 1, PAIR, 0, step_samples=8, goes_on=further)
    assert (pool.failed, pool.scored, driver.failed) == ((4, 4, 4) if goes_on else (2, 2, 2))


def test_what_decides_whether_responses_differ() -> None:
    """Rewards as they are; of shaped ones, those that the loss counts."""
    [prompt] = prompts(1)
    values: dict[str, Any] = {"prompt": prompt, "rollouts": None, "infos": []}
    scores = [Score(reward=reward, parts={}, status="ok") for reward in (1.0, 0.25, 0.5)]
    plain = ScoredGroup(**values, scores=scores)
    assert plain.compared.tolist() == plain.rewards.tolist() == [1.0, 0.25, 0.5]
    shaped = ShapedGroup(
        **values, scores=scores, shaped=np.array([3.0, 2.0, 1.0]), counted=np.array([True, False, True])
    )
    assert shaped.compared.tolist() == [3.0, 1.0] and shaped.rewards.tolist() == [1.0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("staleness", "version", "accepted", "running", "expected"),
    [(0, 0, 0, 0, 8), (0, 0, 3, 5, 0), (0, 0, 3, 4, 1), (1, 0, 0, 0, 16), (1, 2, 20, 5, 7), (0, 3, 24, 0, 8)],
)
def test_capacity_is_what_may_be_trained_on_in_time(
    staleness: int, version: int, accepted: int, running: int, expected: int
) -> None:
    assert capacity(staleness, version, 8, accepted, running) == expected
