"""Whether `rollout.vllm` gives arguments that vLLM's engine has, of their types, and none that Tandem decides.

The engine's arguments are read from vLLM's source, as importing vLLM would take longer than everything else in a check.
"""

import ast
import importlib.util
import operator
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from actors.config import UserError
from actors.config_rollout import RESHAPING, RolloutConfig
from algorithms.words import nearest
from launch.config import RunConfig

_MODEL, _PROCESSES = (
    "as model.path says what is loaded",
    "as an engine is rollout.tensor_parallel processes of one node",
)
_SENT, _LORA = "as the policy sends the weights, in model.dtype", "as model.lora and rollout.transfer.lora decide it"
_MEMORY = "as rollout.memory_gib and rollout.gpu_memory_utilization decide it"
_SAMPLING = "as rollout.temperature, top_p and their neighbours say how responses are sampled"
DECIDED = {
    **dict.fromkeys(("model", "model_weights", "tokenizer", "hf_config_path", "config_format"), _MODEL),
    **dict.fromkeys(("hf_overrides", "model_class_overrides"), _MODEL),
    **dict.fromkeys(("revision", "code_revision", "tokenizer_revision"), "as model.revision decides it"),
    "trust_remote_code": "as no code from a model's repository is run",
    "hf_token": "as it must come from the environment (HF_TOKEN): configurations are kept and shown",
    "dtype": "as model.dtype decides it",
    **dict.fromkeys(("quantization", "quantization_config", "allow_deprecated_quantization"), _SENT),
    **dict.fromkeys(("load_format", "download_dir", "model_loader_extra_config", "ignore_patterns"), _SENT),
    **dict.fromkeys(("safetensors_load_strategy", "pt_load_map_location"), _SENT),
    "seed": "as run.seed decides it",
    "max_model_len": "as rollout.max_prompt_tokens + rollout.max_response_tokens decide it",
    "max_num_seqs": "as rollout.max_concurrent decides it",
    "tensor_parallel_size": "as rollout.tensor_parallel decides it",
    **dict.fromkeys(("pipeline_parallel_size", "prefill_context_parallel_size", "nnodes", "node_rank"), _PROCESSES),
    **dict.fromkeys(("decode_context_parallel_size", "master_addr", "master_port", "device_ids"), _PROCESSES),
    **dict.fromkeys(("distributed_executor_backend", "worker_cls", "worker_extension_cls"), _PROCESSES),
    "data_parallel_size": "as rollout.engines says how many engines there are",
    **dict.fromkeys(("gpu_memory_utilization", "kv_cache_memory_bytes"), _MEMORY),
    "enforce_eager": "as rollout.compile decides it",
    **dict.fromkeys(("enable_lora", "max_loras", "max_lora_rank", "lora_target_modules"), _LORA),
    "logprobs_mode": "as the trainer compares with logprobs after temperature (processed_logprobs)",
    "weight_transfer_config": "as rollout.transfer decides it",
    **dict.fromkeys(("generation_config", "override_generation_config", "logits_processors"), _SAMPLING),
    **dict.fromkeys(("runner", "convert", "pooler_config"), "as engines generate text"),
}
"""Argument of vLLM's engine -> why it is not the user's."""
_PLAIN: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "dict": dict,
    "list": list,
    "set": list,
}
"""Types by their names in annotations -> what a YAML value of them is."""
_WORDS = {
    "bool": ("true", "false"),
    "int": ("a whole number",),
    "float": ("a number",),
    "str": ("text",),
    "dict": ("a mapping",),
    "list": ("a list",),
    "set": ("a list",),
}
"""The same in words."""

_BOUNDS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "above"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "below"),
}


