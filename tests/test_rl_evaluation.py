"""pass@k against all choices of k samples, answers and their majority, and the rows that evaluation keeps."""

from itertools import combinations
from pathlib import Path

import pytest

from actors.config import UserError
from algorithms.config_rl import pass_sizes
from algorithms.config_stop import StopWhen
from algorithms.loop import Best, good_enough
from algorithms.rl.evaluation import final_answer, majority, pass_at_k, solving_metrics


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_choices_that_hold_a_solved_one(samples: int) -> None:
    for solved in range(samples + 1):
        responses = [True] * solved + [False] * (samples - solved)
        for k in range(1, samples + 1):
            choices = [any(chosen) for chosen in combinations(responses, k)]
            assert pass_at_k(samples, solved, k) == pytest.approx(sum(choices) / len(choices))


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


def test_which_k_are_reported() -> None:
    assert [pass_sizes(samples) for samples in (2, 4, 6, 9)] == [[1, 2], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8, 9]]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("6 x 7 = 42, so\n#### 42.", "42"),
        ("#### 1\nno: #### $1,234,567", "1234567"),
        (r"It is \boxed{\frac{1}{2}}, clearly.", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{ 2 }", "2"),
        (r"\boxed{never closed", r"\boxed{never closed"),
        ("  the  whole. text \n", "the  whole. text"),
        ("1,2", "1,2"),
        ("", ""),
    ],
)
def test_final_answers(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_the_majority_is_the_most_frequent_answer_and_of_equals_the_first() -> None:
    assert majority(["a", "b", "b", "c"]) == 1
    assert majority(["c", "b", "b", "c"]) == 0
    assert majority(["x"]) == 0


def test_metrics_are_means_over_prompts() -> None:
    def rows(*answers: str) -> list[dict]:
        return [{"final_answer": answer, "solved": answer == "right"} for answer in answers]

    groups = [rows("right", "wrong", "right", "other"), rows("wrong", "wrong", "right", "other"), rows(*"abcd")]
    assert solving_metrics(groups, 4) == pytest.approx(
        {
            "eval/pass@1": (2 / 4 + 1 / 4 + 0) / 3,
            "eval/pass@2": (5 / 6 + 3 / 6 + 0) / 3,
            "eval/pass@4": 2 / 3,
            "eval/majority": 1 / 3,
        }
    )


def test_the_best_is_known_after_a_resume_and_only_by_its_own_metric() -> None:
    best = Best("eval/reward/mean")
    values = (0.2, None, 0.5, 0.5, 0.4)
    evaluations = [{} if value is None else {"eval/reward/mean": value} for value in values]
    assert [best.improved_by(evaluation) for evaluation in evaluations] == [True, False, True, False, False]
    resumed, other = Best("eval/reward/mean"), Best("eval/loss")
    for continued in (resumed, other):
        continued.load(Path(), best.save(Path()))
    assert [resumed.improved_by({"eval/reward/mean": value}) for value in (0.5, 0.6)] == [False, True]
    assert [other.improved_by({"eval/loss": value}) for value in (9.0, 9.5, 8.0)] == [True, False, True]
    assert not Best(None).improved_by({"eval/loss": 1.0})
    with pytest.raises(
        UserError, match=r"^algorithm\.best_by: no such evaluation metric, got eval/x; there are eval/loss$"
    ):
        Best("eval/x").improved_by({"eval/loss": 1.0})


def test_an_evaluation_without_its_prompts_decides_nothing() -> None:
    """Prompts whose responses cannot be scored are left out, all of a set's or all that there are."""
    for bound in ({"at_least": -5}, {"at_most": 5}):
        assert not good_enough(StopWhen(metric="eval/reward/mean", **bound), {"eval/failed": 3.0})
    assert good_enough(StopWhen(metric="eval/loss", at_most=0.5), {"eval/loss": 0.5})
    assert not good_enough(StopWhen(metric="eval/loss", at_most=0.5), {"eval/loss": 0.6})
    stop_when = StopWhen(metric="eval/reward/mean", at_least=-5)
    for value in (None, 0.2):
        best = Best("eval/reward/mean", value)
        assert not best.improved_by({"eval/failed": 3.0}) and best.value == value
    assert not good_enough(stop_when, {"eval/failed": 3.0})
    with pytest.raises(UserError, match=r"^algorithm\.stop_when\.metric: no such evaluation metric"):
        good_enough(stop_when, {"eval/failed": 0.0})
