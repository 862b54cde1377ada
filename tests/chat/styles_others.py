"""Styles with marks of their own: GLM, Gemma, Phi, DeepSeek, Nemotron, Command and gpt-oss."""

import json
from dataclasses import replace

from tests.chat.style import ChatStyle, Turn, as_given, behind_space, stripped
from tests.chat.styles_chatml import MANY

_BAR, _BLOCK = "\uff5c", "\u2581"


def _glm4(turn: Turn) -> str | None:
    said = as_given(turn)
    return None if said is None else "\n" + said


def _glm45(turn: Turn) -> str | None:
    thought, content = "", turn.content
    if turn.reasoning:
        thought = turn.reasoning
    elif "</think>" in content:
        thought, content = content.split("</think>")[0].split("<think>")[-1], content.split("</think>")[-1]
    if thought and not turn.current:
        return None
    said = f"\n<think>{thought.strip()}</think>" + ("\n" + content.strip() if content.strip() else "")
    for call in turn.calls:
        said += f"\n<tool_call>{call.name}"
        for name, value in call.arguments.items():
            written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            said += f"\n<arg_key>{name}</arg_key>\n<arg_value>{written}</arg_value>"
        said += "\n</tool_call>"
    return said


def _wide(what: str) -> str:
    """A mark between wide bars, with low blocks for spaces."""
    return f"<{_BAR}{what.replace(' ', _BLOCK)}{_BAR}>"


def _deepseek_v3(turn: Turn) -> str | None:
    if turn.reasoning:
        return None
    calls = "\n".join(
        f"{_wide('tool call begin')}function{_wide('tool sep')}{call.name}\n```json\n{call.json()}\n```"
        + _wide("tool call end")
        for call in turn.calls
    )
    return turn.content + (_wide("tool calls begin") + calls + _wide("tool calls end") if calls else "")


def _deepseek_r1(turn: Turn) -> str | None:
    return None if "</think>" in turn.content and not turn.last else as_given(turn)


def _granite(turn: Turn) -> str | None:
    if turn.reasoning:
        return None
    calls = ", ".join(f'{{"arguments": {call.json()}, "name": "{call.name}"}}' for call in turn.calls)
    return turn.content + (f"<|tool_call|>[{calls}]" if calls else "")


def _harmony(turn: Turn) -> str | None:
    if (turn.reasoning and not turn.current) or (turn.calls and turn.content) or len(turn.calls) > 1:
        return None
    said = f"<|channel|>analysis<|message|>{turn.reasoning}<|end|><|start|>assistant" if turn.reasoning else ""
    for call in turn.calls:
        return said + f" to=functions.{call.name}<|channel|>commentary json<|message|>{call.json()}"
    return said + "<|channel|>final<|message|>" + turn.content


def _seed(turn: Turn) -> str | None:
    if turn.calls:
        return None
    thought = f"<seed:think>{turn.reasoning.strip()}</seed:think>\n" if turn.reasoning else ""
    return thought + turn.content.strip()


_GLM4 = ChatStyle(
    name="glm4",
    kind="bytes",
    eos="<|endoftext|>",
    special=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    headers=("<|assistant|>",),
    ends=("<|user|>", "<|assistant|>", "<|observation|>"),
    last_ends=("<|endoftext|>", "<|user|>"),
    unended=True,
    words=_glm4,
    results=True,
)
_GEMMA2 = ChatStyle(
    name="gemma2",
    kind="gemma",
    bos="<bos>",
    eos="<eos>",
    special=("<start_of_turn>", "<end_of_turn>"),
    headers=("<start_of_turn>model\n",),
    ends=("<end_of_turn>",),
    words=stripped,
    system=False,
    any_order=False,
)
_DEEPSEEK = ChatStyle(
    name="deepseek-v2",
    kind="bytes",
    bos=_wide("begin of sentence"),
    eos=_wide("end of sentence"),
    headers=("Assistant:",),
    ends=(_wide("end of sentence"),),
    words=behind_space,
)
_PARTS_OF_CALLS = tuple(
    _wide(f"tool {what}")
    for what in (
        "calls begin",
        "calls end",
        "call begin",
        "call end",
        "sep",
        "outputs begin",
        "outputs end",
        "output begin",
        "output end",
    )
)
_COMMAND = ("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")

