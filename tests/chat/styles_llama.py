"""Styles of the Llama and Mistral families, and of what was trained from their base models."""

from dataclasses import replace

from tests.chat.style import ChatStyle, Turn, after_space, behind_space, stripped
from tests.chat.styles_chatml import MANY


def _llama2(turn: Turn) -> str | None:
    said = after_space(turn)
    return None if said is None else said + " "


def _llama31(turn: Turn) -> str | None:
    if turn.reasoning or (turn.calls and turn.content) or len(turn.calls) > 1:
        return None
    for call in turn.calls:
        return f'{{"name": "{call.name}", "parameters": {call.json()}}}'
    return turn.content.strip()


def _listed(turn: Turn) -> str:
    """Calls as Mistral writes them."""
    return ", ".join(f'{{"name": "{call.name}", "arguments": {call.json()}, "id": "{call.id}"}}' for call in turn.calls)


def _mistral(turn: Turn) -> str | None:
    if turn.reasoning or (turn.calls and turn.content):
        return None
    return f"[TOOL_CALLS] [{_listed(turn)}]" if turn.calls else " " + turn.content.strip()


def _nemo(turn: Turn) -> str | None:
    if turn.reasoning or (turn.calls and turn.content):
        return None
    return f"[TOOL_CALLS][{_listed(turn)}]" if turn.calls else turn.content


_LLAMA2 = ChatStyle(
    name="llama2",
    kind="llama2",
    bos="<s>",
    eos="</s>",
    headers=("[/INST]",),
    ends=("</s>",),
    words=_llama2,
    any_order=False,
)
_LLAMA3 = ChatStyle(
    name="llama3",
    kind="llama3",
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    special=("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    headers=("<|start_header_id|>assistant<|end_header_id|>\n\n",),
    ends=("<|eot_id|>",),
    words=stripped,
    developer=True,
    results=True,
)
_MISTRAL = replace(
    _LLAMA2,
    name="mistral-v0.3",
    special=(
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_CALLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    headers=("[/INST]", "[/TOOL_RESULTS]"),
    words=_mistral,
    system_before_answers=False,
    tools=True,
    calls=MANY,
    results=True,
    short_ids=True,
)

LLAMA = (
    _LLAMA2,
    _LLAMA3,
    replace(_LLAMA3, name="llama3.1", words=_llama31, tools=True, calls=1),
    replace(_LLAMA3, name="llama3-generation"),
    _MISTRAL,
    replace(_MISTRAL, name="mistral-nemo", kind="bytes", words=_nemo, system_before_answers=True),
    replace(_LLAMA2, name="vicuna", headers=("ASSISTANT:",), words=after_space, any_order=True),
    ChatStyle(name="zephyr", kind="llama2", bos="<s>", eos="</s>", headers=("<|assistant|>\n",), ends=("</s>",)),
    ChatStyle(
        name="openchat",
        kind="llama2",
        bos="<s>",
        eos="<|end_of_turn|>",
        headers=("GPT4 Correct Assistant:",),
        ends=("<|end_of_turn|>",),
        words=behind_space,
    ),
    ChatStyle(
        name="magistral",
        kind="bytes",
        bos="<s>",
        eos="</s>",
        special=("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[THINK]", "[/THINK]"),
        headers=("[/INST]",),
        ends=("</s>",),
        any_order=False,
        parts=True,
    ),
    ChatStyle(
        name="bos-turns",
        kind="llama2",
        bos="<s>",
        eos="</s>",
        headers=("<s>assistant\n",),
        ends=("</s>",),
        developer=True,
        results=True,
    ),
    ChatStyle(name="alpaca", kind="llama2", bos="<s>", eos="</s>", headers=("### Response:\n",), ends=("</s>",)),
)
