"""The families in sizes that an engine on CPU takes: heads of 32, and what must fit to them.

Heads of other sizes are refused by `tandem check` (launch/checks/engine_shape.py), whatever the family.
"""

from copy import deepcopy
from typing import Any

from tests.families.fields import FULL, SLIDING, Fields, rope
from tests.families.table import FAMILIES

HEAD = 32
_HEAD_SIZES = ("head_dim", "global_head_dim", "attention_head_dim", "swa_head_dim", "kv_channels", "indexer_head_dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
_LATENT: Fields = {"kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}
_MAMBA: Fields = {"hidden_size": 128, "mamba_n_heads": 8, "mamba_d_head": 32}


def _ramp(first: float, last: float) -> list[float]:
    return [first + (last - first) * step / (HEAD // 2 - 1) for step in range(HEAD // 2)]


_LONG: Fields = {"short_factor": _ramp(1.0, 2.5), "long_factor": _ramp(2.0, 8.0)}
_SHORT: Fields = {"original_max_position_embeddings": 16}
_SECTIONS = rope(mrope_section=[6, 5, 5])
_OTHER: dict[str, dict[str, Any]] = {
    "helium": {"hidden_size": 4 * HEAD},
    "falcon": {"ffn_hidden_size": 512},
    "falcon new decoder": {"ffn_hidden_size": 512},
    "falcon alibi": {"ffn_hidden_size": 512},
    "falcon sequential": {"ffn_hidden_size": 512},
    "gpt_oss": {"hidden_size": 64},
    "gpt_oss full": {"hidden_size": 64},
    "llama4 text": {"attention_chunk_size": 128},
    "llama longrope": {"rope_parameters": rope("longrope", factor=16.0, **_SHORT, **_LONG)},
    "longrope phi3": {"rope_parameters": rope("longrope", **_SHORT, **_LONG)},
    "longrope phi3 old fields": {"rope_scaling": {"type": "longrope", **_LONG}},
    "llama dynamic ntk": {"max_position_embeddings": 256},
    "qwen3 dynamic": {"max_position_embeddings": 256},
    "cohere_compass": {"rope_parameters": {SLIDING: _SECTIONS, FULL: _SECTIONS}},
    "mamba2": {"hidden_size": 128, "num_heads": 8, "head_dim": HEAD, "n_groups": 1},
    "xlnet": {"d_head": HEAD},
    **dict.fromkeys(("bamba", "granitemoehybrid", "granitemoehybrid rope"), _MAMBA),
}


def for_engine(name: str) -> Fields:
    """Fields of config.json of a family, by its short name; composites stay as they are."""
    fields = deepcopy(FAMILIES[name])
    heads = next((fields[each] for each in _HEADS if each in fields), 0)
    if "kv_lora_rank" in fields:
        fields = {each: value for each, value in fields.items() if each != "head_dim"} | _LATENT | {"hidden_size": 64}
    elif "head_dim" not in fields:
        fields |= {each: HEAD * heads for each in _WIDTHS if heads and isinstance(fields.get(each), int)}
    fields |= {each: HEAD for each in _HEAD_SIZES if isinstance(fields.get(each), int)}
    return fields | deepcopy(_OTHER.get(name, {}))
