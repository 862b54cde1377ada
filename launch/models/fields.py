"""Of which kind the fields of config.json must be, whatever the model. No torch."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path

from actors.config import UserError
from launch.models.transformers_source import activations, reads_rope_factor, rope_types

_NUMBERS = (
    *("rms_norm_eps", "layer_norm_eps", "initializer_range", "rope_theta", "attention_dropout"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
)
_SWITCHES = ("tie_word_embeddings", "use_cache", "attention_bias", "mlp_bias", "use_sliding_window")
_ROPE_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""Type of scaled rotary positions -> what transformers 5.19 cannot compute them without."""
_DTYPES = ("auto", "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")


def check_kinds(values: Mapping[str, object], path: Path, field: str, *, strict: bool) -> None:
    """Check the kinds of the usual fields; where `strict`, a family whose fields are known, also what they name.

    Raises:
        UserError: with `field`: what transformers 5 refuses, or cannot compute with.
    """
    rules = [(name, (int, float), "a number") for name in _NUMBERS]
    rules += [(name, (bool,), "true or false") for name in _SWITCHES]
    rules += [(name, (int,), "a whole number") for name in ("sliding_window", "bos_token_id", "pad_token_id")]
    rules += [("eos_token_id", (int, list), "a whole number or a list of them"), ("layer_types", (list,), "a list")]
    for name, kinds, rule in rules:
        value = values.get(name)
        # For Python true is an int; in a config.json it is no number.
        if value is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))):
            continue
        raise UserError(f"{field}: {name} in {path} must be {rule}, got {short(value)}")
    if strict and values.get("hidden_act") is not None:
        _require_known(values["hidden_act"], activations(), f"{field}: hidden_act in {path}", "activations")
    _check_rope(values, path, field)
    if strict:
        _check_layers(values, path, field)
    for name in ("rms_norm_eps", "layer_norm_eps", "initializer_range"):
        value = values.get(name)
        if isinstance(value, int | float) and not value >= 0:  # also NaN
            raise UserError(f"{field}: {name} in {path} must be at least 0, got {short(value)}")
    quantization = values.get("quantization_config")
    if quantization is not None and not (isinstance(quantization, dict) and quantization.get("quant_method")):
        got = short(quantization)
        raise UserError(f"{field}: quantization_config in {path} must say its quant_method, or be left out, got {got}")
    for name in ("dtype", "torch_dtype"):
        value = values.get(name)
        if isinstance(value, str) and value.removeprefix("torch.") not in _DTYPES:
            raise UserError(f"{field}: {name} in {path} must be one of {', '.join(_DTYPES)}, got {short(value)}")


def _check_layers(values: Mapping[str, object], path: Path, field: str) -> None:
    kinds, layers = values.get("layer_types"), values.get("num_hidden_layers")
    if not isinstance(kinds, list):
        return
    if odd := [kind for kind in kinds if not isinstance(kind, str)]:
        raise UserError(f"{field}: layer_types in {path} must be names of kinds of layers, got {short(odd[0])}")
    if isinstance(layers, int) and len(kinds) != layers:
        raise UserError(
            f"{field}: layer_types in {path} must name num_hidden_layers ({layers}) layers, got {len(kinds)}"
        )


def _check_rope(values: Mapping[str, object], path: Path, field: str) -> None:
    for name in ("rope_scaling", "rope_parameters"):
        given = values.get(name)
        if given is None:
            continue
        if not isinstance(given, dict):
            raise UserError(f"{field}: {name} in {path} must be an object, got {short(given)}")
        # One for each kind of layer, or one for all layers.
        each = [value for value in given.values() if isinstance(value, dict)] or [given]
        for rope in each:
            kind = rope.get("rope_type", rope.get("type", "default"))  # older files say type
            where = f"{field}: rope_type of {name} in {path}"
            # Of text, the positions of images are plain ones.
            older = {"mrope"} if str(values.get("model_type")).startswith("qwen2_") else set[str]()
            known = rope_types() and rope_types() | older
            _require_known(kind, known, where, "types of rotary positions")
            needs = _ROPE_NEEDS.get(kind, ())
            if kind != "default" and reads_rope_factor(str(values.get("model_type"))):
                needs = ("factor", *needs)
            if lacking := [key for key in needs if rope.get(key) is None]:
                raise UserError(f"{field}: {name} in {path} must say {lacking[0]} for {kind}, got nothing")


def _require_known(given: object, known: frozenset[str], where: str, what: str) -> None:
    """Raise UserError unless the installed transformers has what is named, as far as its source tells."""
    if not known or (isinstance(given, str) and given in known):
        return
    near = difflib.get_close_matches(str(given), known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"{where} must be one of transformers' {what}{hint}, got {short(given)}")


def short(value: object) -> str:
    """A value of config.json as a message shows it, in at most 80 characters."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = value if isinstance(value, str) and value.isprintable() and value else ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
