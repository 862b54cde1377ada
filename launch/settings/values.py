"""What a configuration must not hold although pydantic would take it: true for 1, '5' for 5, '' for a name."""

import re
from functools import cache
from types import UnionType
from typing import Annotated, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

_MOST = 2**63
_NUMBER = re.compile(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*")
_LONGEST = 4096
"""Characters of a name, path or address."""
_FREE_TEXT = frozenset({"alphabet", "system_prompt", "query", "passage", "prompt", "stop"})
"""Fields whose text may hold any character; of these, items of `stop` must not be empty."""
_NAMED = frozenset({"columns", "train", "eval"})
"""Mappings whose values are names; those of others, such as env, may be empty."""


class Odd(NamedTuple):
    """A value that is refused."""

    location: tuple[str, ...]
    rule: str
    value: object


def odd_values(model: type[BaseModel], values: object, location: tuple[str, ...] = ()) -> list[Odd]:
    """What is refused in `values`, which are to become a `model`, with where it stands."""
    if not isinstance(values, dict):
        return []
    found = []
    for name, value in values.items():
        if field := model.model_fields.get(name):
            found += _odd(name, field.annotation, value, (*location, name))
    return found


def _odd(name: str, annotation: object, value: object, location: tuple[str, ...]) -> list[Odd]:
    kinds = _kinds(annotation)
    if isinstance(value, dict):
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        # Of a union, the section that `name` chooses; else the first, of which pydantic says what is wrong.
        named = [section for section in sections if _tag(section) == value.get("name")] or sections[:1]
        if named:
            return odd_values(named[0], value, location)
    if isinstance(value, dict | list | tuple):
        return _odd_items(name, annotation, value, location)
    rule = _rule(name, kinds, value)
    return [Odd(location, rule, value)] if rule else []


def _odd_items(name: str, annotation: object, value: dict | list | tuple, location: tuple[str, ...]) -> list[Odd]:
    found = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for inner in _items(annotation):
        for key, item in pairs:
            free = isinstance(value, dict) and isinstance(item, str) and name not in _NAMED
            found += [] if free else _odd(name, inner, item, (*location, str(key)))
    if isinstance(value, dict) and "" in value:
        found.append(Odd(location, "must have names that are not empty", value))
    return found


def _rule(name: str, kinds: frozenset[object], value: object) -> str:
    """What the value must be; empty where it may be what it is, or pydantic will say so."""
    # For Python true is an int, and pydantic reads a number out of a text.
    if bool not in kinds and kinds & {int, float}:
        return _number_rule(kinds, value)
    plain = str in kinds or any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)
    return _text_rule(name, value) if plain and isinstance(value, str) else ""


def _number_rule(kinds: frozenset[object], value: object) -> str:
    rule = "must be a number" if float in kinds else "must be a whole number"
    if isinstance(value, bool):
        return rule
    if isinstance(value, str) and str not in kinds:
        if _NUMBER.fullmatch(value):
            return f"{rule}, without quotes"
        # Where there are words beside numbers, pydantic says which.
        return "" if any(isinstance(kind, str) for kind in kinds) else rule
    return f"{rule} below 2^63" if isinstance(value, int) and abs(value) >= _MOST else ""


def _text_rule(name: str, value: str) -> str:
    if not value:
        return "" if name in _FREE_TEXT - {"stop"} else "must not be empty"
    if name in _FREE_TEXT:
        return ""
    if len(value) > _LONGEST:
        return f"must be at most {_LONGEST} characters"
    # ASCII's control characters, those of Latin-1, and halves of a pair in UTF-16.
    broken = any(ord(char) < 32 or 127 <= ord(char) < 160 or "\ud800" <= char <= "\udfff" for char in value)
    return "must be one line without control characters" if broken else ""


def _tag(model: type[BaseModel]) -> object:
    field = model.model_fields.get("name")
    return (get_args(field.annotation) or (None,))[0] if field else None


@cache
def _kinds(annotation: object) -> frozenset[object]:
    """The types that a value may have, without those of the items of a list or mapping, and the words."""
    annotation = getattr(annotation, "__value__", annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return frozenset(kind for part in get_args(annotation) for kind in _kinds(part))
    if origin is Literal:
        return frozenset(word for word in get_args(annotation) if isinstance(word, str))
    # list[...] and dict[...]: their items are those of `_items`.
    return frozenset() if origin else frozenset({annotation})


@cache
def _items(annotation: object) -> tuple[object, ...]:
    """Types of the items, where a value may be a list or mapping."""
    annotation = getattr(annotation, "__value__", annotation)
    origin, of = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _items(of[0])
    if origin in (Union, UnionType):
        return tuple(item for part in of for item in _items(part))
    return of[:1] if origin in (list, tuple) else of[1:] if origin is dict else ()
