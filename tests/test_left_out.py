"""Chat templates that leave out, change or move what a row says, and turns that no token of theirs ends: each row is
refused by its number with the reason, or trained as it says."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import AddedToken, pre_tokenizers
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data import encoded
from algorithms.data.chat_format import ChatFormat
from algorithms.data.pairs import judged
from algorithms.data.tokens import prompts, sequences
from tests.chat.shapes import assistant, call, result, says, tool, user
from tests.chat.style import ChatStyle
from tests.chat.templates import STYLES
from tests.chat.tokenizers import runs, text_of, tokenizer_of

DATA = DataConfig(train="rows.jsonl", max_length=100_000)
ASKED, SAID = user("Is it warm?"), assistant("It is.")
CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def with_template(template: Any, style: ChatStyle = STYLES["qwen2.5"]) -> PreTrainedTokenizerFast:
    tokenizer = tokenizer_of.__wrapped__(style)  # others keep theirs
    tokenizer.chat_template = template
    return tokenizer


def trained(tokenizer: PreTrainedTokenizerFast, *messages: Any, last: bool = False, **columns: Any) -> list[str]:
    """What is trained of a conversation, turn by turn."""
    row = {"messages": list(messages), **columns}
    [item] = sequences([row], DATA, tokenizer, train_on="last" if last else "completions")
    return [text_of(tokenizer, run) for run in runs(item.token_ids.tolist(), item.action_mask.tolist())]


def complaint(tokenizer: PreTrainedTokenizerFast, *messages: Any, **columns: Any) -> str:
    with pytest.raises(UserError) as error:
        trained(tokenizer, *messages, **columns)
    assert str(error.value).startswith("data.train: row 1: ") and "\n" not in str(error.value)
    return str(error.value).removeprefix("data.train: row 1: ")


@pytest.mark.parametrize("kind", ["llama2", "bytes"])
def test_marks_that_are_no_tokens_end_nothing(kind: Any) -> None:
    """ChatML on a tokenizer that does not know it: the last turn ends with the tokenizer's end, others do not."""
    tokenizer = with_template(CHATML, replace(STYLES["zephyr"], kind=kind))
    assert ChatFormat(tokenizer).habits().stops == ("</s>",)
    assert trained(tokenizer, ASKED, SAID) == ["It is.</s>"]
    again = (user("Sure?"), assistant("Yes."))
    assert trained(tokenizer, ASKED, SAID, *again, last=True) == ["Yes.</s>"]
    assert "writes no token behind message 2" in complaint(tokenizer, ASKED, SAID, *again)


def test_a_template_may_want_a_system_message() -> None:
    raising = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    tokenizer = with_template(raising, STYLES["chatml-base"])
    assert trained(tokenizer, says("system", "Hi."), ASKED, SAID) == ["It is.<|im_end|>"]
    assert "no system" in complaint(tokenizer, ASKED, SAID)


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("message.content", "message.content.split() | join(' ')", "changes white space within message 2 (assistant)"),
        ("message.content", "message.content | replace('\n\n', '\n')", "changes white space within message 1 (user)"),
        ("in messages", "in messages if message.role != 'system'", "leaves out the content of message 1 (system)"),
        ("in messages", "in messages[-3:]", "leaves out the content of message 1 (system)"),
    ],
)
def test_what_is_left_out_is_seen_where_the_text_has_the_same_elsewhere(before: str, after: str, fault: str) -> None:
    code = assistant("if it:\n    yes  # warm")
    rows = {
        "white": (user("Which\n\ncode?"), code) if "replace" in after else (ASKED, code),
        "leaves": (says("system", "Is it"), *(ASKED, SAID) * 2),
    }
    row = rows["white" if "white" in fault else "leaves"]
    assert fault in complaint(with_template(CHATML.replace(before, after)), *row)
    assert trained(with_template(CHATML), *row)


def test_calls_behind_which_nothing_stands_are_refused_for_that() -> None:
    template = "{% for message in messages %}{{ '\n' + message.role + ': ' + message.content }}"
    template += "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '\nassistant: ' }}{% else %}{{ eos_token }}{% endif %}"
    calling = assistant("", tool_calls=[call(1, "weather", {"city": "Oslo"})])
    row = (ASKED, calling, result(1, "mild"), SAID)
    assert "writes no token behind message 2" in complaint(with_template(template), *row)
    assert trained(with_template(template), *row, last=True) == ["It is.<|im_end|>"]


def test_a_turn_that_stands_twice_in_the_text_has_no_certain_place() -> None:
    template = "{{ '<|im_start|>system\nThe end: ' + messages[-1].content + '<|im_end|>\n' }}" + CHATML
    assert "cannot be told from what precedes it" in complaint(with_template(template), ASKED, SAID)


def test_an_answer_without_words_of_its_own_is_refused() -> None:
    assert "message 2 says nothing but" in complaint(with_template(CHATML), ASKED, assistant("<|im_end|>"))


def test_a_first_token_that_nothing_precedes_is_not_left_out_of_an_answer() -> None:
    template = "{% for message in messages %}{{ message.content + eos_token }}{% endfor %}"
    tokenizer = with_template(template)
    assert trained(tokenizer, ASKED, SAID) == ["It is.<|im_end|>"]
    assert "nothing precedes it" in complaint(tokenizer, assistant("Hello."), ASKED, SAID)


def test_a_prompt_that_ends_where_its_answer_begins_is_another_one() -> None:
    template = "{% for message in messages %}{{ ' ' + message.content }}{% endfor %}{{ eos_token }}"
    row = {"prompt": [ASKED], "completion": [SAID], "label": True}
    with pytest.raises(UserError, match="renders the prompt of a whole conversation differently"):
        judged([row], DATA, with_template(template))


