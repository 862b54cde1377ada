"""Messages, tools and calls as rows have them: which forms are one, what is refused, and what nothing reads."""

import json
from typing import Any

import pytest
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from actors.config import UserError
from actors.episodes import Sequence
from algorithms.config import DataConfig
from algorithms.data import chat_format
from algorithms.data.messages import RowError, messages_of, tools_of
from algorithms.data.pairs import judged, pair_reading, pairs
from algorithms.data.tokens import prompt_reading, prompts, sequence_reading, sequences
from tests.chat.templates import STYLES
from tests.chat.tokenizers import tokenizer_of
from tests.test_pairs import both, say

QWEN, QWEN3, LLAMA2, MISTRAL = (tokenizer_of(STYLES[name]) for name in ("qwen2.5", "qwen3", "llama2", "mistral-v0.3"))
ARGUMENTS = {"city": "Oslo", "days": 2}
TOOL: dict[str, Any] = {"name": "weather", "description": "Of a city", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'


def data(**values: Any) -> DataConfig:
    return DataConfig(train="rows.jsonl", **values)


def sft(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast = QWEN, train_on: Any = "completions") -> Sequence:
    [sequence] = sequences([row], data(), tokenizer, train_on=train_on)
    return sequence


def texts(sequence: Sequence, tokenizer: PreTrainedTokenizerFast = QWEN) -> tuple[str, str]:
    """All of it, and what of it is trained."""
    ids = sequence.token_ids
    return str(tokenizer.decode(ids.tolist())), str(tokenizer.decode(ids[sequence.action_mask].tolist()))


def complaint(function: Any, *args: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("data.train: row 1: ")


def calling(call: Any, content: object = None) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "mild"},
        {"role": "assistant", "content": "It is mild."},
    ]


CALLS = [
    {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}},
    {"function": {"name": "weather", "arguments": ARGUMENTS | {"hour": None}}},
    {"name": "weather", "arguments": ARGUMENTS},
    {"name": "weather", "parameters": ARGUMENTS, "index": None},
    json.dumps({"name": "weather", "arguments": ARGUMENTS}),
]
TOOLS: list[Any] = [
    [TOOL],
    [{"type": "function", "function": TOOL}],
    json.dumps([TOOL]),
    [json.dumps({"type": "function", "function": TOOL})],
    [{"type": "function", "function": TOOL | {"strict": None}}],
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("tools", TOOLS)
def test_all_forms_of_tools_and_calls_are_one(call: Any, tools: Any) -> None:
    whole, trained = texts(sft({"messages": calling(call), "tools": tools}))
    assert trained == f"{CALL}<|im_end|>It is mild.<|im_end|>"
    assert json.dumps(TOOL)[1:] in whole and whole.count("Of a city") == 1


def test_sharegpt_and_openais_older_form_call_alike() -> None:
    turns = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": ARGUMENTS})},
        {"from": "observation", "value": "mild"},
        {"from": "gpt", "value": "It is mild."},
    ]
    older = calling(None)
    del older[1]["tool_calls"]
    older[1]["function_call"] = {"name": "weather", "arguments": json.dumps(ARGUMENTS)}
    wanted = sft({"messages": calling(CALLS[0]), "tools": [TOOL]})
    for row in ({"conversations": turns}, {"conversations": json.dumps(turns)}, {"messages": older}):
        found = sft(row | {"tools": json.dumps([TOOL])})
        assert found.token_ids.tolist() == wanted.token_ids.tolist()
        assert found.action_mask.tolist() == wanted.action_mask.tolist()


