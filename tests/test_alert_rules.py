"""When something is alerted to: rules over metrics, no step for long, a disk that fills; against naive versions."""

import math
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.alerts import lookout as lookout_module
from launch.alerts.config import AlertsConfig, DiskAlert, LimitAlert, StalledAlert
from launch.alerts.lookout import Lookout
from launch.alerts.room import Room
from launch.alerts.rules import Finding, MetricRules, Spells, deviations_below, must_be_finite, within_limit
from launch.alerts.standstill import STEPS_KEPT, Standstill

NAN, INF = math.nan, math.inf


def rules(**fields: Any) -> MetricRules:
    """Those given alone."""
    nothing: dict[str, Any] = {"not_finite": None, "falling": None, "stalled": None, "disk": None}
    return MetricRules(AlertsConfig.model_validate(nothing | fields))


def told(found: MetricRules, values: list[float], metric: str) -> list[int]:
    """Places of the values at which something is told."""
    return [place for place, value in enumerate(values) if found.step(place, {metric: value})]


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4))
def test_each_is_told_once_until_it_was_not_so(held: list[bool], for_steps: int) -> None:
    spells = Spells()
    found = [spells.begins("a", holds, for_steps) for holds in held]
    for place, begins in enumerate(found):
        spell = place + 1
        while spell and held[spell - 1]:
            spell -= 1
        assert begins == (held[place] and place + 1 - spell == for_steps)


def test_conditions_do_not_mix() -> None:
    spells = Spells()
    assert spells.begins("a", True) and spells.begins("b", True) and not spells.begins("a", True)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["loss/policy", "loss/critic", "grad_norm", "critic/grad_norm", "reward/mean",
                                  "rewards/margin", "eval/loss"])  # fmt: skip
def test_what_must_be_finite_is_told_once(name: str, value: float) -> None:
    assert told(rules(not_finite={}), [1.0, value, value, 0.0, value], name) == [1, 4]


@pytest.mark.parametrize("name", ["eval/majority", "eval/reward/mean", "time/step", "mismatch/kl"])
def test_metrics_that_may_lack_a_value_are_not_told(name: str) -> None:
    """Of an evaluation, for example, in which prompts are missing."""
    assert not must_be_finite(name)
    assert told(rules(not_finite={}), [NAN, INF], name) == []


def test_what_stops_being_finite_in_one_step_is_one_alert() -> None:
    found = rules(not_finite={})
    [one] = found.step(7, {"loss/policy": NAN, "grad_norm": INF, "reward/mean": 0.5})
    assert (one.rule, one.level, one.metric) == ("not_finite", "error", "loss/policy")
    assert one.text == "loss/policy is NaN, as is grad_norm"
    [other] = found.step(8, {"loss/policy": NAN, "grad_norm": INF, "reward/mean": -INF})
    assert other.text == "reward/mean is -infinity"


BOUNDS = st.sampled_from(["above", "below"])


@given(BOUNDS, st.floats(-2, 2), st.lists(st.one_of(st.none(), st.floats(-4, 4), st.just(NAN))), st.integers(1, 3))
def test_a_limit_is_told_by_the_steps_that_have_the_metric(
    side: str, bound: float, values: list[float | None], for_steps: int
) -> None:
    rule = {"metric": "policy/kl", side: bound, "for_steps": for_steps}
    found, spells = rules(limits=[rule]), Spells()
    for step, value in enumerate(values):
        some = found.step(step, {} if value is None else {"policy/kl": value})
        if value is None:
            assert not some
            continue
        outside = math.isnan(value) or (value > bound if side == "above" else value < bound)
        assert bool(some) == spells.begins("naive", outside, for_steps)


def test_a_limit_says_what_is_out_of_it_and_since_when() -> None:
    found = rules(limits=[{"metric": "a", "above": 0.5, "for_steps": 3}, {"metric": "b", "below": 1}])
    assert [one.text for one in found.step(1, {"a": 0.7, "b": NAN})] == [
        "b is NaN, to be told when below 1 (tracking.alerts.limits.1)"
    ]
    assert not found.step(2, {"a": 0.7})
    [one] = found.step(3, {"a": 0.7123})
    assert one.text == "a is 0.712, above 0.5 for 3 steps in a row (tracking.alerts.limits.0)"
    assert (one.level, one.value) == ("warn", 0.7123)
    assert not within_limit(LimitAlert(metric="a", below=0.0), NAN)


