"""Rows of known conventions as examples: what of a row is given, and what is learned from or compared."""

import math
from dataclasses import dataclass, field, replace
from itertools import takewhile

from algorithms.data.messages import (
    EmptyRow,
    Message,
    RowError,
    Tool,
    arguments_of,
    call_of,
    check_filled,
    decoded_list,
    messages_of,
    reasoning_of,
    tools_of,
)
from algorithms.data.repeated import alike, check_response_alone, continued_conversation
from algorithms.data.sources import Row
from algorithms.words import kind_of, nearest

# What a tool says is an observation, and a call of one is the assistant's turn.
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """Messages for a chat template; the first `given` of them are context, never trained on."""

    messages: list[Message]
    given: int
    tools: list[Tool] | None = None
    """Declared to the model, where the row has some."""
    arguments: dict[str, object] = field(default_factory=dict)
    """Of the chat template, by name: the row's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A prompt and its continuation, as plain strings: wrapped as two turns where there is a chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Plain text for language modelling."""

    text: str


Asked = str | Dialogue
"""A prompt that is to be answered: a text, or a conversation all of which is given."""
Example = Dialogue | Completion | Text
Answer = Dialogue | Completion
"""A prompt and one response: the completion, or the last message of a dialogue (all others are given)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Two responses to one prompt, the first of which is the better one."""

    chosen: Answer
    rejected: Answer
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A response, and whether it is a good one."""

    answer: Answer
    desirable: bool


def _text_of(row: Row, column: str) -> str:
    value = row[column]
    check_filled(value, f"column {column}")
    if not isinstance(value, str):
        raise RowError(f"column {column} must be text, got {kind_of(value)}")
    return value


def _text_or_messages(row: Row, column: str) -> str | list[Message]:
    value = row[column]
    turns = decoded_list(value)
    if isinstance(turns, list) and all(isinstance(turn, dict) and "role" in turn for turn in turns):
        value = turns  # as JSON, or as it is; other texts may begin with a bracket, too
    check_filled(value, f"column {column}")
    if not isinstance(value, str | list):
        raise RowError(f"column {column} must be text or messages, got {kind_of(value)}")
    return value if isinstance(value, str) else messages_of(value, column)


def _as_messages(value: str | list[Message], role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _dialogue(row: Row, messages: list[Message], given: int) -> Dialogue:
    return Dialogue(messages=messages, given=given, tools=tools_of(row), arguments=arguments_of(row))


def read_messages(row: Row) -> Example:
    return _dialogue(row, messages_of(row["messages"], "messages"), 0)


def read_sharegpt(row: Row) -> Example:
    turns = decoded_list(row["conversations"])
    check_filled(turns, "column conversations")
    if not isinstance(turns, list):
        raise RowError(f"column conversations must be a list of turns, got {kind_of(turns)}")
    given: list[dict[str, object]] = []
    if system := row.get("system"):
        if not isinstance(system, str):
            raise RowError(f"column system must be text, got {kind_of(system)}")
        given.append({"role": "system", "content": system})
    given += [_turn(turn, f"turn {number} of column conversations") for number, turn in enumerate(turns, start=1)]
    if [turn["role"] for turn in given].count("system") > 1:
        raise RowError("column conversations must have one system turn, got further ones or column system beside it")
    return _dialogue(row, messages_of(given, "conversations"), 0)


def _turn(turn: object, where: str) -> dict[str, object]:
    """A turn of ShareGPT's as a message."""
    # Messages under ShareGPT's column name: one setting mends it.
    if isinstance(turn, dict) and {"role", "content"} <= turn.keys():
        raise RowError("column conversations holds role and content: set data.columns {messages: conversations}")
    if not isinstance(turn, dict) or "from" not in turn:
        raise RowError(f"{where} must have from and value, got {kind_of(turn)}")
    speaker, value = turn["from"], turn.get("value")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        raise RowError(f"{where} has unknown from {speaker!r}{nearest(str(speaker), _SHAREGPT_ROLES)}")
    role = _SHAREGPT_ROLES[speaker]
    if role in ("user", "assistant") and speaker != "function_call":
        check_filled(value, where)
    if not isinstance(value, str):
        raise RowError(f"value of {where} must be text, got {kind_of(value)}")
    further = {name: part for name, part in turn.items() if name not in ("from", "value")}
    if speaker == "function_call":
        found = decoded_list(value)
        calls = found if isinstance(found, list) else [found]
        return {"role": role, "content": "", "tool_calls": [call_of(call, f"the call in {where}") for call in calls]}
    return {"role": role, "content": value, **further}


