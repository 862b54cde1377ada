"""What config.json of a model directory says, checked as far as it can be without loading the model. No torch."""

import difflib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from actors.config import UserError
from actors.models.safetensors_header import not_a_file, parse_json, weight_files
from launch.models.fields import check_kinds, short
from launch.models.transformers_source import causal_architectures, known_types

Role = Literal["causal", "scores", "encoder"]
"""What a model shall become: a language model, one that gives a score (which may start from either), an encoder."""

_COUNTS = (
    *("hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head"),
    *("num_key_value_heads", "intermediate_size", "n_inner", "head_dim", "vocab_size", "embedding_size"),
    *("max_position_embeddings", "n_positions", "type_vocab_size"),
)
REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
"""What decides the sizes of the families whose tensors are known (launch/models/tensors.py)."""
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
BERTS = ("bert", "roberta", "xlm-roberta")
READ_BOTH_WAYS = (
    *BERTS,
    *("albert", "big_bird", "camembert", "convbert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta-prelayernorm", "roformer", "xlm", "xlm-roberta-xl", "xmod"),
)
"""Families of encoders that transformers also lists as causal."""
_MOST_BYTES = 16 * 2**20


def model_values(directory: Path, field: str = "model.path") -> dict[str, object]:
    """The fields of config.json of a directory with weights.

    Raises:
        UserError: with `field`: this is no model directory, or config.json says what no model can be.
    """
    require_directory(directory, field)
    values = config_values(directory, field)
    if "algorithm" in values and "model_type" not in values:  # a run has a config.json as well
        raise UserError(f"{field}: {unfinished(directory) or 'is a run directory without a model'}, got {directory}")
    try:
        found = bool(weight_files(directory))
    except ValueError as error:
        raise UserError(f"{field}: {error}, got {directory}") from None
    if not found:
        raise UserError(f"{field}: must hold weights (*.safetensors or *.bin), got {directory}")
    return values


def config_values(directory: Path, field: str) -> dict[str, object]:
    """The fields of config.json, whether or not there are weights beside it; raises UserError as `model_values`."""
    path = directory / "config.json"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{field}: {path} must be a configuration, got {path.stat().st_size} bytes")
        values = parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read ({error.strerror}), got {directory}") from None
    except ValueError as error:
        raise UserError(f"{field}: {error}, got {directory}") from None
    if not isinstance(values, dict):
        raise UserError(f"{field}: {path} must hold an object, got a {_kind(values)}")
    if "algorithm" not in values or "model_type" in values:  # else a run's: `model_values` tells it
        _check_type(values, path, field)
        _check_counts(values, path, field)
        check_kinds(values, path, field, strict=values["model_type"] in (*DECODERS, *BERTS))
    return values


def require_directory(directory: Path, field: str) -> None:
    """Raise UserError unless a path leads to a directory with a config.json; says what is there instead."""
    given = str(directory)
    try:
        directory.stat()
        entries = [entry.name for entry in directory.iterdir()] if directory.is_dir() else None
        if (directory / "config.json").is_file():
            return
        if what := not_a_file(directory / "config.json"):
            raise UserError(f"{field}: {directory / 'config.json'} must be a file, is {what}, got {given}")
    except FileNotFoundError:
        _refuse_missing(directory, field)
        return
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise UserError(f"{field}: cannot be read ({getattr(error, 'strerror', error)}), got {given!a}") from None
    if entries is None:
        near = f" (did you mean {directory.parent}?)" if (directory.parent / "config.json").is_file() else ""
        raise UserError(f"{field}: must be a directory with a config.json, not a file{near}, got {given}")
    if not entries:
        raise UserError(f"{field}: must be a model directory with a config.json, got the empty directory {given}")
    if "adapter_config.json" in entries:
        raise UserError(
            f"{field}: must be a whole model, and this is a PEFT adapter (`tandem export {given} --output DIR` merges "
            f"it into its base), got {given}"
        )
    raise UserError(f"{field}: must be a model directory with a config.json{_near(directory)}, got {given}")


def _refuse_missing(directory: Path, field: str) -> None:
    given = str(directory)
    if given.startswith("~"):
        raise UserError(
            f"{field}: ~ is not expanded in a configuration (write {os.path.expanduser(given)}), got {given}"
        )
    if directory.is_symlink():
        raise UserError(f"{field}: the link leads to {os.readlink(directory)}, which is not there, got {given}")
    raise UserError(f"{field}: must be a model directory with a config.json{_near(directory)}, got {given}")


