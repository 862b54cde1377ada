"""The numbers of a mixture of experts that decide its size, from the fields of its config.json. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "top_k_experts")


@dataclass(frozen=True, slots=True)
class Mixture:
    """Layers of experts among plain ones, each expert a gated feed-forward like these."""

    experts: int
    chosen: int
    """Experts of a token."""
    width: int
    """Of an expert."""
    shared: int
    """Width of what is computed for every token beside the experts."""
    sparse_layers: int
    dense_layers: int
    dense_width: int
    """Width of the feed-forward of layers without experts."""

    @property
    def active(self) -> int:
        """Width of what a token goes through in a layer of experts."""
        return self.chosen * self.width + self.shared

    def further(self, hidden: int) -> int:
        """Parameters beyond those of a decoder whose layers all are `active` wide: the experts that a token does not
        go through, routers, and what plain layers have more, or less (then below 0)."""
        idle = (self.experts - self.chosen) * 3 * hidden * self.width + self.experts * hidden
        return self.sparse_layers * idle + self.dense_layers * 3 * hidden * (self.dense_width - self.active)


def mixture_of(config: Mapping[str, object]) -> Mixture | None:
    """The mixture that a config.json describes; None for a model without experts, or one that says it otherwise."""
    experts, chosen = _number(config, *_EXPERTS), _number(config, *_CHOSEN)
    layers, plain = _number(config, "num_hidden_layers"), _number(config, "intermediate_size")
    width = _number(config, "moe_intermediate_size", "intermediate_size")
    if not (layers and width) or experts < 2 or not chosen:
        return None
    dense = _dense_layers(config, layers)
    shared = _number(config, "shared_expert_intermediate_size", "shared_intermediate_size")
    shared = shared or _number(config, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts") * width
    return Mixture(experts, min(chosen, experts), width, shared, layers - dense, dense, plain)


def _dense_layers(config: Mapping[str, object], layers: int) -> int:
    """Layers without experts, by any of the ways in which families say it."""
    first = _number(config, "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
    listed, kinds = config.get("mlp_only_layers"), config.get("mlp_layer_types")
    if isinstance(kinds, list):
        return sum(kind == "dense" for kind in kinds)
    step = _number(config, "decoder_sparse_step", "interleave_moe_layer_step") or 1
    only = {number for number in listed if isinstance(number, int)} if isinstance(listed, list) else set()
    return sum(n < first or n in only or (n + 1) % step > 0 for n in range(layers))


def _number(config: Mapping[str, object], *names: str) -> int:
    """The first of these that is a whole number; 0 where none is."""
    found = [config.get(name) for name in names]
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), 0)
