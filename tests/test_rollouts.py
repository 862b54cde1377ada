"""Rollouts.take, whose engines end in a given order, fail, fall silent or die; no Ray and no waiting."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pytest

from actors.episodes import Prompt
from actors.group import GroupError
from actors.rollout.types import Sampling
from algorithms.rewards.pool import RewardFailure
from algorithms.rewards.scores import Score
from algorithms.rollouts.admission import Loads, capacity
from algorithms.rollouts.engines import Back, Event, Lost, Out, Refused
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup, ShapedGroup
from algorithms.rollouts.lane import Lane
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.membership import Parted
from algorithms.rollouts.rollouts import Rollouts
from tests.fake_engines import After, FakeEngines, FakePool

PAIR = Sampling(samples=2, temperature=0.7, max_tokens=9)
ONE = Sampling(samples=1, temperature=1.0, max_tokens=9)
OK = "ok ok"


def prompts(most: int | None = None) -> Iterator[Prompt]:
    """Rows 100, 101 and so on; token ids tell them apart."""
    for number in count() if most is None else range(most):
        yield Prompt(index=100 + number, token_ids=[number, 7], text=f"row {number}", row={})


class Driver:
    """Rollouts over fake engines, with one step after the other asked for in a line."""

    def __init__(
        self,
        engines: FakeEngines,
        pool: FakePool | None = None,
        *,
        drawn: Iterator[Prompt] | None = None,
        sampling: Sampling = PAIR,
        max_failed: float = 0.25,
        groups_per_step: int = 4,
        max_staleness: int = 0,
        prompt_s: float | None = None,
        attempts: int = 1,
        restart_s: float = 0.0,
        most_each: int | None = None,
    ) -> None:
        limits = Limits(
            silence_s=30.0, prompt_s=prompt_s, max_failed=max_failed, attempts=attempts, restart_s=restart_s
        )
        self.engines = engines
        self.rollouts = Rollouts(
            engines,
            pool,
            prompts() if drawn is None else drawn,
            sampling,
            limits,
            groups_per_step=groups_per_step,
            max_staleness=max_staleness,
            most_each=most_each,
            clock=engines.monotonic,
        )

    def take(self, groups: int, seed: int = 0, version: int = 0, **more: Any) -> list[ScoredGroup]:
        return self.rollouts.take(groups, version, seed=seed, **more)

    @property
    def failed(self) -> int:
        return self.rollouts.failures.samples


def rows(groups: list[ScoredGroup]) -> list[int]:
    return [group.prompt.index - 100 for group in groups]


def test_each_engine_gets_an_equal_share_in_one_call_and_a_seed_of_its_own() -> None:
    engines = FakeEngines(After(1, dict.fromkeys(range(7), OK)), After(1, dict.fromkeys(range(7, 14), OK)))
    driver = Driver(engines)
    for seed, first in ((40, 0), (50, 7)):
        engines.starts.clear()
        driver.take(7, seed)
        shares = [[0, 3, 6], [1, 4], [2, 5]]
        assert engines.starts == [
            (engine, [first + number for number in share], seed + engine) for engine, share in enumerate(shares)
        ]
    assert {number: request.token_ids for number, request in engines.given.items()} == {n: [n, 7] for n in range(14)}
    assert {request.sampling for request in engines.given.values()} == {PAIR}


def test_groups_come_in_the_order_of_their_prompts_whichever_ends_first() -> None:
    engines = FakeEngines(
        After(3, {5: OK}), After(1, {2: "ok truncated", 4: OK}), After(1, {1: OK}), After(9, {0: OK, 3: OK})
    )
    told: list[int] = []
    groups = Driver(engines).take(6, told=told.append)
    assert rows(groups) == [0, 1, 2, 3, 4, 5]
    assert told == sorted(told) and told[-1] == 6
    for number, group in enumerate(groups):
        assert group.rollouts == f"rollouts {number}"
        assert [info.prompt_tokens for info in group.infos] == [number, number]
        assert [info.status for info in group.infos] == ["ok", "truncated" if number == 2 else "ok"]


def test_an_engine_is_asked_once_for_all_that_has_ended_on_it() -> None:
    engines = FakeEngines(After(1, {3: OK, 1: OK, 0: "failed ok"}), After(1, {2: OK, 4: OK}))
    assert rows(Driver(engines, max_failed=1.0).take(4)) == [1, 2, 3, 4]
    assert engines.collects == [(0, [3, 0]), (1, [1]), (2, [2]), (0, [4])]


def test_a_failed_group_is_replaced_by_the_next_prompt_on_the_engine_with_the_least_to_do() -> None:
    """Which goes on with its seed: the others' samples do not depend on what has failed."""
    engines = FakeEngines(
        After(1, {2: OK, 5: "failed ok"}),
        After(1, {6: "ok failed", 0: OK}),
        After(1, {7: OK, 1: OK, 3: OK, 4: OK}),
    )
    drawn, on = prompts(), (0, 1, 2, 0, 1, 2, 2, 2)
    driver = Driver(engines, drawn=drawn)
    assert rows(driver.take(6, 11)) == [0, 1, 2, 3, 4, 7]
    assert engines.starts[3:] == [(2, [6], None), (2, [7], None)]
    assert driver.failed == 2
    assert sorted(engines.collected, key=lambda pair: pair[1]) == [(engine, n) for n, engine in enumerate(on)]
    assert next(drawn).index == 108, "no prompt is drawn that is not asked for"


