"""What the fields of a config.json say of layers that are not those of a dense decoder. Pure functions."""

import re
from collections.abc import Mapping

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
_SHARED = ("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size")
_OTHER_HEADS = ("kv_lora_rank", "global_head_dim", "v_head_dim", "swa_head_dim", "attention_head_dim", "dim_head")
"""Fields of families whose keys, values or layers have heads of several sizes, or are kept as something smaller."""
_RECURRENT = re.compile("mamba|ssm_|state_size|(^|_)conv_|_conv$|lru_width|linear_(num|key|value|head)")
"""Names of fields of families in which not all layers are attention."""
_WINDOWS = ("sliding_window", "attention_window_size", "attention_chunk_size", "window_size")
_ATTENTION = ("attention", "full_attention", "sliding_attention", "chunked_attention")


def expert_count(config: Mapping[str, object]) -> int:
    """Experts of a layer by the fields of a config.json, 0 for models without."""
    parts = [config, config.get("ffn_config")]
    found = [part.get(name) for part in parts if isinstance(part, Mapping) for name in _EXPERTS]
    return max((count for count in found if isinstance(count, int)), default=0)


def expert_size(config: Mapping[str, object]) -> int:
    """What of its experts a token goes through, those included that all tokens do; 0: not known."""
    chosen = _first(config, *_CHOSEN)
    each = _first(config, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
    shared = _first(config, "n_shared_experts", "num_shared_experts") * each + _first(config, *_SHARED)
    return chosen * each + shared if chosen and each else 0


def size_of_heads(config: Mapping[str, object], usual: int) -> int:
    """Size of each head of queries, keys and values, `usual` where none is given; 0 where there are several.

    Raises:
        TypeError: it is no number.
    """
    size = config.get("head_dim") or usual
    if not isinstance(size, int):
        raise TypeError(f"head_dim must be a whole number, got {size!r:.80}")
    return 0 if any(config.get(name) not in (None, 0, size) for name in _OTHER_HEADS) else size


def has_windows(config: Mapping[str, object]) -> bool:
    """Whether layers may see a part of the sequence alone."""
    return any(config.get(name) for name in _WINDOWS) and config.get("use_sliding_window") is not False


def is_recurrent(config: Mapping[str, object]) -> bool:
    """Whether layers may be something else than attention."""
    kinds = config.get("layer_types") or config.get("layers_block_type")
    others = {*kinds} - {*_ATTENTION} if isinstance(kinds, list) else set()
    given = (name for name, value in config.items() if value not in (None, False, 0))
    return bool(others) or any(map(_RECURRENT.search, given))


def _first(config: Mapping[str, object], *names: str) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)
