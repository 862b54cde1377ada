"""The space of a sweep: its grammar, and what is checked and refused before any trial starts."""

import argparse
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from actors.config import UserError
from launch.cli import VERBS
from launch.config import UnusedError, validate
from launch.sweep.prepare import Options, prepare
from launch.sweep.settled import settle, survey
from launch.sweep.space import Listed, Range, read_space, split
from launch.sweep.tuned import EarlyStop, points
from tests.test_docs import BY_HAND, ROOT, words_of_commands
from tests.test_rules import settings

LR = "policy.optimizer.lr"
GRPO = """
algorithm: {name: grpo, steps: 100, prompts_per_step: 8, samples_per_prompt: 4, eval_every: 10}
model: {init: {hidden_size: 32, layers: 1, heads: 1, alphabet: abcd, max_positions: 64}}
data: {train: rows.jsonl, eval: rows.jsonl}
reward: {functions: [exact_match]}
rollout: {max_prompt_tokens: 8, max_response_tokens: 8}
tracking: {wandb: false}
run: {name: words}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration of GRPO, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("words.yaml").write_text(GRPO)
    return "words.yaml"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2", ["1", "2"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("{a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ("uniform(0,1)", ["uniform(0,1)"]),
        ("'a, b',c", ["'a, b'", "c"]),
        ("don't,do", ["don't", "do"]),
        ("", [""]),
    ],
)
def test_commas_within_brackets_and_quotes_divide_nothing(text: str, parts: list[str]) -> None:
    assert split(text) == parts


def test_a_space_has_lists_ranges_and_what_is_fixed() -> None:
    space = read_space(
        [
            f"{LR}=loguniform(1e-6,1e-4)",
            "a.b=0.2, 0.28",
            "c=choice(x,[1, 2])",
            "d=randint(1,4)",
            "e=[1, 2]",
            'f="u(1,2)"',
        ]
    )
    assert space.fixed == ("e=[1, 2]", 'f="u(1,2)"')
    assert space.varied == (
        Range(LR, "loguniform(1e-6,1e-4)", "loguniform", 1e-6, 1e-4),
        Listed("a.b", "0.2, 0.28", ("0.2", "0.28"), drawn=False),
        Listed("c", "choice(x,[1, 2])", ("x", "[1, 2]"), drawn=True),
        Range("d", "randint(1,4)", "randint", 1, 4),
    )
    assert all(space.has(point) for point in [*space.corners(), *points(space, 9, seed=0)])
    outside = {**next(space.corners()), "d": "4.5"}
    assert not space.has(outside)
    assert not space.has({**outside, "d": "0"})
    assert space.grid == 2
    assert space.drawn
    assert len(list(space.corners())) == 2 * 2 * 2 * 2
    assert {point["d"] for point in space.corners()} == {"1", "3"}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "a.b=normal(0,1)",
            "a.b: must be a list, choice, uniform, loguniform or randint (a text in quotes is itself), got normal(0,1)",
        ),
        (
            "a.b=log_uniform(1,2)",
            "a.b: must be a list, choice, uniform, loguniform or randint (a text in quotes is itself) "
            "(did you mean loguniform?), got log_uniform(1,2)",
        ),
        ("a.b=uniform(1)", "a.b: must be uniform(lowest,highest) with two numbers, got uniform(1)"),
        ("a.b=uniform(0,.inf)", "a.b: must be uniform(lowest,highest) with two numbers, got uniform(0,.inf)"),
        ("a.b=uniform(0,[)", "a.b: must be uniform(lowest,highest) with two numbers, got uniform(0,[)"),
        ("a.b=uniform(2,1)", "a.b: must be uniform(lowest,highest) with the lower number first, got uniform(2,1)"),
        ("a.b=loguniform(0,1)", "a.b: must be loguniform(lowest,highest) with numbers above 0, got loguniform(0,1)"),
        (
            "a.b=randint(1,2)",
            "a.b: must be randint(a,b) with whole numbers, for two or more numbers from a to b - 1, got randint(1,2)",
        ),
        ("a.b=1,1", "a.b: must name each value once, got 1,1"),
        (
            "a.b=1,",
            "a.b: must have a value on each side of a comma (a text with commas in quotes: '\"a, b\"'), got 1,",
        ),
        ("a.b=choice(1)", "a.b: must have 2 to 1000 values, got choice(1)"),
        ("a.b=1,uniform(2,3)", "a.b: must be a list of values or one range, not both, got 1,uniform(2,3)"),
        ("run.name=a,b", "run.name: must be fixed in a sweep, as the sweep names its trials, got a,b"),
        (
            "a.b=1",
            "a.b=VALUES: required, a field with several values, such as policy.optimizer.lr=1e-5,1e-4 or "
            "policy.optimizer.lr=loguniform(1e-6,1e-4), got none",
        ),
    ],
)
def test_a_mistake_in_the_values_is_one_line(override: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        read_space([override])
    assert caught.value.problems == (line,)


def test_a_field_is_given_once() -> None:
    with pytest.raises(UserError) as caught:
        read_space(["a.b=1,2", "c=5", "c=6,7"])
    assert caught.value.problems == ("c: must be given once in a sweep, got it again as 6,7",)


def test_points_are_drawn_anew_for_each_point_of_the_grid() -> None:
    space = read_space([f"{LR}=loguniform(1e-6,1e-4)", "a.b=1,2", "n=randint(0,3)"])
    found = points(space, 301, seed=3)
    assert found == points(space, 400, seed=3)[:301], "more trials keep those there are"
    assert found != points(space, 301, seed=4)
    assert Counter(point["a.b"] for point in found) == {"1": 151, "2": 150}
    assert {point["n"] for point in found} == {"0", "1", "2"}
    rates = [float(point[LR]) for point in found]
    assert len(set(rates)) == 301
    assert 1e-6 <= min(rates) <= max(rates) <= 1e-4
    # Of the logarithm: half of them below the middle.
    assert 0.4 < sum(rate < 1e-5 for rate in rates) / 301 < 0.6


def test_every_point_is_loaded_before_anything_starts(config: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare(Options(config, ["algorithm.clip_high=0.2,-1"], "eval/reward/mean"))
    assert caught.value.problems == ("algorithm.clip_high: must be at least 0, got -1",)
    with pytest.raises(UserError) as caught:
        prepare(Options(config, ["algorithm.clip_high=uniform(0.1,0.3)", "algorithm.dual_clip=1.2,3"], "m", trials=2))
    assert caught.value.problems == (
        "algorithm.dual_clip must be above 1 + clip_high = 1.3, got 1.2 "
        "(at algorithm.clip_high=0.3, algorithm.dual_clip=1.2)",
    )
    assert list(Path().iterdir()) == [Path(config)]


def test_a_number_between_the_ends_is_checked_too(config: str) -> None:
    """Both ends of uniform(8,16) are whole numbers, and what lies between them is not."""
    with pytest.raises(UserError, match=r"rollout.max_response_tokens: must be a whole number, got \d+\.\d+"):
        prepare(Options(config, ["rollout.max_response_tokens=uniform(8,16)"], "eval/reward/mean", trials=3))


def test_a_setting_without_effect_at_some_points_takes_its_default_there(config: str) -> None:
    """At a run it is refused; a sweep warns, and tries what becomes the same once."""
    values = ["algorithm.kl_coef=0,0.1", "algorithm.kl_in=loss,reward"]
    plan = prepare(Options(config, values, "eval/reward/mean"))
    assert plan.warnings == [
        "algorithm.kl_in must be left out with kl_coef 0, got reward: it takes its default there, at 1 of 4 points"
    ]
    assert plan.points is not None
    assert [tuple(point.values()) for point in plan.points] == [("0", "loss"), ("0.1", "loss"), ("0.1", "reward")]
    settled = settle(config, [], {"algorithm.kl_coef": "0", "algorithm.kl_in": "reward"})
    assert settled.overrides == ["algorithm.kl_coef=0", "algorithm.kl_in=reward", 'algorithm.kl_in="loss"']
    # One of the file, too.
    fixed = ["algorithm.kl_coef=0,0.1", "algorithm.kl_in=reward", "algorithm.kl_target=6"]
    plan = prepare(Options(config, fixed, "eval/reward/mean"))
    assert [line.partition(" must")[0] for line in plan.warnings] == ["algorithm.kl_target", "algorithm.kl_in"]
    assert len(plan.points or []) == 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.kl_in=loss,reward"],
        ["algorithm.kl_in=reward", "algorithm.clip_high=0.2,0.3"],
    ],
)
def test_a_setting_without_effect_anywhere_is_refused(config: str, overrides: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        prepare(Options(config, overrides, "eval/reward/mean"))
    assert caught.value.problems == (
        "algorithm.kl_in must be left out with kl_coef 0, got reward; it has no effect anywhere in this sweep",
    )


@pytest.mark.parametrize(
    ("job", "given", "defaults"),
    [
        ("grpo", "critic={}", {"critic": None}),
        ("dpo", "algorithm.loss=hinge; algorithm.label_smoothing=0.1", {"algorithm.label_smoothing": 0.0}),
        ("dpo", "algorithm.loss=simpo; algorithm.reference=precomputed", {"algorithm.reference": "live"}),
        ("grpo", "algorithm.aggregation_constant=9", {"algorithm.aggregation_constant": None}),
        ("grpo", "rollout.tail_share=0.3", {"rollout.tail_share": 0.25}),
    ],
)
def test_what_has_no_effect_is_known_with_its_default(job: str, given: str, defaults: dict[str, object]) -> None:
    with pytest.raises(UnusedError) as caught:
        validate(settings(job, given))
    assert caught.value.defaults == defaults
    with pytest.raises(UserError) as wrong:
        validate(settings(job, f"{given}; run.seed=-1"))
    assert not isinstance(wrong.value, UnusedError)


def test_what_is_not_a_matter_of_effect_is_refused(config: str) -> None:
    with pytest.raises(UserError, match="kl_estimator must be k2 or k3 with kl_in loss"):
        survey(config, ["algorithm.kl_estimator=k1"], [{"algorithm.kl_coef": "0.1"}])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"metric": "reward/mean"}, r"--metric: must be one of .*\(did you mean eval/reward/mean\?\), got reward/mean"),
        (
            {"metric": "eval/failed"},
            "--mode: required, min or max, with --metric eval/failed, of which more is not better, got nothing",
        ),
        (
            {"overrides": [f"{LR}=1e-5,1e-4", "data.eval=null", "algorithm.eval_every=null"]},
            "--metric: needs data.eval",
        ),
        ({"trials": 3}, "--trials: must be left out, or 2, as the lists have so many points, got 3"),
        (
            {"overrides": [f"{LR}=uniform(0,1)"]},
            rf"--trials: required with {LR}=uniform\(0,1\), such as 12, got nothing",
        ),
        ({"overrides": [f"{LR}=uniform(0,1)", "run.seed=1,2,3"], "trials": 2}, "--trials: must be at least 3"),
        ({"grace": 200}, "--grace: must be at most 100, the steps of a trial, got 200"),
        ({"grace": 5, "early_stop": "none"}, "--grace: must be left out with --early-stop none, got 5"),
        ({"name": "a/b"}, "--name: must be at most 100 letters"),
        ({"overrides": [f"{LR}=1e-5,1e-4", "checkpoint.resume=false"]}, "checkpoint.resume: must be true in a sweep"),
        ({"overrides": [f"{LR}=1e-5,1e-4", "run.hub_model_id=a/b"]}, "run.hub_model_id: must be left out in a sweep"),
        (
            {"overrides": [f"{LR}=1e-5,1e-4", "policy.gpus_per_rank=1"], "parallel": 2},
            "--parallel: must be 1 without RAY_ADDRESS",
        ),
        ({"config": "other.yaml"}, r"config file: cannot be read .* \(did you mean words.yaml\?\)"),
    ],
)
def test_what_cannot_be_swept_is_refused(config: str, given: dict[str, object], line: str) -> None:
    values = {"config": config, "overrides": [f"{LR}=1e-5,1e-4"], "metric": "eval/reward/mean"} | given
    with pytest.raises(UserError, match=f"^{line}"):
        prepare(Options(**values))  # type: ignore[arg-type]


def test_a_directory_of_something_else_is_not_taken(config: str) -> None:
    Path("outputs/words-sweep").mkdir(parents=True)
    Path("outputs/words-sweep/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"--name: must be a new directory or an earlier sweep's, .* holds other files"):
        prepare(Options(config, [f"{LR}=1e-5,1e-4"], "eval/reward/mean"))


def test_trials_have_directories_and_storage_of_their_own(config: str) -> None:
    plan = prepare(
        Options(config, [f"{LR}=1e-5,1e-4", "run.storage=s3://bucket/runs/"], "eval/reward/mean", name="one")
    )
    assert plan.storage == "s3://bucket/runs/one"
    assert str(plan.directory) == "outputs/one"
    assert (plan.record.mode, plan.grace, plan.steps) == ("max", 25, 100)


def test_asha_keeps_the_best_third() -> None:
    early = EarlyStop("m", "min", grace=10, reduction=3, steps=100)
    assert all(early.goes_on(number, 9, math.inf) for number in range(9)), "before the first rung nobody is stopped"
    went_on = {number: early.goes_on(number, 10, value) for number, value in enumerate([5.0, 6.0, 4.0, 5.5, 3.0, 9.0])}
    assert went_on == {0: True, 1: False, 2: True, 3: False, 4: True, 5: False}
    assert early.goes_on(2, 20, 100.0), "between rungs nobody is"
    assert early.goes_on(2, 100, 100.0)


def test_defaults_are_written_as_yaml_reads_them(config: str) -> None:
    settled = settle(config, ["algorithm.kl_coef=0"], {"algorithm.kl_horizon": "77", "algorithm.kl_target": "6"})
    assert json.loads(json.dumps(settled.defaults)) == {"algorithm.kl_target": None, "algorithm.kl_horizon": 10_000}
    assert settled.config.algorithm.name == "grpo"


def test_sweeps_of_the_docs_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = [words[1:] for words in words_of_commands(BY_HAND) if words[1] == "sweep" and "--metric" in words]
    assert len(found) >= 3
    for _, *rest in found:
        parser = argparse.ArgumentParser(exit_on_error=False)
        VERBS["sweep"].declare(parser)
        given = vars(parser.parse_intermixed_args(rest))
        assert given.pop("table") is None
        prepare(Options(**given))


WATCHED = """
import sys
seen = []
def hook(event, given):
    writes = event == "open" and isinstance(given[1], str) and set(given[1]) & set("wax+")
    if writes or event in ("socket.connect", "subprocess.Popen", "os.mkdir", "os.rename"):
        seen.append((event, str(given)))
sys.addaudithook(hook)
from launch.telemetry import switch_off
switch_off()  # as the command line does
from launch.sweep.space import read_space
from launch.sweep.tuned import EarlyStop, points
points(read_space(["a.b=uniform(0,1)", "c=1,2"]), 4, 0)
early = EarlyStop("m", "max", grace=1, reduction=3, steps=9)
assert early.goes_on(1, 1, 1.0) and not early.goes_on(2, 1, 0.5)
print(seen)
"""


def test_tune_writes_nothing_and_calls_nobody(tmp_path: Path) -> None:
    env = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-B", "-c", WATCHED], text=True, capture_output=True, env=env, cwd=tmp_path)
    assert (done.stdout, list(tmp_path.iterdir())) == ("[]\n", []), done.stderr
