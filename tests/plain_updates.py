"""Optimizer updates by plain transformers: one sequence at a time through the model's own forward pass, the loss as its
paper has it, and a step of SGD."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from actors.config import OptimizerConfig
from actors.episodes import Labelled, Sequence
from actors.train.worker import Totals
from algorithms.config_offline import DPOConfig
from algorithms.offline.dpo import dpo_loss
from algorithms.offline.reward_model import reward_model_loss
from algorithms.offline.sft import sft_loss
from tests.families.scores import score_of
from tests.test_families import alone, sequences

BETA, MARGIN, CLIP, RATE = 0.1, 0.3, 0.2, 0.5
SGD = OptimizerConfig(name="sgd", lr=RATE, max_grad_norm=1e6, weight_decay=0.0)
ROWS = sequences(100)
TOKENS = sum(int(row.action_mask.sum()) for row in ROWS)
Loss = Callable[[PreTrainedModel, list[Sequence]], Tensor]


@dataclass(frozen=True, slots=True)
class Update:
    """What came of it: loss, norm of the gradient, and all weights after the step."""

    loss: float
    norm: float
    weights: dict[str, Tensor]


def updated(model: PreTrainedModel, loss: Loss, sequences: list[Sequence], rate: float) -> Update:
    """One step of SGD; in place."""
    value = loss(model, sequences)
    value.backward()
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    squares: Any = sum(parameter.grad.double().square().sum() for parameter in trained if parameter.grad is not None)
    with torch.no_grad():
        for parameter in trained:
            assert parameter.grad is not None
            parameter.sub_(rate * parameter.grad)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return Update(float(value.detach()), float(squares) ** 0.5, weights)


def nll(model: PreTrainedModel, sequences: list[Sequence]) -> Tensor:
    """Mean over action tokens."""
    return -torch.cat([alone(model, sequence) for sequence in sequences]).mean()


def references(model: PreTrainedModel, sequences: list[Sequence]) -> list[float]:
    """Summed logprobs as a reference that is another one than the policy might have given them."""
    with torch.no_grad():
        sums = [float(alone(model, sequence).sum()) for sequence in sequences]
    return [total + (-1) ** number * (2.0 + number) for number, total in enumerate(sums)]


def dpo(given: list[float]) -> Loss:
    """Mean over pairs, which stand side by side, against a reference's summed logprobs."""

    def loss(model: PreTrainedModel, sequences: list[Sequence]) -> Tensor:
        ratios = [
            alone(model, sequence).sum() - reference for sequence, reference in zip(sequences, given, strict=True)
        ]
        return -logsigmoid(BETA * (torch.stack(ratios[::2]) - torch.stack(ratios[1::2]))).mean()

    return loss


def bradley_terry(model: PreTrainedModel, sequences: list[Sequence]) -> Tensor:
    """Mean over pairs, which stand side by side, of scores at each sequence's last token."""
    scores = [score_of(model, torch.from_numpy(sequence.token_ids)) for sequence in sequences]
    return -logsigmoid(torch.stack(scores[::2]) - torch.stack(scores[1::2]) - MARGIN).mean()


def grpo(rollout: list[np.ndarray], advantages: list[float]) -> Loss:
    """The clipped surrogate, a mean over tokens; `rollout` are the sampler's logprobs of each sequence's actions."""

    def loss(model: PreTrainedModel, sequences: list[Sequence]) -> Tensor:
        found = []
        for sequence, sampled, advantage in zip(sequences, rollout, advantages, strict=True):
            ratios = (alone(model, sequence) - torch.from_numpy(sampled)).exp()
            found.append(-torch.minimum(ratios * advantage, ratios.clamp(1 - CLIP, 1 + CLIP) * advantage))
        return torch.cat(found).mean()

    return loss


def plan(rows: list[Sequence], numbers: list[list[int]]) -> list[list[Sequence]]:
    return [[rows[number] for number in batch] for batch in numbers]


def learning(kind: str, numbers: list[list[int]], given: Seq[float] = ()) -> tuple[Any, ...]:
    """Arguments of a worker's `learn` for the loss of this kind, with these ROWS in each micro-batch; `given` are the
    references of DPO."""
    pairs = len(ROWS) // 2
    if kind == "sft":
        return plan(ROWS, numbers), Totals(tokens=TOKENS, sequences=len(ROWS), trained_tokens=TOKENS), sft_loss
    if kind == "reward":
        totals = Totals(tokens=2 * pairs, sequences=pairs, trained_tokens=2 * pairs)
        loss: Any = partial(reward_model_loss, centering=0.0)
        return plan(labelled("margin", [MARGIN] * len(ROWS)), numbers), totals, loss, True
    totals = Totals(tokens=TOKENS, sequences=pairs, trained_tokens=TOKENS)
    config = DPOConfig.model_validate({"name": "dpo", "steps": 1, "beta": BETA})
    loss = partial(dpo_loss, config=config, chosen_tokens=1)
    return plan(labelled("reference", given), numbers), totals, loss, True


def labelled(label: str, values: Seq[float]) -> list[Sequence]:
    return [
        Labelled(token_ids=row.token_ids, action_mask=row.action_mask, labels={label: value})
        for row, value in zip(ROWS, values, strict=True)
    ]


def plain(directory: str, kind: str = "sft") -> PreTrainedModel:
    """The model of a directory, by plain transformers."""
    loader: Any = AutoModelForSequenceClassification if kind == "reward" else AutoModelForCausalLM
    return loader.from_pretrained(directory, dtype=torch.float32)
