"""Whether trainer and engines take the same rotary positions, and which ones where lengths decide. No torch.

Looked up in vLLM 0.32 and transformers 5.19. Both have one formula for every type; they differ in what vLLM's classes
leave out, or take from elsewhere. What lengths decide is made equal by `actors.models.rope`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from actors.config import UserError
from launch.checks.engine_family import runs_transformers
from launch.config import RunConfig
from launch.kinds.kind import JobKind
from launch.models.fields import short

_OF_DEEPSEEK = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "axk1")
"""Families whose attention is DeepSeek's in vLLM, which scales in its own way, and takes every type for yarn."""
_Rope = Mapping[str, Any]


def check_rope(values: Mapping[str, object], kind: JobKind) -> list[str]:
    """What lengths decide about a model with these fields of config.json, as lines to be told.

    Raises:
        UserError: vLLM would take other positions than transformers, or none; an encoder's would depend on neighbours.
    """
    notes, (name, longest) = list[str](), kind.longest()
    for rope in ropes_of(values):
        original = _original(values, rope)
        if kind.samples_responses:
            _refuse_other(values, rope, original, kind.config)
        if rope["rope_type"] != "longrope" or not original:
            continue
        if kind.role == "encoder":
            if not 0 < longest <= original:
                got = f"got {longest}" if longest else "got no limit"
                what = "beyond which a text's longrope positions would depend on its neighbours"
                raise UserError(f"{name}: must not exceed the model's original length ({original}), {what}, {got}")
        elif kind.samples_responses:
            exceeds = longest > original
            which, than = ("long", "exceeds") if exceeds else ("short", "does not exceed")
            notes.append(f"model: longrope with the {which} factors, as {name} ({longest}) {than} {original}")
        elif longest > original:
            notes.append(f"model: longrope with the long factors for what has more than {original} tokens")
    return list(dict.fromkeys(notes))


def lengths_decide(values: Mapping[str, object]) -> bool:
    """Whether a sequence's length decides its rotary positions, as long as no engine does: see `RopeRule.depends`."""
    for rope in ropes_of(values):
        kind = str(rope["rope_type"])
        if kind == "longrope" or "dynamic" in kind or (kind != "default" and "long_mscale" in rope):
            return True
    return False


def ropes_of(values: Mapping[str, object]) -> Iterator[_Rope]:
    """Rotary positions of all layers, or of each kind of layer, by newer names; those that are not scaled, too."""
    given = values.get("rope_parameters") or values.get("rope_scaling")
    if isinstance(given, dict):
        for rope in [each for each in given.values() if isinstance(each, dict)] or [given]:
            yield {**rope, "rope_type": rope.get("rope_type", rope.get("type", "default"))}


def _original(values: Mapping[str, object], rope: _Rope) -> int:
    """Length that the model was made for before its positions were scaled; 0 where none is given."""
    # As transformers looks for it.
    places = values.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings")
    found = next((each for each in (*places, values.get("max_position_embeddings")) if each is not None), 0)
    return found if isinstance(found, int) else 0


def _refuse_other(values: Mapping[str, object], rope: _Rope, original: int, config: RunConfig) -> None:
    kind, longest = str(values.get("model_type")), config.rollout.max_model_len
    if runs_transformers(config, values):
        # vLLM runs transformers' own code, on sequences of many requests in one call.
        if rope["rope_type"] == "longrope" and longest > original:
            _refuse_length(original, "of a longrope model that vLLM has no class for", longest)
        return
    for problem in (_of_type(rope), _of_family(kind, rope)):
        if problem:
            what, got = problem
            raise UserError(f"model.path: rope_parameters in config.json must {what}, got {short(got)}")
    factor = rope.get("factor")
    if rope["rope_type"] == "yarn" and isinstance(factor, int | float) and longest > (most := int(original * factor)):
        _refuse_length(most, "which is factor x original_max_position_embeddings of a yarn model", longest)


def _refuse_length(most: int, why: str, longest: int) -> None:
    name = "rollout.max_prompt_tokens + rollout.max_response_tokens"
    raise UserError(f"{name}: must not exceed {most}, {why}, got {longest}")


def _of_type(rope: _Rope) -> tuple[str, object] | None:
    """What rope_parameters must say of a type, for vLLM to take what transformers takes, and what they say."""
    factor = rope.get("factor")
    match rope["rope_type"]:
        case "linear" if isinstance(factor, int):
            return f"give factor with a decimal point ({factor}.0), as vLLM takes no whole number", factor
        case "proportional" if factor not in (None, 1):
            return "leave factor out, which vLLM does not read", factor
        case "dynamic":
            given = next((name for name in ("max_trained_positions", "alpha") if rope.get(name) is not None), None)
            return (f"leave {given} out, which vLLM reads, and transformers does not", rope[given]) if given else None
        case "yarn":
            names = ("factor", *(name for name in ("beta_fast", "beta_slow") if name in rope))
            lacking = next((name for name in names if not rope.get(name)), None)
            return (f"give {lacking} above 0, without which vLLM computes none", rope.get(lacking)) if lacking else None
    return None


def _of_family(kind: str, rope: _Rope) -> tuple[str, object] | None:
    named = rope["rope_type"]
    if kind in _OF_DEEPSEEK and named not in ("default", "yarn"):
        return f"be of type default or yarn, as vLLM takes every type of {kind} for yarn", named
    if kind in _OF_DEEPSEEK and named == "yarn" and not _scale_alike(rope):
        return f"give mscale and mscale_all_dim, by which vLLM scales {kind}, and no more", rope.get("mscale_all_dim")
    return None


def _scale_alike(rope: _Rope) -> bool:
    """Whether vLLM's class for DeepSeek scales rotated queries and keys, and scores, as transformers does."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(rope["factor"]) + 1 if rope["factor"] > 1 else 1.0

    given, every, own = rope.get("mscale"), rope.get("mscale_all_dim"), rope.get("attention_factor")
    rotated = own if own is not None else scale(given) / scale(every) if given and every else scale(1)
    scores = scale(every) ** 2 if every else 1.0
    engine = scale(1 if given is None else given) / scale(every or 0), 1.0 if own == 1 else scores
    return all(map(math.isclose, (rotated, scores), engine))
