"""What is wrong with a configuration, from pydantic's errors: one line each, of field, rule and value, in our words."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import ErrorDetails

from actors.config_base import Unused
from actors.config_nodes import is_secret_setting
from actors.secret_text import ARGUMENTS, argument_is_secret, masked, masked_value, without_secrets_of
from launch.settings import names
from launch.settings import tree as settings
from launch.settings.values import Odd

_LONGEST_VALUE = 80
_LONGEST_NAME = 120
"""Characters of a value and of a dotted name that a line shows."""
_LONGEST_LINE = 600
_MOST_LINES = 40
"""Unknown fields that are told one by one."""
_BRANCHES = ("list[", "literal[", "dict[", "function-", "[key]")
"""How pydantic begins the names of types among which a value may have one; it puts them between those of fields."""
_FORMS = {("rollout", "engines"): ("number", "range")}
"""Field -> names of its forms, which pydantic puts behind it; what is wrong is told of one of them alone."""
_PATTERNS = {
    "run.name": "must be letters, digits, '.', '_' and '-', a letter or digit first",
    "reward.endpoints.N.url": "must begin with http:// or https://",
    "cluster.kubernetes.namespace": "must be at most 63 lower-case letters, digits and '-', a letter or digit first",
    r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$": "must be a Kubernetes name: lower-case letters, digits, '-' and '.'",
    "cluster.kubernetes.volume.mount": "must be an absolute path",
    "cluster.kubernetes.image": "must be the name of an image, such as registry/tandem:1-ray2.60.0",
}
"""Dotted name, or pattern of several fields -> the pattern in words."""
_NUMBERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than": lambda ctx: f"must be above {settings.limit_text(ctx['gt'])}",
    "greater_than_equal": lambda ctx: f"must be at least {settings.limit_text(ctx['ge'])}",
    "less_than": lambda ctx: f"must be below {settings.limit_text(ctx['lt'])}",
    "less_than_equal": lambda ctx: f"must be at most {settings.limit_text(ctx['le'])}",
    "multiple_of": lambda ctx: f"must be a multiple of {ctx['multiple_of']}",
    "finite_number": lambda ctx: "must be a finite number",
    "string_too_long": lambda ctx: f"must be at most {ctx['max_length']} characters",
    "string_too_short": lambda ctx: f"must be at least {ctx['min_length']} characters",
}


def problems(errors: list[ErrorDetails], odd: list[Odd], values: Mapping[str, object]) -> list[str]:
    """One line for each mistake: pydantic's errors, and what it would have taken; `values` is what was validated."""
    algorithm = values.get("algorithm")
    job = algorithm.get("name") if isinstance(algorithm, dict) else None
    job = job if isinstance(job, str) else None
    # These get hints of their own, which cost a search: see below.
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    places = {item.location for item in odd}
    lines = [f"{dotted([*item.location])}: {item.rule}, got {_got([*item.location], item.value)}" for item in odd]
    told = {dotted([*item.location]) for item in odd}
    for error in _without_branches(errors):
        if error["type"] != "extra_forbidden" and tuple(_location(error)) not in places:
            # A rule about several fields is no second mistake where the first of them is wrong in itself.
            lines += [line for line in _problem(error) if line.split(" ", 1)[0].rstrip(":") not in told]
    foreign = []
    for error in unknown:
        foreign += _unknown(_location(error), error["input"], job)
        if len(foreign) > _MOST_LINES:  # each costs a search by spelling
            foreign[_MOST_LINES:] = [f"config: unknown fields, too many to name them all, got {len(unknown)} or more"]
            break
    return [masked(line) for line in dict.fromkeys(foreign + lines)]  # each once, in order


def unused_defaults(errors: list[ErrorDetails]) -> dict[str, object]:
    """Dotted name -> default of each setting without effect, where pydantic found nothing else; else empty."""
    found = {}
    for error in errors:
        cause = error.get("ctx", {}).get("error")
        if not isinstance(cause, Unused):
            return {}
        found[".".join([*_location(error), cause.name])] = cause.default
    return found


def shown(value: object) -> str:
    """A value on one line of sane length, as YAML writes true, false and null, without secrets."""
    value = masked_value(value)
    if value is None or isinstance(value, bool):
        return settings.value_text(value)
    if isinstance(value, str):
        value = value[: _LONGEST_VALUE + 1]  # before repr(), which would write out all of it
    return _cut(repr(value), _LONGEST_VALUE)


