"""The run's YAML file and its dotted overrides, as plain values. Scalars are read by YAML 1.2's core schema.

YAML 1.1, which PyYAML implements, takes 1e-6 for text, `on` for a truth value and 2026-01-02 for a date; a person who
writes them means a number, a word and a name. What is quoted stays text in both.
"""

import difflib
import os
import re
import stat
from pathlib import Path

import yaml

from actors.config import UserError
from actors.secret_text import argument_is_secret, masked, names_secret

_MOST_BYTES = 2**16
"""Size of a configuration: one of all fields has some 10 thousand, and PyYAML reads 20 to 100 thousand a second."""
_MOST_VALUES = 20_000
"""Values of a configuration, each counted as often as an alias stands for it."""
_DEEPEST = 40
_MOST_DIGITS = 40
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
_KINDS: dict[type, str] = {list: "a list", str: "a text", bool: "true or false"}
"""What a file holds that is no mapping."""
_MERGE = "tag:yaml.org,2002:merge"  # `<<: *base`, which YAML 1.2 has dropped and files of people have
_TEXT = "tag:yaml.org,2002:str"
_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in (*_CORE_SCHEMA, "str", "seq", "map"))
"""Types that values may have."""


class _Loader(yaml.SafeLoader):
    """Builds plain values only, and resolves plain scalars by `_CORE_SCHEMA`."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own)

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _require_plain(node, {}, 0)
        return node


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > _MOST_DIGITS:
        raise _Refused(f"a number must have at most {_MOST_DIGITS} digits, got {len(text)}", node)
    # 0o17 and 0x1f: Python's own int(text, 0) refuses 007, which is 7 here.
    bases = {"0o": 8, "0x": 16}
    return int(text[2:], bases[text[:2]]) if text[:2] in bases else int(text)


for _type, (_pattern, _first) in _CORE_SCHEMA.items():  # in this order: an integer looks like a float, too
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(f"^(?:{_pattern})$"), [*_first])
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])  # nothing behind a colon is null, too
_Loader.add_implicit_resolver(_MERGE, re.compile("^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class _Refused(yaml.YAMLError):
    """What YAML allows and a configuration does not, with the node that shows where."""

    def __init__(self, rule: str, node: yaml.Node) -> None:
        super().__init__(f"{rule} (line {node.start_mark.line + 1})")


def _require_plain(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """Number of values of a node, each alias counted with what it stands for; raises _Refused.

    `sizes` holds those of the nodes that have been counted: an alias is the node itself, so a file of a few lines may
    stand for gigabytes, or hold itself (0: still being counted).
    """
    if depth > _DEEPEST:
        raise _Refused(f"must be nested at most {_DEEPEST} deep, got more", node)
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _Refused("an alias must not stand for what it is part of", node)
        return sizes[id(node)]
    if node.tag not in _PLAIN:
        raise _Refused(f"tags are not allowed, got {node.tag.replace('tag:yaml.org,2002:', '!!')[:80]}", node)
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        _require_keys(node)
        # Names are plain text, and count for nothing.
        size += sum(_require_plain(value, sizes, depth + 1) for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_require_plain(value, sizes, depth + 1) for value in node.value)
    else:
        _require_text(node.value, node)
    if size > _MOST_VALUES:
        raise _Refused(f"must hold at most {_MOST_VALUES} values, aliases counted with what they stand for", node)
    sizes[id(node)] = size
    return size


def _require_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == _MERGE:
            continue
        if not isinstance(key, yaml.ScalarNode):
            raise _Refused("a name must be text, got a list or mapping", key)
        # `yes: 1` has a text for a name by the core schema; `1: a` and `null: a` have not.
        if key.tag != _TEXT:
            quoted = f" (in quotes: '{key.value[:40]}')" if key.value else ""
            raise _Refused(f"a name must be text{quoted}, got {key.value[:40] or 'nothing'}", key)
        _require_text(key.value, key)
        if key.value in lines:
            raise _Refused(f"{key.value[:80]!r} must be given once, got it in line {lines[key.value]} too", key)
        lines[key.value] = key.start_mark.line + 1


def _require_text(text: str, node: yaml.Node) -> None:
    """Refuses what no file name, label or log can hold: NUL, and halves of characters."""
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text):
        raise _Refused("text must be without NUL and broken characters, got some", node)


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's own types, as Kubernetes reads them, of documents as small and as flat as a configuration must be.

    Loading raises YAMLError for others, or RecursionError where they are nested too deeply to be told.
    """

    def compose_document(self) -> yaml.Node | None:
        """A document's nodes."""
        node = super().compose_document()
        if node is not None:
            _require_small(node, {}, 0)
        return node