def test_engines_are_equally_loaded_again_in_the_next_step() -> None:
    """Also by groups that have failed."""
    engines = FakeEngines(
        After(1, {0: OK, 3: "ok failed"}), After(1, {1: OK, 2: OK, 4: OK}), After(1, dict.fromkeys(range(5, 9), OK))
    )
    driver = Driver(engines, max_failed=0.5)
    driver.take(4)
    engines.starts.clear()
    driver.take(4, 5)
    assert engines.starts == [(0, [5, 8], 5), (1, [6], 6), (2, [7], 7)]


def test_fewer_groups_come_when_the_prompts_end() -> None:
    assert Driver(FakeEngines(), drawn=prompts(0)).take(5) == []
    engines = FakeEngines(After(1, {1: OK, 0: "ok failed"}), After(1, {2: OK}))
    assert rows(Driver(engines, drawn=prompts(3)).take(5)) == [1, 2]


def test_failures_up_to_the_limit_are_replaced_and_one_more_ends_the_run() -> None:
    """Responses count, not groups: a quarter of the 8 that are asked for."""

    def take(failures: int) -> Driver:
        script = [After(1, {number: "ok failed"}) for number in range(failures)]
        driver = Driver(FakeEngines(*script, After(1, dict.fromkeys(range(failures, failures + 4), OK))))
        assert len(driver.take(4)) == 4
        return driver

    assert take(2).failed == 2
    line = r"^3 of 8 rollouts .* \(reward.max_failed_fraction 0.25 allows 2\)$"
    with pytest.raises(GroupError, match=line):
        take(3)


def test_an_engine_has_enough_with_its_samples_however_many_prompts_they_are_of() -> None:
    """Beside groups of two, an evaluation with one response to each prompt fills the slots that are free; what has no
    room waits for the first that has some."""
    driver = Driver(FakeEngines(engines=2), max_staleness=1, groups_per_step=2, most_each=6)
    flow = driver.rollouts._flow
    flow.start([driver.rollouts.training])
    assert driver.engines.starts == [(0, [0], None), (1, [1], None)]
    held_out = Lane(prompts(10), ONE, Failures(0.0))
    held_out.ask(10, None)
    flow.start([held_out])
    assert driver.engines.starts[2:] == [(0, [2, 4, 6, 8], None), (1, [3, 5, 7, 9], None)]
    driver.engines.starts.clear()
    flow.take_in(driver.engines._happen(After(1, {1: OK})))
    flow.start([])
    assert driver.engines.starts == [(1, [10, 11], None)], "two of one sample for a group of two"


def test_what_is_made_before_a_step_asks_may_fail_as_much() -> None:
    """Beside the evaluation before the first step, groups are made ahead: they are that step's."""
    driver = Driver(FakeEngines(), max_staleness=1)
    lane, flow = driver.rollouts.training, driver.rollouts._flow
    for number in range(2):
        flow.start([lane])
        flow.take_in(driver.engines._happen(After(1, {number: "ok failed"})))
    assert driver.failed == 2, "a quarter of 8"
    with pytest.raises(GroupError, match=r"^3 of 8 rollouts "):
        flow.take_in(driver.engines._happen(After(1, {2: "ok failed"})))