def dotted(location: list[str]) -> str:
    """A dotted name on one line of sane length."""
    # A name may hold line breaks, or halves of characters that no terminal can show.
    return _cut(".".join(location).encode("unicode_escape", "backslashreplace").decode(), _LONGEST_NAME)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _problem(error: ErrorDetails) -> list[str]:
    location, kind, value = _location(error), error["type"], error.get("input")
    ctx = error.get("ctx", {})
    field = dotted(location)
    if kind == "value_error":
        name = location[-1] if location else ""
        message = _cut(" ".join(without_secrets_of({name: value}, str(ctx["error"])).split()), _LONGEST_LINE)
        if message.startswith(":"):  # about the field itself, not one below it
            return [f"{field}{message}"]
        return [f"{field}.{message}" if field else message]
    if kind == "missing" and location and location[-1].isdecimal():  # an item of a list of fixed length
        location, kind = location[:-1], "too_short"
        field = dotted(location)
    if kind == "missing":
        section = any(item.sections for item in settings.by_path().get(settings.generic(".".join(location)), ()))
        return [f"{field}: required,{f' such as {_example(location, None)},' if section else ''} got nothing"]
    if kind.startswith("union_tag"):
        return [_tag_problem(f"{field}.name", value)]
    if kind == "literal_error":
        return [_choice_problem(field, value, ctx["expected"])]
    if kind == "union":
        choices = [str(choice) for choice in settings.choices_at(field)]
        return [f"{field}: must be a {_type_of(location)}, got {_got(location, value)}{_meant(field, value, choices)}"]
    return [f"{field}: {_rule(kind, location, ctx, value) or error['msg']}, got {_got(location, value)}"]


def _got(location: list[str], value: object) -> str:
    # HTTP headers mostly carry keys, whatever they are called.
    hidden = "headers" in location or any(is_secret_setting(part) for part in location)
    given = [at for at, part in enumerate(location) if part in ARGUMENTS]
    hidden |= any(argument_is_secret(part) for at in given[:1] for part in location[at + 1 :])
    return "a value (not shown)" if hidden else shown(value)


def _rule(kind: str, location: list[str], ctx: dict[str, Any], value: object) -> str:
    """What the value must be."""
    if kind in _NUMBERS:
        return _NUMBERS[kind](ctx)
    if kind == "string_pattern_mismatch":
        field, pattern = settings.generic(".".join(location)), ctx["pattern"]
        return _PATTERNS.get(field) or _PATTERNS.get(pattern) or f"must match {pattern}"
    if kind.startswith(("model_", "dataclass_")):
        return f"must be a mapping of fields, such as {_example(location, value)}"
    if kind in ("too_short", "too_long", "tuple_type"):
        return f"must be a {_type_of(location)}"
    if kind == "list_type":
        item = shown(value) if isinstance(value, str | int | float) else "a, b"
        return f"must be a list, such as [{item}]"
    if kind == "dict_type":
        return "must be a mapping, such as {name: value}"
    if kind == "string_type":
        plain = isinstance(value, int | float)
        return "must be text, in quotes" if plain else "must be text"
    if kind == "string_unicode":
        return "must be text without broken characters"
    if kind.startswith("bool_"):
        return "must be true or false"
    if kind.startswith("int_"):
        return "must be a whole number"
    if kind.startswith("float_"):
        return "must be a number"
    return "must be text" if kind == "invalid_key" else ""


def _type_of(location: list[str]) -> str:
    items = settings.by_path().get(settings.generic(".".join(location)))
    return settings.type_text(items[0]) if items else "list of the right length"


def _example(location: list[str], value: object) -> str:
    """A section with the field that is given first: {train: ...}; a path or name given alone is most likely that."""
    fields = names.fields_of(".".join(location))
    # The first is as good as any: only fields of `algorithm` are several.
    below = [items[0] for name in fields for items in [settings.by_path()[_join(location, name)]]]
    required = [item.path.rpartition(".")[2] for item in below if item.required]
    text = isinstance(value, str)
    takes = [
        item.path.rpartition(".")[2] for item in below if text and value in settings.choices_of(item.field.annotation)
    ]
    # What most who give a plain value have meant by it.
    usual = [name for name in ("path", "ranks", "lr", "engines") if name in fields]
    first = (takes or required or usual or fields or ["field"])[0]
    plain = text and re.fullmatch(r"[\w./@:-]+", value)
    return f"{{{first}: {shown(value).strip(chr(39)) if plain else '...'}}}"


