"""Rewards: what functions are called with, what counts as a failure, how sources add up. No Ray."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from actors.config import UserError
from actors.episodes import Prompt
from algorithms.config import RewardConfig, RewardFunction
from algorithms.rewards.calls import LoadedFunction, Samples, check_signature
from algorithms.rewards.scores import (
    Score,
    add_scores,
    empty_scores,
    failed_score,
    load_sources,
    score_batch,
    score_rollouts,
    sources_labels,
)
from tests.episodes import episode

ROOT = Path(__file__).resolve().parent.parent


def loaded(call, *, name="mine.py:score", label="score", weight=1.0, **arguments) -> LoadedFunction:
    return LoadedFunction(name=name, label=label, weight=weight, arguments=arguments, call=call)


def samples(*completions: str, prompt: str = "1+1=", **columns) -> Samples:
    return Samples(prompts=[prompt] * len(completions), completions=list(completions), columns=columns)


def rewards(functions, batch) -> list[float | None]:
    """The rewards, None where scoring failed."""
    scores = score_batch(functions, batch)
    assert all((score.status == "failed") == math.isnan(score.reward) == bool(score.error) for score in scores)
    return [None if score.status == "failed" else score.reward for score in scores]


def problem(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    return str(caught.value)


def test_loading_reports_the_mistakes_of_all_sources():
    config = RewardConfig(
        functions=["exact_mach", "math", "maths"], endpoints=["http://one/score", "http://me:secret@two/score"]
    )
    with pytest.raises(UserError) as caught:
        load_sources(config)
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "reward.functions.0.name",
        "reward.functions.2.name",
        "reward.endpoints.1.url",
    ]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("sources", "labels"),
    [
        ({"functions": ["a.py:score", "math", "b.py:score"]}, [["score", "math", "score_2"], [], []]),
        ({"functions": ["a:score", "b:score", "c:score_2"]}, [["score", "score_2", "score_2_2"], [], []]),
        ({"functions": ["a:mean", "a:min", "a:failed"]}, [["mean_2", "min_2", "failed_2"], [], []]),
        (
            {
                "functions": ["a:score"],
                "models": ["outputs/rm/export", "org/rm", "/models/judge/", "export"],
                "endpoints": [
                    "http://host:8000/v1/score",
                    "https://rm.example:80",
                    "http://[::1]/",
                    "http://host/a%20b?k=1",
                ],
            },
            [["score"], ["rm", "rm_2", "judge", "export"], ["score_2", "rm.example", "_1", "a_20b"]],
        ),
    ],
)
def test_labels_are_short_and_unique_over_all_sources(sources, labels):
    assert list(sources_labels(RewardConfig(**sources))) == labels


def test_no_source_hides_a_metric_of_all_rewards():
    """Every name that the code of the loops writes beside those of the sources is taken."""
    sources = [path.read_text() for path in (ROOT / "algorithms" / "rl").glob("*.py")]
    names = {name for text in sources for name in re.findall(r'"reward/(\w+)"', text)}
    names |= {"mean", "std", "zero_variance_fraction"}  # of `reward_metrics`, for evaluations too
    assert {"min", "failed", "kl_coef"} <= names
    functions = [f"a:{name}" for name in sorted(names)]
    assert sources_labels(RewardConfig(functions=functions))[0] == [f"{name}_2" for name in sorted(names)]


def test_signature_is_checked_against_columns_and_arguments(tmp_path):
    path = tmp_path / "signatures.py"
    path.write_text(
        "def score(completion, anwser, scale=1.0): return 1\n"
        "def batch(completions, prompts, answer, **columns): return 1\n"
    )

    def function(name, **arguments):
        return RewardFunction(name=f"{path}:{name}", arguments=arguments)

    text = problem(check_signature, function("score"), ["prompt", "answer"], 1)
    assert text.startswith("reward.functions.1.name: ") and "needs a parameter anwser" in text
    assert "got columns answer, prompt (did you mean answer?)" in text
    check_signature(function("score"), ["anwser"])
    check_signature(function("score", anwser="4", scale=2), [])
    assert "did you mean scale?" in problem(check_signature, function("score", scal=2), ["anwser"])
    assert "must not be completion or prompt" in problem(check_signature, function("score", prompt="x"), ["anwser"])
    check_signature(function("batch", anything=1), ["answer"])
    assert "needs a parameter answer" in problem(check_signature, function("batch"), [])
    check_signature(RewardFunction(name="math"), ["answer"])


def test_functions_get_what_their_parameters_name():
    seen = []

    def one(completion, prompt, answer, bonus=0.0):
        seen.append((completion, prompt, answer))
        return float(completion == answer) + bonus

    def every(completions, **columns):
        seen.append((completions, columns))
        return [float(len(completion)) for completion in completions]

    batch = samples("2", "33", answer=["2", "3"], level=[7, 8])
    assert rewards([loaded(one, bonus=0.5), loaded(every, label="every", weight=0.1)], batch) == pytest.approx(
        [1.6, 0.7]
    )
    assert seen == [
        ("2", "1+1=", "2"),
        ("33", "1+1=", "3"),
        (["2", "33"], {"prompts": ["1+1=", "1+1="], "answer": ["2", "3"], "level": [7, 8]}),
    ]


def test_a_configured_argument_wins_over_a_column_and_lists_may_be_changed():
    def spoil(completions, answer):
        completions.clear()
        return [float(answer == "fixed")] * 2

    def after(completions):
        return [float(len(completion)) for completion in completions]

    functions = [loaded(spoil, answer="fixed"), loaded(after, label="after")]
    assert rewards(functions, samples("a", "bb", answer=["x", "y"])) == [2.0, 3.0]


# --- failures


def test_only_the_guilty_sample_fails_when_a_batched_function_raises():
    def score(completions):
        return [float(completion) for completion in completions]

    scores = score_batch([loaded(score)], samples("1", "x\ny", "3"))
    assert [score.status for score in scores] == ["ok", "failed", "ok"]
    assert [scores[0].reward, scores[2].reward] == [1.0, 3.0]
    error = scores[1].error
    assert error and "\n" not in error
    assert error.startswith(
        "mine.py:score: ValueError: could not convert string to float: 'x\\ny' (test_rewards.py line"
    )
    assert error.endswith("; prompt '1+1=', completion 'x\\ny'")


def test_exceptions_that_are_not_exceptions_are_failures_too():
    class Timeout(BaseException):
        pass

    def score(completion):
        if completion == "exit":
            raise SystemExit(1)
        if completion == "timeout":
            raise Timeout("5 s")
        if completion == "interrupt":
            raise KeyboardInterrupt("by a timer")
        return 1.0

    batch = samples("exit", "fine", "timeout", "interrupt")
    assert rewards([loaded(score)], batch) == [None, 1.0, None, None]
    assert rewards([loaded(lambda completions: [score(each) for each in completions])], batch) == [None, 1, None, None]
    cause = str(score_batch([loaded(score)], batch)[3].cause)
    assert cause.startswith("mine.py:score: KeyboardInterrupt: by a timer (test_rewards.py line")


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class Hostile:
    """A value that cannot be looked at."""

    ndim = 0

    def item(self) -> float:
        raise Mute

    def __len__(self) -> int:
        raise SystemExit


class HostileList(list[float]):
    def __iter__(self):
        raise Mute


def test_an_exception_without_a_readable_message_and_values_that_cannot_be_read_fail_their_samples():
    def raises(completion):
        raise Mute

    def returns(completion):
        return Hostile()

    for call, cause in {
        raises: "Mute: its message cannot be read, as that raises KeyboardInterrupt (test_rewards.py line",
        returns: "returned an object of the class Hostile, which cannot be read as a number: Mute: its message",
        (lambda completions: HostileList([1.0] * len(completions))): "Mute: its message cannot be read",
        (lambda completions: [Hostile()] * len(completions)): "returned an object of the class Hostile",
    }.items():
        scores = score_batch([loaded(call)], samples("a", "b"))
        assert [score.status for score in scores] == ["failed", "failed"]
        assert all(str(score.cause).startswith(f"mine.py:score: {cause}") for score in scores), scores


@pytest.mark.parametrize("column", ["completion", "completions", "prompt", "prompts"])
def test_how_a_function_is_called_is_told_by_its_signature_alone(column):
    """Data may have a column of any name: it neither changes the form of a call nor what its own parameters hold."""
    seen = []

    def every(completions, **columns):
        seen.append((completions, columns["prompts"]))
        return [1.0] * len(completions)

    def one(completion, **columns):
        seen.append((completion, columns["prompt"]))
        return 2.0

    batch = Samples(prompts=["p", "p"], completions=["a", "b"], columns={column: ["x", "y"]})
    assert rewards([loaded(every), loaded(one, label="one")], batch) == [3.0, 3.0]
    assert seen == [(["a", "b"], ["p", "p"]), ("a", "p"), ("b", "p")]


@pytest.mark.parametrize(
    ("returned", "cause"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        (None, "returned nothing (None), not a list of 2 numbers"),
        ({"a": 1}, "returned a mapping, not a list of 2 numbers"),
        (1.0, "returned a number, not a list of 2 numbers"),
        (np.zeros((1, 2)), "returned 1 values for 2 completions"),
    ],
)
def test_a_batch_of_the_wrong_form_fails_as_a_whole(returned, cause):
    scores = score_batch([loaded(lambda completions: returned)], samples("a", "b"))
    assert [score.cause for score in scores] == [f"mine.py:score: {cause}"] * 2


def test_values_that_are_no_finite_numbers_fail_alone():
    values = [1, True, np.float32(0.5), float("nan"), float("inf"), "0.5", 10**400, np.array(2.0), [1.0], -3]
    batch = samples(*map(repr, values))
    expected = [1.0, 1.0, 0.5, None, None, None, None, 2.0, None, -3.0]
    assert rewards([loaded(lambda completions: values)], batch) == expected
    assert rewards([loaded(lambda completion: values[batch.completions.index(completion)])], batch) == expected
    assert rewards([loaded(lambda completions: np.arange(3))], samples("a", "b", "c")) == [0.0, 1.0, 2.0]


def test_abstaining_leaves_the_sum_and_the_parts_and_all_abstaining_fails():
    def short(completion):
        return None if len(completion) > 1 else 1.0

    def long(completion):
        return None if len(completion) < 3 else 4.0

    scores = score_batch([loaded(short), loaded(long, label="long", weight=0.5)], samples("a", "bb", "ccc"))
    assert [score.parts for score in scores] == [{"score": 1.0}, {}, {"long": 4.0}]
    assert [scores[0].reward, scores[2].reward] == [1.0, 2.0]
    assert scores[1].status == "failed"
    assert scores[1].error == "every reward source abstained (gave no value); prompt '1+1=', completion 'bb'"


def test_abstaining_is_no_failure_while_reward_models_are_to_come():
    functions = [loaded(lambda completion: None if completion == "a" else 2.0, weight=0.5)]
    open_, given = score_batch(functions, samples("a", "b"), models=True)
    assert (open_.status, open_.parts) == ("abstained", {}) and math.isnan(open_.reward)
    weights = {"rm": 3.0, "judge": -1.0}
    assert add_scores(open_, {"rm": 0.25, "judge": 1.0}, weights).reward == 3.0 * 0.25 - 1.0
    total = add_scores(given, {"rm": 0.25}, weights)
    assert (total.reward, total.parts, total.status) == (1.75, {"score": 2.0, "rm": 0.25}, "ok")
    assert given.parts == {"score": 2.0}
    closed = add_scores(open_, {}, weights, "1+1=", "a")
    assert closed.error == "every reward source abstained (gave no value); prompt '1+1=', completion 'a'"


def test_a_source_that_is_only_reported_makes_no_reward():
    """Where all that count abstain, the weight 0 of another source would make a reward of 0."""
    judge = loaded(lambda completion: None if completion == "a" else 2.0, label="judge", weight=0.5)
    shown = loaded(lambda completion: 7.0, label="shown", weight=0.0)
    for sources in ([judge, shown], [shown, judge]):
        failed, scored = score_batch(sources, samples("a", "b"))
        assert failed.status == "failed"
        assert failed.cause == "every reward source with a weight abstained (gave no value)"
        assert (scored.reward, scored.parts) == (1.0, {"judge": 2.0, "shown": 7.0})
    open_, given = score_batch([judge, shown], samples("a", "b"), models=True)
    assert (open_.status, open_.parts) == ("abstained", {"shown": 7.0})
    assert add_scores(open_, {"rm": 0.25}, {"rm": 2.0}) == Score(
        reward=0.5, parts={"shown": 7.0, "rm": 0.25}, status="ok"
    )
    assert add_scores(open_, {"rm": 0.25}, {"rm": 0.0}).status == "failed"
    assert add_scores(given, {"rm": 0.25}, {"rm": 0.0}).reward == 1.0


def test_scores_of_models_alone_are_added_to_empty_ones():
    scores = [
        add_scores(score, {"rm": value}, {"rm": 2.0}) for score, value in zip(empty_scores(2), (1.0, -3.0), strict=True)
    ]
    assert [(score.reward, score.parts, score.status) for score in scores] == [
        (2.0, {"rm": 1.0}, "ok"),
        (-6.0, {"rm": -3.0}, "ok"),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_score_that_is_no_finite_number_is_a_failure(value):
    [empty] = empty_scores(1)
    weights = {"judge": 1.0, "rm": 1.0}
    score = add_scores(empty, {"judge": 1.0, "rm": value}, weights, "1+1=")
    assert score.status == "failed" and math.isnan(score.reward) and score.parts == {}
    assert score.cause == f"rm: returned {value}, not a finite number"
    assert score.error == f"{score.cause}; prompt '1+1='"
    answered = add_scores(empty, {"rm": value}, weights, None, "2")
    assert answered.error == f"{answered.cause}; completion '2'"


def test_a_failed_score_stays_failed_and_a_sum_that_overflows_fails():
    failed = failed_score("mine.py:score: no", "p", "c")
    assert failed_score("no", None, None).error == "no"
    assert add_scores(failed, {"rm": 1.0}, {"rm": 1.0}) is failed
    huge = [loaded(lambda completion: 1e308, weight=10.0)]
    [score] = score_batch(huge, samples("a"))
    assert score.cause == "the weighted sum of the rewards is inf, not a finite number"
    assert score.error == f"{score.cause}; prompt '1+1=', completion 'a'"


def test_a_failed_rollout_is_seen_by_no_function():
    def rollout(text, status):
        return episode([1], [2], status=status, text=text, finish_reason="abort" if status == "failed" else "stop")

    seen = []
    prompt = Prompt(index=0, token_ids=[1], text="1+1=", row={"answer": "2"})
    function = loaded(lambda completion, answer: seen.append(completion) or float(completion == answer))
    scores = score_rollouts([function], prompt, [rollout("2", "ok"), rollout("2", "failed"), rollout("3", "truncated")])
    assert seen == ["2", "3"]
    assert [score.status for score in scores] == ["ok", "failed", "ok"]
    assert [scores[0].reward, scores[2].reward] == [1.0, 0.0]
