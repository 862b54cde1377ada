"""Partial rollouts: which responses are held, and when they go on; what is begun never passes by the driver.

`tests/test_continued.py` has real engines, `tests/test_staleness.py` what holds whatever engines do.
"""

from itertools import count
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.episodes import Prompt, VersionSpan
from actors.rollout.simulated import SimulatedEngine, Table
from actors.rollout.types import Begun, BegunInfo, Finished, Request, Sampling
from algorithms.rollouts.ages import Ages
from algorithms.rollouts.engines import Ended
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.lane import Lane
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from tests.fake_engines import After, FakeEngines
from tests.simulated_engines import Clock

STEP = 4


def begun(*spans: tuple[int, int, int], **how: Any) -> Begun:
    """Spans are (version, start, end)."""
    tokens = spans[-1][2] if spans else 0
    versions = [VersionSpan(version=version, start=start, end=end) for version, start, end in spans]
    token_ids = np.arange(tokens, dtype=np.int32)
    return Begun(token_ids=token_ids, logprobs=np.zeros(tokens, np.float32), versions=versions, **how)


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 30), most=st.integers(1, 30), step=st.integers(1, 12), changes=st.lists(st.integers(0, 5)))
def test_one_version_samples_no_more_than_it_may(length: int, most: int, step: int, changes: list[int]) -> None:
    """Whenever weights change beside it: what is held goes on under others, and has every token once in the end."""
    clock = Clock()
    engine = SimulatedEngine(Table(lengths=[length], token_s=1.0), clock)
    sampling = Sampling(samples=1, temperature=1.0, max_tokens=most, max_step_tokens=step)
    had, version, generated = begun(), 0, 0
    for number in count():
        engine.submit([Request(id=number, token_ids=[6], sampling=sampling, begun=(had,))], None)
        if number < len(changes):  # in the middle of it, perhaps
            clock.now += changes[number]
            engine.use(version := version + 1)
        clock.now += 99
        [segment] = engine.poll(0)
        if segment.finish != "held":
            break
        of_now = [span.end - span.start for span in segment.versions if span.version == version]
        # Fewer where weights have come meanwhile: it may go on at once.
        assert len(segment.token_ids) < min(length, most) or length < len(had.token_ids) + 2
        if sum(of_now) == step:
            engine.submit([Request(id=10**6, token_ids=[6], sampling=sampling, begun=(segment.begun,))], None)
            [same] = engine.poll(0)
            assert (same.finish, same.token_ids) == ("held", segment.token_ids), "not under the same weights"
            engine.use(version := version + 1)
        had = segment.begun
        assert had.finish is None and had.token_ids.dtype == np.int32
    assert all(sum(s.end - s.start for s in segment.versions if s.version == v) <= 2 * step for v in range(version + 1))
    assert segment.finish in ("stop", "length") and len(segment.token_ids) <= most
    generated = engine.stats().generated_tokens
    assert generated == len(segment.token_ids), "each is sampled once"


class Driver:
    """Rollouts whose events the test makes, without a thread: a step is of two groups of two samples."""

    def __init__(
        self, staleness: int, most: int | None = None, waits: bool = True, rows: int = 10**6, engines: int = 1
    ) -> None:
        self.engines: Any = FakeEngines(engines=engines)
        self.engines.collect = lambda _, requests: [self.samples[each] for each in requests]
        self.samples: dict[int, Any] = {}
        drawn = (Prompt(index=number, token_ids=[number], text="", row={}) for number in range(rows))
        sampling = Sampling(samples=2, temperature=1.0, max_tokens=12, max_step_tokens=STEP)
        self.rollouts = Rollouts(
            self.engines, None, drawn, sampling, Limits(silence_s=1e9, starts=2, attempts=2), groups_per_step=2,
            max_staleness=staleness, groups_in_run=most, waits=waits, clock=self.engines.monotonic,
        )  # fmt: skip
        self.flow, self.lane = self.rollouts._flow, self.rollouts.training

    def start(self) -> list[tuple[int, tuple[Begun, ...], int | None]]:
        """What engines get now: rows, what was begun, and tokens after which they hold it."""
        before = len(self.engines.given)
        self.flow.start([self.lane])
        requests = list(self.engines.given.values())[before:]
        return [(each.token_ids[0], each.begun, each.sampling.max_step_tokens) for each in requests]

    def request(self, row: int) -> int:
        return next(each for each in self.engines.on if self.engines.given[each].token_ids == [row])

    def hold(self, row: int, *samples: Begun) -> None:
        """The engine says that a row's samples are held with these."""
        number = self.request(row)
        self.samples[number] = samples
        told = Finished(request=number, infos=[], held=tuple(map(BegunInfo.of, samples)))
        self.flow.take_in([Ended(self.engines.on.pop(number), told)])

    def end(self, *rows: int) -> None:
        numbers = [self.request(row) for row in rows]
        self.samples |= dict.fromkeys(numbers, "episodes")
        self.flow.take_in(self.engines._happen(After(1, dict.fromkeys(numbers, "ok ok"))))

    def publish(self, version: int) -> None:
        self.engines.version = version
        self.rollouts.published(version)