def check_engine_options(rollout: RolloutConfig) -> list[str]:
    """Warnings about `rollout.vllm`: that it could not be checked, where vLLM is not installed.

    Raises:
        UserError: arguments that vLLM's engine has not, of another type, or that other settings decide.
    """
    given = rollout.vllm
    problems = [_refused(name, given[name]) for name in given if name in DECIDED or name.startswith("data_parallel_")]
    others = {name: value for name, value in given.items() if name not in DECIDED}
    found = importlib.util.find_spec("vllm") if others else None
    if found and found.submodule_search_locations:
        problems += _problems(others, Path(found.submodule_search_locations[0]))
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return [f"rollout.vllm: vllm is not installed here, so {', '.join(others)} is not checked"] * (
        bool(others) and found is None
    )


def sampling_warnings(config: RunConfig) -> list[str]:
    """What is allowed, and makes the sampler another than the policy, or slow."""
    found = [
        f"rollout.{name} {value:g}: responses are sampled not from the policy but from {RESHAPING[name]}, so "
        f"importance ratios, and mismatch/*, compare two different distributions"
        for name, value in config.rollout.reshaped_by.items()
    ]
    if config.rollout.gpus_per_engine and config.model.dtype == "fp32":
        found.append(
            "model.dtype fp32: on a GPU there is no flash attention in it, neither in vLLM nor in training; bf16 has "
            "it, and takes half the memory"
        )
    return found


def _refused(name: str, value: object) -> str:
    got = "a value (not shown)" if name == "hf_token" else f"{value!r:.80}"
    return f"rollout.vllm.{name}: must be left out, {DECIDED.get(name, DECIDED['data_parallel_size'])}, got {got}"


def _problems(given: Mapping[str, object], vllm: Path) -> list[str]:
    """One line for each argument that the engine of this vLLM (its directory) does not take."""
    fields, problems = _fields(vllm / "engine/arg_utils.py"), []
    for name, value in given.items():
        if name.startswith("data_parallel_"):  # refused above, whatever its value
            continue
        if name not in fields:
            hint = nearest(name, fields.keys() - DECIDED.keys()) or ": EngineArgs in its documentation lists them"
            problems.append(f"rollout.vllm.{name}: vLLM's engine has no such argument{hint}, got {value!r:.80}")
        elif not _fits(value, fields[name], vllm):
            wanted = _in_words(_resolved(fields[name], vllm), vllm)
            problems.append(f"rollout.vllm.{name}: must be {wanted}, got {value!r:.80}")
        elif bound := _outside(name, value, vllm):
            problems.append(f"rollout.vllm.{name}: must be {bound}, got {value!r:.80}")
    return problems