def _join(location: list[str], name: str) -> str:
    return settings.generic(".".join([*location, name]))


def _tag_problem(field: str, value: object) -> str:
    given = value.get("name") if isinstance(value, dict) else value
    choices = sorted(settings.jobs())
    if isinstance(value, dict) and "name" not in value:
        return f"{field}: required, one of {', '.join(choices)}, got nothing"
    if not isinstance(value, dict) and not isinstance(value, str):
        return f"{field.removesuffix('.name')}: must be a mapping of fields, such as {{name: grpo}}, got {shown(value)}"
    return f"{field}: must be one of {', '.join(choices)}, got {shown(given)}{_meant(field, given, choices)}"


def _choice_problem(field: str, value: object, expected: str) -> str:
    # pydantic lists them as 'a', 'b' or 'c'.
    choices = [name.strip("'") for name in expected.replace(" or ", ", ").split(", ")]
    rule = f"one of {expected}" if len(choices) > 1 else expected
    return f"{field}: must be {rule}, got {shown(value)}{_meant(field, value, choices)}"


def _meant(field: str, value: object, choices: list[str]) -> str:
    return names.value_hint(field, value) or names.nearest_name(str(value), choices)


def _without_branches(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """One error where a value may be of several types and is of none: of the type that it came furthest as."""
    found: dict[tuple[str, ...], ErrorDetails] = {}
    kept = []
    for error in errors:
        branch = next((at for at, part in enumerate(error["loc"]) if _is_branch(str(part))), None)
        if branch is None:
            kept.append(error)
            continue
        field = tuple(map(str, error["loc"][:branch]))
        known = found.get(field)
        if known is None or len(error["loc"]) > len(known["loc"]):
            # Further than the branch: the value was read as this type, and something within it is wrong, or its size.
            further = len(error["loc"]) > branch + 1 or error["type"] in _NUMBERS
            found[field] = error if further else {**error, "type": "union"}
    return kept + list(found.values())


def _location(error: ErrorDetails) -> list[str]:
    """Field names and indices, without the names of an algorithm or of a type among several."""
    location = [str(part) for part in error["loc"]]
    if location[:1] == ["algorithm"]:
        del location[1:2]  # the tag: pydantic puts it behind the field of a tagged union
    for field, forms in _FORMS.items():
        if location[: len(field)] == [*field] and location[len(field) : len(field) + 1] in [[form] for form in forms]:
            del location[len(field)]
    return [part for part in location if not _is_branch(part)]


def _is_branch(part: str) -> bool:
    plain = "str", "int", "constrained-int", "float", "bool"
    return part in plain or part.startswith(_BRANCHES) or part in settings.section_choices()


def _unknown(location: list[str], value: object, job: str | None) -> list[str]:
    """The lines about an unknown field; a section that is none of ours is told by those of its fields that we know."""
    told = [
        _unknown_line(path, item, hint)
        for path, item in _leaves(location, value)
        if (hint := names.certain_hint(".".join(path), job))
    ]
    if told and isinstance(value, dict):
        return told
    return [_unknown_line(location, value, names.hint(".".join(location), job))]


def _unknown_line(location: list[str], value: object, hint: str) -> str:
    path = ".".join(location)
    # A dotted name is for the command line: in a file, sections are nested.
    if "." in location[-1] and settings.generic(path) in settings.by_path():
        nested = "{".join(f"{part}: " for part in path.split("."))
        hint = f" (in a file: {nested}...{'}' * path.count('.')})"
    return f"{dotted(location)}: unknown field{hint}, got {_got(location, value)}"


def _leaves(location: list[str], value: object) -> list[tuple[list[str], object]]:
    if not isinstance(value, dict) or not value:
        return [(location, value)]
    return [leaf for name, item in value.items() for leaf in _leaves([*location, str(name)], item)]
