"""Null is absent: rows say the same whichever source they are from.

A table has every column in every row, and Arrow gives every object in it the keys of all others: what a row has not is
null there. JSON says what it means: a null deep in an object of its own is left.
"""

from collections.abc import Collection
from typing import Any


def without_nulls(row: dict[str, object], *, filled: bool, kept: Collection[str] = ()) -> dict[str, object]:
    """The row without columns that are null, and its messages without keys that are; the row itself is not changed.

    Args:
        row: with names that are text, nested no deeper than a row may be.
        filled: the source may have filled in keys: objects at any depth lose those that are null, too. An item of a
            list that is null stays, as it has a place.
        kept: columns that may be null.
    """
    change = _without if filled else _messages_without
    return {name: change(value) for name, value in row.items() if value is not None or name in kept}


def _messages_without(value: Any) -> Any:
    """A list of messages without what is null in one; any other value as it is."""
    if not isinstance(value, list) or not any(map(_is_message_with_null, value)):
        return value
    return [
        {name: part for name, part in item.items() if part is not None} if _is_message_with_null(item) else item
        for item in value
    ]


def _is_message_with_null(value: object) -> bool:
    return isinstance(value, dict) and "role" in value and any(part is None for part in value.values())


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(part) for name, part in value.items() if part is not None}
    return [_without(part) for part in value] if isinstance(value, list) else value
