"""Data conventions, detected by column name, and the examples that rows of each convention stand for."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.reward_functions import nearest
from algorithms.sources import Row, kind_of

Message = dict[str, Any]
Use = Literal["sft", "rl"]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "function_call": "assistant",
}


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


class RowError(ValueError):
    """What is wrong with a row; the caller, who knows the field and the row's number, makes it a UserError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """A set of columns that many data sets share, and how to read it."""

    name: str
    columns: tuple[str, ...]
    """Columns every row must have."""
    description: str
    """For people."""
    read: Callable[[Row], Any]
    """Row to Example (SFT), or to a string or list of messages (RL). Raises RowError."""


def messages_of(value: Any, column: str) -> list[Message]:
    """Check a list of {role, content} messages. Raises RowError."""
    if not isinstance(value, list) or not value:
        raise RowError(f"column {column} must be a list of messages, got {kind_of(value)}")
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError(f"message {number} of column {column} must have role and content, got {kind_of(message)}")
        if not isinstance(message.get("content"), str):
            raise RowError(
                f"content of message {number} of column {column} must be text, got {kind_of(message.get('content'))}"
            )
    return value


def _text_of(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise RowError(f"column {column} must be text, got {kind_of(value)}")
    return value


def _text_or_messages(row: Row, column: str) -> str | list[Message]:
    value = row[column]
    return value if isinstance(value, str) else messages_of(value, column)


def _as_messages(value: str | list[Message], role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _read_messages(row: Row) -> Example:
    return Dialogue(messages=messages_of(row["messages"], "messages"), given=0)


def _read_sharegpt(row: Row) -> Example:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise RowError(f"column conversations must be a list of turns, got {kind_of(turns)}")
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for number, turn in enumerate(turns, start=1):
        if isinstance(turn, dict) and {"role", "content"} <= turn.keys():
            raise RowError("column conversations holds role and content: set data.columns {messages: conversations}")
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise RowError(f"turn {number} of column conversations must have from and value, got {kind_of(turn)}")
        speaker = turn.get("from")
        if speaker not in _SHAREGPT_ROLES:
            near = nearest(str(speaker), _SHAREGPT_ROLES)
            raise RowError(f"turn {number} of column conversations has unknown from {speaker!r}{near}")
        messages.append({"role": _SHAREGPT_ROLES[speaker], "content": turn["value"]})
    return Dialogue(messages=messages, given=0)


def _read_prompt_completion(row: Row) -> Example:
    prompt, completion = _text_or_messages(row, "prompt"), _text_or_messages(row, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(prompt=prompt, completion=completion)
    context = _as_messages(prompt, "user")
    return Dialogue(messages=[*context, *_as_messages(completion, "assistant")], given=len(context))


def _read_alpaca(row: Row) -> Example:
    prompt = _text_of(row, "instruction")
    if row.get("input"):
        prompt += "\n\n" + _text_of(row, "input")
    output = _text_of(row, "output")
    if not row.get("system"):
        return Completion(prompt=prompt, completion=output)
    context = [{"role": "system", "content": _text_of(row, "system")}, {"role": "user", "content": prompt}]
    return Dialogue(messages=[*context, {"role": "assistant", "content": output}], given=2)


def _read_text(row: Row) -> Example:
    return Text(text=_text_of(row, "text"))


def _asks(value: str | list[Message], column: str) -> str | list[Message]:
    """A prompt that the model has to answer: its last turn is not the model's own."""
    if isinstance(value, list) and value[-1]["role"] not in ("user", "tool"):
        raise RowError(
            f"column {column} must end with a user turn to be answered, got a last role {value[-1]['role']!r}"
        )
    return value


def _read_prompt(row: Row) -> str | list[Message]:
    return _asks(_text_or_messages(row, "prompt"), "prompt")


def _read_prompt_messages(row: Row) -> str | list[Message]:
    return _asks(messages_of(row["messages"], "messages"), "messages")


SFT_CONVENTIONS = (
    Convention(name="messages", columns=("messages",), read=_read_messages, description="messages of {role, content}"),
    Convention(
        name="sharegpt", columns=("conversations",), read=_read_sharegpt, description="ShareGPT turns of {from, value}"
    ),
    Convention(
        name="prompt-completion",
        columns=("prompt", "completion"),
        read=_read_prompt_completion,
        description="prompt and completion, as text or messages",
    ),
    Convention(
        name="alpaca",
        columns=("instruction", "output"),
        read=_read_alpaca,
        description="Alpaca: instruction, optional input and system, output",
    ),
    Convention(name="text", columns=("text",), read=_read_text, description="plain text"),
)
RL_CONVENTIONS = (
    Convention(
        name="prompt",
        columns=("prompt",),
        read=_read_prompt,
        description="prompt, as text or messages, and any columns",
    ),
    Convention(
        name="messages",
        columns=("messages",),
        read=_read_prompt_messages,
        description="messages that end with a user turn",
    ),
)
QUESTION_ANSWER = Convention(
    name="question-answer",
    columns=("question", "answer"),
    read=_read_prompt,
    description="question (read as prompt) and answer",
)


def detect(rows: list[Row], data: DataConfig, use: Use, field: str) -> tuple[Convention, list[Row]]:
    """The convention of `rows`, and the rows after `data.columns` was applied (under both names).

    A name in `data.columns` also chooses: {text: text} reads rows that have messages too as plain text. In RL, question
    and answer stand for prompt and answer where no other convention fits.

    Raises:
        UserError: no convention or several fit the first row, or a row lacks a column; names columns and nearest name.
    """
    rows = [_rename(row, data.columns, number, field) for number, row in enumerate(rows, start=1)]
    conventions = SFT_CONVENTIONS if use == "sft" else RL_CONVENTIONS
    fitting = [convention for convention in conventions if rows[0].keys() >= set(convention.columns)]
    chosen = [convention for convention in fitting if data.columns.keys() & set(convention.columns)]
    found = chosen or fitting
    if not found and use == "rl" and rows[0].keys() >= set(QUESTION_ANSWER.columns):
        found = [QUESTION_ANSWER]
    if len(found) > 1:
        names = ", ".join(convention.name for convention in found)
        column = found[0].columns[0]
        raise UserError(
            f"{field}: columns {_names(rows[0])} fit several conventions ({names}); choose with data.columns, "
            f"for example {{{column}: {column}}}"
        )
    if not found:
        raise UserError(_no_convention(rows[0], conventions, use, field))
    for number, row in enumerate(rows, start=1):
        for column in found[0].columns:
            if column not in row:
                raise UserError(_missing(column, row, number, field, found[0].name))
    if found[0] is QUESTION_ANSWER:
        rows = [row | {"prompt": row["question"]} for row in rows]
    return found[0], rows


def _rename(row: Row, columns: dict[str, str], number: int, field: str) -> Row:
    for new, old in columns.items():
        if old not in row:
            raise UserError(
                f"data.columns.{new}: {field} row {number} has no column {old!r}{nearest(old, row)}, "
                f"its columns are {_names(row)}"
            )
    return row | {new: row[old] for new, old in columns.items()} if columns else row


def _missing(column: str, row: Row, number: int, field: str, convention: str) -> str:
    return (
        f"{field}: row {number} lacks column {column!r} of the {convention} convention"
        f"{nearest(column, row)}, its columns are {_names(row)}"
    )


def _no_convention(row: Row, conventions: tuple[Convention, ...], use: Use, field: str) -> str:
    """Says what would fit; where one known column is there or nearly there, which one is missing."""
    known = [column for convention in conventions for column in convention.columns if column not in row]
    near = [(column, match[0]) for column in known if (match := difflib.get_close_matches(column, row, 1))]
    hint = f" (did you mean {near[0][0]} by {near[0][1]}?)" if near else ""
    wanted = "; ".join(" + ".join(convention.columns) for convention in conventions)
    algorithm = "sft" if use == "sft" else "reinforcement learning"
    return (
        f"{field}: row 1 has columns {_names(row)}{hint}, {algorithm} needs one of: {wanted}; "
        f"rename with data.columns, for example {{{known[0]}: {next(iter(row), 'name')}}}"
    )


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
