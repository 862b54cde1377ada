"""Fields of a model's configuration as its class in transformers fills them in, read in its source.

To import the class takes seconds, and torch.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache

from actors.config import UserError
from launch.models.fields import short
from launch.models.model_classes import ClassPlace, assigned, lineage, resolved
from launch.models.transformers_source import config_classes, source_directory

_TEXT_PARTS = ("text_encoder", "decoder", "generator", "text_config")
"""Names of the part of a configuration that describes what reads text."""
_KINDS = ("layer_types", "layers_block_type")
_SIMPLE = {"int": int, "float": float, "bool": bool, "str": str}


def filled(values: Mapping[str, object]) -> dict[str, object]:
    """The fields of the text part of a config.json, with those that its class gives where the file has none.

    Of kinds of layers that the class makes of other fields, these are the kinds that there may be, each once.
    """
    place, given = _text_part(values)
    found: dict[str, object] = {}
    for name, value in _constants(place) if place else ():
        found[name] = value
    names = found.pop("attribute_map", None)
    kind = found.pop("model_type", None)
    found |= given
    if kind:
        found["model_type"] = kind
    for name in _KINDS:
        if place and found.get(name) is None and (kinds := _kinds_made(place, name)):
            found[name] = kinds
    for name, other in names.items() if isinstance(names, dict) else ():
        # Two names of one field: what the file says of either counts before what the class does.
        said = [source[each] for source in (given, found) for each in (name, other) if each in source]
        if said:
            found[name] = found[other] = said[0]
    return found


def check_declared(values: Mapping[str, object], field: str) -> None:
    """Raise UserError, with `field`, for a number, switch or text of the text part that is not of the kind that its
    class declares: transformers takes no whole number for a float, such as 1 for 1.0."""
    place, given = _text_part(values)
    declared = {}
    for _, node in reversed(list(lineage(place))) if place else ():
        declared |= {ast.unparse(line.target): line.annotation for line in node.body if isinstance(line, ast.AnnAssign)}
    for name in declared.keys() & given.keys():
        kinds = ast.unparse(declared[name]).split(" | ")
        value = given[name]
        if value is None or not {*kinds} <= {*_SIMPLE, "None"}:
            continue
        if not isinstance(value, tuple(_SIMPLE[kind] for kind in kinds if kind in _SIMPLE)):
            rule = " or ".join(kind for kind in kinds if kind in _SIMPLE)
            raise UserError(f"{field}: {name} in config.json must be of type {rule}, got {short(value)}")


def _text_part(values: Mapping[str, object]) -> tuple[ClassPlace | None, Mapping[str, object]]:
    """The class of the configuration's part that describes what reads text, and its fields; all of it in most."""
    whole = _class_of(str(values.get("model_type")))
    parts = dict(_parts(whole)) if whole else {}
    for name in _TEXT_PARTS:
        part = values.get(name)
        if isinstance(part, dict):
            return _class_of(str(part.get("model_type"))) or parts.get(name), part
        if name in parts and name not in values:
            return parts[name], {}
    return whole, values


@cache
def _class_of(kind: str) -> ClassPlace | None:
    directory, name = source_directory(kind), config_classes().get(kind)
    for file in sorted(directory.glob("configuration_*.py")) if directory and name else ():
        if re.search(rf"^class {name}\b", file.read_text(encoding="utf-8"), re.MULTILINE):
            return ClassPlace(file, str(name))
    return None


def _parts(place: ClassPlace) -> Iterator[tuple[str, ClassPlace]]:
    """Name and class of the parts of a configuration."""
    for file, node in lineage(place):
        for name, value in assigned(node):
            if name == "sub_configs" and isinstance(value, ast.Dict):
                for key, part in zip(value.keys, value.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(part, ast.Name):
                        found = resolved(file, part.id)
                        if found and found.file.name.startswith("configuration_"):
                            yield str(key.value), found


def _constants(place: ClassPlace) -> Iterator[tuple[str, object]]:
    """Fields to which a class gives a constant, those of its bases first."""
    for _, node in reversed(list(lineage(place))):
        fields = {ast.unparse(line.target) for line in node.body if isinstance(line, ast.AnnAssign)}
        for name, value in assigned(node):
            if name in fields or name in ("model_type", "attribute_map"):
                try:
                    yield name, ast.literal_eval(value)
                except ValueError:  # made of something else
                    continue


def _kinds_made(place: ClassPlace, field: str) -> list[str]:
    """Kinds of layers that a class, or else the first of its bases that does so, may give to a field."""
    for file, node in lineage(place):
        if field not in file.read_text(encoding="utf-8"):
            continue
        values = [line.value for line in ast.walk(node) if isinstance(line, ast.Assign) and _is_of(line, field)]
        if kinds := sorted({text for value in values for text in _texts(value)}):
            return kinds
    return []


def _is_of(line: ast.Assign, field: str) -> bool:
    return ast.unparse(line.targets[0]).partition("[")[0] == f"self.{field}"


def _texts(value: ast.expr) -> Iterator[str]:
    """Texts that an expression may give, alone or in a list, as far as they stand in it."""
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, right=other):
            yield from _texts(one)
            yield from _texts(other)
        case ast.List(elts=parts):
            for part in parts:
                yield from _texts(part)
        case ast.ListComp(elt=part):
            yield from _texts(part)
