"""What the thread of a rollout engine asks of vLLM, in which order, and what it tells those who wait.

The engine is `tests/fake_llm.py`, in a process of its own that has imported vLLM once.
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
    """What happened in each scene."""
    command = [sys.executable, "-m", "tests.fake_llm"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("told ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("told "))


def added(request: int, tokens: list[int], salt: str, adapter: Any = None, params: Any = "params") -> list[Any]:
    return ["add", str(request), tokens, salt, params, adapter]


def test_a_seed_starts_the_sampler_anew_and_a_cache_of_its_own(told: dict[str, Any]) -> None:
    """Prompts go in as given, whatever their numbers; without a seed, all goes on as it was. A cached prefix of other
    weights, or of another seed, is none."""
    assert told["seeded"] == [
        ["rpc", "reseed", 11],
        added(0, [1, 2], "11 5"),
        added(1, [3], "11 5"),
        added(2, [4], "11 5"),
        added(3, [1, 2], "11 5"),
        ["rpc", "reseed", 12],
        added(4, [1, 2], "12 5"),
    ]


def test_a_segment_comes_once_its_sample_has_ended(told: dict[str, Any]) -> None:
    """Each sample's own, as soon as it has ended, with one logprob and one version for each token."""
    assert told["finished"] == {
        "early": [],
        "places": [[1, 0], [1, 1], [2, 0], [2, 1]],
        "tokens": [0, 1, 2],
        "logprobs": [[0, -0.25, -0.5], "float32"],
        "versions": [[5, 0, 3]],
        "finish": ["stop", None, "", "after 3 steps"],
        "again": [],
        "left": 0,
    }


def test_a_refused_prompt_is_its_callers_alone(told: dict[str, Any]) -> None:
    fine = ["stop", "", [0, 1, 2]]
    media = "ValueError: an engine that takes tokens only cannot take media"
    assert told["refused"] == [
        fine, ["refused", "ValueError: the prompt is too long", []], fine, ["refused", media, []]
    ]  # fmt: skip


def test_an_aborted_request_gives_what_it_has(told: dict[str, Any]) -> None:
    """Another one goes on, as does one that has ended before."""
    found = told["aborted"]
    assert found["ended"] == ["after 3 steps"]
    assert [each[:2] for each in found["cut"]] in ([[2, 0], [2, 1], [3, 0]], [[3, 0], [2, 0], [2, 1]])
    by_request = {tuple(each[:2]): each[2:] for each in found["cut"]}
    assert by_request[3, 0] == ["stop", [0, 1, 2]]
    for index in (0, 1):
        finish, tokens = by_request[2, index]
        assert finish in ("abort", "stop") and tokens == list(range(len(tokens)))
        assert finish == "stop" or len(tokens) < 3
    aborts = [name for call in found["asked"] for name in call[1:]]
    assert len(aborts) == sum(each[2] == "abort" for each in found["cut"])


def test_new_weights_find_running_samples_as_on_update_says(told: dict[str, Any]) -> None:
    """recompute resets the cache; keep_cache lets what has a token be, and starts what has none from its prompt, whose
    salt is then that of the new weights; restart does so with all. Half of new weights starts nothing."""
    found, wake = told["updated"], ["wake_up", {"tags": ["scheduling"]}]
    again = [["abort", "1 inside"], added(3, [2], " 6"), ["abort", "2 inside"], added(4, [2], " 6")]
    assert found["recompute"]["asked"] == [["reset_prefix_cache", {"reset_running_requests": True}], wake]
    assert found["keep_cache"]["asked"] == [*again, wake]
    [_, one, _, two] = again
    one, two = [one[0], "4", *one[2:]], [two[0], "5", *two[2:]]
    first = [["abort", "0 inside"], added(3, [1], " 6")]
    assert found["restart"]["asked"] == [*first, ["abort", "1 inside"], one, ["abort", "2 inside"], two, wake]
    assert found["half"] == ["sleep", "wake_up"]
    for on_update, discarded in (("recompute", 0), ("keep_cache", 0), ("restart", 1)):
        assert found[on_update]["told"] == [["stop", [0, 1, 2]]] * 2
        assert found[on_update]["discarded"] == discarded


def test_an_engine_that_cannot_go_on_after_new_weights_is_lost(told: dict[str, Any]) -> None:
    assert told["not_resumed"] == ["IndexError: list index out of range"] * 6


def test_requests_with_tokens_of_older_weights_are_aborted(told: dict[str, Any]) -> None:
    """As vLLM tells it of each token, whenever they were submitted."""
    assert told["older"] == {
        "same": [],
        "first": [1, "abort", [0]],
        "waiting": [],
        "second": [2, "abort", []],
        "left": [0, False],
    }


def test_what_old_weights_have_sampled_is_taken_in_before_new_ones_come(told: dict[str, Any]) -> None:
    assert told["taken_in"] == [["sleep", "step", "step"], ["sleep"], ["sleep", "step", "step"]]


