"""Classes of the installed transformers, looked up and read in its source.

What they say is what `actors.models.class_traits` reads in them when they are imported, which takes seconds and torch.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from actors.models.class_source import class_source, module_of
from actors.models.family import ClassTraits
from launch.models.transformers_source import (
    causal_architectures,
    config_classes,
    root_file,
    scoring_architectures,
    source_directory,
)

Task = Literal["CausalLM", "SequenceClassification"]
_COMMON = ("PreTrainedModel", "PreTrainedConfig")
"""What all models and configurations are made from, in files too large to be module_of for a few lines."""


@dataclass(frozen=True, slots=True)
class ClassPlace:
    """Where a class is defined.

    Example: ClassPlace(Path(".../models/llama/modeling_llama.py"), "LlamaForCausalLM")
    """

    file: Path
    name: str


def class_for(kind: str, task: Task) -> ClassPlace | None:
    """The class that `AutoModelFor<task>` makes of a configuration of this model_type; None where there is none, or its
    source is not found."""
    listed, configs = _listed(task), config_classes()
    # Types may share the class of their configuration, which is all that is asked for a model: the last of them counts.
    alike = [other for other, name in configs.items() if name == configs.get(kind)]
    found = next((other for other in (*alike[-1:], *alike) if other in listed), None)
    return _place_of(found, listed[found][0]) if found else None


def is_listed(kind: str, task: Task) -> bool | None:
    """Whether there is such a class; None where the source of the installed transformers does not tell."""
    listed, configs = _listed(task), config_classes()
    if not listed or kind not in configs:
        return None
    return any(configs.get(other) == configs[kind] for other in listed)


def traits_in(place: ClassPlace) -> ClassTraits:
    """What a class says of itself, as `traits_of` of the class itself."""
    return ClassTraits(
        interface=says(place, "_supports_attention_backend"),
        stateful=says(place, "_is_stateful"),
        sdpa=says(place, "_supports_sdpa"),
        flash=says(place, "_supports_flash_attn"),
        source=class_source(place.file, place.name),
    )


def says(place: ClassPlace, switch: str) -> bool:
    """A switch of a class, by its own definition or that of the first of its bases that has one."""
    for _, node in lineage(place):
        for name, value in assigned(node):
            if name == switch and isinstance(value, ast.Constant):
                return bool(value.value)
    return _defaults().get(switch, False)


def has_linear_score(place: ClassPlace) -> bool:
    """Whether the first of a class and its bases that has a `score` makes it a linear layer."""
    for _, node in lineage(place):
        for line in ast.walk(node):
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "self.score":
                return ast.unparse(line.value).startswith("nn.Linear(")
    return False


def definition(place: ClassPlace) -> ast.ClassDef | None:
    """A class as it stands in its file."""
    return next((n for n in module_of(place.file).body if isinstance(n, ast.ClassDef) and n.name == place.name), None)


def lineage(place: ClassPlace) -> Iterator[tuple[Path, ast.ClassDef]]:
    """A class and its bases, each before its own, with their files; without what all have in common."""
    if place.name in _COMMON or not (node := definition(place)):
        return
    yield place.file, node
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := resolved(place.file, base.id)):
            yield from lineage(found)


def assigned(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """What a class assigns in its body."""
    for line in node.body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value


def _listed(task: Task) -> dict[str, tuple[str, ...]]:
    return causal_architectures() if task == "CausalLM" else scoring_architectures()


@cache
def _place_of(kind: str, name: str) -> ClassPlace | None:
    directory = source_directory(kind)
    # Some types are another one's models with a tokenizer of their own.
    others = [other for other, names in (causal_architectures() | scoring_architectures()).items() if name in names]
    for place in filter(None, (directory, *map(source_directory, others))):
        for file in sorted(place.glob("modeling_*.py")):
            if re.search(rf"^class {name}\b", file.read_text(encoding="utf-8"), re.MULTILINE):
                return ClassPlace(file, name)
    return None


def resolved(file: Path, name: str) -> ClassPlace | None:
    """Where a name in a file comes from: that file, or another one that it imports from."""
    for node in module_of(file).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return ClassPlace(file, name)
        if isinstance(node, ast.ImportFrom) and node.level and any(alias.name == name for alias in node.names):
            source = file.parents[node.level - 1].joinpath(*(node.module or "").split(".")).with_suffix(".py")
            return ClassPlace(source, name) if source.is_file() else None
    return None


@cache
def _defaults() -> dict[str, bool]:
    """Switches that every model has unless its class says otherwise."""
    source = root_file("modeling_utils.py")
    text = source.read_text(encoding="utf-8") if source else ""
    found = re.findall(r"^    (_?\w+): bool = (True|False)$", text, re.MULTILINE)
    return {name: value == "True" for name, value in found}
