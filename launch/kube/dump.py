"""YAML of manifests: a stable order, and quotes that every reader takes for the same text.

Kubernetes' parsers mix YAML 1.1 and 1.2, where `on`, `1e3`, `0o17`, `12:30:45` or `1_000` may be text or not. So every
string and key is quoted unless it is plainly a word, and nothing is folded.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

_WORD = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
"""No colon, space, sign or digit first: neither number, date, time, anchor, tag nor flow."""
# Words, and yet a truth value, null or number to some reader of YAML.
_SPECIAL = {"true", "false", "yes", "no", "on", "off", "y", "n", "null", "none", "nan", "inf", "_"}
_FIRST = ("apiVersion", "kind", "metadata", "spec")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_LONGEST_KEY = 1000
"""YAML 1.1 reads a key before its colon only up to 1024 characters."""


def dump(documents: Sequence[object]) -> str:
    """Documents as YAML, divided by `---`; apiVersion, kind, metadata and spec first, other keys as they come.

    Raises:
        ValueError: a value that is no mapping with text as keys, list, text, finite number, truth value or None.
    """
    texts = ["\n".join(_lines(_ordered(document))) + "\n" for document in documents]
    return "---\n".join(texts)


def _ordered(document: object) -> object:
    if not isinstance(document, Mapping):
        return document
    first = [key for key in _FIRST if key in document]
    return {key: document[key] for key in [*first, *(key for key in document if key not in first)]}


def _lines(value: object) -> Iterator[str]:
    """A value at the left margin."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"a key must be text, got {key!r}")
            name = _text(key)
            if len(name) > _LONGEST_KEY:  # a key behind `?` may be of any length
                yield f"? {name}"
                name = ""
            yield from _item(f"{name}:", item)
    elif isinstance(value, list | tuple) and value:
        for item in value:
            lines = list(_lines(item)) if _has_lines(item) else list(_item("", item))
            # `_item` puts a blank before a value, as after a name; here the dash has one.
            yield f"- {lines[0].removeprefix(' ')}"
            yield from (f"  {line}" if line else "" for line in lines[1:])
    else:
        yield from (line.removeprefix(" ") for line in _item("", value))


def _item(before: str, value: object) -> Iterator[str]:
    """`before` and a value, on one line if that is possible."""
    if _has_lines(value):
        yield before
        # Lists begin in the column of their name, as kubectl writes them.
        indent = "  " if isinstance(value, Mapping) else ""
        yield from (f"{indent}{line}" if line else "" for line in _lines(value))
    elif isinstance(value, str) and _is_block(value):
        # |- says that the last line has no end, which a bare | would add.
        yield f"{before} |" if value.endswith("\n") else f"{before} |-"
        yield from (f"  {line}" if line else "" for line in value.removesuffix("\n").split("\n"))
    else:
        yield f"{before} {_scalar(value)}"


def _has_lines(value: object) -> bool:
    return bool(value) and isinstance(value, Mapping | list | tuple)


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):  # before int: True is one, too
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        # YAML 1.1 takes 1e-06 for text: it wants a point.
        mantissa, sign, exponent = repr(value).partition("e")
        return (mantissa if "." in mantissa else f"{mantissa}.0") + sign + exponent
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    raise ValueError(f"must be a mapping, list, text, finite number, truth value or None, got {value!r}")


def _text(text: str) -> str:
    """A string on one line: plain, or in double quotes, where JSON's and YAML's escapes agree."""
    if _WORD.fullmatch(text) and text.lower() not in _SPECIAL:
        return text
    return '"' + "".join(_ESCAPES.get(character) or _escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"text must be valid Unicode, got {character!r}")
    if 0x20 <= code < 0x7F or (character.isprintable() and code not in (0x2028, 0x2029, 0xFEFF)):
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_block(text: str) -> bool:
    """Whether a literal block keeps the text: lines of printable characters, none that begins or ends with a blank."""
    lines = text.removesuffix("\n").split("\n")
    return (
        "\n" in text  # a reader counts the first line's blanks as indentation, and drops empty lines at the end
        and bool(lines[0])
        and bool(lines[-1])
        and not lines[0].startswith(" ")
        and all(line == line.rstrip(" ") and all(_escaped(item) == item for item in line) for line in lines)
    )
