"""YAML of manifests, by PyYAML: a stable order, and quotes that every reader takes for the same text.

Kubernetes' parsers mix YAML 1.1 and 1.2, where `on`, `1e3`, `0o17`, `12:30:45` or `1_000` may be text or not; PyYAML
quotes for the first one alone. So every string and key is quoted unless it is plainly a word, and nothing is folded.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

_WORD = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
"""No colon, space, sign or digit first: neither number, date, time, anchor, tag nor flow."""
# Words, and yet a truth value, null or number to some reader of YAML.
_SPECIAL = {"true", "false", "yes", "no", "on", "off", "y", "n", "null", "none", "nan", "inf", "_"}
_FIRST = ("apiVersion", "kind", "metadata", "spec")
_TEXT = "tag:yaml.org,2002:str"


class _Dumper(yaml.SafeDumper):
    """Of manifests: no anchors, and strings as this module says."""

    def ignore_aliases(self, data: object) -> bool:
        """What is there twice is written twice."""
        return True


def dump(documents: Sequence[object]) -> str:
    """Documents as YAML, divided by `---`; apiVersion, kind, metadata and spec first, other keys as they come.

    Raises:
        ValueError: a value that is no mapping with text as keys, list, text, finite number, truth value or None.
    """
    texts = [
        yaml.dump(_ordered(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
        for document in documents
    ]
    return "---\n".join(text.removesuffix("...\n") for text in texts)


def _ordered(document: object) -> object:
    if not isinstance(document, Mapping):
        return document
    first = [key for key in _FIRST if key in document]
    return {key: document[key] for key in [*first, *(key for key in document if key not in first)]}


def _text(dumper: Any, text: str) -> yaml.ScalarNode:
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError(f"text must be valid Unicode, got {text!r}")
    plain = _WORD.fullmatch(text) and text.lower() not in _SPECIAL
    return dumper.represent_scalar(_TEXT, text, style=None if plain else "|" if _is_block(text) else '"')


def _mapping(dumper: Any, mapping: Mapping[object, object]) -> yaml.MappingNode:
    for key in mapping:
        if not isinstance(key, str):
            raise ValueError(f"a key must be text, got {key!r}")
    return dumper.represent_mapping("tag:yaml.org,2002:map", mapping.items())


def _list(dumper: Any, items: Sequence[object]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items)


def _float(dumper: Any, number: float) -> yaml.ScalarNode:
    if not math.isfinite(number):
        return _refuse(dumper, number)
    return dumper.represent_float(number)


def _refuse(dumper: Any, value: object) -> yaml.ScalarNode:
    raise ValueError(f"must be a mapping, list, text, finite number, truth value or None, got {value!r}")


def _is_block(text: str) -> bool:
    """Whether a literal block keeps the text: lines of printable characters, none that begins or ends with a blank."""
    lines = text.removesuffix("\n").split("\n")
    return (
        "\n" in text  # a reader counts the first line's blanks as indentation, and drops empty lines at the end
        and bool(lines[0])
        and bool(lines[-1])
        and not lines[0].startswith(" ")
        and all(line == line.rstrip(" ") and line.isprintable() for line in lines)
    )


_Dumper.yaml_representers = {kind: yaml.SafeDumper.yaml_representers[kind] for kind in (bool, int, type(None))}
_Dumper.yaml_representers |= {str: _text, float: _float, list: _list, tuple: _list, dict: _mapping}
_Dumper.yaml_multi_representers = {Mapping: _mapping, object: _refuse}