WINDOWS = st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=6)


@given(WINDOWS)
def test_a_fall_is_measured_as_numpy_would(windows: list[tuple[float, float]]) -> None:
    before, after = np.array(windows).T
    fall = before.mean() - after.mean()
    spread = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / 2)
    found = deviations_below(list(before), list(after))
    if abs(fall) < 1e-9 or spread < 1e-9:
        assert found >= 0
    else:
        assert found == pytest.approx(max(0.0, fall / spread), rel=1e-6)


@given(st.lists(st.one_of(st.floats(-1, 1), st.just(NAN)), max_size=30))
def test_a_fall_is_told_when_two_full_windows_say_so(values: list[float]) -> None:
    """Values that are not finite are in none."""
    found, spells, kept = rules(falling={"window_steps": 3, "deviations": 1.0}), Spells(), list[float]()
    for step, value in enumerate(values):
        some = found.step(step, {"reward/mean": value})
        if math.isnan(value):
            assert not some
            continue
        kept.append(value)
        falls = len(kept) >= 6 and deviations_below(kept[-6:-3], kept[-3:]) > 1.0
        assert bool(some) == (len(kept) >= 6 and spells.begins("naive", falls))


def test_a_reward_that_collapses_is_told_and_one_that_only_varies_is_not() -> None:
    noise = np.random.default_rng(0).normal(0.0, 0.1, 2000)
    assert told(rules(falling={}), list(0.5 + noise), "reward/mean") == []
    assert told(rules(falling={}), list(0.5 + noise + np.arange(2000) / 4000), "reward/mean") == []
    collapsed = 0.5 + noise[:100]
    collapsed[60:] -= 0.5
    [place] = told(rules(falling={}), list(collapsed), "reward/mean")
    assert 65 < place < 85
    assert told(rules(falling={}), [1.0] * 60 + [0.9] * 20, "reward/mean") == [73]
    assert told(rules(falling={}), [1.0] * 80 + [0.99999] + [1.0] * 80, "reward/mean") == []


def test_a_fall_says_between_what_and_by_how_much() -> None:
    found = rules(falling={"window_steps": 2, "deviations": 1.0})
    values = enumerate([1.0, 0.8, 0.2, 0.2], start=5)
    [one] = [one for step, value in values for one in found.step(step, {"reward/mean": value})]
    assert one.text == (
        "reward/mean fell from 0.9 to 0.2 in means over 2 steps, by 7.0 standard deviations of a step (told above 1); "
        "the last are steps 7 to 8"
    )


def test_values_near_the_largest_numbers_overflow_nothing() -> None:
    values = [1e308, 1.5e308] * 20 + [-1e308, 1e300] * 20
    assert isinstance(told(rules(falling={}), values, "reward/mean"), list)


@given(st.lists(st.floats(0.01, 500), max_size=80), st.floats(0, 20_000))
def test_a_run_stands_still_after_ten_times_its_median_step(durations: list[float], wait: float) -> None:
    """And after 10 minutes at least, and twice its longest; told once until there is a step."""
    found, now = Standstill(StalledAlert()), 0.0
    assert found.finding(1e9) is None
    found.begin(now)
    for duration in durations:
        now += duration
        assert found.finding(now) is None or duration >= 600
        found.step(now)
    steps = np.diff([0.0, *np.cumsum(durations)])
    limit = max(600.0, 10 * float(np.median(steps[-STEPS_KEPT:])), 2 * float(steps.max())) if durations else 600.0
    if wait == pytest.approx(limit, rel=1e-6):
        return
    assert (found.finding(now + wait) is not None) == (wait > limit)
    assert found.finding(now + wait) is None or wait < limit
    found.step(now + wait)
    assert found.deadline is not None
    found.end()
    assert found.deadline is None and found.finding(now + 1e9) is None


