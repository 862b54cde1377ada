"""The part of a model between its tokens and the head that reads it, and how a batch goes through it."""

import inspect
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from actors.models.attention import PACKED_ATTENTION
from actors.models.balance import Balance, token_weights
from actors.models.family import LENGTHS_DECIDE, Family
from actors.models.packed import ModelInputs
from actors.models.rope import rope_rule
from actors.models.rows import PaddedRows

_Call = tuple[torch.Tensor, torch.Tensor, int | None]
"""Rows of tokens, where tokens are, and the regime."""
_SECTIONS = "mrope_section"


class Body:
    """Reads hidden states of a batch, the way that the family goes. The model's modules stay its own.

    `embed` and `positions` are what a text becomes before the first layer; what is not text is merged into the first.
    """

    def __init__(self, model: PreTrainedModel, family: Family, *, balance: Balance | None = None) -> None:
        """`balance` reads what routers say."""
        self.model = model
        self.module = body_of(model)
        self.rope = rope_rule(model)
        if self.rope.depends:
            family = replace(family, way="rows", why=LENGTHS_DECIDE)
        self.family = family
        self.balance = balance
        if family.way == "rows" and model.config._attn_implementation == PACKED_ATTENTION:
            model.set_attn_implementation(family.own_attention)
        self.attention = str(model.config._attn_implementation)
        text = model.config.get_text_config()
        self._takes = frozenset(inspect.signature(self.module.forward).parameters)
        self._embeds = family.embeds and "inputs_embeds" in self._takes
        self._unread = 0 if text.pad_token_id == 1 else 1
        self._position_rows = 3 if _SECTIONS in str(getattr(text, "rope_parameters", None)) else 1

    @property
    def shares_prompts(self) -> bool:
        """Whether batches may hold a prompt once for all its responses: only our own attention gathers sequences."""
        return self.family.way == "packed" and self.attention == PACKED_ATTENTION

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens, [..., D], as the family's first layer takes them."""
        return self.model.get_input_embeddings()(token_ids)

    def positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Positions of a text [T] as the family counts them: one row, or mRoPE's three, which are equal for text."""
        return position_ids if self._position_rows == 1 else position_ids.expand(self._position_rows, -1)

    def read(self, inputs: ModelInputs) -> torch.Tensor:
        """Last hidden state that is read for each action token, [A, D]."""
        hidden, places = self._packed(inputs) if self.family.way == "packed" else self._in_rows(inputs)
        # Responses share their prompt's last token. The backward pass of hidden[read] adds up such gradients in any
        # order; this one, on CPU, always in the same, without which runs would not resume bit for bit.
        return hidden.index_select(0, places)

    def _tokens(self, inputs: ModelInputs) -> torch.Tensor:
        """The tokens [I]; another one of a rank without work, whose own may be padding.

        The embedding of that is 0, of which some layers have no derivative: a gradient of 0 times it is none either.
        """
        return torch.full_like(inputs.token_ids, self._unread) if inputs.idle else inputs.token_ids

    def _packed(self, inputs: ModelInputs) -> tuple[torch.Tensor, torch.Tensor]:
        positions = self.positions(inputs.position_ids)
        hidden = self._call(
            self._tokens(inputs)[None],
            token_weights(inputs),
            position_ids=positions[None] if positions.ndim == 1 else positions[:, None],
            **inputs.attention_arguments(self.attention),
        )
        return hidden[0], inputs.read

    def _in_rows(self, inputs: ModelInputs) -> tuple[torch.Tensor, torch.Tensor]:
        if inputs.sources is not None:
            raise ValueError("sequences in rows of their own cannot share their prompts")
        regimes = [self.rope.regime(length) for length in inputs.whole_lengths]
        rows = PaddedRows.of(inputs.lengths, regimes, self.family.least)
        calls = rows.tokens(self._tokens(inputs))
        masks = rows.masks(inputs.token_ids.device)
        found = []
        for call, mask, regime in self._in_step(calls, masks, rows.regimes):
            with self.rope.calls(regime):
                found.append(self._call(call, mask).flatten(0, 1))
        slots = torch.from_numpy(rows.slots).to(inputs.read.device)
        return torch.cat(found), slots[inputs.read]

    def _in_step(self, calls: list[torch.Tensor], masks: list[torch.Tensor], regimes: list[int | None]) -> list[_Call]:
        """As many calls as every rank makes, where these meet in each of them: ZeRO-3 gathers what a call needs."""
        own = list(zip(calls, masks, regimes, strict=True))
        if not any(hasattr(parameter, "ds_id") for parameter in self.model.parameters()) or dist.get_world_size() == 1:
            return own
        most = torch.tensor(len(calls), device=calls[0].device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        # Nothing is read of these, and their gradients are 0.
        least = slice(self.family.least)
        return own + [(calls[0][:1, least], masks[0][:1, least] & False, regimes[0])] * (int(most) - len(calls))

    def _call(self, token_ids: torch.Tensor, weights: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Last hidden states [B, L, D] of tokens [B, L], of which each is in so many sequences: 0 at padding."""
        given = {"inputs_embeds": self.embed(token_ids)} if self._embeds else {"input_ids": token_ids}
        if "position_ids" not in self._takes and "kwargs" not in self._takes:
            arguments.pop("position_ids", None)
        if self.balance:
            arguments |= self.balance.arguments()
        outputs = self.module(**given, use_cache=False, **arguments)
        if self.balance:
            self.balance.read(outputs, weights)
        return outputs[0]


def body_of(model: PreTrainedModel) -> Any:
    """The module of a model that has its embedding and all layers, and no head."""
    embedding = model.get_input_embeddings()
    for child in model.children():
        if any(module is embedding for module in child.modules()) and child is not embedding:
            return child
    raise ValueError(f"{type(model).__name__} has no part with its input embedding")
