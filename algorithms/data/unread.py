"""What rows hold and nothing reads, by name: a column, a key of messages, an argument of the template."""

from collections.abc import Iterable, Iterator, Sequence

from algorithms.config import DataConfig
from algorithms.data.chat_format import ChatFormat
from algorithms.data.conventions import Convention, Use, columns_read
from algorithms.data.messages import unknown_keys
from algorithms.data.readers import Dialogue, Judgement, Preference
from algorithms.data.sources import Row

_MOST = 8
"""Names in a line."""


def unread(
    rows: Sequence[Row],
    examples: Iterable[object],
    convention: Convention,
    chat: ChatFormat,
    use: Use,
    data: DataConfig,
    field: str,
) -> list[str]:
    """A line for columns, keys of messages, and arguments of the chat template that nothing reads.

    Columns of prompts are for rewards. Without a tokenizer, columns alone are looked at.
    """
    found = [] if use == "rl" else _columns(rows, columns_read(convention, data, use), field)
    return found + (_keys(examples, chat, field) if chat.tokenizer is not None else [])


def _columns(rows: Sequence[Row], read: set[str], field: str) -> list[str]:
    names = sorted({name for row in rows for name in row} - read)
    return [f"{field}: nothing reads {_listed('column', names)}"] if names else []


def _keys(examples: Iterable[object], chat: ChatFormat, field: str) -> list[str]:
    keys, arguments = set[str](), set[str]()
    for example in examples:
        for dialogue in _dialogues(example):
            keys |= unknown_keys(dialogue.messages)
            arguments |= dialogue.arguments.keys()
    # By the text: a template may read a key in any way.
    keys = {name for name in keys if name not in chat.template}
    if arguments and chat.template:
        arguments -= chat.variables
    found = [f"{field}: the chat template reads no {_listed('key', sorted(keys))} of messages"] if keys else []
    if arguments:
        found.append(f"{field}: the chat template reads no {_listed('argument', sorted(arguments))} of rows")
    return found


def _dialogues(example: object) -> Iterator[Dialogue]:
    if isinstance(example, Dialogue):
        yield example
    elif isinstance(example, Preference):
        yield from _dialogues(example.chosen)
        yield from _dialogues(example.rejected)
    elif isinstance(example, Judgement):
        yield from _dialogues(example.answer)


def _listed(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
    return f"{what}{'s' if len(names) > 1 else ''} {shown}"
