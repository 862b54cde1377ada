"""What all jobs share between rows and token ids: system prompts, BOS, and how long a text may become."""

from typing import Any

import pytest
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from actors.config import ModelInit
from actors.models.tokenizer import build_char_tokenizer
from algorithms.config import DataConfig
from algorithms.data.messages import EmptyRow, Message, RowError
from algorithms.data.readers import Dialogue
from algorithms.data.rendering import (
    bos_of,
    bounds,
    check_some_tokens,
    encode_texts,
    render_messages,
    template_of,
)
from algorithms.data.written import with_system_prompt

TALK: list[Message] = [{"role": "user", "content": "hi"}]
REFUSES = "{{ raise_exception('no') }}"


def data(**values: Any) -> DataConfig:
    return DataConfig(train="rows.jsonl", **values)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Of one token for each character."""
    return build_char_tokenizer(ModelInit().alphabet)


def test_the_system_prompt_comes_first_and_once() -> None:
    given = Dialogue(messages=TALK, given=0)
    assert with_system_prompt(given, data()) == given
    own = with_system_prompt(given, data(system_prompt="S"))
    assert own == Dialogue(messages=[{"role": "system", "content": "S"}, *TALK], given=1)
    assert with_system_prompt(own, data()) == own
    with pytest.raises(RowError, match=r"has a system message of its own, and data.system_prompt is set too"):
        with_system_prompt(own, data(system_prompt="S"))


def test_messages_are_text_unless_ids_are_asked_for(tokenizer: Any) -> None:
    assert render_messages(TALK, tokenizer) == "<|user|>hi<|end|>"
    assert render_messages(TALK, tokenizer, add_generation_prompt=True) == "<|user|>hi<|end|><|assistant|>"
    tokenizer.chat_template = None
    with pytest.raises(RowError, match="messages need a tokenizer with a chat template, got one without"):
        render_messages(TALK, tokenizer)
    assert template_of(tokenizer) == ""
    tokenizer.chat_template = REFUSES
    assert template_of(tokenizer) == REFUSES
    with pytest.raises(RowError, match=r"^the chat template refuses it \(no\)$"):
        render_messages(TALK, tokenizer)


@pytest.mark.parametrize("automatic", ["<|system|> $A", "<|system|> $A <|end|>", "$A <|end|>", ""])
def test_a_plain_text_gets_the_bos_token_that_the_tokenizer_adds_by_itself(tokenizer: Any, automatic: str) -> None:
    assert bos_of(tokenizer) is None
    first, second = tokenizer("ab")["input_ids"]
    assert encode_texts(["ab", "b"], tokenizer, plain=True) == [[first, second], [second]]
    tokenizer.bos_token = "<|system|>"
    bos = bos_of(tokenizer)
    assert bos is not None
    if automatic:
        special: list[Any] = [("<|system|>", bos), ("<|end|>", tokenizer.eos_token_id)]
        post: Any = TemplateProcessing(single=automatic, special_tokens=special)
        tokenizer.backend_tokenizer.post_processor = post
    found = (
        [[bos, first, second], [bos, first], [bos]] if "system" in automatic else [[first, second], [bos, first], []]
    )
    assert encode_texts(["ab", "<|system|>a", ""], tokenizer, plain=True) == found
    assert encode_texts(["ab", "<|system|>a"], tokenizer, plain=False) == [[first, second], [bos, first]]


def test_a_row_without_tokens_is_an_empty_one() -> None:
    check_some_tokens([1], "prompt")
    with pytest.raises(EmptyRow, match=r"^prompt has no tokens$"):
        check_some_tokens([], "prompt")


def test_no_text_has_more_tokens_than_its_bounds_say(tokenizer: Any) -> None:
    """Twice what the template writes around an exchange; a system prompt is part of every row."""
    assert bounds(None, data()) == {}
    unknown = tokenizer.unk_token_id
    exchange = 6  # <|user|>x<|end|><|assistant|>x<|end|>, each special token as one byte
    found = bounds(tokenizer, data())
    assert found.pop("count")("abc") == 3
    assert found == {"overhead": 2 * exchange, "growth": 1, "unknown_id": unknown}
    assert bounds(tokenizer, data(system_prompt="aé"))["overhead"] == 2 * exchange + 3
    tokenizer.chat_template = "é{{ messages[0].content }}"
    assert bounds(tokenizer, data())["overhead"] == 2 * 3
    tokenizer.chat_template = REFUSES
    assert bounds(tokenizer, data())["overhead"] == 2**31
    tokenizer.chat_template = None
    assert bounds(tokenizer, data())["overhead"] == 2
    for normalizer, growth in ((normalizers.NFD(), 3), (normalizers.NFKC(), 18), (normalizers.NFKD(), 18)):
        tokenizer.backend_tokenizer.normalizer = normalizer
        found = bounds(tokenizer, data(system_prompt="abc"))
        assert (found["growth"], found["overhead"]) == (growth, 2 + 3 * growth)


@pytest.mark.parametrize("other", ["eos_token", "pad_token", "bos_token"])
def test_a_token_that_means_something_else_too_tells_nothing_of_unknown_text(tokenizer: Any, other: str) -> None:
    setattr(tokenizer, other, tokenizer.unk_token)
    assert bounds(tokenizer, data())["unknown_id"] == -1


def test_without_an_unknown_token_no_text_is_unknown(tokenizer: Any) -> None:
    tokenizer.unk_token = None
    assert bounds(tokenizer, data())["unknown_id"] == -1
