"""Conventions: detected by column name, rendered alike, and refused with the row's number."""

from typing import Any

import pytest
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from actors.config import ModelInit, UserError
from actors.episodes import Sequence
from actors.models.tokenizer import build_char_tokenizer
from algorithms.config import DataConfig
from algorithms.data.conventions import detect
from algorithms.data.pairs import judged, pairs
from algorithms.data.tokens import prompts, sequences

CHAR = build_char_tokenizer(ModelInit().alphabet)
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]


MESSAGES = [{"role": "user", "content": "q\n\nx"}, {"role": "assistant", "content": "a"}]


def data(**values: Any) -> DataConfig:
    return DataConfig(train="rows.jsonl", **values)


def trained(sequence: Sequence, tokenizer: PreTrainedTokenizerFast) -> str:
    assert not sequence.action_mask[0]
    return str(tokenizer.decode(sequence.token_ids[sequence.action_mask].tolist()))


def sft(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, train_on: Any = "completions", **values: Any
) -> Sequence:
    [sequence] = sequences([row], data(**values), tokenizer, train_on=train_on)
    return sequence


def complaint(function: Any, *args: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", {"messages": MESSAGES}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q\n\nx"}, {"from": "gpt", "value": "a"}]}),
        ("prompt-completion", {"prompt": "q\n\nx", "completion": "a", "answer": "z"}),
        ("prompt-completion", {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}),
        ("alpaca", {"instruction": "q", "input": "x", "output": "a"}),
        ("alpaca", {"instruction": "q\n\nx", "input": "", "output": "a", "system": ""}),
    ],
)
def test_conventions_are_detected_and_render_alike(name: str, row: dict[str, Any]) -> None:
    assert detect([row], data(), "sft", "data.train")[0].name == name
    sequence = sft(row, CHAR)
    assert CHAR.decode(sequence.token_ids.tolist()) == "<|user|>q\n\nx<|end|><|assistant|>a<|end|>"
    assert trained(sequence, CHAR) == "a<|end|>"


def test_sharegpt_and_alpaca_system_and_tool_turns() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": "y"}}'},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "seven"},
    ]
    calling = build_char_tokenizer(ModelInit().alphabet)
    assert isinstance(calling.chat_template, str)
    calling.chat_template = calling.chat_template.replace(
        "{% generation %}",
        "{% generation %}{% for call in message.tool_calls %}{{ call.function.name + '(' }}"
        "{% for name in call.function.arguments %}{{ name + '=' + call.function.arguments[name] }}{% endfor %}{{ ')' }}"
        "{% endfor %}",
    )
    row = {"conversations": turns, "system": "S"}
    sequence = sft(row, calling)
    assert str(calling.decode(sequence.token_ids.tolist())).startswith(
        "<|system|>S<|end|><|user|>q<|end|><|assistant|>f(x=y)<|end|><|tool|>7<|end|>"
    )
    assert trained(sequence, calling) == "f(x=y)<|end|>seven<|end|>"
    with pytest.raises(
        UserError, match=r"row 1: the chat template leaves out the call of f of message 3 \(assistant\)"
    ):
        sft(row, CHAR)
    turns[1]["value"] = "f()"
    with pytest.raises(UserError, match=r"the call in turn 2 of column conversations must have a function with name"):
        sft(row, calling)
    alpaca = sft({"instruction": "q", "output": "a", "system": "S"}, CHAR)
    assert CHAR.decode(alpaca.token_ids.tolist()) == "<|system|>S<|end|><|user|>q<|end|><|assistant|>a<|end|>"


def test_ambiguous_columns_are_an_error_until_chosen() -> None:
    row = {"text": "plain", "messages": MESSAGES}
    message = complaint(sequences, [row], data(), CHAR, train_on="all")
    assert "columns text, messages fit several conventions (messages, text)" in message
    assert "choose with data.columns, for example {messages: messages}" in message
    chosen = sft(row, CHAR, columns={"text": "text"})
    assert CHAR.decode(chosen.token_ids.tolist()) == "plain<|end|>"


