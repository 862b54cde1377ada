"""The tree of all settings, as the sections declare it: dotted name, type, default, range, text, jobs that have it.

Items of lists and of sections with free names are N and NAME: reward.models.N.path, algorithm.tasks.NAME.weight.
"""

import re
import types
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from algorithms.config import AlgorithmConfig
from launch.config import RunConfig


@dataclass(frozen=True, slots=True)
class Setting:
    """One field, or one of several that share a dotted name: `algorithm.loss` of grpo is another than that of dpo."""

    path: str
    field: FieldInfo
    jobs: tuple[str, ...]
    """Names of the algorithms whose `algorithm` section has it; empty for a field of another section."""
    within: BaseModel | None = None
    """Default of its section, which may give it another value than its own default."""

    @property
    def sections(self) -> list[type[BaseModel]]:
        """What stands below it, if it is a section, or a list or mapping of sections."""
        return _sections(self.field.annotation)

    @property
    def text(self) -> str:
        """Its docstring on one line."""
        return " ".join((self.field.description or "").split())

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.field.is_required()


def jobs() -> dict[str, type[BaseModel]]:
    """Name of each algorithm -> its section."""
    # An alias that was declared as one has its type in __value__.
    union, *_ = get_args(getattr(AlgorithmConfig, "__value__", AlgorithmConfig))
    return {get_args(model.model_fields["name"].annotation)[0]: model for model in get_args(union)}


@cache
def settings() -> tuple[Setting, ...]:
    """Every setting, in the order of the sections; one that several algorithms share alike is there once."""
    found: list[Setting] = []
    for name, field in RunConfig.model_fields.items():
        found.append(Setting(name, field, ()))
        if name == "algorithm":
            found += _of_algorithms()
        else:
            for model in _sections(field.annotation):
                found += _below(model, name, ())
    return tuple(found)


@cache
def by_path() -> dict[str, tuple[Setting, ...]]:
    """Dotted name -> what it stands for, which is one field but for those of `algorithm`."""
    found: dict[str, list[Setting]] = {}
    for setting in settings():
        found.setdefault(setting.path, []).append(setting)
    return {path: tuple(items) for path, items in found.items()}


def generic(path: str) -> str:
    """A dotted name with N and NAME for the items that it names: reward.models.0.path -> reward.models.N.path."""
    known, done = by_path(), ""
    for part in path.split("."):
        for name in (part, "N" if part.isdecimal() else "NAME"):
            if (longer := f"{done}.{name}".lstrip(".")) in known or any(key.startswith(f"{longer}.") for key in known):
                done = longer
                break
        else:
            done = f"{done}.{part}".lstrip(".")  # unknown from here on: kept as it was given
    return done


def type_text(setting: Setting) -> str:
    """The type in words: `one of split, shared, separate`, `list of texts`."""
    if setting.path == "algorithm.name":
        return f"one of {', '.join(setting.jobs)}"
    return _words(setting.field.annotation)


def range_text(setting: Setting) -> str:
    """Bounds of the values: `above 0, at most 1`; empty where there are none."""
    return ", ".join(_bounds(setting.field))


def default_text(setting: Setting) -> str:
    """The default as YAML would hold it; `required` where there is none."""
    if setting.required:
        return "required"
    own = value_text(setting.field.get_default(call_default_factory=True))
    section, _, name = setting.path.rpartition(".")
    outer = own if setting.within is None else value_text(getattr(setting.within, name))
    return own if own == outer else f"{outer}; {own} where {section} is given"