def _require_small(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """As `_require_plain`, of whatever types."""
    if depth > _DEEPEST:
        raise _Refused(f"must be nested at most {_DEEPEST} deep, got more", node)
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _Refused("an alias must not stand for what it is part of", node)
        return sizes[id(node)]
    sizes[id(node)] = 0
    parts = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MOST_DIGITS:
        raise _Refused(f"a number must have at most {_MOST_DIGITS} digits, got {len(node.value)}", node)
    size = 1 + sum(_require_small(part, sizes, depth + 1) for part in parts)
    if size > _MOST_VALUES:
        raise _Refused(f"must hold at most {_MOST_VALUES} values, aliases counted with what they stand for", node)
    sizes[id(node)] = size
    return size


def read_yaml(path: str) -> dict[str, object]:
    """Parse a YAML file into a mapping; raises UserError when it is missing, malformed or no mapping."""
    values = parse(_text_of(path), path)
    if not isinstance(values, dict):
        got = "nothing" if values is None else _KINDS.get(type(values), "a number")
        raise UserError(f"{path}: must hold a mapping of sections, such as algorithm: {{name: grpo}}, got {got}")
    return values


def _text_of(path: str) -> str:
    """The file's text; raises UserError for what is no file of text of a sane size, without waiting for a pipe."""
    try:
        # Not opened before: to open a pipe would wait for a writer.
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
            raise UserError(f"config file: must be a file, got {kind}, {path}")
        with open(path, "rb") as file:
            # One more tells that there is more, whatever size the file has said it has.
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "no file name"
        others = [str(other) for other in Path(path).parent.glob("*.yaml")] if len(path) < 1000 else []
        near = difflib.get_close_matches(path, [other for other in others if other != path], 1)
        hint = f" (did you mean {near[0]}?)" if near and isinstance(error, FileNotFoundError) else ""
        if "=" in path and not near:
            hint = " (CONFIG comes first, overrides after it)"
        raise UserError(f"config file: cannot be read ({reason}), got {path}{hint}") from None
    if len(content) > _MOST_BYTES:
        raise UserError(f"config file: must be at most {_MOST_BYTES} bytes, got more, {path}")
    try:
        return content.decode("utf-8-sig")  # with or without the mark that editors on Windows put first
    except UnicodeDecodeError:
        raise UserError(f"config file: cannot be read (not UTF-8 text), got {path}") from None


def apply_overrides(values: dict[str, object], overrides: list[str]) -> dict[str, object]:
    """Set dotted keys: `policy.optimizer.lr=1e-4`. Raises UserError for an override without `=`."""
    for override in overrides:
        key, sign, text = override.partition("=")
        *parents, leaf = key.split(".")
        if not sign or not all([*parents, leaf]):
            got = "one (not shown)" if names_secret(override) else _short(masked(override))
            raise UserError(f"override: must look like section.field=value, got {got}")
        if len(parents) >= _DEEPEST:
            got = "one (not shown)" if names_secret(override) else _short(masked(override))
            raise UserError(f"override: must have at most {_DEEPEST} names before =, got {got}")
        section = values
        for depth, name in enumerate(parents):
            # `critic:` with nothing behind it is null, and critic.lr=1e-5 makes a section of it. So is `auto` decided.
            if section.get(name) in (None, "auto"):
                section[name] = {}
            below = section[name]
            whole = _short(".".join(parents[: depth + 1]))
            if isinstance(below, list):
                raise UserError(f"override {_short(key)}: {whole} is a list, to be given whole: {whole}=[a, b]")
            if not isinstance(below, dict):
                got = "a value (not shown)" if argument_is_secret(key) else _short(masked(str(below)))
                raise UserError(f"override {_short(key)}: {whole} holds no fields, got {got} there")
            section = below
        section[leaf] = parse(text, f"override {_short(key)}")
    return values


def parse(text: str, where: str) -> object:
    """The value of a YAML text; raises UserError, which names `where`, when it is malformed."""
    if _brackets(text) > 5 * _DEEPEST:  # PyYAML would take seconds to get there; brackets in text are rarely so many
        raise UserError(f"{where}: must be nested at most {_DEEPEST} deep, got more")
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: it builds no objects
    except _Refused as error:  # before YAMLError, of which it is one
        raise UserError(f"{where}: {error}") from None
    except RecursionError:
        raise UserError(f"{where}: must be nested at most {_DEEPEST} deep, got more") from None
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{where}: {_malformed(error)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{where}: text must be without NUL and broken characters, got some (line {line})") from None
    except (yaml.YAMLError, ValueError, KeyError) as error:  # the last two: !!int x, !!bool x
        raise UserError(f"{where}: not valid YAML, {_one_line(error)}") from None


def _malformed(error: yaml.MarkedYAMLError) -> str:
    """What PyYAML found, with the line; in our words where the text most likely is one that needs quotes."""
    mark, problem = error.problem_mark or error.context_mark, str(error.problem or error.context)
    line = f" (line {mark.line + 1})" if mark else ""
    # `*` and `&` begin aliases and anchors: a glob, or a title, that was not quoted.
    first = {"while scanning an alias": "*", "while scanning an anchor": "&"}.get(str(error.context))
    if found := re.match(r"found character '(.)' that cannot start any token", problem):
        first = found[1]
    if problem.startswith("found undefined alias"):
        first = "*"
    if first and first.isprintable():
        return f"not valid YAML, a text that begins with {first} must be in quotes{line}"
    tabs = " (indent with spaces, not tabs)" if "'\\t'" in problem else ""
    return f"not valid YAML, {_one_line(problem)}{line}{tabs}"


def _brackets(text: str) -> int:
    """How many brackets are open at one time."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[{\]}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]


def _short(value: object) -> str:
    """What was given, on one line of sane length."""
    text = str(value) if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
