"""Tail batching: which prompts a step starts, and that each is trained on once in a pass over the data."""

import random
from collections import Counter
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.episodes import Prompt
from actors.rollout.types import RolloutInfo, Sampling
from algorithms.batches import Batches, WeightedBatches
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.lane import Lane, Running
from algorithms.rollouts.tail import Tail

ONE = Sampling(samples=1, temperature=1.0, max_tokens=9)


def prompt(row: int) -> Prompt:
    return Prompt(index=row, token_ids=[1], text="", row={})


def infos(*tokens: int) -> list[RolloutInfo]:
    return [
        RolloutInfo(tokens=each, prompt_tokens=0, sampled_tokens=each, status="ok", oldest_version=0) for each in tokens
    ]


def tail(left: int | None, rows: int | None = 100, postponed: int = 0, share: float = 0.25) -> Tail:
    made = Tail(share, lambda: left, rows)
    made.postponed.extend(prompt(1000 + number) for number in range(postponed))
    return made


@pytest.mark.parametrize(
    ("left", "postponed", "left_in_run", "begun", "extra"),
    [
        (50, 3, None, 0, 2),  # a usual step: a quarter of 8 more
        (50, 8, None, 8, 0),  # enough was postponed for a step of its own
        (50, 20, None, 8, 0),
        (9, 3, None, 0, 1),  # no more than the pass has
        (7, 3, None, 3, 0),  # the pass ends: what is left of it, and what was postponed
        (0, 3, None, 3, 0),  # and its last ones, before the next pass
        (0, 0, None, 0, 2),  # which begins when nothing is left of this one
        (50, 3, 9, 0, 1),  # nor more than the run will take
        (50, 3, 5, 3, 0),
        (None, 3, None, 0, 2),  # several sets have no passes
        (None, 3, 5, 3, 0),  # but a run has an end
    ],
)
def test_what_a_step_starts(left: int | None, postponed: int, left_in_run: int | None, begun: int, extra: int) -> None:
    rows = None if left is None else 100
    made = tail(left, rows, postponed)
    prompts, more = made.begin(8, left_in_run)
    assert (len(prompts), more) == (begun, extra)
    assert [each.index for each in prompts] == list(range(1000, 1000 + begun)), "those first that wait longest"
    assert len(made.postponed) == postponed - begun


def test_what_is_long_starts_first() -> None:
    """By the mean of a prompt's responses when it was sampled last; what is not known counts as usual."""
    made = tail(50)
    for row, lengths in ((1, (10, 30)), (2, (90, 90)), (3, (1, 3)), (1, (40, 60))):
        made.note(prompt(row), infos(*lengths))
    made.note(prompt(4), [])
    order = made.longest_first([prompt(row) for row in (3, 9, 1, 8, 2)])
    assert order == [4, 2, 1, 3, 0], "90, 50, two of which nothing is known, 2"
    assert made.longest_first([prompt(7), prompt(9)]) == [0, 1]


