"""The loss that balances a mixture of experts, the same however an update is divided.

The load-balancing loss (arXiv 2101.03961, equations 4 to 6) of an optimizer update is

    E sum_e f_e P_e     f_e: times that expert e was among the k experts of a token, over all tokens and layers
                        P_e: mean probability that routers gave it

as transformers computes it for one batch that holds all sequences of the update: every token of a sequence counts, the
last one and a shared prompt's (once for each sequence) included, and nothing else. Only P has a gradient. So with f of
the whole update known, the loss is a sum over micro-batches and ranks: `Balance.count` reads it in a pass of its own
where a rank has several micro-batches, and ranks add up theirs. The loss does not depend on how an update is divided.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PretrainedConfig, PreTrainedModel

from actors.config import UserError
from actors.models.packed import ModelInputs, PackedBatch


@dataclass(frozen=True, eq=False)
class Routed:
    """What the routers of all layers made of some tokens; E experts."""

    chosen: torch.Tensor
    """How often each expert was among the first k, and in the end the number of tokens x layers, float64 [E + 1]."""
    probabilities: torch.Tensor
    """Sum of each expert's probabilities, with gradient, float32 [E]."""

    @classmethod
    def of(cls, logits: torch.Tensor, weights: torch.Tensor, top_k: int) -> "Routed":
        """
        Args:
            logits: of the routers, layer after layer, [layers x tokens, E].
            weights: how many sequences each token is in; 0 for padding, [tokens].
            top_k: experts of a token.
        """
        weights = weights.to(torch.float32).repeat(len(logits) // len(weights))
        probabilities = logits.float().softmax(-1)
        # Not the experts that were taken, which a bias may have chosen, but as transformers counts them.
        first = probabilities.detach().topk(top_k, dim=-1).indices
        chosen = weights.new_zeros(logits.shape[-1] + 1, dtype=torch.float64)
        chosen.index_add_(0, first.reshape(-1), weights.repeat_interleave(top_k).double())
        chosen[-1] = weights.sum()
        return cls(chosen, weights @ probabilities)

    def __add__(self, other: "Routed") -> "Routed":
        return Routed(self.chosen + other.chosen, self.probabilities + other.probabilities)


class Balance:
    """The load-balancing loss of one model's updates."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        self.top_k = _setting(config, "num_experts_per_tok", "moe_top_k")
        self._reading = self._idle = False
        self._read: list[Routed] = []
        self._chosen: torch.Tensor | None = None

    @property
    def configured(self) -> float:
        """What the loss counts by the model's configuration: transformers adds it with output_router_logits alone."""
        asked = getattr(self.config, "output_router_logits", False)
        return (
            float(_setting(self.config, "router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")) if asked else 0.0
        )

    @contextmanager
    def reading(self, *, idle: bool) -> Iterator[None]:
        """Within it, `arguments` asks for what `read` keeps; `idle`: of tokens that are in no sequence."""
        self._reading, self._idle = True, idle
        try:
            yield
        finally:
            self._reading = False

    def arguments(self) -> dict[str, object]:
        """What the decoder must be called with: else it would do as its configuration says."""
        return {"output_router_logits": self._reading}

    def read(self, outputs: Any, weights: torch.Tensor) -> None:
        """Keep what the decoder says beside its hidden states; `weights`: see `Routed.of`."""
        if self._reading:
            logits = [layer.reshape(-1, layer.shape[-1]) for layer in outputs.router_logits]
            weights = weights.reshape(-1) * (not self._idle)
            self._read.append(Routed.of(torch.cat(logits), weights, self.top_k))

    def count(self, batches: Iterable[PackedBatch], evaluate: Callable[[PackedBatch], object]) -> None:
        """Begin an update: learn from its micro-batches, which `evaluate` reads, what its tokens choose."""
        self._chosen = None
        for batch in batches:
            with self.reading(idle=batch.idle):
                evaluate(_unread(batch))
        if self._read:
            self._chosen = _over_ranks(self._taken().chosen)

    def share(self) -> torch.Tensor:
        """The last micro-batch's share of the loss, without the coefficient; all ranks ask at the same time."""
        read = self._taken()
        # A rank's only micro-batch says itself what it chooses.
        chosen = _over_ranks(read.chosen) if self._chosen is None else self._chosen
        tokens = chosen[-1]
        frequencies = (chosen[:-1] / tokens).to(read.probabilities.dtype)
        return len(frequencies) * (frequencies @ read.probabilities) / tokens

    def _taken(self) -> Routed:
        whole, self._read = self._read[0], self._read[1:]
        for part in self._read:
            whole = whole + part
        self._read = []
        return whole


def balance_of(model: PreTrainedModel, given: float | None) -> Balance | None:
    """The load-balancing loss that transformers has for this kind of model; None where it has none.

    Others, such as deepseek_v3, balance their experts by a bias that no gradient changes (e_score_correction_bias):
    training leaves it as it is.

    Raises:
        UserError: none, although a coefficient is `given` (model.router_aux_loss).
    """
    config = model.config.get_text_config()
    known = hasattr(sys.modules[type(model).__module__], "load_balancing_loss_func")
    if known and _setting(config, "num_local_experts", "num_experts", "moe_num_experts") > 1:
        return Balance(config)
    if given:
        raise UserError(
            f"model.router_aux_loss: must be left out for {type(model).__name__}, which has no load-balancing loss "
            f"({'without experts' if known else 'in transformers'}), got {given:g}"
        )
    return None


def token_weights(inputs: ModelInputs) -> torch.Tensor:
    """How many sequences each token that the model computes is in, float32 [I]."""
    if inputs.sources is None:
        return torch.ones(inputs.token_ids.shape, device=inputs.token_ids.device)
    counts = np.bincount(inputs.sources, minlength=len(inputs.token_ids))
    return torch.from_numpy(counts).to(inputs.token_ids.device, torch.float32)


def _unread(batch: PackedBatch) -> PackedBatch:
    """The same tokens through the model, of which no logprob is asked for."""
    nothing = batch.inputs.read[:0]
    return replace(batch, action_mask=torch.zeros_like(batch.action_mask), inputs=replace(batch.inputs, read=nothing))


def _over_ranks(counts: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(counts)
    return counts


def _setting(config: PretrainedConfig, *names: str) -> Any:
    """The first of these settings that a model, or its experts (dbrx), has; 0 where it has none."""
    parts = [config, getattr(config, "ffn_config", None)]
    return next((getattr(part, name) for name in names for part in parts if getattr(part, name, None) is not None), 0)
