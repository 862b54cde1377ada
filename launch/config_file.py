"""The run's YAML file and its dotted overrides, as plain values. Scalars are read by YAML 1.2's core schema.

YAML 1.1, which PyYAML implements, takes 1e-6 for text, `on` for a truth value and 2026-01-02 for a date; a person who
writes them means a number, a word and a name. What is quoted stays text in both.
"""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from actors.config import UserError

_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
"""Type -> what a plain scalar of that type looks like, and how it may begin (YAML 1.2.2, section 10.3.2)."""


class _Loader(yaml.SafeLoader):
    """Builds plain values only, and resolves plain scalars by `_CORE_SCHEMA`."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    bases = {"0o": 8, "0x": 16}
    return int(text[2:], bases[text[:2]]) if text[:2] in bases else int(text)


for _type, (_pattern, _first) in _CORE_SCHEMA.items():  # in this order: an integer looks like a float, too
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(f"^(?:{_pattern})$"), [*_first])
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def read_yaml(path: str) -> dict[str, Any]:
    """Parse a YAML file into a mapping; raises UserError when it is missing, malformed or no mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        near = difflib.get_close_matches(path, map(str, Path(path).parent.glob("*.yaml")), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"config file: cannot be read ({reason}), got {path}{hint}") from None
    values = parse(text, path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold a mapping of sections, got {type(values).__name__}")
    return values


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Set dotted keys: `policy.optimizer.lr=1e-4`. Raises UserError for an override without `=`."""
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"override: must look like section.field=value, got {override!r}")
        section = values
        *parents, leaf = key.split(".")
        for name in parents:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise UserError(f"override {key}: {name} holds no fields, got {override!r}")
        section[leaf] = parse(text, f"override {key}")
    return values


def parse(text: str, where: str) -> Any:
    """The value of a YAML text; raises UserError, which names `where`, when it is malformed."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: it builds no objects
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML, {' '.join(str(error).split())}") from None
