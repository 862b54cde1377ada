"""Which ready groups are certain to be trained on by the step that is waited for, as what adds gradients needs it."""

import random
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.episodes import Prompt
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.lane import Drawn, Lane
from algorithms.rollouts.ready_reads import NoReads
from algorithms.rollouts.tail import Tail
from tests.test_tail import ONE, infos, prompt, running


class Told(NoReads):
    """Notes what is said of each group; `is`, as groups are compared by what they hold."""

    def __init__(self) -> None:
        self.certain: list[ScoredGroup] = []
        self.others: list[ScoredGroup] = []

    def submit(self, group: ScoredGroup, *, certain: bool) -> None:
        (self.certain if certain else self.others).append(group)

    def forget(self, group: ScoredGroup) -> None:
        assert all(group is not each for each in self.certain), "a sum has it"


def ids(groups: list[ScoredGroup]) -> set[int]:
    return set(map(id, groups))


def made(of: Prompt) -> ScoredGroup:
    reference: Any = None
    return ScoredGroup(prompt=of, rollouts=reference, infos=infos(3), scores=[])


def taken_and_told(
    lane: Lane, reads: Told, groups: int, draw: random.Random, *, failing: float, on: dict[int, Any], numbers: Any
) -> list[ScoredGroup]:
    """A step whose groups end in any order, of which this share fails."""
    lane.ask(groups, None)
    while True:
        on |= {next(numbers): each for each in lane.draw()}
        if lane.can_give(groups):
            break
        # Several may end before anybody looks, more of them than the step needs.
        for number in draw.sample(sorted(on), draw.randint(1, len(on))):
            drawn = on.pop(number)
            if draw.random() < failing:
                lane.fail(drawn.prompt, number)
                continue
            lane.accept(number, made(drawn.prompt))
    return lane.take(groups)


@settings(max_examples=300, deadline=None)
@given(
    groups=st.integers(1, 9),
    share=st.sampled_from([None, 0.1, 0.5, 2.0]),
    failing=st.sampled_from([0.0, 0.3]),
    alike=st.sampled_from([None, 0.0, 0.4, 0.8]),
    rows=st.sampled_from([None, 23]),
    seed=st.integers(0, 2**20),
)
def test_on_policy_those_are_certain_that_the_step_takes(
    groups: int, share: float | None, failing: float, alike: float | None, rows: int | None, seed: int
) -> None:
    """Whatever ends first, fails, or teaches nothing and is replaced, with and without tail batching, also where the
    prompts end: no other one, and none of them is not."""
    draw, reads, numbers = random.Random(seed), Told(), count()
    on: dict[int, Any] = {}
    prompts = map(prompt, count() if rows is None else range(rows))
    lane = Lane(
        prompts,
        ONE,
        Failures(1.0),
        judge=None if alike is None else lambda group: None if draw.random() < alike else group,
        most_drawn=None if alike is None else 3,
        tail=None if share is None else Tail(share, lambda: None, None),
        reads=reads,
    )
    for _ in range(4):
        reads.certain.clear()
        taken = taken_and_told(lane, reads, groups, draw, failing=failing, on=on, numbers=numbers)
        assert ids(taken) == ids(reads.certain)
        if lane.tail:
            lane.postpone([running(number, each.prompt, lane) for number, each in on.items()])
            on.clear()
        assert not on, "without tail batching a step waits for all"


@settings(max_examples=200, deadline=None)
@given(
    groups=st.integers(1, 6),
    ready=st.integers(0, 9),
    unscored=st.integers(0, 9),
    alike=st.sampled_from([0.0, 0.5]),
    share=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 2**20),
)
def test_what_a_resumed_run_has_is_taken_before_others_are_certain(
    groups: int, ready: int, unscored: int, alike: float, share: float | None, seed: int
) -> None:
    """It may be more than a step needs, where the run before has made groups ahead."""
    draw, reads, numbers = random.Random(seed), Told(), count(100)
    lane = Lane(
        map(prompt, count()),
        ONE,
        Failures(1.0),
        judge=lambda group: None if draw.random() < alike else group,
        tail=None if share is None else Tail(share, lambda: None, None),
        reads=reads,
    )
    given_back = [made(prompt(1000 + number)) for number in range(ready)]
    lane.give_back(given_back, [], 0)
    lane.on_the_way += unscored
    on: dict[int, Any] = {number: Drawn(prompt(2000 + number)) for number in range(unscored)}
    taken = taken_and_told(lane, reads, groups, draw, failing=0.1, on=on, numbers=numbers)
    assert len(taken) == groups
    assert ids(reads.certain) <= ids(taken)
    assert not reads.certain or ids(given_back) <= ids(taken)


@pytest.mark.parametrize("ahead", [1, 4, 12])
def test_none_is_certain_that_is_made_ahead(ahead: int) -> None:
    """The oldest are taken first, and one that is too old is dropped."""
    draw, reads, numbers = random.Random(ahead), Told(), count()
    lane = Lane(map(prompt, count()), ONE, Failures(1.0), ahead=ahead, groups_per_step=4, reads=reads)
    on: dict[int, Any] = {}
    for _ in range(5):
        assert len(taken_and_told(lane, reads, 4, draw, failing=0.2, on=on, numbers=numbers)) == 4
    assert not reads.certain and len(reads.others) >= 20