def test_a_standstill_says_how_long_a_step_takes_and_what_the_run_does() -> None:
    found = Standstill(StalledAlert(after_s=100))
    found.begin(0.0)
    for now in (5.0, 10.0, 25.0):
        found.step(now)
    assert found.deadline == 125.0 and found.finding(124.9, "rollout") is None
    one = found.finding(1225.0, "rollout")
    assert one is not None and one.level == "error"
    assert one.text == "no step for 20 min, which usually takes 5 s; the run is in rollout"
    assert found.finding(2000.0) is None


def test_an_evaluation_that_takes_longer_than_the_limit_is_told_once() -> None:
    """Not each time it comes, be there more steps between than those whose median is taken."""
    found, now, told = Standstill(StalledAlert()), 0.0, 0
    found.begin(now)
    for step in range(1, 501):
        now += 900.0 if step % 100 == 0 else 2.0
        told += found.finding(now) is not None
        found.step(now)
    assert told == 1


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def lookout_of(found: list[Finding], **more: Any) -> Lookout:
    """One that looks at steps, of which none may take 10 minutes, and at the disk."""
    given: dict[str, Any] = {"sizes": lambda: (None, None), "doing": str, "tell": found.append, "warn": pytest.fail}
    return Lookout(Standstill(StalledAlert()), Room(DiskAlert()), **given | more)


def test_the_disk_is_looked_at_each_minute() -> None:
    found, sizes = list[Finding](), [(5, 10), (20, 10), (5, 10)]
    lookout = lookout_of(found, sizes=lambda: sizes.pop(0))
    assert [lookout.look_at_disk() for _ in range(3)] == [60.0] * 3
    text = "the disk of the run's directory has 5 bytes free, and a checkpoint takes 10 bytes"
    assert [one.text for one in found] == [text] * 2


@pytest.mark.parametrize("first", ["step", "look"])
def test_time_in_which_the_process_was_stopped_does_not_count(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z, and an hour later fg: neither as a standstill nor as what a step takes."""
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)  # it is the test that looks
    found, clock = list[Finding](), Clock()
    lookout = lookout_of(found, clock=clock)
    lookout.begin()
    assert lookout.look() == 60.0
    clock.now = 3600.0
    getattr(lookout, first)()
    lookout.look()
    clock.now = 3610.0
    lookout.step()
    while clock.now < 4200:
        clock.now += lookout.look()
    assert found == []
    clock.now = 4210.0
    lookout.look()
    assert [one.value for one in found] == [600.0]


def test_looking_goes_on_where_it_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so once, if there is somebody to hear it."""
    monkeypatch.setattr(lookout_module, "_LONGEST_S", 0.01)
    monkeypatch.setattr(lookout_module, "DISK_EVERY_S", 0.01)
    found, warned, again = list[Finding](), list[str](), threading.Event()
    failing = [OSError("the terminal is gone"), OSError("again")]

    def sizes() -> tuple[int, int]:
        if failing:
            raise failing.pop()
        return 5, 10

    def warn(line: str) -> None:
        warned.append(line)
        raise OSError("nobody is there")

    lookout = lookout_of(found, sizes=sizes, warn=warn, tell=lambda one: (found.append(one), again.set()))
    lookout.begin()
    assert again.wait(60)
    lookout.end()
    assert [one.rule for one in found] == ["disk"]
    assert warned == ["alerts: looking at the run failed: OSError; looking goes on"]


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), min_size=1), st.sampled_from([1.0, 2.5]))
def test_a_disk_is_told_once_until_there_is_room(sizes: list[tuple[int, int]], checkpoints: float) -> None:
    room = Room(DiskAlert(checkpoints=checkpoints))
    found = [room.finding(free, size) is not None for free, size in sizes]
    short = [free < checkpoints * size for free, size in sizes]
    assert found == [short[0], *(after and not before for before, after in pairwise(short))]


def test_a_disk_of_unknown_size_is_not_told() -> None:
    room = Room(DiskAlert())
    assert room.finding(None, 5) is None and room.finding(0, None) is None
    one = room.finding(2**20, 3 * 2**30)
    assert one is not None
    assert one.text == "the disk of the run's directory has 1.0 MiB free, and a checkpoint takes 3.0 GiB"