def _near(directory: Path) -> str:
    if (directory / "export/config.json").is_file():
        return f" (did you mean {directory}/export?)"
    if (directory / "checkpoints").is_dir():
        return " (it has checkpoints, but no model yet)"
    candidates = [str(path.parent) for path in directory.parent.glob("*/config.json")]
    near = difflib.get_close_matches(str(directory), candidates, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def unfinished(directory: Path) -> str | None:
    """What a run directory without an export has instead of a model; None for any other directory."""
    try:
        algorithm = json.loads((directory / "config.json").read_text(encoding="utf-8"))["algorithm"]
        steps = algorithm.get("steps")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if (directory / "export/config.json").is_file():
        return f"this is a run directory, whose model is in {directory}/export"
    name = directory / "config.json"
    try:
        step = (directory / "checkpoints" / "latest").read_text(encoding="utf-8").strip().removeprefix("step-")
    except OSError:
        return f"the run has not finished and has no checkpoint; start it again with `tandem run {name}`"
    total = f" of {steps}" if steps else ""
    return (
        f"the run has not finished: there is a checkpoint of step {step}{total}, but no model yet; "
        f"resume it with `tandem run {name} checkpoint.resume=true`"
    )


def architecture_of(values: Mapping[str, object]) -> str:
    """The first architecture that config.json names; empty where it names none."""
    names = values.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def scores_given(values: Mapping[str, object]) -> int:
    """How many scores a classifier gives; a configuration that names no classes has two."""
    labels = values.get("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    given = values.get("num_labels")
    return int(given) if isinstance(given, int | float | str) and given else 2


def check_architecture(values: Mapping[str, object], role: Role, directory: Path, field: str, what: str) -> None:
    """Raise UserError unless a model can become what it shall; `what` says who asks, such as `grpo`."""
    if quantized := values.get("quantization_config") or values.get("compression_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise UserError(
            f"{field}: must hold plain weights (model.quantize makes 4 bits of them), got weights quantised with "
            f"{short(method)} in {directory}"
        )
    if role == "encoder":  # any transformer gives vectors
        return
    kind, architecture = str(values["model_type"]), architecture_of(values)
    shown = f"{architecture or kind} in {directory}"
    wanted = f"must be a causal language model for {what}"
    if "vision_config" in values or "audio_config" in values or architecture.endswith("ForConditionalGeneration"):
        raise UserError(f"{field}: {wanted}, not one of images, sound, or an encoder with a decoder, got {shown}")
    if architecture.endswith("ForSequenceClassification") and role == "causal":
        raise UserError(f"{field}: {wanted}, and a classifier gives scores, got {shown}")
    known = causal_architectures()
    if not known:  # the installed transformers has another form than is known here
        return
    plain = (
        not architecture or architecture in known.get(kind, ()) or architecture.endswith("ForSequenceClassification")
    )
    if kind not in known or kind in READ_BOTH_WAYS or not plain:
        wants = f" (it has {', '.join(known[kind])})" if kind in known and kind not in READ_BOTH_WAYS else ""
        raise UserError(f"{field}: {wanted}{wants}, got {shown}")


def _check_type(values: Mapping[str, object], path: Path, field: str) -> None:
    kind, known = values.get("model_type"), known_types()
    if not isinstance(kind, str) or not kind:
        got = "nothing" if kind is None else short(kind)
        raise UserError(f"{field}: {path} must say model_type, the name of an architecture, got {got}")
    architectures = values.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise UserError(f"{field}: architectures in {path} must be a list of names, got {short(architectures)}")
    if not known or kind in known:
        return
    if "auto_map" in values:
        raise UserError(
            f"{field}: needs code of its own repository (auto_map in {path}), which Tandem never runs; transformers "
            f"{version('transformers')} has no model_type {short(kind)}"
        )
    near = difflib.get_close_matches(kind, sorted(known), 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
        f"{field}: model_type in {path} must be one that transformers {version('transformers')} has{hint}, "
        f"got {short(kind)}"
    )


def _check_counts(values: Mapping[str, object], path: Path, field: str) -> None:
    for name in _COUNTS:
        value = values.get(name)
        if value is None or isinstance(value, list):  # some families give one for each layer
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{field}: {name} in {path} must be a whole number of at least 1, got {short(value)}")
    kind = values["model_type"]
    if kind in DECODERS or kind in BERTS:
        for name in REQUIRED:
            if not isinstance(values.get(name), int):
                got = short(values[name]) if name in values else "nothing"
                raise UserError(f"{field}: {path} must say {name} for {kind}, got {got}")
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if not (isinstance(hidden, int) and isinstance(heads, int)):
        return
    # With a head_dim of their own, heads need not divide anything.
    if not values.get("head_dim") and hidden % heads and (kind in DECODERS or kind in BERTS):
        raise UserError(f"{field}: num_attention_heads in {path} must divide hidden_size ({hidden}), got {heads}")
    groups = values.get("num_key_value_heads")
    if kind in DECODERS and isinstance(groups, int) and heads % groups:
        raise UserError(
            f"{field}: num_key_value_heads in {path} must divide num_attention_heads ({heads}), got {groups}"
        )


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "list" if isinstance(value, list) else "string" if isinstance(value, str) else "number"
