"""What the last screen of a run says to look at."""

import itertools
from typing import Any

import pytest

from actors.pulse import ProcessId, Pulse
from launch.run.watched import Rank, how_far
from launch.screen.hints import hint_lines

WIDE = 1000
CUT, ALIKE, KL = "rollout/truncated_fraction", "reward/zero_variance_fraction", "policy/kl"


def rows(steps: int = 20, **columns: Any) -> list[dict[str, float | None]]:
    """Steps of a run; a column is a value, or one for each step. Names have __ for /."""
    named = {name.replace("__", "/"): value for name, value in columns.items()}
    lists = {name: value if isinstance(value, list) else [value] * steps for name, value in named.items()}
    return [
        {"step": float(step), **{name: values[step - 1] for name, values in lists.items()}}
        for step in range(1, steps + 1)
    ]


def told(*given: dict[str, float | None]) -> list[str]:
    return hint_lines([*given], WIDE)


def test_a_warning_that_stands_is_told_with_the_step_since_which_it_does() -> None:
    cut = [0.4, 0.1, *itertools.repeat(0.5, 18)]
    [line] = told(*rows(rollout__truncated_fraction=cut))
    assert line.startswith(f"look at: {CUT} is 0.5, usually below 0.3; responses are cut: raise ")
    assert line.endswith(" (since step 3)")


def test_one_that_is_over_is_not_told() -> None:
    over = rows(policy__kl=[*itertools.repeat(0.9, 19), 0.1])
    assert told(*over) == []


def test_there_are_two_at_most_and_the_longest_comes_first() -> None:
    columns: dict[str, Any] = {
        "rollout__truncated_fraction": [*itertools.repeat(0.0, 10), *itertools.repeat(0.5, 10)],
        "policy__kl": [*itertools.repeat(0.0, 5), *itertools.repeat(0.9, 15)],
        "reward__zero_variance_fraction": [*itertools.repeat(0.0, 18), *itertools.repeat(0.9, 2)],
    }
    first, second = told(*rows(**columns))
    assert first.startswith(f"look at: {KL} is 0.9") and first.endswith("(since step 6)")
    assert second.startswith(f"         {CUT} is 0.5") and second.endswith("(since step 11)")


@pytest.mark.parametrize(("value", "says"), [(0.12, "in the last 10 steps 12% of the responses were cut"), (0.05, "")])
def test_what_is_below_its_limit_is_told_from_a_mean_on(value: float, says: str) -> None:
    lines = told(*rows(rollout__truncated_fraction=value))
    assert (lines[0].removeprefix("look at: ").startswith(says) if lines else says == "") and bool(lines) == bool(says)


def test_groups_that_taught_nothing_are_told_unless_the_task_is_solved() -> None:
    rewards: dict[str, Any] = {"reward__max": 1.0, "reward__min": 0.0}
    [line] = told(*rows(reward__zero_variance_fraction=0.6, reward__mean=0.4, **rewards))
    assert line.startswith("look at: in the last 10 steps 60% of the groups had equal rewards and taught nothing")
    assert told(*rows(reward__zero_variance_fraction=0.6, reward__mean=0.97, **rewards)) == []


def test_numbers_that_are_none_tell_nothing() -> None:
    nan = float("nan")
    assert told(*rows(rollout__truncated_fraction=nan, policy__kl=None)) == []
    assert told() == []
    assert told({"step": 0.0, CUT: 0.9, ALIKE: 0.9}) == [], "an evaluation before the first step"


def test_a_hint_is_broken_between_words() -> None:
    lines = hint_lines(rows(rollout__truncated_fraction=0.5), 60)
    assert len(lines) > 2 and all(len(line) <= 60 for line in lines)
    assert all(line.startswith(" " * 9) for line in lines[1:])


def rank(number: int, pulse: Pulse | None, *, lost: bool = False) -> Rank:
    return Rank("policy", number, 0, 0.0, pulse=pulse, is_lost=lost)


def pulse(done: int, of: int) -> Pulse:
    return Pulse(
        process=ProcessId(1, 2, "3"), method="build", seconds=1.0, done=done, of=of, what="tensors" if of else ""
    )


def test_the_process_that_has_most_before_it_is_told() -> None:
    first, second, idle = rank(0, pulse(1200, 1290)), rank(1, pulse(3, 290)), rank(2, pulse(7, 0))
    ranks = [first, second, idle, rank(3, None), rank(5, pulse(9, 9))]
    assert how_far(ranks) == "policy[1] 3 of 290 tensors"
    assert how_far([*ranks, rank(4, pulse(0, 9), lost=True)]) == "policy[1] 3 of 290 tensors"
    assert how_far(ranks[:1]) == "policy[0] 1,200 of 1,290 tensors"
    assert how_far(ranks[2:]) == ""
