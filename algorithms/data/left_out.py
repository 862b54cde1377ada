"""What a chat template leaves out of a conversation: what a row says must be in the text, or the row is refused."""

import json
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from algorithms.data.chat_format import Habits, squeezed
from algorithms.data.messages import Call, Message, RowError, reasoning_of, without_thoughts
from algorithms.data.shown import parts_not_shown

if TYPE_CHECKING:
    from algorithms.data.chat_format import ChatFormat
    from algorithms.data.readers import Dialogue

_OTHER = "use another chat template (model.chat_template)"
_TAG = re.compile(r"\s*<\w+>")
_TAGS = re.compile(r"</?\w[\w:|]*>")
_BEFORE = 50
"""Characters before a turn in which the prompt may open a thought."""


def check_nothing_is_left_out(
    chat: "ChatFormat", dialogue: "Dialogue", text: str, trained: Collection[int], *, ask: bool = False
) -> None:
    """Raise RowError when something that the row says is nowhere in the text of its conversation.

    Of what is not trained, thoughts may be left out: templates drop those of earlier turns. `ask` says whether the text
    goes on to where the model answers.
    """
    whole = squeezed(text)
    at = 0
    for index, message in enumerate(dialogue.messages):
        content = message["content"]
        if message["role"] == "assistant" and index not in trained:
            content = without_thoughts(content)
        found = _find(content, whole, at)
        if found is None:
            raise RowError(_left_out(f"{'all or part' if content.strip() else ''} of the content", message, index))
        at = found
        if (fault := _spaces_changed(message, content, text, index)) and squeezed(content) in whole:
            raise RowError(fault)
        for call in message.get("tool_calls", []):
            if (what := _call_missing(call, whole)) is not None:
                raise RowError(_left_out(what, message, index))
        if index in trained and squeezed(reasoning_of(message)) not in whole:
            raise RowError(_left_out_thought(message, index))
    for index, what in sorted(parts_not_shown(chat, dialogue, ask=ask)):
        if what != "reasoning":
            raise RowError(_left_out(f"the {what}", dialogue.messages[index], index))
        if index in trained:
            raise RowError(_left_out_thought(dialogue.messages[index], index))
    if dialogue.tools and not chat.habits(dialogue.arguments, dialogue.tools).tools:
        raise RowError(f"the chat template leaves out what column tools declares: {_OTHER}")


def is_plain(message: Message) -> bool:
    """Whether a message has a content and nothing else to say."""
    return not reasoning_of(message) and not message.get("tool_calls")


def turn_fault(habits: Habits, message: Message, text: str, place: tuple[int, int], index: int) -> str | None:
    """What is wrong with a turn's text that is not what the message says, and what the template writes around that.

    Args:
        habits: of the template.
        message: what the row says.
        text: of the whole conversation.
        place: of the turn in it, from where to where.
        index: of the message, for the line.
    """
    start, end = place
    words = text[start:end]
    left, said = squeezed(words), squeezed(message["content"])
    if is_plain(message):
        # Where the prompt opens a thought, a content that opens with one begins behind that.
        opened = squeezed(found.group()) if (found := _TAG.match(message["content"])) else ""
        if opened and opened not in left[: len(opened)] and squeezed(text[:start][-_BEFORE:]).endswith(opened):
            said = said.removeprefix(opened)
        if said and any(left == opening + said + closing for opening in habits.openings for closing in habits.closings):
            return None
        if not said:
            what = _short(message["content"])
            return f"message {index + 1} says nothing but what the chat template writes itself, got {what}"
        return (
            f"the chat template does not write message {index + 1} as it is, but {_short(words)} for "
            f"{_short(message['content'])}: {_OTHER}"
        )
    for what, part in (("reasoning", squeezed(reasoning_of(message))), ("content", said)):
        if part not in left:
            return _left_out(f"the {what}", message, index)
    missing = (_call_missing(call, left) for call in message.get("tool_calls", []))
    return next((_left_out(what, message, index) for what in missing if what), None)


def _spaces_changed(message: Message, content: str, text: str, index: int) -> str | None:
    """What is wrong with white space within a message; at its ends, and around tags, it is the template's."""
    if all(part.strip() in text for part in _TAGS.split(content)):
        return None
    return f"the chat template changes white space within message {index + 1} ({message['role']}): {_OTHER}"


def goes_on(habits: Habits, message: Message, words: str) -> bool:
    """Whether a text begins with all that a message says, and has more behind it."""
    left, said = squeezed(words), squeezed(message["content"])
    return is_plain(message) and any(left.startswith(opening + said) for opening in habits.openings)


def _find(content: str, whole: str, at: int) -> int | None:
    """Behind where in the text a content ends, looked for from `at` on, then anywhere; None where it is not."""
    for form in (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1]):
        said = squeezed(form)
        place = whole.find(said, at)
        if place >= 0:
            return place + len(said)
        if said in whole:  # a system prompt may be written before the last turn
            return at
    # A tool's result that is JSON may be written anew.
    return at if _has_json(content, whole) else None


def _has_json(content: str, whole: str) -> bool:
    try:
        value = json.loads(content)
    except ValueError:
        return False
    return isinstance(value, dict | list) and all(_leaf_in(leaf, whole) for leaf in _leaves(value))


def _call_missing(call: Call, whole: str) -> str | None:
    """What of a call is not in a text."""
    name = call["function"]["name"]
    if squeezed(name) not in whole:
        return f"the call of {name}"
    for leaf in _leaves(call["function"]["arguments"]):
        if not _leaf_in(leaf, whole):
            return f"the argument {_short(str(leaf))} of the call of {name}"
    return None


def _leaves(value: object) -> Iterator[object]:
    """The names and values in a JSON value."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield str(name)
            yield from _leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _leaf_in(leaf: object, whole: str) -> bool:
    if not isinstance(leaf, str):
        return json.dumps(leaf) in whole or str(leaf) in whole
    # Twice as JSON where a template writes what is JSON as a text.
    once = json.dumps(leaf, ensure_ascii=False)[1:-1]
    forms = (leaf, once, json.dumps(leaf)[1:-1], json.dumps(once, ensure_ascii=False)[1:-1], repr(leaf)[1:-1])
    return any(squeezed(form) in whole for form in forms)


def _left_out(what: str, message: Message, index: int) -> str:
    return f"the chat template leaves out {what.strip()} of message {index + 1} ({message['role']}): {_OTHER}"


def _left_out_thought(message: Message, index: int) -> str:
    return f"{_left_out('the reasoning', message, index)}; algorithm.train_on last learns from the last answer alone"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
