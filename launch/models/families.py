"""Whether tensors can be those of a family that is not written down here, by names in transformers' source. No torch.

The names are those that the installed transformers gives in its source:

    model.layers.0.self_attn.q_proj.weight -> q_proj, a name that the source of gpt2 never gives, and of llama does
"""

import ast
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from actors.config import UserError
from launch.models.transformers_source import converted_names, converted_types, source_directory

_GIVEN = re.compile(r"\bself\.(\w+)\s*(?::[^=\n]+)?=|(?:register_parameter|register_buffer|add_module)\(\s*[\"'](\w+)")
_TABLES = frozenset({"inv_freq", "masked_bias", "attn_mask", "position_ids", "rotary_emb"}) | frozenset(
    {"num_batches_tracked", "running_mean", "running_var", "causal_mask", "scale_attn", "embed_positions"}
)
"""What files hold beside parameters."""
_PARTS_OF_OTHERS = re.compile(r"\bAuto(Model\w*|Backbone)\b|^from \.\.\w+(\.\w+)? import", re.MULTILINE)
"""A model that has others inside, whose names stand elsewhere."""
_LEAF = re.compile(r"(Linear|Embedding|Norm|Conv1D)$")
_LAYER = re.compile(r"\.\d+\.")
_FOREIGN = 0.1
"""Share of the names in layers that may be unknown: a file may hold something of its maker's beside the model."""
_FOREIGN_CONVERTED = 0.5
"""The same for families whose tensors transformers renames when it loads them, such as mixtures of experts."""


class _Family(NamedTuple):
    """What its source says. Example: _Family({"c_attn", "c_fc", "ln_1", ...}, {"ln_1", "ln_2"}, 0.1)."""

    known: frozenset[str]
    required: frozenset[str]
    """What each decoder layer has, whatever the configuration."""
    foreign: float
    biased: bool = True
    """Whether queries may have a bias that config.json does not ask for (attention_bias)."""
    experts: bool = False
    """Whether it is a mixture of experts, unless config.json says that there are none."""


def check_family(
    values: Mapping[str, object], names: Iterable[str], directory: Path, field: str, *, causal: bool
) -> None:
    """Raise UserError when tensors with these names are not those of a model of config.json's model_type.

    A family is not looked at whose source is not known, or has parts of other families.
    """
    kind = str(values["model_type"])
    family, found = _family(kind), {name: _last(name) for name in sorted(names)}
    inner = {last: name for name, last in found.items() if _LAYER.search(name) and last not in _TABLES}
    if family is None or not inner:
        return
    foreign = sorted(inner.keys() - family.known)
    biases = [name for name in found if name.endswith(".q_proj.bias")]
    differs = None
    if len(foreign) > max(1, family.foreign * len(inner)):  # a single one is no proof: somebody may have added it
        differs = f"which has no {foreign[0]}, and weights with {inner[foreign[0]]}"
    elif causal and (lacking := _lacking(family, values, found)):
        differs = f"which has {lacking} in its layers, and weights without them"
    elif causal and biases and not family.biased and not values.get("attention_bias"):
        differs = f"whose q_proj has no bias without attention_bias, and weights with {biases[0]}"
    if differs:
        where = directory / "config.json"
        raise UserError(f"{field}: model_type in {where} must be that of the weights, got {kind}, {differs}")


def _lacking(family: _Family, values: Mapping[str, object], found: Mapping[str, str]) -> str | None:
    """What every layer of the family has, and none of the tensors is of."""
    if lacking := sorted(family.required - set(found.values())):
        return lacking[0]
    mixed = any(re.search("expert|moe", name) for name in found)
    return "experts" if family.experts and not mixed and not _may_be_dense(values) else None


def _may_be_dense(values: Mapping[str, object]) -> bool:
    """Whether a model of a family with experts has none by its config.json, or none in some layers."""
    few = any("expert" in name and value in (None, 0, 1, False) for name, value in values.items())
    layers, listed = values.get("num_hidden_layers"), values.get("mlp_only_layers")
    dense = values.get("first_k_dense_replace"), len(listed) if isinstance(listed, list) else 0
    hybrid = any(re.search("hybrid|layers_block_type|layer_types", name) for name in values)
    return few or hybrid or (isinstance(layers, int) and any(isinstance(n, int) and n >= layers for n in dense))


def _last(name: str) -> str:
    """The module or parameter that a tensor is of, without a layer's or an expert's number."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    if len(parts) > 1 and parts[-1] in ("weight", "bias", "gamma", "beta"):
        del parts[-1]
    return parts[-1] if parts else name


@cache
def _family(kind: str) -> _Family | None:
    directory = source_directory(kind)
    if directory is None:
        return None
    # convert_*.py names tensors as others have them.
    files = [path for path in sorted(directory.glob("*.py")) if not path.name.startswith("convert_")]
    models = [path.read_text(encoding="utf-8") for path in files if path.name.startswith("modeling_")]
    # One of several models in a directory that reads text alone has all its parts there.
    if not models or (not kind.endswith("_text") and any(map(_PARTS_OF_OTHERS.search, models))):
        return None
    sources = [path.read_text(encoding="utf-8") for path in files]
    sources.append((directory / "../../activations.py").read_text(encoding="utf-8"))  # some have parameters
    known = frozenset(first or second for text in sources for first, second in _GIVEN.findall(text))
    if kind in converted_types():
        experts = any(re.search(r"^class \w+Experts\b", text, re.MULTILINE) for text in models)
        return _Family(known | converted_names(), frozenset(), _FOREIGN_CONVERTED, experts=experts)
    required = frozenset(name for text in models for name in _of_each_layer(text))
    return _Family(known, required, _FOREIGN, biased=_may_be_biased(sources))


def _may_be_biased(sources: list[str]) -> bool:
    """Whether a query's projection has a bias, or may have one without being asked for it."""
    text = "\n".join(sources)
    asked = re.findall(r"self\.q_proj = nn\.Linear\((?:[^()]|\([^()]*\))*?bias=([\w.]+)", text)
    defaults = re.findall(r"\battention_bias\s*(?::[^=\n]+)?=\s*(\w+)", text)
    return not asked or not {*asked} <= {"False", "config.attention_bias"} or not {*defaults} <= {"False"}


def _of_each_layer(source: str) -> set[str]:
    """Modules with parameters that every decoder layer builds without asking its configuration."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    # Some norms have no parameters.
    bare = {node.name for node in classes if node.name.endswith("Norm") and "Parameter" not in ast.unparse(node)}
    # Not ...SparseMoeBlock, which is a part of a layer.
    layers = [node for node in classes if re.search(r"(DecoderLayer|(?<!Moe)Block)$", node.name)]
    built = [_built(node, bare) for node in layers if not re.search("Vision|Audio", node.name)]
    # A family may have several kinds of layers: what all of them build.
    return set.intersection(*filter(None, built)) if any(built) else set()


def _built(layer: ast.ClassDef, bare: set[str]) -> set[str]:
    found = set()
    for method in (item for item in layer.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"):
        for line in method.body:
            match line:
                case ast.Assign(targets=[ast.Attribute(attr=name)], value=ast.Call(func=func)):
                    made = ast.unparse(func)
                    if _LEAF.search(made) and made not in bare:
                        found.add(name)
    return found