def test_beside_a_step_as_large_a_share_may_fail_as_within_it() -> None:
    """What ends from one report to the next is more than a step where groups are made ahead: of 16 samples 4 may fail,
    of the step's own 8 in the time after it 2 again."""
    driver = Driver(FakeEngines(), max_staleness=1)
    lane, flow = driver.rollouts.training, driver.rollouts._flow
    lane.ask(4, None)
    numbers = iter(range(99))

    def end(*said: str) -> None:
        flow.start([lane])
        flow.take_in(driver.engines._happen(After(1, {next(numbers): each for each in said})))

    end(OK, OK, OK, OK, OK, "ok failed", "ok failed", "ok failed")
    lane.take(4)
    assert driver.rollouts.report()[0].samples == 3
    lane.ask(4, None)
    end("ok failed", "failed ok")
    with pytest.raises(GroupError, match=r"^3 of 8 rollouts "):
        end("ok failed")


def test_prompts_of_which_no_group_comes_are_named() -> None:
    """Those that an engine or a reward has failed; the next report names others."""
    engines = FakeEngines(
        After(1, {0: OK, 1: "failed ok"}), After(1, {2: OK}, scored={100: "ok failed"}),
        After(1, {3: OK}, scored={102: "ok ok"}), After(1, scored={103: "ok ok"}),
    )  # fmt: skip
    driver = Driver(engines, FakePool(engines, slow=True), max_failed=0.5)
    driver.take(2)
    failures, discards = driver.rollouts.report()
    assert failures.samples == 2
    assert [(each.prompt.index, each.why) for each in discards.left_out] == [(101, "failed"), (100, "failed")]
    assert driver.rollouts.report()[1].left_out == []


def test_all_failed_responses_of_a_group_count() -> None:
    with pytest.raises(GroupError, match=r"^2 of 6 rollouts of a step failed in the engines \("):
        Driver(FakeEngines(After(1, {0: "failed failed"}))).take(3)


def test_a_step_forgets_the_failures_of_the_one_before() -> None:
    def part(first: int) -> list[After]:
        failing = [After(1, {first: "ok failed"}), After(1, {first + 1: "failed ok"})]
        return [*failing, After(1, dict.fromkeys(range(first + 2, first + 6), OK))]

    driver = Driver(FakeEngines(*part(0), *part(6)))
    for _ in range(2):
        driver.take(4)
        assert driver.failed == 2


def test_an_engine_that_is_silent_beyond_its_deadline_ends_the_run() -> None:
    """Others that are heard do not speak for it; the line names the row that has waited longest for it."""
    script = [After(1, {0: OK}), After(28, {2: OK}), After(1, {3: OK}), After(0.5)]
    engines = FakeEngines(*script)
    line = r"^rollout\[1\].poll: nothing heard, while data row 101 waits, for 30 s \(rollout.timeout_s\)$"
    with pytest.raises(GroupError, match=line):
        Driver(engines).take(6)
    assert engines.now == 5030.5


def test_an_engine_that_is_heard_at_its_deadline_is_not_late() -> None:
    engines = FakeEngines(After(30, {0: OK, 2: OK}), After(0, {1: OK}))
    assert rows(Driver(engines).take(3)) == [0, 1, 2]


def test_silence_is_counted_from_the_last_sign_of_life() -> None:
    """An engine may take longer for all its groups than its deadline for one; between steps none is late."""
    engines = FakeEngines(*(After(29, {number: OK}) for number in range(8)), engines=1)
    driver = Driver(engines)
    assert len(driver.take(4)) == 4
    engines.now += 500
    assert len(driver.take(4)) == 4


@pytest.mark.parametrize("deadline", [57, 58, None])
def test_a_prompt_has_a_deadline_of_its_own_where_one_is_set(deadline: float | None) -> None:
    """Counted from when its engine got it, whatever else that finishes; none is late at its deadline."""
    script = [After(29, {0: OK}), After(29, {1: OK}), After(0, {2: OK})]  # at 58 the last one still runs
    driver = Driver(FakeEngines(*script, engines=1), prompt_s=deadline)
    if deadline == 57:
        line = r"^rollout\[0\].poll: the responses to data row 102 took more than 57 s \(rollout.prompt_timeout_s\)$"
        with pytest.raises(GroupError, match=line):
            driver.take(3)
    else:
        assert rows(driver.take(3)) == [0, 1, 2]


def test_an_engine_that_failed_all_it_had_is_heard_all_the_same() -> None:
    script = [After(20, {0: "failed"}), After(20, {1: "failed"}), After(20, {2: "ok", 3: "ok"})]
    driver = Driver(FakeEngines(*script, engines=1), max_failed=1.0, sampling=ONE)
    assert rows(driver.take(2)) == [2, 3]


