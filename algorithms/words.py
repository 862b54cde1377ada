"""Values in plain words for messages, and the valid name that is most like a wrong one."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from types import UnionType


def shorten(text: str, limit: int = 80) -> str:
    """`text` quoted on one line, its middle left out when longer than `limit` characters."""
    half = limit // 2
    return repr(text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}")


def kind_of(value: object) -> str:
    """What a value is in plain words, and (shortened) itself, for messages."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str | list | tuple | dict) and not value:
        return f"{'' if value == '' else 'an '}empty {noun_of(value).removeprefix('a ')}"
    if isinstance(value, str):
        return f"{'text' if value.strip() else 'blank text'} {_cut(value)!r}"
    if isinstance(value, int | float | list | tuple | dict):
        return f"{noun_of(value)} {_cut(repr(value))}"
    return noun_of(value)


def noun_of(value: object) -> str:
    """What kind of value it is, in plain words."""
    if value is None:
        return "null"
    nouns: dict[type | UnionType, str] = {
        bool: "a truth value",
        str: "text",
        int | float: "a number",
        list | tuple: "a list",
        dict: "a mapping",
    }
    found = (noun for kind, noun in nouns.items() if isinstance(value, kind))
    return next(found, f"an object of the class {type(value).__name__}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint with the valid name most like `name`, or nothing."""
    near = difflib.get_close_matches(name, list(valid), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def nearest_file(path: Path) -> str:
    """A hint with the file beside `path` whose name is most like its own, or nothing."""
    if str(path).startswith("~"):
        return f" (~ is not expanded in a configuration: write {path.expanduser()})"
    if not path.parent.is_dir():
        return ""
    # A file without an ending is no data, and no code, that could be meant.
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix and entry.is_file())
    near = difflib.get_close_matches(path.name, names, 1, 0.7)  # endings are alike anyway
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
