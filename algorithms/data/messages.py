"""Messages, tools and calls of a row, in one form: that of OpenAI's API, as chat templates read it.

Keys that are null are absent, as Arrow fills in what a row has not; arguments of calls are decoded; the text of content
parts is joined. What a template would silently pass over for its spelling is refused.
"""

import json
import re
from collections.abc import Mapping
from typing import NotRequired, TypedDict

from algorithms.words import kind_of

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of what an assistant thought before it spoke; a template reads one of them."""
KNOWN_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "weight", *REASONING}
_ROLES = ("system", "developer", "user", "assistant", "tool")
_NO_ARGUMENTS = {
    *("messages", "tools", "documents", "add_generation_prompt"),
    *("bos_token", "eos_token", "pad_token", "unk_token"),
}
"""Variables of templates that rows and tokenizers give."""
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant"}
_MUST_SPEAK = ("user", "assistant")


class Message(TypedDict):
    """A turn for a chat template; whatever else it has, such as a name, goes there too."""

    role: str
    content: str
    tool_calls: NotRequired[list["Call"]]
    weight: NotRequired[int]


class Function(TypedDict):
    """What is called: its name, and its arguments by name."""

    name: str
    arguments: dict[str, object]


class Call(TypedDict):
    """One call of a tool."""

    type: str
    function: Function
    id: NotRequired[str]


Tool = dict[str, object]
"""A tool's declaration: {"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}."""


class RowError(ValueError):
    """What is wrong with a row; the caller, who knows the field and the row's number, skips it or tells its number."""


class EmptyRow(RowError):
    """A row of the right form that nothing can be learned from: a part is empty, or two are the same."""


def check_filled(value: object, what: str) -> None:
    """Raise EmptyRow for nothing, a blank text or an empty list."""
    if value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value):
        raise EmptyRow(f"{what} must not be empty, got {kind_of(value)}")


def messages_of(value: object, column: str) -> list[Message]:
    """A list of {role, content} messages in one form; raises RowError."""
    value = decoded_list(value)
    check_filled(value, f"column {column}")
    if not isinstance(value, list):
        raise RowError(f"column {column} must be a list of messages, got {kind_of(value)}")
    return [_message(given, f"message {number} of column {column}") for number, given in enumerate(value, start=1)]


def decoded_list(value: object) -> object:
    """A list or mapping that a column holds as JSON, as tables without nested columns do; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _message(given: object, where: str) -> Message:
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise RowError(f"{where} must have role and content, got {kind_of(given)}")
    message = {name: value for name, value in given.items() if value is not None}
    _check_role(message["role"], where)
    if "tool_calls" in message or "function_call" in message:
        calls = _calls(message.pop("tool_calls", None), message.pop("function_call", None), where)
        if calls:
            message["tool_calls"] = calls
    thought = next((name for name in REASONING if message.get(name)), None)
    for name in REASONING:
        if name in message and not isinstance(message[name], str):
            raise RowError(f"{name} of {where} must be text, got {kind_of(message[name])}")
        if message.get(name) == "":
            del message[name]
    if "content" not in message and ("tool_calls" in message or thought):
        message["content"] = ""  # OpenAI's form of a turn that only calls
    must_speak = message["role"] in _MUST_SPEAK and "tool_calls" not in message and not thought
    if must_speak:
        check_filled(given.get("content"), f"content of {where}")
    message["content"] = _text(message.get("content"), where)
    _check_weight(message, where)
    if must_speak:  # parts may be blank, too
        check_filled(message["content"], f"content of {where}")
    return message  # type: ignore[return-value]  # made of what was read, whose keys are anybody's


def _check_role(role: str, where: str) -> None:
    """Refuse a role that is one of the usual ones, spelt as no template knows it; others are a template's own."""
    if role in _ROLES:
        return
    plain = role.strip().lower()
    meant = plain if plain in _ROLES else _OTHER_NAMES.get(plain)
    if meant:
        raise RowError(f"role of {where} must be {meant}, got {role!r}")


def _check_weight(message: dict[str, object], where: str) -> None:
    """OpenAI's weight of a message: 0 is not learned from, 1 is."""
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
        raise RowError(f"weight of {where} must be 0 or 1, got {kind_of(weight)}")


