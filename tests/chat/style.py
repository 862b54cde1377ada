"""A chat template's style: what it writes for an assistant's turn, and what it cannot say.

What a style declares is written by hand from the template's text alone; `tests/test_chat_templates_data.py` holds every
declaration against what transformers renders.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the assistant calls.

    Example: Call("weather", {"city": "Oslo"}).json() is '{"city": "Oslo"}'
    """

    name: str
    arguments: dict[str, object]
    """Without what Arrow has filled in."""
    id: str = ""

    def json(self) -> str:
        """The arguments as json.dumps and the filter tojson write them."""
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a row says of one message of the assistant."""

    content: str
    """Empty where the row has null."""
    reasoning: str | None = None
    """The row's reasoning_content."""
    calls: tuple[Call, ...] = ()
    last: bool = True
    """No message follows."""
    current: bool = True
    """No user's message follows."""


Words = Callable[[Turn], str | None]
"""The exact text between a turn's header and its end; None where the template leaves a part of the turn away."""


def as_given(turn: Turn) -> str | None:
    """Content as it is, for templates that know nothing else."""
    return None if turn.calls or turn.reasoning else turn.content


def stripped(turn: Turn) -> str | None:
    """The same, for templates that strip white space from both ends."""
    return None if turn.calls or turn.reasoning else turn.content.strip()


def behind_space(turn: Turn) -> str | None:
    """The same, for those whose generation prompt ends without the space that they write before a content."""
    return None if turn.calls or turn.reasoning else " " + turn.content


def after_space(turn: Turn) -> str | None:
    """The same, for those that strip it as well."""
    return None if turn.calls or turn.reasoning else " " + turn.content.strip()


def split_thought(content: str) -> tuple[str, str]:
    """What stands within <think> in a content, and what after it; line breaks around both are the template's own."""
    if "</think>" not in content:
        return "", content
    thought = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
    return thought, content.split("</think>")[-1].lstrip("\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatStyle:
    """A chat template, the tokens it is written with, and what it makes of a row."""

    name: str
    """Also of its file."""
    kind: Literal["bytes", "llama2", "llama3", "gemma"]
    """Of the tokenizer that such models have."""
    eos: str
    bos: str | None = None
    """The tokenizer's; a template that begins with it writes it itself."""
    special: tuple[str, ...] = ()
    """Further special tokens."""
    headers: tuple[str, ...]
    """What stands right before an assistant's words; the first is what the generation prompt ends with, after a user's
    message."""
    opens: str = ""
    """What the generation prompt writes after that: the beginning of a thought."""
    ends: tuple[str, ...]
    """What may end a turn that others follow: exactly one does."""
    last_ends: tuple[str, ...] = ()
    """What may end the conversation's last turn, where that is something else."""
    call_ends: tuple[str, ...] = ()
    """What may end a turn that calls tools, where that is something else."""
    inner_ends: bool = False
    """What ends an earlier turn also stands within turns, so that no sampler may stop there."""
    ids_for_names: bool = False
    """Calls are written with their ids in place of their names."""
    unended: bool = False
    """The template writes no end of its own after the last turn."""
    misled: bool = False
    """Its markers of what is to be trained are not around the assistant's turns."""
    words: Words = as_given
    system: bool = True
    """System messages at the beginning are rendered."""
    system_before_answers: bool = True
    """They are so where the conversation ends with another's message than the user's, too."""
    developer: bool = False
    """The same for the developer's."""
    any_order: bool = True
    """Roles may follow each other in any order; otherwise user and assistant alternate, and the user begins."""
    tools: bool = False
    """Descriptions of tools are rendered."""
    calls: int = 0
    """How many calls in one turn are rendered; 0: none."""
    results: bool = False
    """What a tool has said is rendered."""
    after_calls: bool = False
    """It is so after calls alone."""
    arguments: Literal["object", "text", "both"] = "object"
    """In which form calls have their arguments."""
    short_ids: bool = False
    """A call must have an id of nine letters and digits."""
    strings: bool = True
    """Contents may be strings."""
    parts: bool = False
    """Contents may be lists of parts."""

    @property
    def template(self) -> str:
        return (TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8")

    def ends_of(self, turn: Turn) -> tuple[str, ...]:
        """What may end this turn."""
        if turn.calls and self.call_ends:
            return self.call_ends
        return self.last_ends if turn.last and self.last_ends else self.ends
