"""A kind of model that nobody has tried: a few sequences as a batch, and each of them alone, must give the same.

The kinds that were tried are those of the suite (tests/families): a new one that transformers brings is tried when it
is loaded, as its class may read a batch in ways that none before it has.
"""

from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from actors.config import UserError
from actors.episodes import Sequence
from actors.models.body import Body
from actors.models.packed import PackedBatch, pack
from actors.models.tried import TRIED

_PROMPT, _RESPONSES = 7, (9, 2, 30, 17)
_TOKENS = range(3, 100)
"""Below those that stand for images in most vocabularies."""
_MOST = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""What may differ in the mean, in nats or scores: both add up in other orders."""


class _Reads(Protocol):
    """TokenLogprobs."""

    body: Body

    @property
    def shares_prompts(self) -> bool: ...
    def __call__(self, batch: PackedBatch, temperature: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor]: ...


def is_tried(model: PreTrainedModel) -> bool:
    """Whether the suite shows this kind of model to be right."""
    return str(model.config.get_text_config().model_type) in TRIED


@torch.no_grad()
def try_out(module: _Reads) -> None:
    """Compare a batch with its sequences alone, which the model's own forward pass and attention read.

    Raises:
        UserError: they differ.
    """
    model: Any = module.body.model
    numbers = np.random.default_rng(0)
    most = min(_TOKENS.stop, model.config.get_text_config().vocab_size)
    prompt = numbers.integers(_TOKENS.start, most, _PROMPT)
    rows = [np.concatenate([prompt, numbers.integers(_TOKENS.start, most, length)]) for length in _RESPONSES]
    sequences = [Sequence(token_ids=row, action_mask=np.arange(len(row)) >= _PROMPT) for row in rows]
    batch = pack(sequences, {}, next(model.parameters()).device, share_prompts=module.shares_prompts)
    found = batch.split(module(batch, 1.0, 64)[0])
    attention = model.config._attn_implementation
    model.set_attn_implementation(module.body.family.own_attention)
    try:
        alone = [_alone(model, row) for row in rows]
    finally:
        model.set_attn_implementation(attention)
    differences = [
        np.abs(one[_PROMPT:] - other[_PROMPT - len(one) :]).mean() for one, other in zip(found, alone, strict=True)
    ]
    difference = float(np.max(differences))
    # Not `>`: NaN is no agreement.
    if not difference <= _MOST[model.dtype]:
        raise UserError(
            f"model.path: a batch must give what its sequences give alone, got a difference of {difference:.2g} in a "
            f"{model.config.model_type}, which Tandem does not know"
        )


def _alone(model: Any, row: np.ndarray) -> np.ndarray:
    """What the model's own pass gives for each token of a row but the first."""
    tokens = torch.from_numpy(row).to(model.device)
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0].cpu().numpy()