def running(number: int, each: Prompt, lane: Lane) -> Running:
    return Running(number, number, lane, each, 0, 0.0)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 60),
    groups=st.integers(1, 16),
    share=st.sampled_from([0.1, 0.25, 1.0, 3.0]),
    passes=st.integers(1, 4),
    failing=st.booleans(),
    draw=st.integers(0, 2**20),
)
def test_every_prompt_is_trained_on_once_in_a_pass(
    rows: int, groups: int, share: float, passes: int, failing: bool, draw: int
) -> None:
    """Whichever ends first: as many groups as are asked for come in each step, all of a pass before those of the next
    but for a step that has some of both, and at the end of the run nothing is left."""
    random_ = random.Random(draw)
    order = Batches(rows, seed=draw, shuffle=True)
    steps = -(-passes * rows // groups)
    lane = Lane(
        (prompt(order.next(1)[0]) for _ in count()),
        ONE,
        Failures(1.0),
        most=steps * groups,
        tail=Tail(share, lambda: order.left, order.rows),
    )
    trained: list[int] = []
    failed: list[int] = []
    on: dict[int, Prompt] = {}
    numbers = count()
    for _ in range(steps):
        lane.ask(groups, None)
        most = groups + lane._extra
        while True:
            for each in lane.draw():
                on[next(numbers)] = each.prompt
            assert len(on) + len(lane.ready) <= most
            if lane.can_give(groups):
                break
            number = random_.choice(list(on))
            if failing and random_.random() < 0.1 and len(failed) < rows:
                lane.fail(each := on.pop(number), number)
                failed.append(each.index)
                continue
            group: Any = ScoredGroup(prompt=on.pop(number), rollouts=None, infos=infos(3), scores=[])
            lane.accept(number, group)
        taken = lane.take(groups)
        assert len(taken) == groups
        trained += [each.prompt.index for each in taken]
        lane.postpone([running(number, each, lane) for number, each in on.items()])
        on.clear()
    assert not lane.tail or not lane.tail.postponed, "nothing is left when the run ends"
    assert len(trained) == steps * groups
    if failing:
        return
    for number in range(passes):
        # What is left of a pass shares a step with the first ones of the next.
        assert set(trained[number * rows : (number + 1) * rows]) == set(range(rows)), f"pass {number}"
    assert max(Counter(trained).values()) - min(Counter(trained).values()) <= 1


def test_a_failed_group_is_replaced_by_a_postponed_prompt_before_the_next_pass_begins() -> None:
    lane = Lane(map(prompt, count()), ONE, Failures(1.0), tail=tail(1, postponed=6))
    lane.ask(4, None)
    assert [each.prompt.index for each in lane.draw()] == [1000, 1001, 1002, 1003]
    for _ in range(3):
        lane.fail(prompt(1000), 0)
    assert [each.prompt.index for each in lane.draw()] == [1004, 1005, 0], "the last one of this pass"
    lane.fail(prompt(1001), 1)
    assert [each.prompt.index for each in lane.draw()] == [1], "when nothing is left of it"


def test_what_dynamic_sampling_may_draw_does_not_count_what_is_postponed() -> None:
    """Else, with one round, no step would start more than it needs."""
    order = Batches(100, seed=0, shuffle=False)
    lane = Lane(
        (prompt(order.next(1)[0]) for _ in count()), ONE, Failures(0), judge=lambda group: group, most_drawn=1,
        tail=Tail(0.5, lambda: order.left, order.rows),
    )  # fmt: skip
    for _ in range(2):
        lane.ask(4, None)
        drawn = lane.draw()
        assert len(drawn) == 6
        for number in range(4):
            group: Any = ScoredGroup(prompt=drawn[number].prompt, rollouts=None, infos=infos(3), scores=[])
            lane.accept(number, group)
        assert len(lane.take(4)) == 4
        lane.postpone([running(number, drawn[number].prompt, lane) for number in (4, 5)])


def test_several_sets_have_no_passes_and_a_run_still_ends_with_nothing_left() -> None:
    order = WeightedBatches({"a": 5, "b": 9}, {"a": 1, "b": 2}, seed=0, shuffle=True)
    lane = Lane(
        (prompt(order.next(1)[0]) for _ in count()), ONE, Failures(0), most=40, tail=Tail(0.5, lambda: order.left, None)
    )
    taken, on = 0, {}
    for step in range(10):
        lane.ask(4, None)
        on |= {100 * step + number: each.prompt for number, each in enumerate(lane.draw())}
        for number in list(on)[::-1][:4]:
            group: Any = ScoredGroup(prompt=on.pop(number), rollouts=None, infos=infos(3), scores=[])
            lane.accept(number, group)
        taken += len(lane.take(4))
        lane.postpone([running(number, each, lane) for number, each in on.items()])
        on.clear()
    assert lane.tail is not None
    assert taken == 40 and not lane.tail.postponed