def test_sharegpt_has_one_system_turn() -> None:
    turns = [{"from": "system", "value": "S"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert texts(sft({"conversations": turns}))[0].count("S<|im_end|>") == 1
    assert "must have one system turn" in complaint(sft, {"conversations": turns, "system": "T"})


def test_prompts_of_rl_and_responses_of_pairs_know_tools_too() -> None:
    asked, answer = calling(CALLS[0])[:3], "It is mild."
    [prompt] = prompts([{"prompt": asked, "tools": [TOOL]}], data(), QWEN, max_prompt_tokens=10_000)
    text = str(QWEN.decode(prompt.token_ids))
    assert CALL in text and "Of a city" in text and text.endswith("<|im_start|>assistant\n") and prompt.text == "hi"
    [plain] = prompts([{"prompt": "hi", "tools": [TOOL]}], data(), QWEN, max_prompt_tokens=10_000)
    assert "Of a city" in str(QWEN.decode(plain.token_ids))
    [pair] = pairs(
        [{"prompt": asked, "chosen": answer, "rejected": "No.", "tools": [TOOL]}], data(max_length=10_000), QWEN
    )
    assert both(pair, QWEN) == (text, "It is mild.<|im_end|>", "No.<|im_end|>")
    row = {"prompt": "hi", "completion": answer, "label": True, "tools": [TOOL]}
    [item] = judged([row], data(max_length=10_000), QWEN)
    assert "Of a city" in str(QWEN.decode(item.sequence.token_ids.tolist()))


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        (
            calling({"name": "weather", "arguments": "{city: Oslo}"}),
            "arguments of call 1 of message 2 of column messages must be JSON",
        ),
        (calling({"name": "weather", "arguments": [1]}), "must be an object by name, got a list [1]"),
        (calling({"arguments": {}}), "call 1 of message 2 of column messages must have a function with name"),
        ([{"role": "Assistant", "content": "a"}], "role of message 1 of column messages must be assistant"),
        ([{"role": "human", "content": "a"}], "role of message 1 of column messages must be user, got 'human'"),
        ([{"role": "user", "content": None}], "content of message 1 of column messages must not be empty, got null"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "must be text, got part 1 of type 'image'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part 1 of the content of message 1 of column"),
        ([{"role": "user", "content": "a", "weight": 2}], "weight of message 1 of column messages must be 0 or 1"),
        ([{"role": "user", "content": "a", "thinking": 2}], "thinking of message 1 of column messages must be text"),
    ],
)
def test_messages_of_no_form_are_named(messages: list[Any], line: str) -> None:
    with pytest.raises(RowError) as error:
        messages_of(messages, "messages")
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("tools", "line"),
    [
        (3, "column tools must be a list of tools, or such a list as JSON, got a number 3"),
        ("weather", "column tools must be a list of tools, or such a list as JSON, got text 'weather'"),
        ([{"description": "x"}], "tool 1 of column tools must have a name, or a function with one"),
    ],
)
def test_tools_of_no_form_are_named(tools: object, line: str) -> None:
    with pytest.raises(RowError) as error:
        tools_of({"tools": tools})
    assert line in str(error.value)
    assert tools_of({"tools": ""}) is tools_of({"tools": []}) is tools_of({"tools": "[]"}) is tools_of({}) is None


def test_a_rows_arguments_come_after_those_of_all_and_the_templates_alone_are_passed() -> None:
    def prompt(**row: Any) -> str:
        settings = data(template_arguments={"enable_thinking": False})
        [found] = prompts([{"prompt": "hi"} | row], settings, QWEN3, max_prompt_tokens=1000)
        return str(QWEN3.decode(found.token_ids))

    closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert prompt().endswith(closed)
    assert prompt(chat_template_kwargs={"enable_thinking": True}).endswith("<|im_start|>assistant\n")
    # Settings of the rendering are not a row's to change.
    assert prompt(chat_template_kwargs={"tokenize": True, "chat_template": "x"}).endswith(closed)
    wrong = {"prompt": "hi", "chat_template_kwargs": {"add_generation_prompt": False}}
    assert "must leave add_generation_prompt to other columns" in complaint(
        prompts, [wrong], data(), QWEN3, max_prompt_tokens=1000
    )
    wrong["chat_template_kwargs"] = "thinking"  # type: ignore[assignment]
    assert "chat_template_kwargs must be an object by name" in complaint(
        prompts, [wrong], data(), QWEN3, max_prompt_tokens=1000
    )


