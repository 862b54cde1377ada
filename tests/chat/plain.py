"""A shape's messages in the form that a template reads, for apply_chat_template alone."""

import json
from typing import Any

from tests.chat.oracle import text_of_content, without_nulls
from tests.chat.shapes import Job, Message, Shape
from tests.chat.style import ChatStyle
from tests.chat.tokenizers import tokenizer_of


def rendered(style: ChatStyle, shape: Shape, job: Job = "sft", *, worse: bool = False, null: object = "") -> str:
    """The conversation's text, and the generation prompt for GRPO; raises what the template raises.

    Contents that are null are replaced by `null`.
    """
    messages = [_as_read(style, message, null) for message in shape.conversation(job, worse=worse)]
    tools = [without_nulls(tool) for tool in shape.tools] or None
    # Called through Any: transformers types text, ids and both at once alike.
    tokenizer: Any = tokenizer_of(style)
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=job == "grpo")


def _as_read(style: ChatStyle, message: Message, null: object) -> Message:
    read = {name: value for name, value in message.items() if value is not None and name != "tool_calls"}
    if message["role"] == "developer" and not style.developer:
        read["role"] = "system"
    if message["content"] is None:
        read["content"] = null
    elif not style.strings:
        read["content"] = [{"type": "text", "text": text_of_content(message)}]
    elif not style.parts:
        read["content"] = text_of_content(message)
    if message.get("tool_calls"):
        read["tool_calls"] = [_call(style, call) for call in message["tool_calls"]]
    return read


def _call(style: ChatStyle, call: dict[str, Any]) -> dict[str, Any]:
    function = without_nulls(call["function"])
    given = function["arguments"]
    if style.arguments == "text" and not isinstance(given, str):
        given = json.dumps(given, ensure_ascii=False)
    elif style.arguments == "object" and isinstance(given, str):
        given = json.loads(given)
    return without_nulls(call) | {"function": function | {"arguments": given}}
