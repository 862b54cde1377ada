"""Rows of known conventions as examples: what of a row is given, and what is learned from or compared."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NotRequired, TypedDict, TypeGuard, TypeVar, TypeVarTuple

from actors.config import UserError
from algorithms.data.sources import Row
from algorithms.words import kind_of, nearest

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

# What a tool says is an observation, and a call of one is the assistant's turn.
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "function_call": "assistant",
}


class Message(TypedDict):
    """A turn for a chat template; whatever else it has, such as a name, goes there too."""

    role: str
    content: str
    tool_calls: NotRequired[object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """Messages for a chat template; the first `given` of them are context, never trained on."""

    messages: list[Message]
    given: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A prompt and its continuation, as plain strings: wrapped as two turns where there is a chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Plain text for language modelling."""

    text: str


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


_WAY_OUT = " (a data.converter that returns None drops such rows)"


class RowError(ValueError):
    """What is wrong with a row; the caller, who knows the field and the row's number, makes it a UserError."""


def at_row(index: int, field: str, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
    """What `function` makes of the row of this index; raises UserError with field and number for what is wrong."""
    try:
        return function(*arguments)
    except RowError as error:
        raise UserError(f"{field}: row {index + 1}: {error}") from error


def messages_of(value: object, column: str) -> list[Message]:
    """Check a list of {role, content} messages. Raises RowError."""
    if not isinstance(value, list) or not value:
        raise RowError(f"column {column} must be a list of messages, got {kind_of(value)}")
    messages: list[Message] = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError(f"message {number} of column {column} must have role and content, got {kind_of(message)}")
        if not _has_text(message):
            raise RowError(
                f"content of message {number} of column {column} must be text, got {kind_of(message.get('content'))}"
            )
        if _says_nothing(message):
            raise RowError(
                f"content of message {number} of column {column} must not be empty, got {kind_of(message['content'])}"
            )
        messages.append(message)
    return messages


def _has_text(message: dict[str, object]) -> TypeGuard[Message]:
    """Of one that has a role: whether it also has a text, and so is a message."""
    return isinstance(message.get("content"), str)


def _says_nothing(message: Message) -> bool:
    """Whether a turn of somebody who must say something is empty: a tool, or a system prompt, may be."""
    if message["role"] not in ("user", "assistant") or message.get("tool_calls"):
        return False
    return not message["content"].strip()


def _text_of(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise RowError(f"column {column} must be text, got {kind_of(value)}")
    return _filled(value, column)


def _filled(value: str, column: str) -> str:
    if not value.strip():
        raise RowError(f"column {column} must not be empty, got {kind_of(value)}{_WAY_OUT}")
    return value


def _text_or_messages(row: Row, column: str) -> str | list[Message]:
    value = row[column]
    if value is None or not isinstance(value, str | list):
        raise RowError(f"column {column} must be text or messages, got {kind_of(value)}")
    return _filled(value, column) if isinstance(value, str) else messages_of(value, column)


def _as_messages(value: str | list[Message], role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def read_messages(row: Row) -> Example:
    return Dialogue(messages=messages_of(row["messages"], "messages"), given=0)


def read_sharegpt(row: Row) -> Example:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise RowError(f"column conversations must be a list of turns, got {kind_of(turns)}")
    messages: list[Message] = []
    if system := row.get("system"):
        if not isinstance(system, str):
            raise RowError(f"column system must be text, got {kind_of(system)}")
        messages.append({"role": "system", "content": system})
    for number, turn in enumerate(turns, start=1):
        # Messages under ShareGPT's column name: one setting mends it.
        if isinstance(turn, dict) and {"role", "content"} <= turn.keys():
            raise RowError("column conversations holds role and content: set data.columns {messages: conversations}")
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise RowError(f"turn {number} of column conversations must have from and value, got {kind_of(turn)}")
        speaker = turn.get("from")
        if speaker not in _SHAREGPT_ROLES:
            near = nearest(str(speaker), _SHAREGPT_ROLES)
            raise RowError(f"turn {number} of column conversations has unknown from {speaker!r}{near}")
        message: Message = {"role": _SHAREGPT_ROLES[speaker], "content": turn["value"]}
        if _says_nothing(message):
            raise RowError(f"turn {number} of column conversations must not be empty, got {kind_of(turn['value'])}")
        messages.append(message)
    return Dialogue(messages=messages, given=0)


def read_prompt_completion(row: Row) -> Example:
    prompt, completion = _text_or_messages(row, "prompt"), _text_or_messages(row, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(prompt=prompt, completion=completion)
    context = _as_messages(prompt, "user")
    return Dialogue(messages=[*context, *_as_messages(completion, "assistant")], given=len(context))


def read_alpaca(row: Row) -> Example:
    prompt = _text_of(row, "instruction")
    if str(row.get("input") or "").strip():  # Alpaca's rows may have an empty one
        prompt += "\n\n" + _text_of(row, "input")
    output = _text_of(row, "output")
    if not row.get("system"):
        return Completion(prompt=prompt, completion=output)
    context: list[Message] = [
        {"role": "system", "content": _text_of(row, "system")},
        {"role": "user", "content": prompt},
    ]
    return Dialogue(messages=[*context, {"role": "assistant", "content": output}], given=2)


def read_text(row: Row) -> Example:
    return Text(text=_text_of(row, "text"))


def _asks(value: str | list[Message], column: str) -> str | list[Message]:
    """A prompt that the model has to answer: its last turn is not the model's own."""
    if isinstance(value, list) and value[-1]["role"] not in ("user", "tool"):
        raise RowError(
            f"column {column} must end with a user turn to be answered, got a last role {value[-1]['role']!r}"
        )
    return value


def check_answer(row: Row) -> None:
    """Raise RowError for a row whose answer, which rewards compare with, is empty."""
    # An empty one would make every response wrong, without a word. Rows without the column are another matter: their
    # rewards may not read it.
    answer = row.get("answer", 0)
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        raise RowError(f"column answer must not be empty, got {kind_of(answer)}{_WAY_OUT}")


def read_prompt(row: Row) -> str | list[Message]:
    check_answer(row)
    return _asks(_text_or_messages(row, "prompt"), "prompt")


def read_prompt_messages(row: Row) -> str | list[Message]:
    check_answer(row)
    return _asks(messages_of(row["messages"], "messages"), "messages")


def read_pair(row: Row) -> Preference:
    """Prompt, chosen and rejected; responses given as messages may repeat the prompt."""
    prompt, chosen, rejected = (_text_or_messages(row, column) for column in ("prompt", "chosen", "rejected"))
    _differ(chosen, rejected)
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        answers = [_completion(prompt, chosen, "chosen"), _completion(prompt, rejected, "rejected")]
    else:
        _asks(prompt, "prompt")
        answers = _last_turns(_conversation(prompt, chosen), _conversation(prompt, rejected))
    return Preference(chosen=answers[0], rejected=answers[1], margin=_margin(row))


def read_implicit_pair(row: Row) -> Preference:
    """Chosen and rejected, whose common beginning is the prompt."""
    chosen, rejected = _text_or_messages(row, "chosen"), _text_or_messages(row, "rejected")
    _differ(chosen, rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        end = _prompt_end(chosen, rejected)
        prompt = chosen[:end]
        answers = [_completion(prompt, chosen[end:], "chosen"), _completion(prompt, rejected[end:], "rejected")]
    elif isinstance(chosen, list) and isinstance(rejected, list):
        answers = _last_turns(chosen, rejected)
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
        answer = _completion(prompt, completion, "completion")
    else:
        answer = _last_turn(_conversation(_asks(prompt, "prompt"), completion), "completion")
    return Judgement(answer=answer, desirable=bool(label))


def _differ(chosen: str | list[Message], rejected: str | list[Message]) -> None:
    if chosen == rejected:
        raise RowError("chosen and rejected must differ, got the same twice")


def _margin(row: Row) -> float:
    value = row.get("margin", 0.0)
    # bool is an int for Python, and a column of labels no margin.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"column margin must be a finite number, got {kind_of(value)}")
    return float(value)


def _completion(prompt: str, completion: str, column: str) -> Completion:
    if not completion.strip():
        raise RowError(f"the response in column {column} is empty, got {kind_of(completion)}")
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


def _conversation(prompt: str | list[Message], response: str | list[Message]) -> list[Message]:
    """The messages of prompt and response; a response that is the whole conversation already has the prompt."""
    context = _as_messages(prompt, "user")
    if isinstance(response, str):
        return [*context, {"role": "assistant", "content": response}]
    # A text may be any turn of the conversation; messages can only be its beginning.
    if isinstance(prompt, str):
        repeated = any(message["content"] == prompt for message in response[:-1])
    else:
        repeated = response[: len(context)] == context
    return response if repeated else [*context, *response]


def _last_turns(chosen: list[Message], rejected: list[Message]) -> list[Answer]:
    answers: list[Answer] = [_last_turn(chosen, "chosen"), _last_turn(rejected, "rejected")]
    if chosen[:-1] != rejected[:-1]:
        pairs = enumerate(zip(chosen[:-1], rejected[:-1], strict=False), start=1)
        shorter = min(len(chosen), len(rejected))
        # Where none of them differs, one conversation is longer than the other.
        first = next((number for number, (left, right) in pairs if left != right), shorter)
        raise RowError(f"chosen and rejected must share all messages but the last, they part at message {first}")
    return answers


def _last_turn(messages: list[Message], column: str) -> Dialogue:
    if messages[-1]["role"] != "assistant":
        raise RowError(f"column {column} must end with an assistant turn, got a last role {messages[-1]['role']!r}")
    if len(messages) < 2 or messages[-2]["role"] not in ("user", "tool"):
        got = f"role {messages[-2]['role']!r}" if len(messages) > 1 else "nothing"
        raise RowError(f"the response in column {column} must follow a user turn, got {got} before it")
    if not messages[-1]["content"].strip() and not messages[-1].get("tool_calls"):
        raise RowError(f"the response in column {column} is empty, got {kind_of(messages[-1]['content'])}")
    return Dialogue(messages=messages, given=len(messages) - 1)