def test_rows_with_instructions_of_their_own_ask_the_template_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking it takes as long as twenty rows."""
    asked: list[object] = []
    asking = chat_format._Asking.habits
    monkeypatch.setattr(chat_format._Asking, "habits", lambda self: asked.append(1) or asking(self))
    smol = tokenizer_of(STYLES["smollm3"])
    told = {"custom_instructions": "Say what the moon is made of, and why; this is row "}
    before, smol.chat_template = smol.chat_template, f"{{{{ custom_instructions }}}}{smol.chat_template}"
    try:
        rows: list[Any] = [
            {
                "messages": say("a", "b"),
                "chat_template_kwargs": {name: f"{text}{number}" for name, text in told.items()},
            }
            for number in range(9)
        ]
        found = sequences(rows, data(), smol, train_on="completions")
        assert ["row 8" in texts(sequence, smol)[0] for sequence in found] == [False] * 8 + [True]
        assert len(asked) <= 2
    finally:
        smol.chat_template = before


def test_the_last_answer_alone_is_trained() -> None:
    thinking = [dict(message) for message in say("a", "b", "c", "d")]
    thinking[1]["reasoning_content"], thinking[3]["reasoning_content"] = "first", "second"
    line = complaint(sft, {"messages": thinking}, QWEN3)
    assert "leaves out the reasoning of message 2" in line and line.endswith(
        "algorithm.train_on last learns from the last answer alone"
    )
    _, trained = texts(sft({"messages": thinking}, QWEN3, "last"), QWEN3)
    assert trained == "<think>\nsecond\n</think>\n\nd<|im_end|>"
    assert texts(sft({"messages": say("a", "b", "c", "d")}, QWEN, "last"))[1] == "d<|im_end|>"


SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (say("hi"), say("hi", "yes")),
        (say("hi"), say(" hi \n", "yes")),
        ([SYSTEM, *say("hi")], say("hi", "yes")),
        ([SYSTEM, *say("hi")], [SYSTEM, *say("hi", "yes")]),
        (say("hi"), [SYSTEM, *say("hi", "yes")]),
        ([say("hi")[0] | {"name": None}], [say("hi")[0] | {"tool_calls": None}, say("hi", "yes")[1]]),
        ([SYSTEM, *say("a", "b", "hi")], say("hi", "yes")),
        ("hi", say("hi ", "yes")),
        (json.dumps(say("hi")), json.dumps(say("hi", "yes"))),
    ],
)
def test_a_conversation_that_repeats_its_prompt_has_it_once(prompt: Any, response: list[dict[str, Any]]) -> None:
    whole = texts(sft({"prompt": prompt, "completion": response}))
    assert whole[0].count("hi") == 1 and whole[1] == "yes<|im_end|>"
    worse = json.dumps(say("hi", "no")) if isinstance(response, str) else [*response[:-1], say("hi", "no")[1]]
    [pair] = pairs([{"prompt": prompt, "chosen": response, "rejected": worse}], data(), QWEN)
    assert both(pair, QWEN)[0].count("hi") == 1 and both(pair, QWEN)[1:] == ("yes<|im_end|>", "no<|im_end|>")
    [item] = judged([{"prompt": prompt, "completion": response, "label": 1}], data(), QWEN)
    assert str(QWEN.decode(item.sequence.token_ids.tolist())).count("hi") == 1


@pytest.mark.parametrize(
    ("prompt", "response", "line"),
    [
        (say("hi"), say("ho", "yes"), "got a user turn that is not the prompt's, text 'ho'"),
        ([SYSTEM, *say("hi")], [SYSTEM | {"content": "T"}, *say("hi", "yes")], "has a system turn of its own"),
        ("What is the sum?", "What is the sum? It is 5", "must hold the response alone, got one that begins with"),
        ("What is the sum?", "\n What is the sum?\nIt is 5", "must hold the response alone, got one that begins with"),
    ],
)
def test_a_response_that_may_hold_its_prompt_is_refused(prompt: Any, response: Any, line: str) -> None:
    assert line in complaint(sft, {"prompt": prompt, "completion": response})
    assert line in complaint(pairs, [{"prompt": prompt, "chosen": response, "rejected": "no"}], data(), QWEN)
    assert line in complaint(judged, [{"prompt": prompt, "completion": response, "label": 1}], data(), QWEN)


def test_an_answer_may_begin_like_its_prompt() -> None:
    assert texts(sft({"prompt": "1", "completion": "1 2 3"}))[1] == "1 2 3<|im_end|>"


def test_a_completion_without_a_template_gets_no_space_of_its_own() -> None:
    """Llama's tokenizer puts one before every text, also before one that only continues another."""
    plain = tokenizer_of(STYLES["llama2"], "llama2")
    template, plain.chat_template = plain.chat_template, None
    try:
        for completion in ("moon", " moon", "\nmoon", ")"):
            [found] = sequences(
                [{"prompt": "the sun(", "completion": completion}], data(), plain, train_on="completions"
            )
            whole = plain(f"the sun({completion}")["input_ids"]
            assert found.token_ids.tolist() == [*whole, plain.eos_token_id]  # type: ignore[misc]
            row = {"prompt": "the sun(", "chosen": completion, "rejected": "x"}
            [pair] = pairs([row], data(), plain)
            assert pair.chosen.token_ids.tolist() == found.token_ids.tolist()
            assert pair.chosen.action_mask.tolist() == found.action_mask.tolist()
    finally:
        plain.chat_template = template


