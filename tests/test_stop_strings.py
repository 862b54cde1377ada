"""What is left of a response's text where a stop string has ended it, against an engine that appends character by
character; with tokens that hold several characters and may go on behind the string."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.config_rollout import RolloutConfig
from actors.episodes import VersionSpan
from actors.rollout.stop_strings import up_to_stop
from actors.rollout.types import Request, Sampling, Segment
from actors.rollout.worker import RolloutWorker

TOKENS = ["4", "2", ";", ";\n", "b;", "ab", "a", "\n\n", "2;2", "é"]


def generated(tokens: list[int], stop: list[str]) -> tuple[list[int], str, str] | None:
    """Tokens until one completes a stop string; the text before it, and the string, as vLLM finds them: the string that
    is complete first, of several the first in the list. None where none is completed."""
    text = ""
    for count, token in enumerate(tokens, 1):
        for character in TOKENS[token]:
            text += character
            if ended := next((each for each in stop if text.endswith(each)), None):
                return tokens[:count], text.removesuffix(ended), ended
    return None


def rollout(tokens: list[int], reason: str | int | None, text: str, *, stop: list[str], keep: bool = False) -> Any:
    worker = object.__new__(RolloutWorker)
    worker.config = RolloutConfig(stop=stop, keep_stop_string=keep)
    worker.tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(TOKENS[token] for token in ids))  # type: ignore[assignment]
    worker._decode = worker._text
    segment = Segment(
        request=0, index=0, token_ids=tokens, logprobs=np.full(len(tokens), -0.5, np.float32), ended_by=reason,
        versions=[VersionSpan(version=3, start=0, end=len(tokens))], finish="stop", text=text,
    )  # fmt: skip
    request = Request(id=0, token_ids=[0], sampling=Sampling(samples=1, temperature=1.0, max_tokens=40))
    return worker._episode(request, segment)


@pytest.mark.parametrize("stop", [[";"], ["b;", ";"], [";", "b;"], ["\n\n", "2;2"], ["ab", "b"], ["é"], ["2;", ";\n"]])
def test_the_text_ends_where_the_engines_does_and_tokens_stay(stop: list[str]) -> None:
    draw, ended = random.Random(0), 0
    for _ in range(300):
        if (found := generated(draw.choices(range(len(TOKENS)), k=12), stop)) is None:
            continue
        ended += 1
        tokens, before, reason = found
        without = rollout(tokens, reason, before, stop=stop)
        with_it = rollout(tokens, reason, before, stop=stop, keep=True)
        assert (without.text, with_it.text) == (before, before + reason)
        for each in (without, with_it):
            [turn] = each.turns
            assert (turn.sampled_token_ids.tolist(), each.status) == (tokens, "ok")
            assert np.array_equal(turn.rollout_logprobs, np.full(len(tokens), -0.5, np.float32))
    assert ended > 100


def test_42_is_42() -> None:
    assert rollout([0, 1, 2], ";", "42", stop=[";"]).text == "42"
    assert rollout([0, 1, 3], ";", "42", stop=[";"], keep=True).text == "42;", (
        "what follows the string is no part of it"
    )
    assert rollout([0, 1, 2], 2, "42", stop=["x"]).text == "42", "nor is a token of rollout.stop_token_ids"
    assert rollout([0, 1, 2], None, "42;", stop=["x"]).text == "42;", "another end takes nothing away"


def test_where_decoding_gives_other_characters_the_engines_text_counts() -> None:
    assert up_to_stop("It is 42.", " .", "It is 42", keep=False) == "It is 42"
    assert up_to_stop("It is 42.", " .", "It is 42", keep=True) == "It is 42 ."


def test_where_the_tokens_hold_the_string_their_text_counts() -> None:
    """The engine's own, decoded one token after the other, may have characters that belong to none."""
    assert up_to_stop("é;", ";", "\ufffd\ufffd", keep=False) == "é"
    assert up_to_stop("é; and on", ";", "\ufffd\ufffd", keep=True) == "é;"
    assert rollout([9, 0], "2", "as the engine has it", stop=["2"]).text == "as the engine has it"
