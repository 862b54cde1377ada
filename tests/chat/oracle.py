"""What a row's sequence must hold by the row and its style alone, or why there can be none."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from tests.chat.shapes import Job, Message, Shape
from tests.chat.style import Call, ChatStyle, Turn
from tests.chat.tokenizers import comparable

Kind = Literal[
    "system",
    "developer",
    "tools",
    "calls",
    "ids",
    "results",
    "order",
    "reasoning",
    "beside",
    "contents",
    "arguments",
    "border",
    "mark",
    "end",
    "opens",
    "markers",
]
"""Why a row may be refused: the template does not write its system or developer message, the descriptions of its
tools, its calls (or so many), calls with such ids, what tools have said, its order of roles, its reasoning (at that
place), what is said beside a call, its form of contents or of arguments; no border of tokens need separate words from
their header; the words have a text in them that is a mark of the template; nothing ends the turn; the
generation prompt opens a thought that the turn has not; the markers of what is to be trained are elsewhere."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No sequence says what the row says."""

    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A turn that is trained: its words, and what may end it; exactly one end belongs to it.

    Example: Said(text="A star.", ends=("<|im_end|>",))
    """

    text: str
    ends: tuple[str, ...]
    opens: str = ""
    """Of the text's beginning, what the generation prompt has written already: it may be trained or not."""

    def pattern(self, kind: str = "") -> str:
        """A regular expression of all that is right, as the tokens of a kind say it."""
        text, opens = (re.escape(comparable(kind, part)) for part in (self.text, self.opens))
        if self.opens and self.text.startswith(self.opens):
            text = f"(?:{opens})?{text.removeprefix(opens)}"
        return f"{text}(?:{'|'.join(re.escape(comparable(kind, end)) for end in self.ends)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What is trained of the row, and what else its tokens say."""

    turns: tuple[Said, ...]
    """In order; none of a prompt for GRPO."""
    context: tuple[str, ...]
    """Texts that the whole sequence has, in any order, without white space around them."""
    absent: tuple[str, ...] = ()
    """Texts that it has not."""
    prompt_ends: tuple[str, ...] = ()
    """What a prompt for GRPO may end with."""
    or_refused: tuple[Kind, ...] = ()
    """Why the row may be refused all the same."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Each turn's words and its end, the usual one where several are right."""
        return tuple(turn.text + turn.ends[0] for turn in self.turns)

    def agrees(self, said: str, kind: str = "") -> bool:
        """Whether trained tokens that decode to `said`, all turns of them, are right; `kind` is the tokenizer's."""
        pattern = "".join(turn.pattern(kind) for turn in self.turns)
        return re.fullmatch(pattern, comparable(kind, said)) is not None

    def fault(self, said: str, whole: str, kind: str = "") -> str | None:
        """What is wrong with a sequence: `said` its trained tokens decode to, `whole` all of them (both by `text_of`).

        None where it is right.
        """
        if not self.agrees(said, kind):
            return f"trained {said!r}, expected {' '.join(map(repr, self.texts)) or 'nothing'}"
        whole = comparable(kind, whole)
        missing = [text for text in self.context if comparable(kind, text) not in whole]
        added = [text for text in self.absent if comparable(kind, text) in whole]
        if missing or added:
            return f"has not {missing}, has {added}: {whole!r}"
        if self.prompt_ends and not whole.endswith(tuple(comparable(kind, end) for end in self.prompt_ends)):
            return f"ends with {whole[-40:]!r}, expected {self.prompt_ends!r}"
        return None


def expected(style: ChatStyle, shape: Shape, job: Job = "sft", *, worse: bool = False) -> Trained | Refused:
    """What becomes of the shape's row in a job; of pairs, of the chosen response or of the worse one."""
    messages = shape.conversation(job, worse=worse)
    kind = _unsayable(style, shape, messages)
    if kind:
        return Refused(kind)
    turns, context = list[Said](), list[str]()
    tolerated = _conversions(style, messages)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            context.append(text_of_content(message).strip())
            continue
        turn = turn_of(messages, index)
        words = style.words(turn)
        if not _is_trained(message, index, messages, job):
            # What is only context stands there as the model would read it.
            if words is None:
                tolerated.append("beside" if turn.calls and turn.content else "reasoning")
            else:
                context.append(words.strip())
            continue
        if words is None:
            return Refused("beside" if turn.calls and turn.content else "reasoning")
        # A line break that words begin with may be one token with that of their header.
        if style.headers[0][-1].isspace() and words[:1].isspace():
            tolerated.append("border")
        if not words.startswith(style.opens):
            tolerated.append("opens")
        if any(end in turn.content for end in (*style.ends, *style.last_ends) if end.strip()):
            tolerated.append("mark")
        turns.append(Said(text=words, ends=style.ends_of(turn), opens=style.opens))
    if style.unended and job != "grpo":
        tolerated.append("end")
    if style.inner_ends and any(
        _is_trained(message, index, messages, job)
        for index, message in enumerate(messages[:-1])
        if message["role"] == "assistant"
    ):
        tolerated.append("end")
    if style.ids_for_names and any(message.get("tool_calls") for message in messages):
        tolerated.append("ids")
    if style.misled and job != "grpo":
        tolerated.append("markers")
    return Trained(
        turns=tuple(turns),
        context=(*context, *(text for tool in shape.tools for text in _of_tool(tool))),
        absent=_absent(style, shape, messages),
        prompt_ends=_prompt_ends(style, messages) if job == "grpo" else (),
        or_refused=tuple(dict.fromkeys(tolerated)),
    )


