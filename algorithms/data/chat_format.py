"""How a chat template writes conversations, and which tokens end its answers: found out by rendering small ones.

A template is a program: where it writes an answer's end, whether it shows calls and thoughts, and in which form it
wants them, nothing says but what it writes. It is asked once per template, with words that occur nowhere else.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from algorithms.data.messages import REASONING, Message, RowError, Tool
from algorithms.data.rendering import render_messages, template_of

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

_OPENS = re.compile(r"\s*<\w+>\s*")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ASKED, _SAID, _ASKED_AGAIN, _SAID_AGAIN = "Vq1xaz", "Vs1xaz", "Vq2xaz", "Vs2xaz"
_THOUGHT, _CALLED, _VALUE, _GIVEN, _SAYS = "Vt1xaz", "Vf1xaz", "Vv1xaz", "Vr1xaz", "Vm1xaz"
_SYSTEM = "Vb1xaz"
"""Words that no template has of its own."""
_LONG = 40
"""Characters of a value that is a text to be written, and no choice."""
_IDENTITIES = ("vcall{}xaz", f"functions.{_CALLED}:{{}}")
"""Of calls: nine letters and digits, which some templates ask for, and a name, which others write in place of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How a template writes conversations.

    Example of ChatML: Habits(last="<|im_end|>", between="<|im_end|>", call="<|im_end|>", stops=("<|im_end|>",), ...)
    """

    last: str = ""
    """The token behind the last answer; empty where it writes none: then the first of `stops` is put there."""
    between: str = ""
    """The token behind an earlier answer; for some templates it is the one that opens the next turn."""
    call: str = ""
    """The token behind a turn that calls tools; empty where there is none, or calls are not shown."""
    stops: tuple[str, ...] = ()
    """Tokens at which sampling ends, the one of answers first: what a model learns to end its turns with."""
    openings: frozenset[str] = frozenset({""})
    """What it writes by itself between the generation prompt and an answer, without white space."""
    closings: frozenset[str] = frozenset({""})
    """What it writes between an answer and the token behind it, without white space."""
    tail: str = ""
    """What it writes behind the last answer when that ends with no token."""
    parts: bool = False
    """Whether contents must be lists of parts."""
    calls: Literal["object", "text", "dropped"] = "dropped"
    """In which form it wants arguments of calls: an object, or that as JSON; or it shows no calls."""
    before_call: str = ""
    """What it writes between the generation prompt and the name of the first call of a turn that says nothing else."""
    tools: bool = False
    """Whether it shows declarations of tools."""
    header: str = ""
    """What the generation prompt adds to a conversation."""
    reasoning: str = ""
    """The key in which it looks for an assistant's thoughts; empty where it shows none."""


