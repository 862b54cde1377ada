"""When the failed samples of a step are too many, and what is said of them."""

import pytest

from actors.group import GroupError
from algorithms.rewards.pool import RewardFailure
from algorithms.rewards.scores import Score, failed_score
from algorithms.rollouts.failures import Failures


def scores(*causes: str | None) -> list[Score]:
    """Of a group: a cause fails its sample."""
    good = Score(reward=1.0, parts={}, status="ok")
    return [failed_score(cause, "say yes", f"text {n}") if cause else good for n, cause in enumerate(causes)]


def test_one_share_of_failures_for_engines_and_rewards() -> None:
    """max_failed_fraction is one limit, whichever of the two fails first: 3 and 3 of 50 are more than 5."""
    for engines_first in (True, False):
        failures = Failures(0.1)
        if engines_first:
            failures.not_finished(3, 50)
            failures.not_scored(scores("late", "late"), 50)
            with pytest.raises(RewardFailure, match=r"^3 samples .* allows 5; 3 more failed in the engines"):
                failures.not_scored(scores("late"), 50)
        else:
            failures.not_scored(scores("late", None, "late", "late"), 50)
            failures.not_finished(2, 50)
            line = r"^3 of 50 rollouts of a step failed in the engines, and 3 more could not be scored \(reward"
            with pytest.raises(GroupError, match=line):
                failures.not_finished(1, 50)
        assert (failures.unfinished, failures.unscored, failures.samples) == (3, 3, 6)


def test_a_new_step_begins_with_none() -> None:
    failures = Failures(0.5)
    failures.not_scored(scores("late"), 2)
    failures.not_finished(0, 2)
    failures.begin()
    assert (failures.samples, failures.errors) == (0, [])
    failures.not_finished(1, 2)


def test_the_first_causes_are_told_each_once_with_the_first_sample_that_it_befell() -> None:
    failures = Failures(0.1)
    failures.not_scored(scores("b", "b", None, "a", "c"), 40)
    assert failures.errors == [
        "b; prompt 'say yes', completion 'text 0'",
        "a; prompt 'say yes', completion 'text 3'",
        "c; prompt 'say yes', completion 'text 4'",
    ]
    with pytest.raises(RewardFailure) as caught:
        failures.not_scored(scores("d", "e"), 40)
    message = str(caught.value)
    assert message.startswith("6 samples could not be scored in a step of 40 (reward.max_failed_fraction 0.1 allows 4)")
    assert message.endswith("completion 'text 4' | and 2 more causes") and "\n" not in message
