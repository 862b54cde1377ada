"""Reward model from preference pairs (Bradley-Terry; arXiv 2203.02155): one score for a prompt with its response.

    pairs -> scores of chosen and rejected -> update (DeepSpeed) -> evaluate

The loss of an update is the mean over pairs of -log sigmoid(score_chosen - score_rejected - margin), plus
`centering` (score_chosen + score_rejected)^2 (arXiv 2312.09244). The score is read at the response's last token, its
end-of-sequence token where it has one.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from actors.episodes import Labelled, Sequence
from actors.models.packed import PackedBatch
from actors.train.trainer import TrainedWorker
from actors.train.worker import Totals
from algorithms.config_offline import RewardModelConfig
from algorithms.data.pairs import Pair
from algorithms.loop import Metrics
from algorithms.offline.loop import Offline, with_token_counts
from algorithms.offline.preference_losses import bradley_terry_loss, centering_penalty, expected_calibration_error


def reward_model_loss(
    batch: PackedBatch, values: torch.Tensor, _: torch.Tensor, totals: Totals, *, centering: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This micro-batch's share of the loss (see the module) and of its metrics; values: [T], pairs side by side."""
    scores = batch.sequence_sums(values)  # of one action, the last token
    chosen, rejected, margins = scores[::2], scores[1::2], batch.labels["margin"][::2]
    losses = bradley_terry_loss(chosen, rejected, margins) + centering * centering_penalty(chosen, rejected)
    metrics = {
        "reward_model/accuracy": (chosen > rejected).float().sum(),
        "reward_model/margin": (chosen - rejected).sum(),
        "reward_model/chosen": chosen.sum(),
        "reward_model/rejected": rejected.sum(),
    }
    return losses.sum() / totals.sequences, {name: value / totals.sequences for name, value in metrics.items()}


@dataclass(kw_only=True)
class RewardModel(Offline[Pair]):
    """The loop, over pairs."""

    title = "reward model"
    config: RewardModelConfig

    def update(self, rows: list[Pair]) -> Metrics:
        plans = self.plans([_sequences(row) for row in rows], len(self.policy))
        # Each sequence has one action, where its score is read.
        totals = Totals(tokens=2 * len(rows), sequences=len(rows), trained_tokens=2 * len(rows))
        loss = partial(reward_model_loss, centering=self.config.centering)
        metrics = self.policy.scatter(TrainedWorker.learn, [(plan, totals, loss, True) for plan in plans])[0]
        return with_token_counts(metrics, plans, "loss/reward_model")

    def measure(self, rows: list[Pair]) -> Metrics:
        scores = self.read(self.policy, TrainedWorker.outputs, [_sequences(row) for row in rows])
        chosen, rejected = scores[::2], scores[1::2]
        margins = np.array([row.margin for row in rows])
        better, worse = torch.from_numpy(chosen), torch.from_numpy(rejected)
        # Here rather than on the ranks: calibration needs every score, and the loss is made of the same.
        losses = bradley_terry_loss(better, worse, torch.from_numpy(margins))
        losses = losses + self.config.centering * centering_penalty(better, worse)
        return {
            "loss": float(losses.mean()),
            "accuracy": float((chosen > rejected).mean()),
            "margin": float((chosen - rejected).mean()),
            "score_mean": float(scores.mean()),
            "score_std": float(scores.std()),
            "calibration_error": expected_calibration_error(1 / (1 + np.exp(rejected - chosen))),
        }


def _sequences(pair: Pair) -> list[Sequence]:
    """Chosen and rejected, with the pair's margin."""
    return [
        Labelled(token_ids=item.token_ids, action_mask=item.action_mask, labels={"margin": pair.margin})
        for item in (pair.chosen, pair.rejected)
    ]