HELD = begun((0, 0, STEP))
SHORT = begun((0, 0, 2), finish="stop")


def test_held_groups_wait_for_new_weights_and_then_go_on_before_new_prompts() -> None:
    """The oldest first, from what they had, to be held again; meanwhile prompts start as far as the bound allows, and
    none beyond. A sample that has ended counts for nothing on the engine."""
    driver = Driver(staleness=2)
    assert [row for row, *_ in driver.start()] == [0, 1]
    driver.hold(1, HELD, HELD)
    driver.hold(0, HELD, SHORT)
    assert driver.start() == [] and not driver.flow.busy and not driver.rollouts._has_work()
    driver.lane.ask(2, None)
    # As many may start as for groups that run: two held, two for the step.
    assert [(row, step) for row, _, step in driver.start()] == [(2, STEP), (3, STEP)]
    driver.end(2)
    assert driver.start() == [], "nothing more may start, and the other one still runs"
    driver.end(3)
    assert driver.lane.can_give(2, 0) and [group.prompt.index for group in driver.lane.take(2)] == [2, 3]
    assert driver.rollouts.report()[1].held == 3
    driver.publish(1)
    assert driver.rollouts._has_work()
    driver.lane.depth = 4
    assert driver.start() == [(0, (HELD, SHORT), STEP), (1, (HELD, HELD), STEP), (4, (), STEP), (5, (), STEP)]
    assert driver.flow._loads[0] == 1 + 2 + 2 + 2
    driver.end(0, 1, 4, 5)
    assert driver.flow._loads[0] == 0 and driver.lane.on_the_way == 0 and driver.rollouts.report()[1].held == 0


def test_what_was_held_under_weights_that_are_old_by_then_goes_on_at_once() -> None:
    driver = Driver(staleness=2)
    driver.start()
    driver.flow.version = 1  # they came while it was sampled
    driver.hold(0, begun((0, 0, 1), (1, 1, STEP)), HELD)
    assert [row for row, *_ in driver.start()] == [0]
    assert driver.rollouts.report()[1].held == 0, "it waits for nothing"


def test_where_a_step_cannot_be_made_otherwise_the_oldest_go_on_to_their_ends() -> None:
    """As many as it lacks; they are not held again."""
    driver = Driver(staleness=2, most=3)
    driver.start()
    driver.lane.ask(2, None)
    assert [row for row, *_ in driver.start()] == [2], "the last one of the run"
    driver.hold(2, HELD, HELD)
    assert driver.start() == [] and driver.rollouts._has_work(), "the others run"
    driver.hold(1, HELD, HELD)
    assert driver.start() == [(1, (HELD, HELD), None)]
    driver.hold(0, HELD, HELD)
    assert driver.start() == [(0, (HELD, HELD), None)]
    driver.end(0, 1)
    assert driver.lane.can_give(2, 0) and len(driver.lane.take(2)) == 2
    assert driver.start() == [] and len(driver.lane.held) == 1, "nobody waits for the last one yet"
    driver.lane.ask(1, None)
    assert driver.start() == [(2, (HELD, HELD), None)]


def test_where_the_prompts_end_what_is_held_takes_the_place_of_what_has_failed() -> None:
    driver = Driver(staleness=1, rows=2)
    driver.lane.failures.max_failed = 1.0
    driver.start()
    driver.lane.ask(1, None)
    driver.hold(0, HELD, HELD)
    assert driver.start() == []
    number = driver.request(1)
    driver.samples[number] = "episodes"
    driver.flow.take_in(driver.engines._happen(After(1, {number: "ok failed"})))
    assert driver.rollouts._has_work() and driver.start() == [(0, (HELD, HELD), None)]


def test_what_would_be_too_old_for_the_next_step_is_not_held() -> None:
    """A group of version 0 has to be in the step of version n: it goes on without a bound."""
    driver = Driver(staleness=1)
    driver.start()
    driver.hold(0, HELD, HELD)
    driver.publish(1)
    assert driver.start() == [(0, (HELD, HELD), None)]
    driver.hold(1, HELD, HELD)  # under the weights before
    assert driver.start() == [(1, (HELD, HELD), None)]
    driver.lane.ask(2, None)
    assert [(row, step) for row, _, step in driver.start()] == [(2, STEP), (3, STEP)]


def test_what_later_steps_cannot_all_take_is_not_held_either() -> None:
    """Four groups of version 0, with two steps that can take them: two go on, though the step has enough others."""
    driver = Driver(staleness=2)
    driver.start()
    driver.lane.ask(2, None)
    driver.start()
    for row in range(4):
        driver.hold(row, HELD, HELD)
    driver.publish(1)
    driver.lane.depth = 4
    assert [(row, step) for row, _, step in driver.start()] == [(row, STEP) for row in range(6)]
    for row in range(4):
        driver.hold(row, *[begun((0, 0, STEP), (1, STEP, 2 * STEP))] * 2)
    driver.end(4, 5)
    assert not driver.lane.can_give(2, 1) and len(driver.lane.ready) == 2
    assert [(row, step) for row, _, step in driver.start()] == [(0, None), (1, None)]
    driver.end(0, 1)
    assert driver.lane.can_give(2, 1) and [group.prompt.index for group in driver.lane.take(2)] == [0, 1]