def test_an_engine_that_dies_is_named() -> None:
    engines = FakeEngines(After(1, {0: OK, 5: "the process died"}))
    driver = Driver(engines)
    for _ in range(2):  # and again by whoever asks later
        with pytest.raises(GroupError, match=r"^rollout\[2\].poll: the process died$"):
            driver.take(6)


def test_a_prompt_that_its_engine_does_not_take_is_named() -> None:
    engines = FakeEngines(After(1, {0: OK}, refused={2: "ValueError: the prompt is too long"}))
    line = r"^rollout\[2\].submit: data row 102 was refused: ValueError: the prompt is too long$"
    with pytest.raises(GroupError, match=line):
        Driver(engines).take(6)


def test_what_an_engine_loses_goes_to_the_others_where_it_may() -> None:
    """In the order of its prompts, and to no engine that is gone; what comes from it all the same is not heard."""
    engines = FakeEngines(After(1, {0: OK, 5: "the process died"}), After(1, {1: OK, 3: OK, 4: OK, 6: OK, 7: OK}))
    told: list[int] = []
    driver = Driver(engines, attempts=2)
    groups = driver.take(6, 11, told=told.append)
    assert rows(groups) == [0, 1, 2, 3, 4, 5], "2 and 5 were on the engine that died"
    assert engines.starts[3:] == [(0, [6, 7], None)], "which had one group less to do than the other"
    assert [group.rollouts for group in groups] == [f"rollouts {number}" for number in (0, 1, 6, 3, 4, 7)]
    engines.starts.clear()
    engines.script.append(After(1, dict.fromkeys(range(8, 11), OK)))
    driver.take(3)
    assert {engine for engine, _, _ in engines.starts} == {0, 1}


@pytest.mark.parametrize("last", [True, False])
def test_a_prompt_is_not_lost_for_ever(last: bool) -> None:
    """One that ends every engine it comes to ends the run, as does the last engine's death."""
    script = [After(1, {0: "the process died"}), After(1, {1: "it died as well"})]
    engines = FakeEngines(*script, engines=2 if last else 3)
    named = "" if last else r"rollout: 2 engines in a row were lost with data row 100; the last one: "
    with pytest.raises(GroupError, match=rf"^{named}rollout\[1\].poll: it died as well$"):
        Driver(engines, attempts=9 if last else 2).take(1)


def test_groups_wait_for_an_engine_that_comes_back() -> None:
    """Where none is left, up to a deadline; what runs on one that is out ends there, and nothing new goes to it."""
    engines = FakeEngines(
        After(1, {0: "the process died"}), After(1, {1: "it died as well"}), After(30), After(1, happens=[Back(1)]),
        After(1, {4: OK}, happens=[Out(1)]), After(25, {3: OK}), engines=2,
    )  # fmt: skip
    driver = Driver(engines, attempts=9, restart_s=60.0)
    groups = driver.take(2)
    assert rows(groups) == [0, 1] and [group.rollouts for group in groups] == ["rollouts 4", "rollouts 3"]
    assert driver.rollouts.had(0) == ["data row 100"] and driver.rollouts.had(1) == ["data row 101", "data row 100"]
    engines.starts.clear()
    engines.script += [After(30), After(1, happens=[Back(0)]), After(1, {5: OK})]
    assert rows(driver.take(1)) == [2] and [engine for engine, _, _ in engines.starts] == [0]


def test_what_an_engine_without_weights_refuses_goes_to_others_and_counts_for_nothing() -> None:
    """A transfer to it has failed, which its own calls may tell first."""
    engines = FakeEngines(
        After(1, happens=[Out(0), Refused(0, [0, 2])]), After(1, {1: OK, 3: OK, 4: OK, 5: OK}), engines=2
    )  # fmt: skip
    driver = Driver(engines, attempts=2)
    groups = driver.take(4)
    assert rows(groups) == [0, 1, 2, 3] and [group.rollouts for group in groups] == [
        "rollouts 4", "rollouts 1", "rollouts 5", "rollouts 3",
    ]  # fmt: skip
    assert engines.starts[2:] == [(1, [4, 5], None)]


