"""What the source of a class in transformers says that the class itself does not: read, not run, so that no torch is
needed."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_OTHERS = re.compile("Vision|Audio|Image|Siglip|Sam|GotOcr2V|Encoder")
"""Classes of what reads something else than text, in files of models that read both."""
_BODY = re.compile("(Model|Decoder)$")
_BY_TOKENS = re.compile(
    r"self\.\w+\(input_ids\) \*|per_layer_inputs\(input_ids|ple_input_ids = input_ids|self\.patcher\(input_ids"
    r"|layer\([^)]*input_ids="
)
_INTERFACE = "attention_interface"
"""What the attention that transformers has been asked for is called where it is called."""
_MASK = 4
"""Which of its arguments is the mask."""


@dataclass(frozen=True, slots=True)
class ClassSource:
    """What the code of a causal language model says."""

    hands_on: bool
    """Whether layers hand arguments that they do not know on to their attention, which is told of borders so."""
    own_masks: bool
    """Whether layers make masks of their own for it."""
    sinks: bool
    """Whether it is given sinks."""
    head: str
    """What keeps the logits from being the output embedding's product with the body's hidden states, but for a factor
    and a cap; empty where nothing does."""
    embeds: bool
    """Whether the embedding is all that it makes of tokens before its layers, and these never ask for tokens."""
    factors: tuple[tuple[str, int], ...]
    """Fields of the configuration by which the logits, or those hidden states, are multiplied (1) or divided (-1)."""


@cache
def class_source(file: Path, name: str) -> ClassSource:
    """What the class `name` in a file of transformers says, and the layers there."""
    classes = classes_in(module_of(file))
    text = [node for node in classes.values() if not _OTHERS.search(node.name)]
    calls = [node for each in text for node in ast.walk(each) if isinstance(node, ast.Call)]
    return ClassSource(
        hands_on=all(any(word.arg is None for word in call.keywords) for call in calls if _is_of_layer(call.func)),
        own_masks=any(_has_own_mask(call) for call in calls if _called(call.func) == _INTERFACE),
        sinks=any(word.arg == "s_aux" for call in calls for word in call.keywords),
        head=_head(classes, name),
        embeds=not any(_BY_TOKENS.search(ast.unparse(node)) for node in text if _BODY.search(node.name)),
        factors=tuple(_factors(classes, name)),
    )


@cache
def module_of(file: Path) -> ast.Module:
    """The source in a file."""
    return ast.parse(file.read_text(encoding="utf-8"))


def classes_in(tree: ast.Module) -> dict[str, ast.ClassDef]:
    """Classes of a module by name."""
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _is_of_layer(called: ast.expr) -> bool:
    match called:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name in _ATTENTION
        case ast.Name(id=name):
            return name == "decoder_layer"
    return False


def _called(called: ast.expr) -> str:
    return called.id if isinstance(called, ast.Name) else ""


def _has_own_mask(call: ast.Call) -> bool:
    named = [word.value for word in call.keywords if word.arg == "attention_mask"]
    given = named or call.args[_MASK : _MASK + 1]
    return not all(ast.unparse(each) in ("attention_mask", "causal_mask", "None") for each in given)


def _methods(classes: dict[str, ast.ClassDef], name: str, method: str) -> ast.FunctionDef | None:
    """A method of a class, or of the bases that are in the same file."""
    while name in classes:
        for node in classes[name].body:
            if isinstance(node, ast.FunctionDef) and node.name == method:
                return node
        bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name) and base.id in classes]
        name = bases[0] if bases else ""
    return None


def _head(classes: dict[str, ast.ClassDef], name: str) -> str:
    forward, made = _methods(classes, name, "forward"), _methods(classes, name, "__init__")
    if forward is None or made is None:  # a class that only names another one, or whose head is a mixin's
        return ""
    linear = {_own(line.targets[0]) for line in _assignments(made) if ast.unparse(line.value).startswith("nn.Linear(")}
    called = {_own(node.func) for node in ast.walk(forward) if isinstance(node, ast.Call)} - {"", "loss_function"}
    heads = called & linear
    if len(heads) != 1 or len(called) > 2:
        return "has layers between its body and its logits"
    return ""


def _own(node: ast.expr) -> str:
    """The attribute of self that an expression is; empty where it is none."""
    return (
        node.attr
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        else ""
    )


def _assignments(function: ast.FunctionDef) -> Iterator[ast.Assign]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Assign))


def _factors(classes: dict[str, ast.ClassDef], name: str) -> Iterator[tuple[str, int]]:
    forward = _methods(classes, name, "forward")
    for line in _assignments(forward) if forward else ():
        target, text = ast.unparse(line.targets[0]), ast.unparse(line.value)
        if target not in ("logits", "hidden_states") or "cap" in text:
            continue
        for node in ast.walk(line.value):
            match node:
                case ast.BinOp(op=ast.Mult() | ast.Div() as operator, right=ast.Attribute(attr=field)):
                    yield field, 1 if isinstance(operator, ast.Mult) else -1