@pytest.mark.parametrize("comes", ["before", "after"])
def test_what_is_held_and_too_old_starts_again(comes: str) -> None:
    """Where no step waits for it: it is ended for its age, wherever it is."""
    driver = Driver(staleness=1, waits=False)
    driver.start()
    if comes == "before":
        driver.hold(0, HELD, HELD)
    driver.lane.ask(2, None)
    driver.publish(1)
    driver.publish(2)
    if comes == "after":
        driver.hold(0, HELD, HELD)
    assert driver.lane.held == [] and driver.rollouts.report()[1].aborted == 1
    driver.start()
    assert driver.engines.given[max(driver.engines.given)].token_ids == [3]
    assert [each.begun for each in driver.engines.given.values() if each.token_ids == [0]] == [(), ()]


def full(driver: Driver) -> None:
    """Engines have room for no group beside those that they have."""
    driver.flow._most_each = 1


def test_what_has_become_too_old_while_it_waited_for_an_engine_starts_again() -> None:
    driver = Driver(staleness=1, waits=False)
    driver.start()
    driver.hold(0, HELD, HELD)
    full(driver)
    driver.publish(1)
    assert driver.start() == [] and [group.prompt.index for group in driver.flow._waiting] == [0]
    driver.publish(2)
    driver.end(1)
    driver.flow._most_each = None
    assert driver.start() == [] and driver.rollouts._has_work()
    assert driver.start()[0] == (0, (), STEP), "from nothing"
    assert driver.rollouts.report()[1].aborted == 1


def test_what_goes_on_comes_behind_an_evaluation() -> None:
    driver = Driver(staleness=1)
    driver.start()
    driver.hold(0, HELD, HELD)
    full(driver)
    prompts = iter([Prompt(index=number, token_ids=[number], text="", row={}) for number in (100, 101)])
    evaluation = Lane(prompts, Sampling(samples=1, temperature=0.0, max_tokens=12), Failures(1.0))
    evaluation.ask(2, None)
    driver.flow.start([evaluation])
    driver.publish(1)
    driver.start()
    assert [group.prompt.index for group in driver.flow._waiting] == [100, 101, 0]


def test_after_a_step_that_has_learned_nothing_all_go_on() -> None:
    """To their ends: no new weights come for them."""
    driver = Driver(staleness=2)
    driver.start()
    driver.end(0, 1)
    driver.rollouts._thread = Thread()  # the test's own
    assert [group.prompt.index for group in driver.rollouts.take(2, 0, seed=1)] == [0, 1]
    driver.lane.depth = 4
    assert [row for row, *_ in driver.start()] == [2, 3, 4, 5]
    driver.hold(2, HELD, HELD)
    driver.end(3, 4)
    assert not any(row == 2 for row, *_ in driver.start())
    assert [group.prompt.index for group in driver.rollouts.take(2, 0, seed=1)] == [3, 4]
    assert driver.start()[0] == (2, (HELD, HELD), None)


def test_of_a_dead_engine_what_goes_on_does_so_elsewhere() -> None:
    driver = Driver(staleness=1, engines=2)
    driver.start()
    driver.hold(0, HELD, HELD)
    driver.publish(1)
    driver.start()
    died, other = driver.engines.on[driver.request(0)], driver.request(0)
    driver.flow.take_in(driver.engines._happen(After(1, {other: "the process died"})))
    request = driver.engines.given[driver.request(0)]
    assert driver.engines.on[request.id] != died and request.begun == (HELD, HELD)
    assert request.sampling.max_step_tokens is None, "it is due"


@settings(max_examples=300, deadline=None)
@given(
    started=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12),
    newer=st.integers(0, 3),
    most=st.integers(0, 3),
    groups=st.integers(1, 4),
)
def test_with_those_that_go_on_a_step_can_be_made_and_with_one_less_it_cannot(
    started: list[tuple[int, bool]], newer: int, most: int, groups: int
) -> None:
    """`too_many_wait` against `enough_are_complete`: where all that do not wait are complete."""
    version = max([0, *(each for each, _ in started)]) + newer

    def ages(going_on: int) -> tuple[Ages, list[int]]:
        found, waiting = Ages(), list[int]()
        for order, (each, waits) in enumerate(sorted(started)):
            found.start(order, each)
            waiting += [order] * waits
        for order in [each for each in range(len(started)) if each not in waiting] + waiting[:going_on]:
            found.complete(order)
        return found, waiting

    found, waiting = ages(0)
    needed = found.too_many_wait(waiting, version, most, groups)
    assert 0 <= needed <= len(waiting)
    assert ages(needed)[0].enough_are_complete(version, most, groups)
    assert needed == 0 or not ages(needed - 1)[0].enough_are_complete(version, most, groups)
