"""What the installed vLLM serves, read from its source: importing it takes seconds."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

_ADAPTERS = "SupportsLoRA"
_MODELS = "vllm.model_executor.models."


@cache
def serves_adapters(architecture: str) -> bool | None:
    """Whether the installed vLLM serves LoRA adapters of a class of `architectures` in config.json.

    None where vLLM is not installed, does not know the class, or its source has another form than is known here.
    """
    place = _registered().get(architecture)
    return _inherits(*place) if place else None


def is_served_natively(architecture: str) -> bool | None:
    """Whether the installed vLLM has code of its own for a class of `architectures`, else it runs transformers'.

    None where vLLM is not installed, or its source has another form than is known here.
    """
    known = _registered()
    return architecture in known if known and architecture else None


@cache
def _registered() -> dict[str, tuple[str, str]]:
    """Class of config.json -> module and class of vLLM, of models that generate text."""
    tree = _parsed("registry")
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "_TEXT_GENERATION_MODELS":
            try:
                return ast.literal_eval(statement.value)  # a table of plain tuples
            except ValueError:
                return {}
    return {}


def _inherits(module: str, name: str) -> bool | None:
    """Whether a class of a module is made from the mark of adapters; None where one of its bases is not found."""
    tree = _parsed(module)
    if tree is None:
        return None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    origins = {
        alias.asname or alias.name: (node.module.removeprefix(_MODELS), alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and (node.level == 1 or node.module.startswith(_MODELS))
        for alias in node.names
    }
    if name == _ADAPTERS:
        return True
    if name in classes:
        bases = [_inherits(module, base.id) for base in classes[name].bases if isinstance(base, ast.Name)]
        # One base that is not found may be the one that would say yes.
        return True if any(bases) else None if None in bases else False
    if name in origins:
        return origins[name][1] == _ADAPTERS or _inherits(*origins[name])
    return False  # torch's, or Python's


@cache
def _parsed(module: str) -> ast.Module | None:
    spec = importlib.util.find_spec("vllm")
    for place in (spec and spec.submodule_search_locations) or ():
        path = Path(place) / "model_executor" / "models" / f"{module}.py"
        if path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"))
    return None