@pytest.mark.parametrize("lacking", [0, 1])
def test_groups_do_not_wait_for_ever(lacking: int) -> None:
    """Nor for one that is back and cannot get weights."""
    script = [After(1, {0: "the process died"}), After(59), After(2)]
    line = (
        r"^rollout: no engine was back within 60 s \(rollout.restart_timeout_s\), after rollout\[0\].poll: the process"
    )
    engines = FakeEngines(*script, engines=1)
    engines.lacking = lacking
    engines.awaited = lambda: driver.rollouts._wanted is not None
    driver = Driver(engines, attempts=9, restart_s=60.0)
    with pytest.raises(GroupError, match=line):
        driver.take(1)


def test_engines_that_lack_weights_are_not_missed_beside_training() -> None:
    """By an update that takes longer than they may be away: they get some as soon as the loop waits. Then it is for
    their deadline."""
    engines = FakeEngines(engines=1)
    driver = Driver(engines, attempts=9, restart_s=60.0, max_staleness=1, groups_per_step=1)
    flow = driver.rollouts._flow
    flow.start([driver.rollouts.training])
    flow.take_in(engines._happen(After(1, {0: "the process died"})))
    engines.lacking = 1
    for _ in range(2):
        engines.now += 61
        flow.take_in([])
    flow.is_awaited = True
    flow.take_in([])
    engines.now += 61
    with pytest.raises(GroupError, match=r"^rollout: no engine was back within 60 s"):
        flow.take_in([])


def test_without_a_pool_nothing_is_said_of_a_group_yet() -> None:
    driver = Driver(FakeEngines(After(1, {0: OK, 1: OK})))
    [first, second] = driver.take(2)
    assert [score.status for score in first.scores + second.scores] == ["abstained"] * 4
    assert np.isnan(first.rewards).tolist() == [True, True] and driver.rollouts.failures.errors == []


def test_groups_are_scored_while_others_are_generated_and_awaited_to_the_last() -> None:
    """A slow reward is no silent engine."""
    engines = FakeEngines(
        After(1, {2: OK, 0: OK}), After(1, scored={102: "ok ok"}), After(1, {1: OK}), After(400, scored={101: "ok ok"}),
        After(1, scored={100: "ok ok"}),
    )  # fmt: skip
    pool = FakePool(engines, slow=True)
    told: list[int] = []
    groups = Driver(engines, pool).take(3, told=told.append)
    assert rows(groups) == [0, 1, 2]
    assert [group.rewards.tolist() for group in groups] == [[100, 100.1], [101, 101.1], [102, 102.1]]
    assert pool.submitted == [102, 100, 101]
    jobs = [pool.jobs[100 + number] for number in range(3)]
    assert [(job.rollouts, job.samples) for job in jobs] == [(f"rollouts {number}", 2) for number in range(3)]
    assert told == sorted(told) and told[-1] == 3


def test_a_group_that_could_not_be_scored_is_replaced() -> None:
    engines = FakeEngines(
        After(1, {0: OK, 1: "failed ok"}), After(1, {2: OK}, scored={100: "ok failed"}),
        After(1, {3: OK}, scored={102: "ok ok"}), After(1, scored={103: "ok ok"}),
    )  # fmt: skip
    pool = FakePool(engines, slow=True)
    driver = Driver(engines, pool, max_failed=0.5)
    assert rows(driver.take(2)) == [2, 3]
    assert pool.submitted == [100, 102, 103], "what an engine has failed is not scored"
    failures = driver.rollouts.failures
    assert (failures.samples, failures.unscored, failures.unfinished) == (2, 1, 1)
    [error] = failures.errors
    assert error.startswith("cause 100; prompt 'row 0'")


def test_failures_of_engines_and_rewards_are_one_sum() -> None:
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
        driver = Driver(engines, FakePool(engines, slow=True))
        with pytest.raises(error, match=line):
            driver.take(4)
        assert driver.failed == (4 if last else 3)


def test_failed_rewards_count_within_a_step() -> None:
    script = [After(1, {0: OK}), After(1, scored={100: "failed failed"}), After(1, {1: OK}), After(1, scored={101: OK})]
    script += [After(1, {2: OK}), After(1, scored={102: "failed ok"}), After(1, {3: OK}), After(1, scored={103: OK})]
    engines = FakeEngines(*script)
    driver = Driver(engines, FakePool(engines, slow=True), max_failed=1.0)
    for failed in (2, 1):
        driver.take(1)
        assert driver.failed == failed


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
    ("asked", "ahead", "taken", "waiting", "expected"),
    [(8, 0, 0, 0, 8), (8, 0, 0, 8, 0), (8, 0, 3, 4, 1), (8, 8, 0, 0, 16), (24, 8, 20, 5, 7), (32, 0, 24, 0, 8)],
)
def test_capacity_is_what_may_be_trained_on_in_time(
    asked: int, ahead: int, taken: int, waiting: int, expected: int
) -> None:
    assert capacity(asked, ahead, taken, waiting) == expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked(ScoredGroup):
    """A group of which it is counted how often somebody asks for its age."""

    looks: list[int]

    @property
    def oldest_version(self) -> int | None:
        [prompt] = self.prompt.token_ids
        self.looks.append(prompt)
        return prompt % 2


