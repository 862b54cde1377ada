"""Rotary positions whose frequencies depend on length (longrope, dynamic NTK), without memory and without neighbours.

In every call, transformers chooses them by the longest position of all sequences, and dynamic NTK keeps what an earlier
call has grown to. Here a sequence gets what plain transformers has for it alone, or, where engines sample, what
vLLM has for all sequences: it chooses once, by its max_model_len (longrope), or never grows (dynamic NTK).
"""

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from actors.config import UserError

ENGINE_LENGTH = "rollout.max_prompt_tokens + rollout.max_response_tokens"
_TEMPERATURE_FROM = 32768
"""Engine lengths above which vLLM 0.32 lets Llama 4 scale queries by their position."""


class RopeRule:
    """How long the sequences of a call are to a model's rotary positions, and which sequences may share a call.

    Example: phi3 with an original length of 4096, trained without engines: `regime(4096)` is 1, `regime(5000)` 4097.
    """

    def __init__(self, switches: set[int], growth: int | None, engine_length: int | None) -> None:
        """
        Args:
            switches: lengths above which the frequencies are others, in tokens.
            growth: length above which each length has its own.
            engine_length: vLLM's max_model_len; None where no engine samples.
        """
        self.switches, self.growth = switches, growth
        fixed = engine_length is not None and (switches or growth is not None)
        self._fixed = engine_length if fixed else None
        self._regime = self._fixed

    @property
    def depends(self) -> bool:
        """Whether sequences of other lengths have other frequencies."""
        return self._fixed is None and bool(self.switches or self.growth is not None)

    def regime(self, length: int) -> int | None:
        """Sequences may share a call, or a prompt, where this is the same; None: all may, whatever their lengths.

        It is the shortest length with the frequencies of a sequence of `length` tokens, its prompt included.
        """
        if not self.depends:
            return None
        if self.growth is not None and length > self.growth:
            return length
        return max((switch + 1 for switch in self.switches if length > switch), default=1)

    @contextmanager
    def calls(self, regime: int | None) -> Iterator[None]:
        """Calls within are of sequences of this regime, also where some of their tokens are not computed.

        Without it, a call is as long as its own longest position says.
        """
        before = self._regime
        self._regime = self._fixed if regime is None else regime
        try:
            yield
        finally:
            self._regime = before

    def checkpointed(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` of gradient checkpointing: a layer that is recomputed, when its call has ended, is again one of
        that call."""
        return nullcontext(), self.calls(self._regime)

    def rotate(self, module: Any, x: torch.Tensor, position_ids: torch.Tensor, *given: Any, **named: Any) -> Any:
        """What a rotary module that has seen no other call gives for [..., T] positions: cos and sin, [..., T, D]."""
        fresh = copy.copy(module)
        fresh._buffers = dict(module._buffers)  # what it finds for this call is kept with the copy
        if self._regime is None:
            return type(module).forward(fresh, x, position_ids, *given, **named)
        # One more position, for transformers to choose by, which nobody gets.
        last = position_ids.new_full((*position_ids.shape[:-1], 1), self._regime - 1)
        positions = torch.cat([position_ids, last], dim=-1)
        found = type(module).forward(fresh, x, positions, *given, **named)
        return tuple(each[..., :-1, :] for each in found) if isinstance(found, tuple) else found[..., :-1, :]


def fix_rope(model: PreTrainedModel, engine_length: int | None) -> RopeRule:
    """Make a loaded model's rotary positions depend on nothing but a call's regime; returns what says which.

    With engines, scaling by position is theirs, too: that of longrope, and that of Llama 4's queries.

    Args:
        engine_length: max_model_len of the engines that sample from the model, in tokens; None without engines.

    Raises:
        UserError: engines would have frequencies for no sequence as long as theirs.
    """
    switches, growth, dependent = set[int](), set[int](), []
    module: Any
    for module in model.modules():
        for layer_type, kind in _rope_types(module).items():
            rope = module.config.rope_parameters
            rope = rope if layer_type is None else rope[layer_type]
            # `long_mscale`: phimoe scales by length, of whatever type its frequencies are.
            if kind == "longrope" or (kind != "default" and "long_mscale" in rope):
                switches.add(rope["original_max_position_embeddings"])
            elif "dynamic" in kind:
                growth.add(module.max_seq_len_cached)
            else:
                continue
            dependent.append(module)
            if engine_length is not None and kind == "longrope":
                _as_engines_scale(module, layer_type, rope, engine_length)
    if engine_length is not None:
        _refuse_longer(engine_length, min(growth, default=engine_length))
        _as_engines_temper(model, engine_length)
    rule = RopeRule(switches, min(growth, default=None), engine_length)
    for module in dict.fromkeys(dependent):
        module.forward = partial(rule.rotate, module)
    model.rope_rule = rule  # type: ignore[assignment]  # no parameter, no buffer: a plain attribute
    return rule


def rope_rule(model: PreTrainedModel) -> RopeRule:
    """The rule that `fix_rope` has given a model; one without engines where it has given none."""
    found: Any = getattr(model, "rope_rule", None)
    return found if isinstance(found, RopeRule) else fix_rope(model, None)


def refuse_unknown_ropes(config: PretrainedConfig) -> None:
    """Raise UserError where config.json asks for rotary positions that the installed transformers does not compute."""
    given = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    known = {"default", *ROPE_INIT_FUNCTIONS}
    for rope in [value for value in given.values() if isinstance(value, dict)] or [given]:
        kind = rope.get("rope_type", "default")
        if kind not in known:
            raise UserError(f"model.path: rope_type must be one of {', '.join(sorted(known))}, got {kind!s:.80}")


def _rope_types(module: Any) -> dict[str | None, str]:
    """Kind of layer, or None for all of them -> type of a rotary module's frequencies; empty for any other module."""
    kinds = getattr(module, "rope_type", None)
    if not hasattr(module, "config") or not kinds:
        return {}
    return dict(kinds) if isinstance(kinds, dict) else {None: kinds}


def _as_engines_scale(module: Any, layer_type: str | None, rope: dict[str, Any], engine_length: int) -> None:
    """Take vLLM's attention scaling for longrope, which looks at neither `factor` nor `attention_factor`."""
    original = rope["original_max_position_embeddings"]
    ratio = module.config.max_position_embeddings / original
    scaling = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    long = engine_length > original
    given = rope.get("long_mscale" if long else "short_mscale")
    name = "attention_scaling" if layer_type is None else f"{layer_type}_attention_scaling"
    setattr(module, name, scaling if given is None else given)
    if long and hasattr(module, "rope_init_fn"):
        # phimoe computes frequencies anew in every call, in transformers 5.19 those of short sequences for all.
        module.rope_init_fn = partial(ROPE_INIT_FUNCTIONS["longrope"], seq_len=engine_length)


def _as_engines_temper(model: PreTrainedModel, engine_length: int) -> None:
    for module in model.modules():
        if hasattr(module, "attn_temperature_tuning"):  # Llama 4's
            module.attn_temperature_tuning = engine_length > _TEMPERATURE_FROM  # type: ignore[assignment]


def _refuse_longer(engine_length: int, longest: int) -> None:
    if engine_length > longest:
        raise UserError(
            f"{ENGINE_LENGTH}: must not exceed max_position_embeddings ({longest}) of a model with dynamic rotary "
            f"positions, of which vLLM has none beyond, got {engine_length}"
        )
