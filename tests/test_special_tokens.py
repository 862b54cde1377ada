"""What reward functions are given beside plain text: special tokens, where asked for, and what was sampled."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.config import UserError
from actors.config_rollout import RolloutConfig
from actors.episodes import Episode, Prompt, VersionSpan
from actors.models.tokenizer import build_char_tokenizer
from actors.rollout.host import EngineHost
from actors.rollout.types import Request, Sampling, Segment
from actors.rollout.worker import RolloutWorker
from algorithms.config import RewardConfig, RewardFunction
from algorithms.rewards.calls import LoadedFunction, Samples, check_signature
from algorithms.rewards.endpoint import LoadedEndpoint
from algorithms.rewards.scores import load_sources, score_batch, score_rollouts
from launch.checks.check import examine
from launch.config import validate

TOKENIZER = build_char_tokenizer("abc;")
TOKENIZER.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
EOS = TOKENIZER.eos_token_id
PROMPT = Prompt(index=0, token_ids=[1], text="say", row={"answer": "b"})


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


def sampled(
    tokens: Sequence[int],
    finish: Any = "stop",
    ended_by: int | str | None = None,
    *,
    keeps: bool = True,
    **rollout: Any,
) -> Episode:
    """What an engine's actor makes of tokens."""
    worker: Any = object.__new__(RolloutWorker)
    EngineHost.__init__(worker, worker._text, worker._marked_text if keeps else None)
    worker.config, worker.tokenizer = RolloutConfig(**rollout), TOKENIZER
    segment = Segment(
        request=0, index=0, token_ids=[*tokens], logprobs=np.zeros(len(tokens), np.float32), ended_by=ended_by,
        versions=[VersionSpan(version=0, start=0, end=len(tokens))], finish=finish, text="ab",
    )  # fmt: skip
    request = Request(id=0, token_ids=[1], sampling=Sampling(samples=1, temperature=1.0, max_tokens=40))
    return worker._episode(request, segment)


def test_the_text_has_special_tokens_but_not_the_one_that_ended_it() -> None:
    whole = ids("<think>a</think>b")
    assert len(whole) == 4
    for found in (
        sampled([*whole, EOS]),
        sampled([*whole, ids("c")[0]], ended_by=ids("c")[0], stop_token_ids=[ids("c")[0]]),
        sampled(ids("<think>a</think>b;c"), ended_by=";", stop=[";"]),
    ):
        assert (found.marked_text, found.text) == ("<think>a</think>b", "ab")
    assert sampled(whole, "length").marked_text == "<think>a</think>b", "the last token has ended nothing"
    kept = sampled(ids("<think>a</think>b;c"), ended_by=";", stop=[";"], keep_stop_string=True)
    assert kept.marked_text == "<think>a</think>b;"
    assert sampled([*whole, EOS], keeps=False).marked_text is None


def function(call: Any, label: str = "score") -> LoadedFunction:
    return LoadedFunction(name="mine.py:score", label=label, weight=1.0, arguments={}, call=call)


EPISODES = [sampled([*ids("<think>a</think>b"), EOS]), sampled([*ids("cc"), EOS])]


def seen(call: Any, *, keeps: bool = True) -> list[Any]:
    """What a function is called with, for two responses."""
    told: list[Any] = []
    rollouts = EPISODES if keeps else [sampled(each.turns[0].sampled_token_ids, keeps=False) for each in EPISODES]
    scores = score_rollouts([function(call(told))], PROMPT, rollouts)
    assert [score.error for score in scores] == [None, None]
    return told


def one_by_one(told: list[Any]) -> Any:
    def score(completion: str, completion_ids: list[int]) -> float:
        told.append((completion, completion_ids))
        return 1.0

    return score


def all_at_once(told: list[Any]) -> Any:
    def score(completions: list[str], completion_ids: list[list[int]], **columns: list[object]) -> list[float]:
        told.append((completions, completion_ids, sorted(columns)))
        return [1.0] * len(completions)

    return score


def has_not_asked(told: list[Any]) -> Any:
    def score(completions: list[str], **columns: list[object]) -> list[float]:
        told.append((completions, sorted(columns)))
        return [1.0] * len(completions)

    return score


def test_both_forms_get_the_tokens_and_the_text_as_it_is_wanted() -> None:
    marked, plain = ["<think>a</think>b", "cc"], ["ab", "cc"]
    tokens = [[*ids("<think>a</think>b"), EOS], [*ids("cc"), EOS]]
    assert seen(one_by_one) == list(zip(marked, tokens, strict=True))
    assert seen(one_by_one, keeps=False) == list(zip(plain, tokens, strict=True))
    assert seen(all_at_once) == [(marked, tokens, ["answer", "prompts"])]
    assert seen(all_at_once, keeps=False) == [(plain, tokens, ["answer", "prompts"])]
    assert seen(has_not_asked) == [(marked, ["answer", "prompts"])]
    assert all(type(token) is int for _, each in seen(one_by_one) for token in each)


