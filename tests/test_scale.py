"""The benchmark of scale: what it measures is what its formulas say, and the driver's costs are counted."""

from dataclasses import replace

import numpy as np
import pytest

from actors.rollout.types import Request, Sampling
from algorithms.rollouts.flow import ENOUGH
from algorithms.rollouts.tail import Tail
from benchmarks.expected import expected, tail_batched
from benchmarks.scale import TARGET_KB, staleness_table
from benchmarks.steps import MAX_TOKENS, SPEED, STARTS, Workload, simulated
from benchmarks.tails import FirstToEnd, batched, streamed_s

SAMPLING = Sampling(samples=5, temperature=1.0, max_tokens=100)


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
def test_steps_and_ages_are_as_the_closed_formulas_say(staleness: int) -> None:
    workload = Workload(engines=30, groups=120)
    lengths = workload.lengths.drawn(80 * workload.groups, STARTS, workload.samples, MAX_TOKENS, seed=1)
    sizes = {"engines": workload.engines, "groups": workload.groups, "train_s": workload.train_s}
    run, found = simulated(workload, staleness, 6, waits=False), expected(lengths, SPEED, **sizes, staleness=staleness)
    assert run.step_s == pytest.approx(found.step_s, rel=0.06)
    assert run.busy == pytest.approx(found.busy, abs=0.05)
    assert run.running == pytest.approx(found.running, rel=0.1)
    age = sum(run.ages) / len(run.ages)
    if staleness == 4:  # training is what takes longest: no more is made ahead than keeps it busy
        assert 1 < age < 3 < found.age
    else:
        assert age == pytest.approx(found.age, abs=0.15)
        assert max(run.ages) == staleness
    assert run.dropped == pytest.approx(found.dropped, abs=0.05)


def test_tail_batching_gains_what_its_formula_says() -> None:
    workload = Workload(engines=30, groups=120)
    lengths = workload.lengths.drawn(80 * workload.groups, 1, workload.samples, MAX_TOKENS, seed=1)
    sizes = {"engines": workload.engines, "groups": workload.groups, "train_s": workload.train_s}
    run = simulated(workload, 0, 15, tail=Tail(0.25, lambda: None, None))
    assert run.step_s == pytest.approx(tail_batched(lengths, SPEED, **sizes, share=0.25), rel=0.06)
    assert simulated(workload, 0, 3).step_s > 1.3 * run.step_s


def test_slots_of_responses_that_have_ended_are_filled_while_their_groups_go_on() -> None:
    workload = Workload(engines=6, groups=24, speed=replace(SPEED, slots=32))
    runs = [simulated(workload, 4, 3, most_each=each * 32) for each in (1, ENOUGH)]
    assert runs[1].running > 1.4 * runs[0].running
    assert runs[1].step_s < 0.8 * runs[0].step_s


def test_what_waits_is_neither_late_nor_dropped() -> None:
    """Nothing is lost, so that steps take longer than where what is late starts again, and no longer than in turns."""
    workload = Workload(engines=30, groups=120)
    again, waiting, turns = (simulated(workload, n, 6, waits=n and waits) for n, waits in ((1, 0), (1, 1), (0, 0)))
    assert again.dropped > 0.1
    assert waiting.dropped == 0
    assert again.step_s < waiting.step_s < turns.step_s
    assert max(waiting.ages) <= 1
    assert again.tokens < 0.95 * waiting.tokens  # what is always long is never trained on


def test_the_table_has_what_starts_again_beside_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scale.STALENESS", (0, 1))
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in staleness_table(2, 1).splitlines()[2:]]
    assert [row[:2] for row in rows] == [["0", ""], ["1", "restart"], ["1", "wait"]]
    assert ["/" in row[2] for row in rows] == [True, True, False]
    assert rows[2][6] == "0.000"


def test_of_responses_the_first_to_end_are_taken_and_the_others_end_with_them() -> None:
    drawn = iter([[9, 2, 7, 4, 5], [8, 3, 6, 1, 2], [30, 20, 90, 10, 40]])
    lengths = FirstToEnd(lambda _: next(drawn), 3)
    request = [Request(id=n, token_ids=[prompt, 7], sampling=SAMPLING) for n, prompt in enumerate((4, 5, 4))]
    assert lengths(request[0]) == [2, 4, 5, 5, 5]
    assert lengths(request[1]) == [1, 2, 3, 3, 3]
    assert lengths(request[2]) == [30, 20, 90, 1, 1]  # postponed: a step that waits for all


def test_more_responses_are_quicker_and_shorter_than_more_prompts_alone() -> None:
    workload = Workload(engines=16, groups=64)
    plain, prompts, both = simulated(workload, 0, 30), batched(workload, 0.25, 0.0), batched(workload, 0.25, 0.25)
    assert plain.step_s > 1.2 * prompts.step_s > 1.2 * 1.05 * both.step_s
    assert plain.tokens > prompts.tokens > 1.1 * both.tokens
    assert prompts.tokens > 0.93 * plain.tokens


def test_of_what_ends_first_only_that_counts() -> None:
    workload = Workload(engines=16, groups=64)
    drawn = workload.lengths.drawn(4000, 1, 20, MAX_TOKENS, seed=1)
    assert batched(workload, 0.0, 0.25).tokens == pytest.approx(np.sort(drawn)[..., :16].mean(), rel=0.05)


def test_memory_of_the_driver_is_counted() -> None:
    """Of each sample at least its lengths and its score, of 16 a group; more of them are there with more ahead."""
    held = [simulated(Workload(engines=4, groups=groups), 1, 1).held_bytes for groups in (8, 16)]
    assert 8 * 16 * 100 < held[0] < 8 * 16 * 1000 * TARGET_KB
    assert held[1] > 1.5 * held[0]


def test_training_as_groups_end_has_the_last_ones_left() -> None:
    assert streamed_s([1.0, 2.0, 10.0], 6.0) == 12.0  # two are trained on by then
    assert streamed_s([1.0, 2.0, 3.0], 6.0) == 7.0  # training begins after a second, and is what takes longest
    assert streamed_s([5.0] * 4, 6.0) == 11.0


def test_ends_are_those_of_the_groups_that_a_step_takes() -> None:
    workload = Workload(engines=4, groups=16)
    for run, more in ((simulated(workload, 0, 3), 0), (batched(workload, 0.25, 0.0), 4)):
        for step in run.steps:
            assert 16 <= len(step.ends) <= 16 + more
            assert step.ends == sorted(step.ends)
            assert step.ends[15] == pytest.approx(step.seconds - workload.train_s)
