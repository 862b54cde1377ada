"""Styles of the ChatML family: <|im_start|>role, line break, text, <|im_end|>."""

import json
from dataclasses import replace

from tests.chat.style import Call, ChatStyle, Turn, as_given, split_thought, stripped

MANY = 99
_MARKS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")


def _tagged(call: Call) -> str:
    return f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.json()}}}\n</tool_call>'


def _qwen2(turn: Turn) -> str | None:
    if turn.reasoning:
        return None
    return "\n".join([*([turn.content] if turn.content or not turn.calls else []), *map(_tagged, turn.calls)])


def _qwen3(turn: Turn) -> str | None:
    thought, content = split_thought(turn.content)
    if turn.reasoning:
        thought, content = turn.reasoning, turn.content
    if thought and not turn.current:
        return None
    said = content
    if turn.current and (turn.last or thought):
        said = "<think>\n" + thought.strip("\n") + "\n</think>\n\n" + content.lstrip("\n")
    calls = "\n".join(map(_tagged, turn.calls))
    return said + ("\n" if content and calls else "") + calls


def _qwq(turn: Turn) -> str | None:
    if "</think>" in turn.content:
        return None
    return _qwen2(replace(turn, content=turn.content.lstrip("\n")))


def _smollm3(turn: Turn) -> str | None:
    said = as_given(turn)
    return None if said is None else said.lstrip("\n")


def _lfm2(turn: Turn) -> str | None:
    if turn.reasoning or ("</think>" in turn.content and not turn.last):
        return None
    written = ", ".join(
        f"{call.name}({', '.join(f'{name}={_json(value)}' for name, value in call.arguments.items())})"
        for call in turn.calls
    )
    return turn.content + (f"<|tool_call_start|>[{written}]<|tool_call_end|>" if turn.calls else "")


def _kimi(turn: Turn) -> str | None:
    if turn.reasoning:
        return None
    calls = "".join(
        f"<|tool_call_begin|>{call.id}<|tool_call_argument_begin|>{call.json()}<|tool_call_end|>" for call in turn.calls
    )
    return turn.content + (f"<|tool_calls_section_begin|>{calls}<|tool_calls_section_end|>" if calls else "")


def _kept(turn: Turn) -> str | None:
    thought = "<think>\n" + turn.reasoning.strip("\n") + "\n</think>\n\n" if turn.reasoning else ""
    calls = (_json({"name": call.name, "arguments": call.arguments}) for call in turn.calls)
    return thought + turn.content + "".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _rstripped(turn: Turn) -> str | None:
    said = as_given(turn)
    return None if said is None else said.rstrip()


_PLAIN = ChatStyle(
    name="",
    kind="bytes",
    eos="<|im_end|>",
    special=_MARKS,
    headers=("<|im_start|>assistant\n",),
    ends=("<|im_end|>",),
    developer=True,
    results=True,
)
"""Every role has a header of its name, and a message nothing but a content."""
_TOOLS = replace(_PLAIN, special=(*_MARKS, *_TAGS), developer=False, tools=True, calls=MANY)

CHATML = (
    replace(_TOOLS, name="qwen2.5", words=_qwen2),
    replace(_TOOLS, name="qwen3", words=_qwen3, arguments="both"),
    replace(_TOOLS, name="qwq", words=_qwq, opens="<think>\n"),
    replace(_PLAIN, name="chatml-base", eos="<|endoftext|>"),
    replace(_PLAIN, name="chatml-generation"),
    replace(_PLAIN, name="chatml-generation-words"),
    replace(_PLAIN, name="chatml-generation-header", misled=True),
    replace(_PLAIN, name="chatml-generation-last", misled=True),
    replace(_TOOLS, name="qwen3-generation", words=_kept, developer=True),
    replace(_PLAIN, name="chatml-answer"),
    replace(_PLAIN, name="chatml-parts", strings=False, parts=True),
    replace(_PLAIN, name="chatml-strip", words=stripped),
    replace(_PLAIN, name="chatml-rstrip", words=_rstripped),
    replace(_PLAIN, name="smollm2"),
    replace(_PLAIN, name="smollm3", words=_smollm3, developer=False, tools=True),
    replace(
        _PLAIN,
        name="phi4",
        special=(*_MARKS, "<|im_sep|>"),
        headers=("<|im_start|>assistant<|im_sep|>",),
        developer=False,
        results=False,
    ),
    replace(
        _PLAIN,
        name="lfm2",
        bos="<|startoftext|>",
        special=(
            *_MARKS,
            "<|tool_list_start|>",
            "<|tool_list_end|>",
            "<|tool_call_start|>",
            "<|tool_call_end|>",
            "<|tool_response_start|>",
            "<|tool_response_end|>",
        ),
        words=_lfm2,
        tools=True,
        calls=MANY,
    ),
    replace(
        _TOOLS,
        name="kimi",
        special=(
            "<|im_end|>",
            "<|im_system|>",
            "<|im_user|>",
            "<|im_assistant|>",
            "<|im_middle|>",
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
        ),
        headers=("<|im_assistant|>assistant<|im_middle|>",),
        words=_kimi,
        ids_for_names=True,
        developer=True,
        arguments="both",
        parts=True,
    ),
)