def test_of_a_batch_that_raises_each_sample_has_its_own_tokens() -> None:
    def score(completions: list[str], completion_ids: list[list[int]]) -> list[float]:
        if len(completions) > 1 or completions == ["cc"]:
            raise KeyError(completions[0])
        return [float(len(each)) for each in completion_ids]

    scores = score_rollouts([function(score)], PROMPT, EPISODES)
    assert (scores[0].reward, scores[1].status) == (5.0, "failed")
    assert "KeyError: 'cc'" in str(scores[1].error)


def test_a_function_may_change_its_tokens_and_leave_them_out() -> None:
    def changes(completion: str, completion_ids: list[int] | None = None) -> float:
        assert completion_ids is not None
        completion_ids.clear()
        return 1.0

    def counts(completion: str, completion_ids: list[int]) -> float:
        return float(len(completion_ids))

    [score, other] = score_rollouts([function(changes), function(counts, "counts")], PROMPT, EPISODES)
    assert (score.reward, other.reward) == (6.0, 4.0)


def test_endpoints_read_what_they_always_did() -> None:
    endpoint = LoadedEndpoint(
        name="there", label="there", weight=1, retries=0, deadline_s=1, url="http://there", headers={}, secrets=()
    )
    batch = Samples(prompts=["say"], completions=["ab"], columns={}, marked=["<think>a</think>b"], completion_ids=[[1]])
    body = json.loads(endpoint._body(batch))
    assert body == {"prompts": ["say"], "completions": ["ab"], "rows": [{}]}


def test_the_error_of_a_sample_shows_its_plain_text() -> None:
    def score(completion: str) -> float:
        raise ValueError(completion)

    [found, _] = score_rollouts([function(score)], PROMPT, EPISODES)
    assert str(found.error).startswith("mine.py:score: ValueError: <think>a</think>b (")
    assert str(found.error).endswith("; prompt 'say', completion 'ab'")


def test_the_name_is_taken_by_every_call(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def score(completion, completion_ids):\n    return 1.0\n")
    check_signature(RewardFunction(name=f"{path}:score"), ["answer"])
    with pytest.raises(UserError) as caught:
        check_signature(RewardFunction(name=f"{path}:score", arguments={"completion_ids": [1]}), ["answer"])
    assert caught.value.problems == (
        "reward.functions.0.arguments.completion_ids: must not be completion_ids, which every call passes, got "
        "completion_ids",
    )
    batch = Samples(prompts=["p"], completions=["a"], columns={"completion_ids": ["x"]}, completion_ids=[[7]])
    [score] = score_batch(load_sources(RewardConfig(functions=[RewardFunction(name=f"{path}:score")])), batch)
    assert score.reward == 1.0


def test_the_setting_needs_somebody_who_reads() -> None:
    with pytest.raises(ValueError, match="keep_special_tokens must be left out without functions, which alone read"):
        RewardConfig.model_validate({"endpoints": ["http://there/score"], "keep_special_tokens": True})
    assert RewardConfig.model_validate({"functions": ["exact_match"], "keep_special_tokens": True}).keep_special_tokens


@pytest.mark.parametrize("form", ["completion", "completions"])
def test_check_calls_with_the_tokens_of_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The row's own answer, as the model would sample it, and the token that ends it."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "abc"}\n' * 4)
    Path("mine.py").write_text(
        "def completion(completion, completion_ids):\n"
        "    number = sum(n * 100**i for i, n in enumerate(completion_ids))\n"
        "    return number if completion == 'abc' else 0\n"
        "one = completion\n"
        "def completions(completions, completion_ids):\n"
        "    return [one(text, ids) for text, ids in zip(completions, completion_ids, strict=True)]\n"
    )
    config = validate(
        {
            "algorithm": {"name": "grpo", "prompts_per_step": 2, "steps": 4},
            "model": {"init": {"hidden_size": 64, "heads": 2, "layers": 1, "alphabet": "abc"}},
            "data": {"train": "rows.jsonl"},
            "reward": {"functions": [f"mine.py:{form}"], "keep_special_tokens": True},
            "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 16},
        }
    )
    tokenizer = build_char_tokenizer("abc")
    own = [*tokenizer("abc", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    value = sum(token * 100**place for place, token in enumerate(own))
    [line] = examine(config).rewards
    assert line.startswith(f"reward.functions.0 mine.py:{form}: {value:.6g} for the answer of row 1")