def test_each_group_is_looked_at_once_for_a_version() -> None:
    """Whoever waits for thousands asks after each of them which ones are too old."""
    lane, looks = Lane(prompts(), ONE, Failures(0.0)), list[int]()
    for number in range(100):
        prompt = Prompt(index=number, token_ids=[number], text="", row={})
        lane.accept(number, Looked(prompt=prompt, rollouts=None, infos=[], scores=[], looks=looks))
        lane.drop_older_than(0)
    assert looks == list(range(100)) and len(lane.ready) == 100
    lane.drop_older_than(1)
    assert list(lane.ready) == list(range(1, 100, 2)) and lane.stale == 50
    lane.take(1)
    lane.drop_older_than(1)
    lane.drop_older_than(2)
    assert not lane.ready and lane.stale == 99


def test_the_least_loaded_engine_is_found_as_by_looking_at_all() -> None:
    """Over many changes, also when engines are out, and back; of equal ones the first."""
    random = np.random.default_rng(3)
    loads, plain, out = Loads(7), [0] * 7, set[int]()
    for _ in range(6000):
        inside = [engine for engine in range(7) if engine not in out]
        assert loads.left == len(inside)
        engine, kind = int(random.integers(7)), random.random()
        if kind < 0.5:
            found = loads.least()
            assert found == min(inside, key=plain.__getitem__, default=None)
            if found is not None:
                plain[found] += 1
        elif kind < 0.98 and plain[engine]:  # of one that is out, too
            plain[engine] -= 1
            loads.ended(engine)
        elif kind > 0.996:
            loads.out(engine)
            out.add(engine)
        elif out:
            engine = min(out)
            loads.back(engine)
            out.discard(engine)
        assert [loads[engine] for engine in range(7)] == plain and len(loads._heap) <= 8 * 7 + 64
    for engine in range(7):
        loads.out(engine)
    assert loads.least() is None and loads.left == 0


def test_new_engines_get_their_share_once_they_serve() -> None:
    """Also one with a higher number than one that is told of later."""
    loads = Loads(1)
    assert [loads.least() for _ in range(2)] == [0, 0]
    loads.back(2)
    assert loads.left == 2 and [loads.least() for _ in range(3)] == [2, 2, 0], "the one between is not there yet"
    loads.back(1)
    assert loads.left == 3 and [loads.least() for _ in range(3)] == [1, 1, 1]
    script = After(1, happens=[Back(2)]), After(1, {0: OK, 1: OK}), After(1, {2: OK, 3: OK})
    engines = FakeEngines(*script, engines=1)
    driver = Driver(engines, groups_per_step=2)
    assert rows(driver.take(2)) == [0, 1] and rows(driver.take(2)) == [2, 3]
    assert [engine for engine, *_ in engines.starts] == [0, 0, 2]


def test_a_prompt_survives_any_number_of_engines_that_go_with_their_nodes() -> None:
    """As it is not why they are gone; after two others the run would end."""
    engines = FakeEngines(*(After(1) for _ in range(3)), After(1, {3: OK}), engines=4)
    driver, told = Driver(engines, groups_per_step=1, attempts=2, restart_s=60.0), []
    wait = engines.wait

    def going(others: Any, timeout_s: float) -> list[Event]:
        found = wait(others, timeout_s)
        if len(told) < 3:
            [(request, engine)] = engines.on.items()
            del engines.on[request]
            told.append(engine)
            return [*found, Lost(engine, Parted("its node goes"))]
        return found

    engines.wait = going  # type: ignore[method-assign]
    assert rows(driver.take(1)) == [0] and told == [0, 1, 2]


def test_nothing_is_taken_from_what_is_closed() -> None:
    """Its thread has ended: who waited would wait for ever."""
    driver = Driver(FakeEngines(After(1, {0: OK})))
    driver.rollouts.close()
    with pytest.raises(GroupError, match="the rollouts are closed"):
        driver.take(1)