def test_missing_columns_name_row_and_nearest() -> None:
    good, bad = {"prompt": "p", "completion": "c"}, {"prompt": "p", "compeltion": "c"}
    message = complaint(sequences, [good, bad], data(), CHAR, train_on="all")
    assert message == (
        "data.train: row 2: lacks column 'completion' of the prompt-completion convention (did you mean compeltion?), "
        "its columns are prompt, compeltion"
    )
    message = complaint(prompts, [{"promt": "p"}], data(), CHAR, max_prompt_tokens=9)
    assert "row 1 has columns promt (should promt be prompt?)" in message
    message = complaint(prompts, [{"question": "p"}], data(columns={"prompt": "qestion"}), CHAR, max_prompt_tokens=9)
    assert message.startswith("data.columns.prompt: data.train row 1 has no column 'qestion' (did you mean question?)")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hi"}, "column messages must be a list of messages, got text 'hi'"),
        ({"messages": []}, "column messages must not be empty, got an empty list"),
        ({"messages": [{"from": "human", "value": "x"}]}, "message 1 of column messages must have role and content"),
        ({"messages": [{"role": "user"}]}, "content of message 1 of column messages must not be empty, got null"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "the chat template refuses it (unknown role usr)"),
        ({"messages": TALK[:1]}, "has no token to train on"),
        ({"conversations": [{"from": "humn", "value": "x"}]}, "unknown from 'humn' (did you mean human?)"),
        ({"conversations": TALK}, "set data.columns {messages: conversations}"),
        ({"prompt": "x", "completion": 3}, "column completion must be text or messages, got a number 3"),
        ({"text": 3}, "column text must be text, got a number 3"),
    ],
)
def test_rows_with_wrong_values_are_named(row: dict[str, Any], message: str) -> None:
    fine = {"messages": TALK, "conversations": [{"from": "gpt", "value": "x"}], "text": "x"}
    first = {name: fine.get(name, "x") for name in row}
    found = complaint(sequences, [first, row], data(), CHAR, train_on="completions")
    assert found.startswith("data.train: row 2: ") and message in found


PAIR = {"prompt": "p", "chosen": "b", "rejected": "c"}
LABELLED = {"prompt": "p", "completion": "b", "label": True}


def test_pairs_with_a_prompt_are_preferred_to_those_without() -> None:
    assert detect([PAIR | {"messages": MESSAGES}], data(), "pairs", "data.train")[0].name == "pairs"
    renamed = {"question": "p", "good": "b", "bad": "c"}
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert detect([renamed], data(columns=columns), "pairs", "data.train")[0].name == "pairs"
    implicit = {"chosen": "a b", "rejected": "a c"}
    assert detect([implicit], data(), "pairs", "data.train")[0].name == "pairs-without-prompt"
    message = complaint(pairs, [PAIR, implicit], data(), CHAR)
    assert message.startswith("data.train: row 2: lacks column 'prompt' of the pairs convention")
    assert detect([PAIR | LABELLED], data(), "unpaired", "data.train")[0].name == "labelled"


def test_pairs_and_labelled_rows_are_told_apart() -> None:
    assert complaint(judged, [PAIR], data(), CHAR) == (
        "data.train: loss kto needs prompt + completion + label, these rows are pairs (columns prompt, chosen, "
        "rejected): choose another algorithm.loss, or make two labelled rows of each pair"
    )
    assert complaint(pairs, [LABELLED], data(), CHAR, field="data.eval") == (
        "data.eval: preference pairs need chosen + rejected, these rows are single labelled responses "
        "(columns prompt, completion, label): dpo learns from them with algorithm.loss kto"
    )
    message = complaint(pairs, [{"prompt": "a", "chosen": "b", "rejcted": "c"}], data(), CHAR)
    assert "(should rejcted be rejected?), preference pairs need one of: prompt + chosen + rejected" in message
    message = complaint(judged, [{"prompt": "a", "completion": "b", "lable": 1}], data(), CHAR)
    assert "(should lable be label?), loss kto needs one of: prompt + completion + label" in message