def read_prompt_completion(row: Row) -> Example:
    prompt, completion = _text_or_messages(row, "prompt"), _text_or_messages(row, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        check_response_alone(prompt, completion, "completion")
        return _with_tools(row, Completion(prompt=prompt, completion=completion))
    return _dialogue(row, *_conversation(prompt, completion, "completion"))


def _with_tools(row: Row, example: Completion) -> Answer:
    """Two texts, as turns of a conversation where the row has something for its chat template."""
    if tools_of(row) or arguments_of(row):
        return _dialogue(row, *_conversation(example.prompt, example.completion, "completion"))
    return example


def read_alpaca(row: Row) -> Example:
    prompt = _text_of(row, "instruction")
    if str(row.get("input") or "").strip():  # Alpaca's rows may have an empty one
        prompt += "\n\n" + _text_of(row, "input")
    output = _text_of(row, "output")
    if not row.get("system"):
        return _with_tools(row, Completion(prompt=prompt, completion=output))
    context: list[Message] = [
        {"role": "system", "content": _text_of(row, "system")},
        {"role": "user", "content": prompt},
    ]
    return _dialogue(row, [*context, {"role": "assistant", "content": output}], 2)


def read_text(row: Row) -> Example:
    return Text(text=_text_of(row, "text"))


def _asks(value: str | list[Message], column: str) -> str | list[Message]:
    """A prompt that the model has to answer: its last turn is not the model's own."""
    if isinstance(value, list) and value[-1]["role"] not in ("user", "tool"):
        raise RowError(
            f"column {column} must end with a user turn to be answered, got a last role {value[-1]['role']!r}"
        )
    return value


def _asked(row: Row, value: str | list[Message]) -> Asked:
    """A prompt with what the row has for its chat template."""
    if isinstance(value, str) and not (tools_of(row) or arguments_of(row)):
        return value
    messages = _as_messages(value, "user")
    return _dialogue(row, messages, len(messages))


def check_answer(row: Row) -> None:
    """Raise EmptyRow for a row whose answer, which rewards compare with, is empty."""
    # An empty one would make every response wrong, without a word. Rows without the column are another matter: their
    # rewards may not read it.
    answer = row.get("answer", 0)
    if not isinstance(answer, list):  # of several things to be found, there may be none
        check_filled(answer, "column answer")


def read_prompt(row: Row) -> Asked:
    check_answer(row)
    return _asked(row, _asks(_text_or_messages(row, "prompt"), "prompt"))


def read_prompt_messages(row: Row) -> Asked:
    check_answer(row)
    return _asked(row, _asks(messages_of(row["messages"], "messages"), "messages"))


def read_pair(row: Row) -> Preference:
    """Prompt, chosen and rejected; responses given as messages may repeat the prompt."""
    prompt, chosen, rejected = (_text_or_messages(row, column) for column in ("prompt", "chosen", "rejected"))
    _differ(chosen, rejected)
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        check_response_alone(prompt, chosen, "chosen")
        check_response_alone(prompt, rejected, "rejected")
        answers = [
            _with_tools(row, _completion(prompt, text, name))
            for text, name in ((chosen, "chosen"), (rejected, "rejected"))
        ]
    else:
        _asks(prompt, "prompt")
        both = [_conversation(prompt, text, name)[0] for text, name in ((chosen, "chosen"), (rejected, "rejected"))]
        answers = _last_turns(row, *both)
    return Preference(chosen=answers[0], rejected=answers[1], margin=_margin(row))


def read_implicit_pair(row: Row) -> Preference:
    """Chosen and rejected, whose common beginning is the prompt."""
    chosen, rejected = _text_or_messages(row, "chosen"), _text_or_messages(row, "rejected")
    _differ(chosen, rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        end = _prompt_end(chosen, rejected)
        prompt = chosen[:end]
        answers: list[Answer] = [
            _completion(prompt, chosen[end:], "chosen"),
            _completion(prompt, rejected[end:], "rejected"),
        ]
    elif isinstance(chosen, list) and isinstance(rejected, list):
        answers = _last_turns(row, chosen, rejected)
    else:
        raise RowError("columns chosen and rejected must be both text or both messages where there is no prompt")
    return Preference(chosen=answers[0], rejected=answers[1], margin=_margin(row))


def read_labelled(row: Row) -> Judgement:
    """Prompt, completion and label: true (or 1) for a desirable completion, false (or 0) for one that is not."""
    label = row["label"]
    # Not by truth: the text "false" is true for Python.
    if not isinstance(label, bool) and not (isinstance(label, int) and label in (0, 1)):
        raise RowError(f"column label must be true or false (or 1 or 0), got {kind_of(label)}")
    prompt, completion = _text_or_messages(row, "prompt"), _text_or_messages(row, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        check_response_alone(prompt, completion, "completion")
        answer = _with_tools(row, _completion(prompt, completion, "completion"))
    else:
        messages, _ = _conversation(_asks(prompt, "prompt"), completion, "completion")
        answer = _last_turn(row, messages, "completion")
    return Judgement(answer=answer, desirable=bool(label))


def _differ(chosen: str | list[Message], rejected: str | list[Message]) -> None:
    if chosen == rejected:
        raise EmptyRow("chosen and rejected must differ, got the same twice")


def _margin(row: Row) -> float:
    value = row.get("margin", 0.0)
    # bool is an int for Python, and a column of labels no margin.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"column margin must be a finite number, got {kind_of(value)}")
    return float(value)


def _completion(prompt: str, completion: str, column: str) -> Completion:
    check_filled(completion, f"the response in column {column}")
    return Completion(prompt=prompt, completion=completion)


def _prompt_end(chosen: str, rejected: str) -> int:
    """Length of the common beginning of two texts, cut back to where a word begins; one space goes to the responses."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    end = next((index for index, (left, right) in pairs if left != right), min(len(chosen), len(rejected)))
    # Different words may begin with the same letters.
    while end and not chosen[end - 1].isspace():
        end -= 1
    if not chosen[:end].strip():
        raise RowError("chosen and rejected have no common beginning that could be the prompt: add a column prompt")
    return end - chosen[:end].endswith(" ")  # most tokenizers have a word's space before it


def _conversation(prompt: str | list[Message], response: str | list[Message], column: str) -> tuple[list[Message], int]:
    """The messages of prompt and response, and how many of them are the prompt's; see `continued_conversation`."""
    context = _as_messages(prompt, "user")
    if isinstance(response, str):
        return [*context, {"role": "assistant", "content": response}], len(context)
    # A text may be any turn of the conversation but the assistant's.
    if isinstance(prompt, str):
        asked = [turn["content"].split() if turn["role"] != "assistant" else None for turn in response[:-1]]
        places = [i for i, words in enumerate(asked) if words == prompt.split()]
        if places:
            return response, places[0] + 1
    return continued_conversation(context, response, column)


def _last_turns(row: Row, chosen: list[Message], rejected: list[Message]) -> list[Answer]:
    better, worse = _last_turn(row, chosen, "chosen"), _last_turn(row, rejected, "rejected")
    shared = sum(1 for _ in takewhile(lambda turns: alike(*turns), zip(chosen[:-1], rejected[:-1], strict=False)))
    if not shared == len(chosen) - 1 == len(rejected) - 1:
        # Where none of them differs, one conversation is longer than the other.
        first = min(shared + 1, len(chosen), len(rejected))
        raise RowError(f"chosen and rejected must share all messages but the last, they part at message {first}")
    return [better, replace(worse, messages=[*chosen[:-1], rejected[-1]])]  # to the white space, the same prompt


def _last_turn(row: Row, messages: list[Message], column: str) -> Dialogue:
    last = messages[-1]
    if last["role"] != "assistant":
        raise RowError(f"column {column} must end with an assistant turn, got a last role {last['role']!r}")
    if len(messages) < 2 or messages[-2]["role"] not in ("user", "tool"):
        got = f"role {messages[-2]['role']!r}" if len(messages) > 1 else "nothing"
        raise RowError(f"the response in column {column} must follow a user turn, got {got} before it")
    if not (last.get("tool_calls") or reasoning_of(last)):
        check_filled(last["content"], f"the response in column {column}")
    if last.get("weight", 1) == 0:
        raise RowError(f"the response in column {column} must be learned from, got weight 0")
    return _dialogue(row, messages, len(messages) - 1)