def test_all_who_wait_for_a_lost_engine_are_told_what_ended_it(told: dict[str, Any]) -> None:
    """Whoever polls or calls, now and later; what has ended before is still given."""
    assert told["lost"] == ["RuntimeError: a kernel failed"] * 6
    assert told["unbuilt"] == ["ValueError: no memory"] * 4
    assert told["unseeded"] == "IndexError: list index out of range"


def test_a_call_that_fails_does_not_end_the_thread(told: dict[str, Any]) -> None:
    assert told["failing_call"] == ["IndexError: list index out of range", "next"]


def test_callers_who_have_gone_do_not_end_the_thread(told: dict[str, Any]) -> None:
    """Their futures, cancelled, take no answer; without care that would be the thread's end, unheard by all others."""
    assert told["left"] == {"gone": [True] * 2, "other": 1, "call": "still there"}


def test_an_engine_that_answers_what_was_not_asked_is_lost(told: dict[str, Any]) -> None:
    """Or does not say which weights have sampled a token: the newest ones would be the wrong ones for just those that
    matter."""
    assert told["strange"][:4] == ["KeyError: 'other'"] * 2 + ["IndexError: list index out of range"] * 2
    rule = "RuntimeError: the engine must say of each of the 3 tokens of a response which weights have sampled it"
    assert told["strange"][4:] == [
        f"{rule}, and says it of []",
        f"{rule}, and says it of [(1, 3)]",
        f"{rule}, and says it of [(0, 3), (2, 3)]",
        "RuntimeError: the engine must give one logprob for each of the 3 sampled tokens",
    ]


def test_versions_are_those_that_sampled_each_token(told: dict[str, Any]) -> None:
    assert told["versions"] == [[[5, 0, 1], [6, 1, 3]], [[5, 0, 3]]]


def test_how_an_engine_is(told: dict[str, Any]) -> None:
    """It has two slots here; what vLLM does not tell is not made up."""
    assert told["counted"] == {
        "idle": [5, 0, 0, 2, 0, 0],
        "unknown": [None, None],
        "busy": [2, 2, True],
        "end": [0, 0, 12, ""],
    }


def test_every_second_of_an_engine_is_of_one_state(told: dict[str, Any]) -> None:
    """Told in the middle of a step, too; tokens of samples that are running are told with those of ended ones."""
    assert told["spent"]["seconds"] == [  # idle, busy, underfilled, paused
        [1 + 2, 0, 0, 0],
        [3, 0, 0, 4],
        [3, 8, 8, 4],
        [3 + 128, 8 + 16, 8, 4],
        [131, 24 + 64, 8, 4 + 32],
    ]
    assert told["spent"]["tokens"] == [0, 0, 0, 3 + 2, 3 * 4]


def test_a_paused_engine_steps_not_but_answers_calls(told: dict[str, Any]) -> None:
    """It keeps what is running, and forgets its keys and values before it goes on."""
    assert told["paused"] == {
        "steps": 0,
        "answer": "answered",
        "done": ["after 3 steps"],
        "asked": [
            ["sleep", {"level": 0, "mode": "keep"}],
            ["reset_prefix_cache", {"reset_running_requests": True}],
            ["wake_up", {"tags": ["scheduling"]}],
        ],
    }


def test_calls_run_between_two_steps(told: dict[str, Any]) -> None:
    assert told["between_steps"]["end"] == ["after 3 steps"] and told["between_steps"]["at"] < 3


def test_logprobs_of_a_prompt_are_those_of_its_own_tokens_at_temperature_1(told: dict[str, Any]) -> None:
    """Other requests take part in the steps that this takes."""
    params = {"temperature": 1.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False, "logprobs": None}
    assert told["canary"] == {
        "logprobs": [-2.5, -3.0],
        "dtype": "float32",
        "asked": added(1, [4, 5, 6], " 5", params=params),
        "other": ["after 3 steps"],
    }


def test_an_adapter_is_loaded_once_and_used_by_all_that_follow(told: dict[str, Any]) -> None:
    """In place of the one before; requests name it without loading it again, and its files are gone."""
    shown = {"name": "policy", "number": 1}
    files = {"adapter_config.json": "{}", "adapter_model.safetensors": "weights"}
    assert told["adapter"] == {
        "bound": ["of q_proj"],
        "asked": [
            added(0, [1], " 5"),
            ["add_lora", shown | {"again": True}, files],
            ["rpc", "bind_digest"],
            added(1, [1], " 5", adapter=shown | {"again": False}),
        ],
        "left": [False],
    }


def test_room_for_an_adapter_is_the_least_that_vllm_has(told: dict[str, Any]) -> None:
    """Exactly where there is one of its rank."""
    assert told["ranks"] == {
        "rank": [1, 8, 16, 512],
        "others": {"enable_lora": True, "max_loras": 1, "lora_target_modules": ["model", "q"]},
    }
