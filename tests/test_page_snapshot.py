"""The answers of a report without a server: all that its page asks, and no more samples than there is room for."""

from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.page.rows import encoded
from launch.page.snapshot import POINTS, answer_key, evenly_chosen, snapshot
from tests.page_client import append, asked, client_of, metrics, sample, write_grpo

TOKENS = {"group": 0, "sample": 0, "pieces": ["a"] * 60, "sampled": [True] * 60, "logprobs": [-1.0] * 60}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs, one of them with samples of all kinds."""
    for name in ("a/one & two", "other"):
        write_grpo(tmp_path / name, 3)
    run = tmp_path / "a/one & two"
    append(run / "samples.jsonl", (sample(step, "x" * 500, group=0, sample=0) for step in range(1, 101)))
    append(run / "tokens.jsonl", ({"step": step} | TOKENS for step in range(1, 101)))
    append(
        run / "eval_samples.jsonl",
        ({"step": 0, "row": row, "prompt": f"{row}", "completion": "y" * 500} for row in range(50)),
    )
    append(run / "logs/driver.log", ["trouble"])
    append(run / "logs/rollout-0.log", ["much"])
    return tmp_path


def test_it_holds_what_the_server_answers(runs: Path) -> None:
    ids = ["a/one & two", "other"]
    found, client = snapshot(runs, ids, 10**7), client_of(runs)
    asked_for = {urlsplit(key).path.removeprefix("/api/") for key in found}
    assert asked_for == {"runs", "run", "metrics", "samples", "groups", "tokens", "heldout", "config", "log"}
    for key, answer in found.items():
        words = dict(parse_qsl(urlsplit(key).query))
        path = urlsplit(key).path.removeprefix("/api/")
        assert key == answer_key(path, **words) and "+" not in key and " " not in key
        expected = asked(client, path, **words)
        if path == "run":
            expected["logs"] = [name for name in expected["logs"] if name == "driver.log"]
        assert answer == expected, key
    assert len([key for key in found if "groups" in key or "tokens" in key]) == 200
    assert answer_key("config", id=ids[0], other=ids[1]) in found
    assert list(found[answer_key("config", id="other")]) == ["config", "differences"]


def test_samples_stay_within_the_budget_from_the_first_step_to_the_last(runs: Path) -> None:
    name = "a/one & two"
    found = snapshot(runs, [name], 40_000)
    parts = {
        each: {key: value for key, value in found.items() if f"/{each}?" in key}
        for each in ("groups", "heldout", "tokens")
    }
    assert 20_000 < sum(len(encoded(value)) for values in parts.values() for value in values.values()) < 44_000
    steps = [value["step"] for value in parts["groups"].values()]
    assert steps[0] == 1 and steps[-1] == 100 and 10 < len(steps) < 40
    assert max(after - before for before, after in pairwise(steps)) <= 100 / len(steps) + 2
    assert found[answer_key("samples", id=name)]["steps"] == [{"step": step, "samples": 1} for step in steps]
    prompts = found[answer_key("heldout", id=name)]["prompts"]
    assert 5 < len(prompts) < 50 and len(parts["heldout"]) == len(prompts) + 1
    shown = [
        each["tokens"] for value in parts["groups"].values() for group in value["groups"] for each in group["samples"]
    ]
    assert 0 < shown.count(True) == len(parts["tokens"]) < len(shown), "no sample promises tokens that are not there"
    nothing = snapshot(runs, [name], 0)
    assert not any(f"/{each}?" in key for key in nothing for each in ("groups", "heldout", "tokens"))
    assert nothing[answer_key("run", id=name)]["has"] == {"samples": False, "eval_samples": False, "tokens": False}


def test_curves_are_thinned_and_rounded(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "long", 0)
    append(
        run / "metrics.jsonl",
        (metrics(step) | {"x": 1 / 3, "y": 1e9 if step == 777 else -1e-9} for step in range(1, 4000)),
    )
    write_grpo(tmp_path / "short")
    answers = snapshot(tmp_path, ["long", "short"], 0)
    found: Any = answers[answer_key("metrics", id="long")]
    assert len(found["step"]) <= POINTS and set(found["values"]["x"]) == {0.3333333, None}
    assert max(value for value in found["values"]["y"] if value is not None) == 1e9
    means: Any = answers[answer_key("metrics", id="long", mean=1)]
    assert len(means["step"]) <= POINTS and set(means["values"]["x"]) == {0.3333333}
    assert sorted(means["values"]["y"])[-1] == pytest.approx(1e9 / 3)
    assert answer_key("metrics", id="short", mean=1) not in answers, "there each step is a point"


@given(st.integers(0, 60), st.integers(0, 70))
def test_as_many_steps_are_chosen_as_fit(count: int, room: int) -> None:
    steps = [3 * step for step in range(count)]
    found = evenly_chosen(steps, lambda some: len(some) <= room)
    assert len(found) == min(count, room) and sorted(set(found)) == found and set(found) <= set(steps)
    assert len(found) < 2 or (found[0], found[-1]) == (steps[0], steps[-1])


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="id: must be a run below the directory, got none"):
        snapshot(tmp_path, ["none"], 0)
