"""Which parts of a conversation a chat template writes, found out with words that occur nowhere else.

What a row says may stand in its text by chance: a system prompt "Hi" within a greeting, a call of `a`, a thought that
is the answer again. So a conversation of the same build is rendered once with marks in place of all that is said.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from algorithms.data.messages import REASONING, Message, RowError, reasoning_of

if TYPE_CHECKING:
    from algorithms.data.chat_format import ChatFormat
    from algorithms.data.readers import Dialogue

Part = tuple[int, str]
"""Index of a message, and what of it: its content, its reasoning, or the call of a function."""


def parts_not_shown(chat: "ChatFormat", dialogue: "Dialogue", *, ask: bool) -> frozenset[Part]:
    """What the template leaves out of conversations built like this one; nothing where it refuses one of marks.

    Args:
        chat: whose template it is.
        dialogue: with its tools and arguments.
        ask: whether the text goes on to where the model answers.
    """
    build = (ask, bool(dialogue.tools), chat.kind_of_arguments(dialogue.arguments), *map(_build_of, dialogue.messages))
    if build not in chat.not_shown:
        marked, marks = _marked(dialogue.messages)
        try:
            text = chat.render(marked, dialogue.tools, dialogue.arguments, add_generation_prompt=ask)
        except RowError:  # the row itself may not be refused: a template may look at what is said
            text = None
        chat.not_shown[build] = frozenset(part for mark, part in marks if text is not None and mark not in text)
    return chat.not_shown[build]


def _build_of(message: Message) -> object:
    calls = tuple(len(call["function"]["arguments"]) for call in message.get("tool_calls", []))
    return message["role"], bool(message["content"].strip()), calls, *sorted(message)


def _marked(messages: Sequence[Message]) -> tuple[list[Message], list[tuple[str, Part]]]:
    """The conversation with marks in place of what is said, and which part each stands for."""
    marked, marks = list[Message](), list[tuple[str, Part]]()
    for index, message in enumerate(messages):
        made: dict[str, Any] = dict(message)
        if message["content"].strip():
            made["content"] = f"Vc{index}xaz"
            marks.append((made["content"], (index, "content")))
        if reasoning_of(message):
            made |= {name: f"Vt{index}xaz" for name in REASONING if message.get(name)}
            marks.append((f"Vt{index}xaz", (index, "reasoning")))
        if "tool_calls" in made:
            made["tool_calls"] = []
            for number, call in enumerate(message.get("tool_calls", [])):
                name, mark = call["function"]["name"], f"Vf{index}n{number}xaz"
                places = range(len(call["function"]["arguments"]))
                arguments = {f"Vk{place}{mark}": f"Vv{place}{mark}" for place in places}
                new: dict[str, Any] = call | {"function": {"name": mark, "arguments": arguments}}
                # Some write the id in place of the name: one that has the name in it, between other signs.
                if "id" in call and not call["id"].isalnum():
                    new["id"] = call["id"].replace(name, mark)
                made["tool_calls"].append(new)
                said = (mark, *arguments, *arguments.values())
                marks += [(word, (index, f"call of {name}")) for word in said]
        marked.append(made)  # type: ignore[arg-type]  # with the keys of a message
    return marked, marks
