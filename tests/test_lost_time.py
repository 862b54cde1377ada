"""Lost seconds are the integral of what does not work while it is waited for, over all attempts at a run."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.tracking.lost_time import Earlier, LostTime


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Eighths of a second and of the engines: sums of them are exact.
TIMES = st.integers(0, 80).map(lambda eighths: eighths / 8)
CHANGES = st.one_of(
    st.tuples(st.just("engines"), st.integers(0, 8)),
    st.tuples(st.sampled_from(["waiting", "mending"]), st.booleans()),
    st.tuples(st.sampled_from(["trains", "read"]), st.none()),
)
CALM = st.one_of(
    st.just(("engines", 8)),
    st.tuples(st.just("waiting"), st.booleans()),
    st.tuples(st.sampled_from(["trains", "read"]), st.none()),
)
"""Changes of a run in which nothing fails."""
HISTORIES = st.lists(st.tuples(TIMES, CHANGES), max_size=30)
ATTEMPTS = st.builds(Earlier, lost_s=TIMES, elapsed_s=TIMES.map(lambda s: s + 10), gap_s=st.none() | TIMES)


def told(lost: LostTime, what: str, value: Any) -> None:
    if what == "engines":
        lost.engines(value, 8)
    elif what == "waiting":
        lost.waiting(value)
    elif what == "mending":
        lost.mending(value)
    elif what == "trains":
        lost.trains_on()


def by_definition(earlier: Earlier, history: list[tuple[float, tuple[str, Any]]]) -> tuple[float, float]:
    """Lost and elapsed seconds, interval by interval."""
    serving, waits, mends, stands = 8, False, False, earlier.gap_s is not None
    lost, elapsed = earlier.lost_s + (earlier.gap_s or 0), earlier.elapsed_s + (earlier.gap_s or 0)
    for seconds, (what, value) in history:
        elapsed += seconds
        lost += seconds * max(stands, mends, (8 - serving) / 8 if waits else 0)
        if what == "engines":
            serving = value
        waits = value if what == "waiting" else waits
        mends = value if what == "mending" else mends
        stands = stands and what != "trains"
    return lost, elapsed


@given(ATTEMPTS, HISTORIES)
def test_lost_is_the_integral_however_often_it_is_read(
    earlier: Earlier, history: list[tuple[float, tuple[str, Any]]]
) -> None:
    clock = Clock()
    lost = LostTime(earlier, clock=clock)
    steps = []
    for seconds, (what, value) in history:
        clock.now += seconds
        steps += [lost.read_step()] if what == "read" else []
        told(lost, what, value)
    steps.append(lost.read_step())
    expected, elapsed = by_definition(earlier, history)
    assert earlier.lost_s + sum(steps) == lost.lost_s == expected
    assert lost.elapsed_s == lost.now_s() == elapsed
    assert min(steps) >= 0 and lost.lost_s <= lost.elapsed_s and 0 <= lost.effective <= 1
    assert lost.effective == 1 - expected / elapsed
    assert lost.read_step() == 0


@given(st.lists(st.tuples(st.floats(0, 1e6), CALM)))
def test_a_run_without_a_fault_has_lost_exactly_nothing(history: list[tuple[float, tuple[str, Any]]]) -> None:
    """Whatever it waits for, and whatever its steps take."""
    clock = Clock()
    lost = LostTime(clock=clock)
    assert lost.effective == 1.0, "before its first second"
    for seconds, (what, value) in history:
        clock.now += seconds
        told(lost, what, value)
        assert what != "read" or lost.read_step() == 0.0
    assert lost.read_step() == 0.0 and lost.effective == 1.0


def test_half_of_the_engines_is_half_of_the_time_while_it_is_waited_for() -> None:
    clock = Clock()
    lost = LostTime(clock=clock)
    lost.engines(1, 2)
    clock.now += 10  # the loop trains
    lost.waiting(True)
    clock.now += 3
    lost.engines(0, 2)
    clock.now += 1
    lost.engines(2, 2)
    clock.now += 6
    assert lost.read_step() == 2.5
    lost.engines(1, 2)
    lost.mending(True)  # not one and a half
    clock.now += 4
    lost.mending(False)
    lost.waiting(False)
    clock.now += 6
    assert lost.read_step() == 4.0
    assert (lost.lost_s, lost.elapsed_s) == (6.5, 30.0) and lost.effective == 1 - 6.5 / 30


def test_a_run_whose_whole_time_is_lost_is_not_less_than_that() -> None:
    """Parts of seconds that add up to more than the whole, by rounding."""
    clock = Clock()
    lost = LostTime(Earlier(gap_s=0.1), clock=clock)
    for seconds in (0.1, 0.7, 1e-9, 1 / 3):
        clock.now += seconds
        lost.read_step()
    assert 0 <= lost.effective < 1e-9
    assert LostTime(Earlier(lost_s=1.0), clock=clock).effective == 0.0


@pytest.mark.parametrize(("serving", "engines"), [(-1, 2), (3, 2), (1, 0), (math.nan, 2)])
def test_more_engines_than_there_are_is_a_mistake(serving: Any, engines: int) -> None:
    with pytest.raises(ValueError, match=f"serving must be between 0 and the {engines} engines"):
        LostTime().engines(serving, engines)


def test_a_job_without_engines_waits_for_none() -> None:
    clock = Clock()
    lost = LostTime(clock=clock)
    lost.engines(0, 0)
    lost.waiting(True)
    clock.now += 5
    assert lost.read_step() == 0.0