def turn_of(messages: list[Message], index: int) -> Turn:
    """A message of the assistant, and where it stands."""
    message, after = messages[index], messages[index + 1 :]
    return Turn(
        content=text_of_content(message),
        reasoning=message.get("reasoning_content"),
        calls=tuple(_call(call) for call in message.get("tool_calls") or ()),
        last=not after,
        current=all(other["role"] != "user" for other in after),
    )


def text_of_content(message: Message) -> str:
    """The text of a content: a string, parts, or null."""
    content = message["content"]
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def without_nulls(value: Any) -> Any:
    """A value without the keys that are null, as Arrow fills them in, at any depth."""
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def _call(call: dict[str, Any]) -> Call:
    given = call["function"]["arguments"]
    arguments = json.loads(given) if isinstance(given, str) else without_nulls(given)
    return Call(call["function"]["name"], arguments, call["id"])


def _unsayable(style: ChatStyle, shape: Shape, messages: list[Message]) -> Kind | None:
    """What of the row the template does not write, wherever it stands."""
    first = messages[0]["role"]
    has_system = style.system and (style.system_before_answers or messages[-1]["role"] == "user")
    if first == "system" and not has_system:
        return "system"
    if first == "developer" and not (style.developer or has_system):
        return "developer"
    if shape.tools and not style.tools:
        return "tools"
    called = False
    for message in messages:
        calls = message.get("tool_calls") or ()
        if len(calls) > style.calls:
            return "calls"
        if style.short_ids and any(not re.fullmatch("[A-Za-z0-9]{9}", call["id"]) for call in calls):
            return "ids"
        called = called or bool(calls)
        if message["role"] == "tool" and not (style.results and (called or not style.after_calls)):
            return "results"
    return None if style.any_order or _alternates(messages) else "order"


def _alternates(messages: list[Message]) -> bool:
    """Whether user and assistant speak in turns, the user first; calls and what tools say are not counted."""
    spoken = [message["role"] for message in messages if not message.get("tool_calls")]
    spoken = [role for role in spoken if role in ("user", "assistant")]
    return all(role == ("user", "assistant")[index % 2] for index, role in enumerate(spoken))


def _conversions(style: ChatStyle, messages: list[Message]) -> list[Kind]:
    """Where the template reads the row only in another form, in which it can be brought without loss."""
    found = list[Kind]()
    if messages[0]["role"] == "developer" and not style.developer:
        found.append("developer")
    lists = [isinstance(message["content"], list) for message in messages]
    if (any(lists) and not style.parts) or (not all(lists) and not style.strings):
        found.append("contents")
    given = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls") or ()]
    if style.arguments == "text" and not all(isinstance(arguments, str) for arguments in given):
        found.append("arguments")
    return found


def _is_trained(message: Message, index: int, messages: list[Message], job: Job) -> bool:
    if job == "sft":
        return message.get("weight") != 0
    return job != "grpo" and index == len(messages) - 1


def _prompt_ends(style: ChatStyle, messages: list[Message]) -> tuple[str, ...]:
    """After what a tool has said, some templates let the assistant go on without a header."""
    ends = style.headers if messages[-1]["role"] == "tool" else style.headers[:1]
    return tuple(end + style.opens for end in ends)


def _absent(style: ChatStyle, shape: Shape, messages: list[Message]) -> tuple[str, ...]:
    """A first token twice, and what nulls of Parquet look like in a template."""
    twice = (style.bos * 2,) if style.bos else ()
    nulls = ("null", "None") if shape.tools or any(message.get("tool_calls") for message in messages) else ()
    return twice + nulls


def _of_tool(tool: dict[str, Any]) -> list[str]:
    function = tool["function"]
    return [function["name"], function["description"], *function["parameters"]["properties"]]