def test_an_end_that_is_also_the_unknown_token_hides_nothing() -> None:
    tokenizer = with_template(CHATML)
    backend: Any = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("-", "removed"), backend.pre_tokenizer])
    assert "should read 'yes-<|im_end|>'" in complaint(tokenizer, ASKED, assistant("yes-"))
    tokenizer.unk_token = tokenizer.eos_token
    assert "should read 'yes-<|im_end|>'" in complaint(tokenizer, ASKED, assistant("yes-"))


def test_turns_are_placed_where_one_special_token_has_another_in_it() -> None:
    tokenizer: Any = with_template(CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("[a]<|im_start|>", lstrip=True)]})
    row = (user("[a]<|im_start|>" * 4), SAID, user("Sure?"), assistant("Yes."))
    assert trained(tokenizer, *row) == ["It is.<|im_end|>", "Yes.<|im_end|>"]


def test_a_long_conversation_is_encoded_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not anew for each of its turns, which takes a hundred of them half a minute."""
    encode, lengths = encoded.encode_texts, list[int]()

    def counting(texts: list[str], *args: Any, **options: Any) -> list[list[int]]:
        lengths.extend(map(len, texts))
        return encode(texts, *args, **options)

    monkeypatch.setattr(encoded, "encode_texts", counting)
    tokenizer = with_template(CHATML)
    talk = [part for number in range(40) for part in (user(f"What is {number}? " * 9), assistant(f"It is {number}."))]
    assert trained(tokenizer, *talk) == [f"It is {number}.<|im_end|>" for number in range(40)]
    assert sum(lengths) < 3 * len(json.dumps(talk))


def test_equal_turns_are_told_apart_by_their_place() -> None:
    tokenizer = with_template(CHATML)
    row = (user("yes"), assistant("yes"), user("yes"), assistant("yes", weight=0), user("yes"), assistant("yes"))
    [item] = sequences([{"messages": list(row)}], DATA, tokenizer, train_on="completions")
    mask = item.action_mask.tolist()
    begins = [place for place, learned in enumerate(mask) if learned and not mask[place - 1]]
    texts = [text_of(tokenizer, item.token_ids[:index].tolist()).count("yes") for index in begins]
    assert texts == [1, 5]


def test_a_tokenizer_may_have_a_template_of_its_own_for_tools() -> None:
    """Which shows calls, and wants their arguments as text, where the usual one shows none."""
    style = STYLES["qwen2.5"]
    as_text = style.template.replace("arguments | tojson", "arguments")
    assert as_text != style.template
    tokenizer = with_template({"default": CHATML, "tool_use": as_text})
    calls = [call(number, "weather", {"city": city}) for number, city in enumerate(("Oslo", "Bern"), start=1)]
    row = (ASKED, *(part for each in calls for part in (assistant("", tool_calls=[each]), result(1, "mild"))), SAID)
    weather = tool("weather", "Of a city", city={"type": "string"})
    assert trained(tokenizer, *row, tools=[weather]) == trained(with_template(style.template), *row, tools=[weather])
    assert "leaves out the call of weather" in complaint(tokenizer, *row)
    assert trained(tokenizer, ASKED, SAID) == ["It is.<|im_end|>"]


def test_a_call_may_follow_a_prompt_that_opens_a_thought() -> None:
    style = STYLES["qwen3"]
    before, header, after = style.template.rpartition("<|im_start|>assistant\\n")
    thinking = f"{before}{header}<think>\\n{after}"
    tokenizer = with_template(thinking, style)
    row = (ASKED, assistant("", tool_calls=[call(1, "weather", {"city": "Oslo"})]), result(1, "mild"), SAID)
    words = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
    assert trained(tokenizer, *row) == [words, "\n</think>\n\nIt is.<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, None])
def test_half_a_character_is_refused_with_its_row(template: str | None) -> None:
    """JSON can write one, as "\\ud83d", and no tokenizer takes it."""
    tokenizer = with_template(template)
    half = "half of \ud83d"
    rows: list[Any] = [{"prompt": half, "completion": "It is."}, {"prompt": "Is it?", "completion": half}]
    for row in rows:
        with pytest.raises(UserError, match=r"^data.train: row 2: has half a character at its letter"):
            sequences([{"prompt": "Is it?", "completion": "It is."}, row], DATA, tokenizer, train_on="completions")
    with pytest.raises(UserError, match=r"^data.train: row 2: has half a character at its letter"):
        prompts([{"prompt": "Is it?"}, {"prompt": half}], DATA, tokenizer, max_prompt_tokens=1000)


def test_a_prompt_is_not_taken_for_an_answer_of_the_same_words() -> None:
    row = {"prompt": "Hello", "completion": [assistant("Hello"), user("Who?"), assistant("Me.")]}
    [item] = sequences([row], DATA, with_template(CHATML), train_on="completions")
    asked, answered = "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n{}<|im_end|>\n"
    whole = asked.format("Hello") + answered.format("Hello") + asked.format("Who?") + answered.format("Me.")
    assert text_of(with_template(CHATML), item.token_ids.tolist()) == whole


def test_a_line_break_that_is_a_token_may_end_turns() -> None:
    template = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    style = STYLES["qwen2.5"]
    tokenizer = with_template(template, replace(style, special=(*style.special, "\n\n")))
    assert trained(tokenizer, ASKED, SAID, ASKED, SAID) == ["It is.\n\n"] * 2
    assert complaint(tokenizer, ASKED, assistant("It\n\nis.")) == (
        "a response must not go on after the end of a turn '\\n\\n'"
    )