def _text(content: object, where: str) -> str:
    """The text of a content; parts are joined, those that are no text refused."""
    if isinstance(content, list) and content:
        for number, part in enumerate(content, start=1):
            kind = part.get("type", "text") if isinstance(part, dict) else "text"
            if kind != "text":
                raise RowError(f"content of {where} must be text, got part {number} of type {kind!r}")
            if not isinstance(part, str) and not (isinstance(part, dict) and isinstance(part.get("text"), str)):
                raise RowError(f"part {number} of the content of {where} must have a text, got {kind_of(part)}")
        return "".join(part if isinstance(part, str) else part["text"] for part in content)
    if not isinstance(content, str):
        raise RowError(f"content of {where} must be text, got {kind_of(content)}")
    return content


def _calls(given: object, legacy: object, where: str) -> list[Call]:
    """Calls of tools, also in OpenAI's older form of one function_call."""
    if legacy is not None:
        given = [{"function": legacy}]
    given = decoded_list(given)
    if given in (None, "", []):
        return []
    if not isinstance(given, list):
        raise RowError(f"tool_calls of {where} must be a list of calls, got {kind_of(given)}")
    return [call_of(call, f"call {number} of {where}") for number, call in enumerate(given, start=1)]


def call_of(given: object, where: str) -> Call:
    """One call, with its function's name and arguments side by side or below `function`; raises RowError."""
    given = decoded_list(given)
    function = given.get("function", given) if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"{where} must have a function with name and arguments, got {kind_of(given)}")
    arguments = text = _without_nulls(function.get("arguments", function.get("parameters")))
    if isinstance(arguments, str):  # OpenAI has them as JSON within JSON
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise RowError(f"arguments of {where} must be JSON ({error}), got {_short(str(text))}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(f"arguments of {where} must be an object by name, got {kind_of(arguments)}")
    call: Call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if isinstance(given.get("id"), str):
        call["id"] = given["id"]
    return call


def tools_of(row: Mapping[str, object]) -> list[Tool] | None:
    """The tools that a row declares, in OpenAI's form; None where it has none. Raises RowError."""
    given = decoded_list(row.get("tools"))
    if given is None or given == [] or (isinstance(given, str) and not given.strip()):
        return None
    if not isinstance(given, list):
        raise RowError(f"column tools must be a list of tools, or such a list as JSON, got {kind_of(given)}")
    return [_tool(decoded_list(tool), number) for number, tool in enumerate(given, start=1)]


def _tool(given: object, number: int) -> Tool:
    function = given.get("function", given) if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"tool {number} of column tools must have a name, or a function with one, got {kind_of(given)}")
    return {"type": "function", "function": _without_nulls(function)}


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def arguments_of(row: Mapping[str, object]) -> dict[str, object]:
    """What a row gives its chat template beside messages and tools, `chat_template_kwargs`; raises RowError."""
    given = decoded_list(row.get("chat_template_kwargs"))
    if given is None or given == "":
        return {}
    if not isinstance(given, dict):
        raise RowError(f"column chat_template_kwargs must be an object by name, got {kind_of(given)}")
    if taken := sorted(_NO_ARGUMENTS & given.keys()):
        raise RowError(f"column chat_template_kwargs must leave {taken[0]} to other columns, got {given[taken[0]]!r}")
    return {str(name): value for name, value in given.items() if value is not None}


def unknown_keys(messages: list[Message]) -> set[str]:
    """Keys of messages that are not part of any form known here: a template may read them, or nothing does."""
    return {name for message in messages for name in message} - KNOWN_KEYS


def reasoning_of(message: Message) -> str:
    """What the assistant thought before this message; empty where it says nothing of that."""
    return next((str(message[name]) for name in REASONING if message.get(name)), "")  # type: ignore[literal-required]


_OPENED = re.compile(r"\s*<(think|thinking|thought|reasoning)>.*?</\1>", re.DOTALL)


def without_thoughts(content: str) -> str:
    """A content without the thoughts that it opens with, which templates leave out of earlier turns."""
    opened = _OPENED.match(content)
    return content[opened.end() :] if opened else content


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