class ChatFormat:
    """A tokenizer's chat template with what the settings give it, and how it writes conversations.

    Args:
        tokenizer: whose template it is; one without has `template` "".
        arguments: variables of the template for all conversations.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", arguments: Mapping[str, object] | None = None) -> None:
        self.tokenizer = tokenizer
        self.arguments = dict(arguments or {})
        self._habits: dict[str, Habits] = {}
        self.not_shown: dict[tuple[object, ...], frozenset[tuple[int, str]]] = {}
        """By the build of conversations, what the template leaves out of them: `parts_not_shown` fills it in."""

    @functools.cached_property
    def template(self) -> str:
        """The template's text, empty without one; raises RowError where there are several and none is the default."""
        return template_of(self.tokenizer)

    @functools.cached_property
    def eos(self) -> str:
        """The tokenizer's end of a sequence, empty without one."""
        eos = self.tokenizer.eos_token
        return eos if isinstance(eos, str) else ""

    @functools.cached_property
    def _templates(self) -> tuple[str, str]:
        """Without tools and with some: a tokenizer may have one template of its own for these."""
        given: object = self.tokenizer.chat_template
        return self.template, str(given.get("tool_use", self.template)) if isinstance(given, dict) else self.template

    def marks(self, tools: list[Tool] | None) -> bool:
        """Whether the template marks what the model says with {% generation %}."""
        return bool(_GENERATION.search(self._templates[bool(tools)]))

    @property
    def variables(self) -> frozenset[str]:
        """Names that the template reads and does not set: those that arguments can give it."""
        return frozenset().union(*map(_variables_of, self._templates))

    def habits(self, arguments: Mapping[str, object] | None = None, tools: list[Tool] | None = None) -> Habits:
        """How it writes conversations that have these arguments of their own, and tools or none."""
        own = tools and self._templates[0] != self._templates[1]
        key = f"{bool(own)} {self.kind_of_arguments(arguments)}"
        if key not in self._habits:
            self._habits[key] = _Asking(self, arguments or {}, _TOOLS if own else None).habits()
        return self._habits[key]

    def kind_of_arguments(self, arguments: Mapping[str, object] | None) -> str:
        """What may change how conversations are written: values of those that are read, of long ones that they are.

        Rows may have instructions of their own in them, each another one: a template writes them, and asks no more than
        whether they are there.
        """
        read = self.read_of(arguments) if arguments else {}
        return repr(sorted((name, _kind_of_value(value)) for name, value in read.items()))

    def render(
        self,
        messages: Sequence[Message],
        tools: list[Tool] | None = None,
        arguments: Mapping[str, object] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of a conversation; raises RowError with the template's complaint."""
        return render_messages(
            self.prepared(messages, arguments, tools),
            self.tokenizer,
            tools=tools,
            arguments=self.read_of(self.arguments | dict(arguments or {})),
            add_generation_prompt=add_generation_prompt,
        )

    def read_of(self, arguments: Mapping[str, object] | None) -> dict[str, object]:
        """Those of a row's arguments that the template reads: others could be taken for settings of the rendering."""
        return {name: value for name, value in (arguments or {}).items() if name in self.variables}

    def prepared(
        self, messages: Sequence[Message], arguments: Mapping[str, object] | None, tools: list[Tool] | None
    ) -> list[dict[str, Any]]:
        """Messages in the form that the template wants."""
        habits = self.habits(arguments, tools)
        return [_prepared(message, habits) for message in messages]


def _kind_of_value(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONG else type(value).__name__


@functools.lru_cache(maxsize=64)
def _variables_of(template: str) -> frozenset[str]:
    from jinja2 import TemplateError, meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        environment = _compile_jinja_template(template).environment
        return frozenset(meta.find_undeclared_variables(environment.parse(template)))
    except (TemplateError, RecursionError):  # rendering says so, with the row's number
        return frozenset()


def stop_ids(tokenizer: "PreTrainedTokenizerFast", arguments: Mapping[str, object]) -> list[int]:
    """Ids of the tokens at which sampling ends, the one that ends answers first; raises RowError as `template` does.

    Example: of Qwen's base models, whose tokenizer's end is not their template's, [151645, 151643].
    """
    stops = ChatFormat(tokenizer, arguments).habits().stops
    return [int(tokenizer.convert_tokens_to_ids(stop)) for stop in stops]  # type: ignore[arg-type]  # of one, it is one


def _prepared(message: Message, habits: Habits) -> dict[str, Any]:
    made: dict[str, Any] = {name: value for name, value in message.items() if name != "weight"}
    if habits.parts and message["content"]:
        made["content"] = [{"type": "text", "text": message["content"]}]
    if habits.reasoning:
        for name in REASONING:
            if name in made and name != habits.reasoning:
                made.setdefault(habits.reasoning, made.pop(name))
    if habits.calls == "text" and "tool_calls" in made:
        made["tool_calls"] = [
            call
            | {
                "function": call["function"]
                | {"arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}
            }
            for call in message.get("tool_calls", [])
        ]
    return made


def squeezed(text: str) -> str:
    """A text without white space: what templates may change of a text that they write."""
    return "".join(text.split())


class _Asking:
    """Renders small conversations with one template, and reads what comes out."""

    def __init__(self, chat: ChatFormat, arguments: Mapping[str, object], tools: list[Tool] | None) -> None:
        self.chat, self.tools = chat, tools
        self.arguments = chat.read_of(chat.arguments | dict(arguments))
        self.parts = False
        self.before: tuple[dict[str, Any], ...] = ()
        """What the template wants before anything else: a system message."""
        added = chat.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | ({chat.eos} - {""})
        # A token that begins a sequence ends none, unless it is both.
        self.special = any_of({token for token in special if token == chat.eos or token != chat.tokenizer.bos_token})
        self.added = any_of({token.content for token in added} | ({chat.eos} - {""}))

    def habits(self) -> Habits:
        """All of them; without a template, or with one that refuses every question, the tokenizer's end is the only."""
        eos = (self.chat.eos,) if self.chat.eos else ()
        if not self.chat.template:
            return Habits(stops=eos)
        for self.before, self.parts in product(((), (_turn("system", _SYSTEM),)), (False, True)):
            whole = self._said(_turn("user", _ASKED), _turn("assistant", _SAID))
            if whole is not None and _SAID in whole:
                break
        else:
            return Habits(stops=eos)
        twice = self._said(*_two_exchanges())
        behind = whole.partition(_SAID)[2]
        last = self._first(behind)
        between, middle = "", ""
        if twice and _SAID in twice and _ASKED_AGAIN in twice:
            middle = twice.partition(_SAID)[2].partition(_ASKED_AGAIN)[0]
            between = self._first(middle)
        # Where earlier answers have the same behind them, before their end, the last one keeps it.
        kept = middle.partition(between)[0] if between else None
        reasoning, inside = self._reasoning(between)
        calls, call, before_call = self._calls(last or between)
        answer = last or between or self.chat.eos
        stops = [answer, "" if inside else between, call, self.chat.eos]
        return Habits(
            last=last,
            between=between,
            call=call,
            stops=tuple(dict.fromkeys(stop for stop in stops if stop)),
            openings=self._openings(whole, twice),
            closings=frozenset(
                {"", *(squeezed(text.partition(end)[0]) for text, end in ((behind, last), (middle, between)) if end)}
            ),
            tail="" if last or behind == kept else behind,
            parts=self.parts,
            calls=calls,
            before_call=before_call,
            tools=self._shows_tools(),
            header=self._header(),
            reasoning=reasoning,
        )

    def _said(self, *messages: dict[str, Any], tools: list[Tool] | None = None, ask: bool = False) -> str | None:
        """What is written; None where the template refuses."""
        tools = tools or self.tools
        messages = (*self.before, *messages)
        if self.parts:
            messages = tuple(
                message | {"content": [{"type": "text", "text": message["content"]}]} if message["content"] else message
                for message in messages
            )
        try:
            return render_messages(
                messages, self.chat.tokenizer, tools=tools, arguments=self.arguments, add_generation_prompt=ask
            )
        except RowError:
            return None

    def _first(self, text: str) -> str:
        """The first token that is no word, if possible a special one."""
        found = self.special.search(text) or self.added.search(text)
        return found.group() if found else ""

    def _openings(self, whole: str, twice: str | None) -> frozenset[str]:
        """What stands between a generation prompt and an answer that follows it."""
        found = {""}
        for text, said, before in (
            (whole, _SAID, _two_exchanges()[:1]),
            (twice, _SAID, _two_exchanges()[:1]),
            (twice, _SAID_AGAIN, _two_exchanges()[:3]),
        ):
            prompt = self._said(*before, ask=True)
            if text and prompt is not None and said in text and text.startswith(prompt):
                found.add(squeezed(text[len(prompt) : text.index(said)]))
        return frozenset(found)

    def _reasoning(self, between: str) -> tuple[str, bool]:
        """The key of thoughts, and whether the token behind an earlier answer also stands within one that has some."""
        for name in REASONING:
            text = self._said(_turn("user", _ASKED), _turn("assistant", _SAID) | {name: _THOUGHT})
            if text and _THOUGHT in text and _SAID in text:
                within = text[text.index(_ASKED) : text.index(_SAID)].partition(_THOUGHT)[2]
                return name, bool(between) and between in within
        return "", False

    def _calls(self, answer: str) -> tuple[Literal["object", "text", "dropped"], str, str]:
        """In which form calls are shown, the token behind a turn of calls, and what stands before the first name."""
        forms: list[tuple[Literal["object", "text"], object]] = [
            ("object", {"vkey": _VALUE}),
            ("text", json.dumps({"vkey": _VALUE})),
        ]
        for identity, (form, arguments) in product(_IDENTITIES, forms):
            text = self._called(identity, arguments)
            if text is None or _VALUE not in text or _CALLED not in text:
                continue
            # Python's own form of a mapping, or JSON within JSON: then the template wanted the other one.
            if f"'vkey': '{_VALUE}'" in text or f'\\"{_VALUE}' in text:
                continue
            before = self._before(text, _CALLED)
            behind = text[text.rindex(_VALUE) : text.index(_GIVEN) if _GIVEN in text else None]
            if answer and answer in behind:
                return form, answer, before
            # What also stands between two calls ends a call, and no turn.
            twice = self._called(identity, arguments, arguments) or ""
            inside = {*self.special.findall(twice[twice.find(_VALUE) : twice.rfind(_VALUE)])}
            return form, next((token for token in self.special.findall(behind) if token not in inside), ""), before
        return "dropped", "", ""

    def _before(self, text: str, word: str) -> str:
        """What stands in a turn before a word of it; empty where it cannot be told."""
        prompt = self._said(_turn("user", _ASKED), ask=True)
        # A prompt may open a thought that the turn does not have: then a turn that only speaks begins where it does.
        spoken = self._said(_turn("user", _ASKED), _turn("assistant", _SAID)) or _SAID
        begun = next((each for each in (prompt, spoken.partition(_SAID)[0]) if each and text.startswith(each)), None)
        if prompt and not begun:  # such a turn has one, too
            end = next((at for at, letters in enumerate(zip(prompt, text, strict=False)) if len({*letters}) > 1), 0)
            end = end if prompt[:end].endswith(">") else prompt.rfind("<", 0, end)
            begun = prompt[:end] if _OPENS.fullmatch(prompt, end) else None
        return text[len(begun) : text.index(word)] if begun else ""

    def _shows_tools(self) -> bool:
        """Whether a tool's name, description and parameters are all written."""
        text = self._said(_turn("user", _ASKED), tools=_tools(_CALLED, _SAYS, _VALUE), ask=True)
        return text is not None and all(word in text for word in (_CALLED, _SAYS, _VALUE))

    def _header(self) -> str:
        before, after = (self._said(_turn("user", _ASKED), ask=ask) for ask in (False, True))
        return after.removeprefix(before) if before and after and after.startswith(before) else ""

    def _called(self, identity: str, *arguments: object) -> str | None:
        calls = [
            {"id": identity.format(number), "type": "function", "function": {"name": _CALLED, "arguments": given}}
            for number, given in enumerate(arguments, start=1)
        ]
        calling = _turn("assistant", "") | {"tool_calls": calls}
        given = _turn("tool", _GIVEN) | {"name": _CALLED, "tool_call_id": identity.format(1)}
        asked = _turn("user", _ASKED)
        # With what follows, to see where the turn ends; alone for templates that know no results.
        return self._said(asked, calling, given, _turn("assistant", _SAID)) or self._said(asked, calling)


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _tools(name: str, says: str, parameter: str) -> list[Tool]:
    parameters = {"type": "object", "properties": {parameter: {"type": "string"}}}
    return [{"type": "function", "function": {"name": name, "description": says, "parameters": parameters}}]


_TOOLS = _tools("Vd1xaz", "Vd2xaz", "Vd3xaz")
"""Declared wherever a template for tools is asked."""


def _two_exchanges() -> list[dict[str, Any]]:
    roles = ("user", "assistant", "user", "assistant")
    return [_turn(*turn) for turn in zip(roles, (_ASKED, _SAID, _ASKED_AGAIN, _SAID_AGAIN), strict=True)]


def any_of(texts: set[str]) -> re.Pattern[str]:
    """What finds any of these texts, and none where there are none."""
    found = sorted((text for text in texts if text), key=len, reverse=True)  # one may begin like another
    return re.compile("|".join(map(re.escape, found)) or r"(?!)")
