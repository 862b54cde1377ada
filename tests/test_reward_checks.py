"""Reward functions as `check` calls them: each in a process of its own that cannot hold the check up."""

import time
from pathlib import Path
from typing import Any

import pytest

from algorithms.config import DataConfig, RewardConfig
from launch.checks.reward_checks import Called, ProbeRow, RewardProbe

REWARDS = """
import os, sys, time
def good(completion, answer):
    print("noise"); sys.stderr.write("noise"); return float(completion == answer)
def batch(completions, prompts, **columns):
    return [len(text) for text in completions]
def loops(completion):
    while True:
        pass
def slow(completion):
    return sum(x for x in iter(int, 1))
def sleeps(completion):
    time.sleep(100)
def raises(completion):
    raise KeyError("x")
def text(completion):
    return "1"
def nothing(completion):
    return None
def nan(completions):
    return [float("nan")] * len(completions)
def short(completions):
    return [1.0]
def dies(completion):
    os._exit(3)
def needs(completion, answr):
    return 1
def strict(completion, answer):
    if completion not in ("yes", "no"):
        raise TypeError("not an answer")
    return 1.0
def parses(completion):
    return float(int(completion))
def later(completion, source):
    return 1.0 if source == "two" else None
"""
ROWS = [
    ProbeRow(number=1, prompt="hi", row={"prompt": "hi", "answer": "yes", "source": "one"}),
    ProbeRow(number=2, prompt="ho", row={"prompt": "ho", "answer": "no", "source": "two"}),
]
COLUMNS = {"data.train": ["answer", "prompt", "source"]}
BY_ANSWER = "called by check with the answer of row 1 as completion"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.py").write_text(REWARDS)
    Path("endless.py").write_text("while True:\n    pass\n")
    Path("actors.py").write_text("raise SystemExit('a file of the user must not hide ours')")


def called(*names: str, columns: Any = COLUMNS, data: dict[str, Any] | None = None, **reward: Any) -> Called:
    config = RewardConfig.model_validate({"functions": list(names), **reward})
    with RewardProbe(config) as probe:
        return probe.finish(DataConfig.model_validate({"train": "rows.jsonl"} | (data or {})), columns, ROWS)


def test_every_fault_of_a_function_is_a_line() -> None:
    expected = {
        "loops": "calling r.py:loops never ends: a loop without an end (line",
        "sleeps": "calling r.py:sleeps took longer than 30 s: it sleeps for 100 s (line",
        "raises": f"r.py:raises raised KeyError: 'x' (r.py line 15), {BY_ANSWER}",
        "text": f"r.py:text returned text, not a number, {BY_ANSWER}",
        "nan": f"r.py:nan returned nan, not a finite number, {BY_ANSWER}",
        "short": f"r.py:short returned 1 values for 2 completions, {BY_ANSWER}",
        "dies": "calling r.py:dies ended its process (exit code 3)",
        "needs": "r.py:needs needs a parameter answr, which is neither a data column nor in its arguments, got",
    }
    began = time.monotonic()
    found = called(*(f"r.py:{name}" for name in expected), "endless.py:score")
    assert len(found.problems) == len(expected) + 1 and not found.lines
    for index, (message, problem) in enumerate(zip(expected.values(), found.problems, strict=False)):
        assert problem.startswith(f"reward.functions.{index}.name: {message}")
    last = "importing endless.py:score never ends: a loop without an end (line"
    assert found.problems[-1].startswith(f"reward.functions.8.name: {last}")
    assert time.monotonic() - began < 60  # two to three seconds on an idle machine


def test_what_functions_give_is_shown() -> None:
    found = called("exact_match", "r.py:good", "r.py:batch", "r.py:later", "r.py:nothing")
    assert (found.problems, found.warnings) == (
        [],
        ["reward.functions.4.name: r.py:nothing gave no value (None) for any completion of 2 rows"],
    )
    neutral = "'A sample completion.'"
    assert found.lines == [
        f"reward.functions.0 exact_match: 1 for the answer of row 1, 0 for {neutral}",
        f"reward.functions.1 r.py:good: 1 for the answer of row 1, 0 for {neutral}",
        f"reward.functions.2 r.py:batch: 3 for the answer of row 1, 20 for {neutral}",
        f"reward.functions.3 r.py:later: 1 for the answer of row 2, 1 for {neutral}",
    ]


def test_evaluation_data_without_what_a_reward_takes_and_names_that_nothing_reads() -> None:
    columns = COLUMNS | {"data.eval": ["prompt"]}
    [problem] = called("exact_match", columns=columns).problems
    assert problem == (
        "reward.functions.0.name: exact_match needs a parameter answer, which is neither a data column nor in its "
        "arguments, got columns prompt of data.eval"
    )
    with RewardProbe(RewardConfig.model_validate({"functions": ["exact_match"]})) as probe:
        known = DataConfig(train="rows.jsonl"), {"data.train": ["prompt"]}, ROWS
        [problem] = probe.finish(*known, {"data.train": {"answer": "data.train: row 11"}}).problems
    assert problem == "data.train: row 11 lacks the column answer, which exact_match takes"
    [problem] = called("exact_match", data={"columns": {"anser": "a"}}).problems
    assert problem.startswith("data.columns.anser: must be a column that is read, prompt, messages or what a reward")
    assert problem.endswith("(did you mean answer?), got anser for a")
    assert called("r.py:batch", data={"columns": {"anser": "a"}}).problems == []


def test_a_late_function_is_an_error_where_the_run_waits_no_longer() -> None:
    [problem] = called("r.py:slow", deadline_s=1.5).problems
    assert problem.startswith("reward.functions.0.name: calling r.py:slow took longer than 1.5 s (line")
    [problem] = called("r.py:nothing").problems
    assert problem.endswith("r.py:nothing gave no value (None) for any completion of 2 rows, and it is the only reward")


def test_a_text_that_a_function_cannot_read_is_a_warning() -> None:
    """The own answer is what counts; without one a ValueError is about the text, and all else about the function."""
    found = called("r.py:strict")
    assert found.problems == []
    assert found.warnings == [
        "reward.functions.0.name: r.py:strict raised TypeError: not an answer (r.py line 30), called by check with "
        "'A sample completion.' as completion; in a run such samples count as failed"
    ]
    config = RewardConfig.model_validate({"functions": ["r.py:parses", "r.py:raises"]})
    rows = [ProbeRow(number=1, prompt="hi", row={"prompt": "hi"})]
    with RewardProbe(config) as probe:
        found = probe.finish(DataConfig(train="rows.jsonl"), {"data.train": ["prompt"]}, rows)
    assert [line.partition(" raised ")[0] for line in found.warnings] == ["reward.functions.0.name: r.py:parses"]
    assert [line.partition(" raised ")[0] for line in found.problems] == ["reward.functions.1.name: r.py:raises"]


def test_what_goes_wrong_only_here_is_a_warning_for_another_cluster() -> None:
    """The services and secrets that a function needs may be out of reach."""
    config = RewardConfig.model_validate({"functions": ["r.py:raises", "r.py:dies", "r.py:needs"]})
    with RewardProbe(config, elsewhere=True) as probe:
        found = probe.finish(DataConfig(train="rows.jsonl"), COLUMNS, ROWS)
    assert len(found.warnings) == 2
    assert [line.partition(" needs ")[0] for line in found.problems] == ["reward.functions.2.name: r.py:needs"]