def value_text(value: object) -> str:
    """A value as it stands in a YAML file."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case BaseModel():
            changed = value.model_dump(exclude_defaults=True)
            return "{" + ", ".join(f"{name}: {value_text(item)}" for name, item in changed.items()) + "}"
        case dict():
            return "{" + ", ".join(f"{name}: {value_text(item)}" for name, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(value_text(item) for item in value) + "]"
        case float():
            return f"{value:g}"
        case str() if not value or not value.isprintable() or value != value.strip():
            return repr(value)
    return value if isinstance(value, str) and len(value) <= 60 else f"{value!s:.60}"


def limit_text(limit: float) -> str:
    """A bound as one would write it: 1000, 1e9, 2147483648."""
    short = f"{limit:g}"
    # Six digits are all that :g keeps.
    return re.sub(r"e\+0*", "e", short) if float(short) == limit else f"{limit:.12g}"


def _of_algorithms() -> list[Setting]:
    """Fields of all algorithms; those that share type, default and text are one setting."""
    found: dict[tuple[object, ...], Setting] = {}
    for job, model in jobs().items():
        for setting in _below(model, "algorithm", (job,)):
            alike = setting.path == "algorithm.name" or _words(setting.field.annotation)
            key = (setting.path, alike, str(setting.field.default), setting.text, str(setting.field.metadata))
            known = found.get(key)
            found[key] = Setting(setting.path, setting.field, (*(known.jobs if known else ()), job))
    return list(found.values())


def _below(model: type[BaseModel], prefix: str, of: tuple[str, ...], within: BaseModel | None = None) -> list[Setting]:
    found = []
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}"
        found.append(Setting(path, field, of, within))
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        for section in _sections(field.annotation):
            # Of a section within a list or mapping there is none.
            inner = default if isinstance(default, section) else None
            found += _below(section, path + _item(field.annotation), of, inner)
    return found


def _item(annotation: object) -> str:
    """How an item of a list (`.N`) or mapping (`.NAME`) of sections is named; empty for a section itself."""
    for part in _parts(annotation):
        if get_origin(part) is list:
            return ".N"
        if get_origin(part) is dict:
            return ".NAME"
    return ""


def _sections(annotation: object) -> list[type[BaseModel]]:
    return [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]


def _parts(annotation: object) -> list[object]:
    """A type and all types that it is made of, without those of nested sections."""
    annotation = getattr(annotation, "__value__", annotation)
    if get_origin(annotation) is Literal:
        return [annotation]  # its arguments are values, not types
    return [annotation, *(part for item in get_args(annotation) for part in _parts(item))]


_NAMES: dict[object, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "any value",
}


def _words(annotation: object) -> str:
    annotation = getattr(annotation, "__value__", annotation)
    origin, of = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(of[0])
    if origin is Literal:
        return of[0] if len(of) == 1 and isinstance(of[0], str) else f"one of {', '.join(map(str, of))}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in of))
    if origin is list:
        return f"list of {_plural(_words(of[0]))}"
    if origin is tuple:
        return f"list of {len(of)} {_plural(_words(of[0]))}"
    if origin is dict:
        return f"mapping of names to {_plural(_words(of[1]))}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plural(words: str) -> str:
    return {"whole number": "whole numbers", "number": "numbers", "text": "texts", "section": "sections"}.get(
        words, words
    )


def _bounds(field: FieldInfo) -> list[str]:
    found = []
    for item in (*field.metadata, *(more for part in get_args(field.annotation) for more in _metadata(part))):
        for name, words in {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}.items():
            if (limit := getattr(item, name, None)) is not None:
                found.append(f"{words} {limit_text(limit)}")
        if (longest := getattr(item, "max_length", None)) is not None:
            found.append(f"at most {longest} characters")
    return list(dict.fromkeys(found))


def _metadata(part: object) -> list[object]:
    # Of Annotated: pydantic's Field holds its limits in `metadata`, those of annotated_types stand for themselves.
    given = getattr(part, "__metadata__", ())
    own = [limit for item in given for limit in (item.metadata if isinstance(item, FieldInfo) else [item])]
    return own + [more for item in get_args(part) for more in _metadata(item)]


@cache
def section_choices() -> frozenset[str]:
    """Classes of sections that stand beside other types than null, as pydantic names them in its errors."""
    return frozenset(
        part.__name__
        for setting in settings()
        if any(get_origin(part) is Literal or part is str for part in get_args(setting.field.annotation))
        for part in get_args(setting.field.annotation)
        if isinstance(part, type) and issubclass(part, BaseModel)
    )


def choices_at(path: str) -> list[object]:
    """The values of the Literals in the type of a setting; none of an unknown one."""
    items = by_path().get(generic(path), ())
    return [choice for item in items[:1] for choice in choices_of(item.field.annotation)]


def choices_of(annotation: object) -> list[object]:
    """The values of the Literals in a type; none of a type without any."""
    annotation = getattr(annotation, "__value__", annotation)
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in choices_of(part)]
