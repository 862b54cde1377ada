"""What the installed transformers knows, read from its source: importing it takes seconds."""

import importlib.util
import os
import re
from functools import cache
from pathlib import Path


@cache
def config_classes() -> dict[str, str]:
    """model_type -> class of its configuration, of all that the installed transformers has, in its order; empty where
    its source has another form than is known here."""
    listed = _section("auto_mappings.py", "CONFIG_MAPPING_NAMES = ")
    further = _source("configuration_auto.py")
    found = re.findall(r'\(\s*"([\w.-]+)",\s*"(\w+)"', listed)
    return dict(re.findall(r'"([\w.-]+)": "(\w+Config)"', further) + found) if found else {}


def known_types() -> frozenset[str]:
    """Every model_type of the installed transformers; empty as `config_classes`."""
    return frozenset(config_classes())


@cache
def causal_architectures() -> dict[str, tuple[str, ...]]:
    """model_type -> classes of the installed transformers that are causal language models; else as `config_classes`."""
    return _architectures("CAUSAL_LM")


@cache
def scoring_architectures() -> dict[str, tuple[str, ...]]:
    """The same of classes that score sequences."""
    return _architectures("SEQUENCE_CLASSIFICATION")


def _architectures(task: str) -> dict[str, tuple[str, ...]]:
    listed = _section("modeling_auto.py", f"MODEL_FOR_{task}_MAPPING_NAMES = ")
    found = re.findall(r'\(\s*"([\w.-]+)",\s*(\([^)]*\)|"\w+")', listed)
    return {kind: tuple(re.findall(r"\w+", classes)) for kind, classes in found}


@cache
def activations() -> frozenset[str]:
    """Names that hidden_act may have in the installed transformers; empty as `config_classes`."""
    listed = _source("../../activations.py").partition("\nACT2CLS = {")[2].partition("\n}")[0]
    return frozenset(re.findall(r'^    "([\w-]+)":', listed, re.MULTILINE))


@cache
def rope_types() -> frozenset[str]:
    """Types of rotary positions that the installed transformers computes; empty as `config_classes`."""
    listed = _source("../../modeling_rope_utils.py").partition("\nROPE_INIT_FUNCTIONS: ")[2].partition("\n}")[0]
    found = re.findall(r'^    "([\w-]+)":', listed, re.MULTILINE)
    # Without an entry there: transformers computes it apart.
    return frozenset(("default", *found)) if found else frozenset()


@cache
def reads_rope_factor(kind: str) -> bool:
    """Whether attention of a model_type scales by the factor of its rotary positions, of whatever type these are."""
    directory = source_directory(kind)
    files = directory.glob("modeling_*.py") if directory else ()
    return any('rope_parameters["factor"]' in file.read_text(encoding="utf-8") for file in files)


@cache
def converted_types() -> frozenset[str]:
    """Every model_type whose tensors the installed transformers renames or joins when it loads them."""
    source = _source("../../conversion_mapping.py")
    return frozenset(re.findall(r'^(?: {4}| {8}|    mapping\[)"([\w-]+)"(?:: (?:"|\[)|\] \+?= )', source, re.MULTILINE))


@cache
def converted_names() -> frozenset[str]:
    """Parts of the names that the installed transformers knows in files, and not in models."""
    source = _source("../../conversion_mapping.py")
    # In patterns, between dots: r"\.experts.*.w1.weight".
    return frozenset(re.findall(r"[A-Za-z_]\w*", " ".join(re.findall(r'r?"([^"\n]*\.[^"\n]*)"', source))))


@cache
def balances_experts(kind: str) -> bool | None:
    """Whether the installed transformers has a load-balancing loss for a model_type; None where its source is not
    found."""
    return _modeling_has(kind, "\ndef load_balancing_loss_func(")


@cache
def fuses_experts(kind: str) -> bool | None:
    """Whether experts of a model_type are one tensor that can have adapters; None as `balances_experts`."""
    return _modeling_has(kind, "\n@use_experts_implementation")


@cache
def further_rows(kind: str) -> int:
    """Rows that embeddings of a model_type have beyond its vocabulary, by its source."""
    found = [re.search(r"nn\.Embedding\(config\.vocab_size \+ (\d+), ", text) for text in _modeling(kind)]
    return max((int(match[1]) for match in found if match), default=0)


def _modeling_has(kind: str, text: str) -> bool | None:
    sources = _modeling(kind)
    return any(text in source for source in sources) if sources else None


def _modeling(kind: str) -> list[str]:
    directory = source_directory(kind)
    return [path.read_text(encoding="utf-8") for path in directory.glob("modeling_*.py")] if directory else []


def source_directory(kind: str) -> Path | None:
    """Where the installed transformers has the source of a model_type; None where it is not found."""
    listed = _section("auto_mappings.py", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME = ")
    # Most directories are called as their models are; these are not.
    special = dict(re.findall(r'"([\w.-]+)",\s*"(\w+)"', listed))
    file = _file(f"../{special.get(kind, kind).replace('-', '_')}/__init__.py")
    return file and Path(os.path.normpath(file.parent))


def root_file(name: str) -> Path | None:
    """A file at the top of the installed transformers."""
    return _file(f"../../{name}")


def _section(file: str, start: str) -> str:
    """The literal that begins with the line `start` and ends with a closing bracket at the margin."""
    return _source(file).partition(f"\n{start}")[2].partition("\n)")[0]


def _source(file: str) -> str:
    path = _file(file)
    return path.read_text(encoding="utf-8") if path else ""


def _file(name: str) -> Path | None:
    """A file of the installed transformers, named from models/auto."""
    spec = importlib.util.find_spec("transformers")
    places = (spec and spec.submodule_search_locations) or ()
    return next((path for place in places if (path := Path(place) / "models" / "auto" / name).is_file()), None)