OTHERS = (
    _GLM4,
    replace(
        _GLM4,
        name="glm4.5",
        special=(*_GLM4.special, "<think>", "</think>", "<tool_call>", "</tool_call>"),
        words=_glm45,
        tools=True,
        calls=MANY,
        parts=True,
        call_ends=("<|observation|>", "<|endoftext|>", "<|user|>"),
    ),
    _GEMMA2,
    replace(_GEMMA2, name="gemma3", system=True, parts=True),
    ChatStyle(
        name="phi3",
        kind="llama2",
        bos="<s>",
        eos="<|endoftext|>",
        special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        headers=("<|assistant|>\n",),
        ends=("<|end|>",),
    ),
    _DEEPSEEK,
    replace(
        _DEEPSEEK,
        name="deepseek-v3",
        special=(_wide("User"), _wide("Assistant"), *_PARTS_OF_CALLS),
        headers=(_wide("Assistant"), _wide("tool outputs end")),
        words=_deepseek_v3,
        calls=MANY,
        results=True,
        arguments="text",
    ),
    replace(
        _DEEPSEEK,
        name="deepseek-r1",
        special=(_wide("User"), _wide("Assistant"), "<think>", "</think>"),
        headers=(_wide("Assistant"),),
        opens="<think>\n",
        words=_deepseek_r1,
    ),
    ChatStyle(
        name="nemotron",
        kind="gemma",
        bos="<s>",
        eos="</s>",
        special=("<extra_id_0>", "<extra_id_1>"),
        headers=("<extra_id_1>Assistant\n",),
        ends=("\n<extra_id_1>",),
        last_ends=("\n", "\n</s>", "</s>", "\n<extra_id_1>"),
        unended=True,
        words=stripped,
    ),
    ChatStyle(
        name="exaone",
        kind="bytes",
        bos="[BOS]",
        eos="[|endofturn|]",
        special=("[|system|]", "[|user|]", "[|assistant|]"),
        headers=("[|assistant|]",),
        ends=("[|endofturn|]",),
        developer=True,
        results=True,
    ),
    ChatStyle(
        name="seed-oss",
        kind="bytes",
        bos="<seed_bos>",
        eos="<seed_eos>",
        special=("<seed:think>", "</seed:think>"),
        headers=("<seed_bos>assistant\n",),
        ends=("<seed_eos>",),
        words=_seed,
        developer=True,
        results=True,
    ),
    ChatStyle(
        name="falcon",
        kind="bytes",
        eos="<|endoftext|>",
        headers=("Falcon:",),
        ends=("\nUser:", "\nFalcon:"),
        last_ends=("<|endoftext|>",),
        unended=True,
        words=behind_space,
    ),
    ChatStyle(
        name="command-r",
        kind="bytes",
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        special=_COMMAND,
        headers=("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",),
        ends=("<|END_OF_TURN_TOKEN|>",),
        words=stripped,
        any_order=False,
    ),
    ChatStyle(
        name="gpt-oss",
        kind="bytes",
        bos="<|startoftext|>",
        eos="<|return|>",
        special=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|endoftext|>"),
        headers=("<|start|>assistant",),
        ends=("<|end|>",),
        last_ends=("<|return|>",),
        call_ends=("<|call|>",),
        inner_ends=True,
        words=_harmony,
        developer=True,
        tools=True,
        calls=1,
        results=True,
        after_calls=True,
    ),
    ChatStyle(
        name="granite",
        kind="bytes",
        eos="<|end_of_text|>",
        special=("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        headers=("<|start_of_role|>assistant<|end_of_role|>",),
        ends=("<|end_of_text|>",),
        words=_granite,
        developer=True,
        tools=True,
        calls=MANY,
        results=True,
    ),
)
