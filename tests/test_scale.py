"""The benchmark of scale: what it measures is what its formulas say, and the driver's costs are counted."""

from dataclasses import replace

import pytest

from algorithms.rollouts.flow import ENOUGH
from algorithms.rollouts.tail import Tail
from benchmarks.expected import expected, tail_batched
from benchmarks.scale import MAX_TOKENS, SPEED, STARTS, TARGET_KB, Workload, simulated


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


def test_memory_of_the_driver_is_counted() -> None:
    """Of each sample at least its lengths and its score, of 16 a group; more of them are there with more ahead."""
    held = [simulated(Workload(engines=4, groups=groups), 1, 1).held_bytes for groups in (8, 16)]
    assert 8 * 16 * 100 < held[0] < 8 * 16 * 1000 * TARGET_KB
    assert held[1] > 1.5 * held[0]