def test_what_nothing_reads_is_named() -> None:
    messages = [say("a")[0] | {"mood": "glad"}, say("a", "b")[1]]
    row = {
        "messages": messages,
        "id": 7,
        "note": "x",
        "chat_template_kwargs": {"verbose": True, "enable_thinking": True},
    }
    reading = sequence_reading([row, row], data(), QWEN3, train_on="completions", field="data.train")
    assert reading.notes == [
        "data.train: nothing reads columns id, note",
        "data.train: the chat template reads no key mood of messages",
        "data.train: the chat template reads no argument verbose of rows",
    ]
    renamed = {"talk": say("a", "b"), "tools": None, "source": "s"}
    columns = data(columns={"messages": "talk"})
    assert sequence_reading([renamed], columns, QWEN3, train_on="completions", field="f").notes == []
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1.0, "score": 3}
    assert pair_reading([pair], data(), QWEN3, field="f").notes == ["f: nothing reads column score"]
    prompt = {"prompt": "a", "answer": "b", "score": 3}
    assert prompt_reading([prompt], data(), QWEN3, max_prompt_tokens=9, field="f").notes == [], "rewards may read it"


def test_what_no_template_shows_is_refused_in_context_too() -> None:
    row = {"prompt": [*say("a", "b", "c")], "chosen": "d", "rejected": "e"}
    row["prompt"][1] = row["prompt"][1] | {"tool_calls": [CALLS[0]]}  # type: ignore[index,operator]
    assert "the chat template leaves out the call of weather of message 2 (assistant)" in complaint(
        pairs, [row], data(), LLAMA2
    )
    line = complaint(prompts, [{"prompt": "a", "tools": [TOOL]}], data(), LLAMA2, max_prompt_tokens=999)
    assert line.startswith("the chat template leaves out what column tools declares: use another chat template")


def test_an_end_that_is_written_out_is_there_once() -> None:
    assert texts(sft({"messages": say("a", "b<|im_end|>")}))[1] == "b<|im_end|>"
    assert "must not go on after the end-of-sequence token" in complaint(sft, {"messages": say("a", "b<|im_end|>c")})
    # Of a model whose end is not its template's, neither may be in there.
    base = tokenizer_of(STYLES["chatml-base"])
    assert base.eos_token != "<|im_end|>"
    assert "must not go on after the end of a turn <|im_end|>" in complaint(
        sft, {"messages": say("a", "b<|im_end|>c")}, base
    )


def test_calls_in_mistrals_manner_end_with_its_token() -> None:
    messages = calling(CALLS[0])[:3]
    messages[2]["tool_call_id"] = "call00001"
    whole, trained = texts(sft({"messages": messages, "tools": [TOOL]}, MISTRAL), MISTRAL)
    assert trained.startswith("[TOOL_CALLS]") and trained.endswith("</s>") and "[AVAILABLE_TOOLS]" in whole
