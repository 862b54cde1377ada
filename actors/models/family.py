"""What a model needs to be trained right: by its configuration, and by what its class says of itself. No torch.

A batch goes one of two ways through a model. Packed: all sequences in one row, borders and shared prompts are the
affair of attention, which is ours. In rows: each sequence right-padded in a row of its own, through the model as it is;
exact for whatever reads only what came before, such as recurrent layers, whose state would run over borders.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from actors.config import UserError
from actors.models.class_source import ClassSource

Way = Literal["packed", "rows"]

_ATTENTION_KINDS = frozenset(("full_attention", "sliding_attention", "chunked_attention", "attention"))
"""Kinds of layers in which tokens meet in attention alone, and only in what our attention computes."""
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Fields that say where the logits are capped."""
_SCORE_CAP = "attn_logit_softcapping"
_REFUSED_FIELDS = {
    "keep_window_size": "chooses what a token sees by what comes after it",
    "unpadded_vocab_size": "has logits of fewer tokens than its embedding has rows",
}
"""Fields with which a model is none that a token's logprob is well defined for, if they are set."""
_REFUSED_KINDS = {
    "blt": "groups bytes into patches by what comes after them",
    "cpmant": "reads a prompt as a whole",
    "prophetnet": "predicts several tokens at a time",
    "reformer": "hashes by chance what a token sees",
    "xlm": "lets tokens see what comes after them",
    "xlnet": "lets tokens see what comes after them",
}
"""Families by their model_type that are no causal language models as all others are."""
_FLOAT32_ALONE = ("deepseek_v4", "xlstm")
"""Families whose code in transformers 5.19 multiplies float32 with bfloat16, and fails."""
LENGTHS_DECIDE = "has rotary positions that depend on a sequence's length"
"""Why a model that could be packed is not, where no engine fixes its longrope or dynamic positions."""
_ENOUGH_HEADS = 16
"""Of an indexer, for two keys never to have the score 0 in all of them: each is 0 for half of the keys."""


@dataclass(frozen=True, slots=True)
class ClassTraits:
    """What the class of a model says of itself in transformers."""

    interface: bool
    """Whether its attention can be another one than its own (`_supports_attention_backend`)."""
    stateful: bool
    """Whether it has recurrent state (`_is_stateful`)."""
    sdpa: bool
    flash: bool
    """Whether its own attention can be torch's SDPA, or flash attention."""
    source: ClassSource
    """What its code says."""


@dataclass(frozen=True, slots=True)
class Family:
    """How a model is trained."""

    way: Way
    why: str = ""
    """Of rows: what keeps the model from being packed."""
    logit_factor: float = 1.0
    """What the output embedding's product is multiplied by to become the logits."""
    logit_cap: float | None = None
    """The logits are then cap * tanh(logit / cap)."""
    embeds: bool = True
    """Whether embeddings can be given to it in place of tokens."""
    own_attention: Literal["sdpa", "eager"] = "sdpa"
    """Which of its own implementations of attention it has, for rows."""
    flash: bool = True
    """Whether flash attention 2 computes what it needs."""
    bf16: bool = True
    """Whether it can be computed in bf16."""
    least: int = 1
    """Tokens of a row that all parts of its layers take part in computing. Of a shorter one some would not, and ranks
    would not gather and reduce the same."""


def family_of(values: Mapping[str, object], traits: ClassTraits, field: str = "model.path") -> Family:
    """The family of a model with these fields of its (text) configuration, all that its class fills in included.

    Raises:
        UserError: with `field`: one that no way is right for.
    """
    kind = str(values.get("model_type"))
    refused = _REFUSED_KINDS.get(kind) or next((why for name, why in _REFUSED_FIELDS.items() if values.get(name)), "")
    # "vision": the tokens of an image alone.
    if values.get("is_causal") is False or values.get("use_bidirectional_attention") in (True, "all"):
        refused = "lets tokens see what comes after them"
    if _ties(values):
        refused = "chooses by scores, of which many are equal, what a token sees: that depends on what comes after it"
    if refused := refused or traits.source.head:
        raise UserError(f"{field}: must be a causal language model as others are, got a {kind}, which {refused}")
    why = _unpacked(values, traits)
    factor = 1.0
    for name, power in traits.source.factors:
        factor *= (_number(values, name) or 1.0) ** power
    return Family(
        way="rows" if why else "packed",
        why=why,
        logit_factor=factor,
        logit_cap=next(filter(None, (_number(values, name) for name in _CAPS)), None),
        embeds=traits.source.embeds,
        # transformers' SDPA leaves out sinks and caps of scores, without a word.
        own_attention="eager" if not traits.sdpa or traits.source.sinks or values.get(_SCORE_CAP) else "sdpa",
        bf16=kind not in _FLOAT32_ALONE,
        least=_least(kind, values),
        flash=traits.flash and not traits.source.sinks and "chunked_attention" not in _kinds(values),
    )


def _least(kind: str, values: Mapping[str, object]) -> int:
    if kind == "rwkv":  # decay is between tokens
        return 2
    rates = values.get("compress_rates")  # of each kind of layers: tokens that become one
    of_kinds = rates if isinstance(rates, dict) else {}
    found = [of_kinds.get(each) for each in _kinds(values)] + [values.get("indexer_compress_ratio")]
    return max((each for each in found if isinstance(each, int)), default=1)


def _ties(values: Mapping[str, object]) -> bool:
    """Whether an indexer chooses among keys of which many have the same score: that of all its heads' zeros."""
    chosen, heads = _number(values, "index_topk"), _number(values, "index_n_heads") or 0
    return (
        chosen is not None
        and heads < _ENOUGH_HEADS
        and chosen < (_number(values, "max_position_embeddings") or math.inf)
    )


def _unpacked(values: Mapping[str, object], traits: ClassTraits) -> str:
    """What of a model our attention does not see, or cannot compute; empty where there is nothing."""
    others = sorted({kind for kind in _kinds(values) if kind not in _ATTENTION_KINDS})
    if others:
        return f"has layers of {', '.join(others)}"
    if traits.stateful:
        return "has recurrent layers"
    if traits.source.own_masks:
        return "has masks of its own"
    if values.get("use_bidirectional_attention"):
        return "masks images apart"
    if values.get("attn_temperature_tuning"):
        return "scales attention by a token's place in its row"
    if not traits.interface or not traits.source.hands_on:
        return "takes no attention but its own"
    return ""


def _kinds(values: Mapping[str, object]) -> list[str]:
    for name in ("layer_types", "layers_block_type"):
        kinds = values.get(name)
        if isinstance(kinds, list | tuple) and kinds:
            return [str(kind) for kind in kinds]
    return []


def _number(values: Mapping[str, object], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