def _fields(file: Path) -> dict[str, ast.expr]:
    """Public fields of the class EngineArgs -> their annotations."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            found = {item.target.id: item.annotation for item in fields if isinstance(item.target, ast.Name)}
            return {name: annotation for name, annotation in found.items() if not name.startswith("_")}
    return {}


def _fits(value: object, annotation: ast.expr, vllm: Path) -> bool:
    """Whether a YAML value can be what an annotation says; of types that are not known here, anything can."""
    annotation = _resolved(annotation, vllm)
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.BinOp(left=left, right=right):
            return _fits(value, left, vllm) or _fits(value, right, vllm)
        case ast.Subscript(value=ast.Name(id="Literal")):
            return value in _choices(annotation)
        case ast.Subscript(value=ast.Name(id="list" | "set"), slice=item):
            return isinstance(value, list) and all(_fits(each, item, vllm) for each in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, item])):
            return isinstance(value, dict) and all(_fits(each, item, vllm) for each in value.values())
        case ast.Subscript(value=ast.Name(id="type")):  # a class, which no YAML value is
            return False
        case ast.Name(id=name) if name in _PLAIN:
            return isinstance(value, _PLAIN[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.Name(id=name) if name.endswith("Config"):
            # vLLM's `LLM` takes a level of compilation for the whole section.
            return isinstance(value, dict) or (name == "CompilationConfig" and type(value) is int)
        case ast.Name(id=name) if members := _members(name, vllm):
            if isinstance(value, str):  # "auto" is what some of them are without a choice
                return value.upper() in members or value == "auto"
            return not isinstance(value, bool) and value in members
        case ast.Attribute():  # torch.dtype, which no YAML value is
            return False
    return True


def _in_words(annotation: ast.expr, vllm: Path) -> str:
    """What a YAML value of an annotated type is: `true, false or null` for `bool | None`."""
    parts, todo = [], [annotation]
    while todo:
        part = _resolved(todo.pop(0), vllm)
        if isinstance(part, ast.BinOp):
            todo = [part.left, part.right, *todo]
            continue
        match part:
            case ast.Subscript(value=ast.Name(id="Literal")):
                parts += [str(choice) for choice in _choices(part)]
            case ast.Subscript(value=ast.Name(id="list" | "set"), slice=item):
                parts.append(f"a list of items that are each {_in_words(item, vllm)}")
            case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, item])) if not _is_any(item):
                parts.append(f"a mapping to items that are each {_in_words(item, vllm)}")
            case ast.Subscript(value=ast.Name(id=name)) | ast.Name(id=name) if name in _WORDS:
                parts += _WORDS[name]
            case ast.Constant(value=None):
                parts.append("null")
            case ast.Name(id=name) if name.endswith("Config"):
                parts += _WORDS["dict"]
            case ast.Name(id=name) if members := _members(name, vllm):
                parts += [str(member) for member in members]
            case ast.Attribute():
                pass
            case _:
                parts.append(ast.unparse(part))
    parts = list(dict.fromkeys(parts))
    return " or ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


@cache
def _members(name: str, vllm: Path) -> tuple[int, ...] | tuple[str, ...]:
    """What a YAML value of an enumeration of vLLM's is: its numbers, or its members' names; () for any other type.

    vLLM takes names in lower-case letters, too.
    """
    for file in (*sorted((vllm / "config").glob("*.py")), vllm / "v1/attention/backends/registry.py"):
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        body = text.partition(f"\nclass {name}(")[2]
        if not body or "Enum" not in body.partition("\n")[0]:
            continue
        # The class ends where a line begins at the margin; `X = 1` is a number, `X = auto()` a name.
        members = re.findall(r"^    (\w+) = (\d+)?", re.split(r"\n(?=\S)", body, maxsplit=1)[0], re.MULTILINE)
        if all(number for _, number in members):
            return tuple(int(number) for _, number in members)
        return tuple(member for member, _ in members)
    return ()


def _outside(name: str, value: object, vllm: Path) -> str | None:
    """The bound that a number breaks, where vLLM's configuration has a field of this name with bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # As in `max_loras: int = Field(default=1, ge=1)`; in brackets of its own a default may call something.
    declared = re.compile(rf"^    {name}: [^\n=]*= Field\(((?:[^()]|\([^()]*\))*)\)", re.MULTILINE)
    for file in sorted((vllm / "config").glob("*.py")):
        if match := declared.search(file.read_text(encoding="utf-8")):
            for kind, limit in re.findall(r"\b(ge|gt|le|lt)=(-?[\d.]+)", match[1]):
                holds, words = _BOUNDS[kind]
                if not holds(value, float(limit)):
                    return f"{words} {limit}"
    return None


def _is_any(annotation: ast.expr) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


def _choices(literal: ast.Subscript) -> tuple[object, ...]:
    items = literal.slice.elts if isinstance(literal.slice, ast.Tuple) else [literal.slice]
    return tuple(ast.literal_eval(item) for item in items)


def _resolved(annotation: ast.expr, vllm: Path) -> ast.expr:
    """An annotation in quotes without them; a name of vLLM's configuration for some words as these words."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return ast.parse(annotation.value, mode="eval").body
    if not isinstance(annotation, ast.Name) or annotation.id in _PLAIN:
        return annotation
    alias = re.compile(rf"^{annotation.id} = (Literal\[.*?\])$", re.MULTILINE | re.DOTALL)
    for file in sorted((vllm / "config").glob("*.py")):
        if match := alias.search(file.read_text(encoding="utf-8")):
            return ast.parse(match[1], mode="eval").body
    return annotation
