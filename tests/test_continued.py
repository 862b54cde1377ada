"""Responses that are cut off and go on are those that were never cut, in a real vLLM on CPU, in fp32.

The engine is in a process of its own, `tests/continued_engines.py`, which says what happens in each scene.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What came of each scene."""
    command = [sys.executable, "-m", "tests.continued_engines"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("told ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("told "))


def assert_same(found: dict[str, Any], whole: dict[str, Any], **other: Any) -> None:
    """All of them, logprobs up to 1e-4."""
    wanted = whole | other
    assert {**found, "logprobs": None} == {**wanted, "logprobs": None}
    assert found["logprobs"] == pytest.approx(wanted["logprobs"], abs=1e-4)
    assert len(found["logprobs"]) == len(found["tokens"])


def test_wherever_it_is_cut_a_response_goes_on_as_if_it_were_not(told: dict[str, Any]) -> None:
    """After no token, one, all but one, and all: tokens, logprobs, versions, end and text, characters of several bytes
    among it. Tokens are counted where they were sampled, once."""
    found = told["every_cut"]
    assert len(found["whole"]["tokens"]) == 12 and len(found["cut"]) == 13
    assert found["whole"]["end"][0] == "length" and "é" in found["whole"]["end"][2]
    for cut in found["cut"][:-1]:
        assert_same(cut, found["whole"])
    # Nothing is decoded for one that has all tokens that it may have.
    assert_same(found["cut"][-1], found["whole"], end=["length", None, "", ""])
    assert found["counted"] == 12 * 12


def test_it_does_so_where_nothing_is_decoded(told: dict[str, Any]) -> None:
    found = told["without_text"]
    assert found["whole"]["end"] == ["length", None, "", ""]
    for cut in found["cut"]:
        assert_same(cut, found["whole"])


def test_each_token_is_of_the_weights_that_sampled_it(told: dict[str, Any]) -> None:
    """Old tokens keep their version and logprob; new ones have those of the weights that read all of it anew."""
    found = told["new_weights"]
    once, twice = found["once"], found["twice"]
    tokens = len(once["tokens"])
    assert once["versions"] == [[0, 0, 5], [1, 5, tokens]] and tokens > 5
    assert once["tokens"][:5] == found["begun"] == twice["tokens"][:5]
    assert once["logprobs"] == pytest.approx(found["wanted"], abs=1e-4)
    end = len(twice["tokens"])
    assert twice["versions"] == [[0, 0, 5], [1, 5, 8], [2, 8, end]] and end > 8


def test_a_stop_string_ends_it_wherever_it_is_cut(told: dict[str, Any]) -> None:
    """Also in the middle of the string, and of a character; one that went on behind the string does not go on."""
    found = told["stop_strings"]
    assert len(found["ended"]) > 5 and any("é" in stop for stop, *_ in found["ended"])
    for stop, whole, cuts in found["ended"]:
        assert whole["end"][:2] == ["stop", stop] and stop not in whole["end"][2]
        for cut in cuts:
            assert_same(cut, whole)
    finish, _, _, why = found["behind"]["end"]
    assert finish == "refused" and why.startswith("ValueError: the text of the tokens so far has ")


def test_what_was_said_is_penalized_as_if_it_were_not_cut_or_nothing_goes_on(told: dict[str, Any]) -> None:
    """Repetition counts a prompt's tokens, too; presence only those that vLLM has sampled itself."""
    found = told["penalties"]
    for cut in found["cut"]:
        assert_same(cut, found["whole"])
    assert found["whole"]["tokens"] != told["every_cut"]["whole"]["tokens"], "it does penalize"
    assert_same(found["from_the_start"], found["present"])
    assert found["present"]["tokens"] != told["every_cut"]["whole"]["tokens"]
    finish, *_, why = found["refused"]["end"]
    assert finish == "refused" and why.startswith("ValueError: a response does not go on with rollout.presence_penalty")


def test_samples_that_have_nothing_left_to_do_come_back(told: dict[str, Any]) -> None:
    """As they were, or at their limit; beside one that goes on."""
    whole, (stopped, went_on, full, more) = told["ended_samples"]["whole"], told["ended_samples"]["samples"]
    assert stopped == {
        "tokens": [7, 8],
        "logprobs": [-1.0, -2.0],
        "versions": [[5, 0, 2]],
        "end": ["stop", "x", "said", ""],
    }
    assert_same(went_on, whole)
    assert_same(full, whole, end=["length", None, "", ""])
    assert more["end"] == [
        "refused", None, "", "ValueError: sample 3 has begun with 12 tokens, more than the 8 that it may have"
    ]  # fmt: skip


def test_who_looks_at_what_there_is_changes_nothing(told: dict[str, Any]) -> None:
    """After every step, of four samples: each has a beginning of what it will have; those that have ended are as they
    ended, until the next poll. No bit of the responses is another."""
    found = told["snapshots"]
    assert found["looked"] == found["plain"]
    assert {each["end"][0] for each in found["plain"]} == {"stop", "length"}
    assert len({len(each["tokens"]) for each in found["plain"]}) == 4
    for step, seen in enumerate(found["seen"]):
        assert len(seen) == 4
        for sample, whole in zip(seen, found["plain"], strict=True) if step < len(found["seen"]) - 2 else ():
            tokens = len(sample["tokens"])
            assert tokens == min(step, len(whole["tokens"]))
            if sample["end"][0] == "abort":
                assert (sample["tokens"], sample["logprobs"]) == (whole["tokens"][:tokens], whole["logprobs"][:tokens])
                assert sample["versions"] == ([[0, 0, tokens]] if tokens else [])
            else:
                assert sample == whole
    assert found["seen"][-1] == found["plain"] and found["after"] == 0


def test_what_goes_on_can_be_cut_again(told: dict[str, Any]) -> None:
    found = told["cut_twice"]
    waiting, running = found["seen"]
    assert [len(each["tokens"]) for each in (waiting, running, found["cut"])] == [4, 9, 9]
    for each in (waiting, running, found["cut"]):
        tokens = len(each["tokens"])
        beginning = {"tokens": found["whole"]["tokens"][:tokens], "logprobs": found["whole"]["logprobs"][:tokens]}
        assert_same(each, beginning | {"versions": [[0, 0, tokens]], "end": ["abort", None, "", ""]})
    assert_same(found["end"], found["whole"])


def test_what_starts_again_does_so_from_where_it_was_or_from_its_prompt(told: dict[str, Any]) -> None:
    """With keep_cache, of those without a token of here; with restart all, and what they had is no part of them."""
    found = told["begun_anew"]
    for _, _, segment in found["found"]:
        assert_same(segment, found["whole"])
    # Tokens left; of here: sampled by then, sampled in the end, of what has ended, and thrown away.
    assert [[left, counted] for left, counted, _ in found["found"]] == [
        [[4], [0, 8, 8, 0]],
        [[7], [3, 8, 8, 0]],
        [[0], [3, 15, 12, 3]],
    ]


def test_a_response_that_is_held_version_by_version_is_one_that_never_was(told: dict[str, Any]) -> None:
    """Tokens, logprobs, end and text, as the weights do not change; its versions are those that sampled each token. One
    that ends with the token after which it would be held has ended: by itself, a stop string, a token, or its limit."""
    found = told["held"]
    lengths = {len(whole["tokens"]) for _, whole, *_ in found["ended"]}
    assert len(lengths) > 1 and len(found["ended"]) == 36 and found["by_token"]
    ended_there = 0
    for step, whole, times, last in found["ended"] + found["by_token"]:
        tokens = len(whole["tokens"])
        assert times == (tokens - 1) // step, "held after every so many, and not at its end"
        starts = range(0, tokens, step)
        versions = [[version, start, min(start + step, tokens)] for version, start in enumerate(starts)]
        assert_same(last, whole, versions=versions)
        ended_there += tokens % step == 0
    assert ended_there > 12
    assert all(whole["end"][0] == "stop" and times == 0 for _, whole, times, _ in found["by_token"])


def test_a_response_is_held_as_long_as_the_weights_are_those_that_held_it(told: dict[str, Any]) -> None:
    """Asked to go on under them it comes back as it was, and nothing is sampled; one with room for more ends."""
    found = told["held"]
    cut, again, counted = found["same_version"]
    assert (len(cut["tokens"]), cut["end"]) == (5, ["held", None, "", ""])
    assert (again, counted) == (cut, 0)
    assert found["whole"]["end"][0] == "length" and len(found["whole"]["tokens"]) == 12
    assert [(len(each["tokens"]), each["end"][0]) for each in found["group"]] == [(5, "held")] * 3
