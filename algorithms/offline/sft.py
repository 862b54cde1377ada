"""Supervised fine-tuning: next-token cross-entropy on completions, one group, sequences packed.

    rows -> sequences (tokens, mask) -> update (DeepSpeed) -> evaluate

The loss of an update is -sum(log pi of trained tokens) / number of trained tokens, over all ranks and micro-batches.
"""

from dataclasses import dataclass

import torch

from actors.episodes import Sequence
from actors.models.packed import PackedBatch
from actors.train.trainer import TrainedWorker
from actors.train.worker import Totals
from algorithms.loop import Metrics
from algorithms.losses import aggregate, masked_sum, nll_loss
from algorithms.offline.loop import Offline, with_token_counts


def sft_loss(
    batch: PackedBatch, policy_logprobs: torch.Tensor, entropies: torch.Tensor, totals: Totals
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This micro-batch's share of the token-mean negative log-likelihood; logprobs and entropies are [T]."""
    mask = batch.action_mask
    losses = nll_loss(policy_logprobs, mask)
    loss = aggregate(losses, mask, batch.sequence_ids, mode="token", tokens=totals.tokens, sequences=totals.sequences)
    return loss, {"policy/entropy": masked_sum(entropies, mask) / totals.tokens}


def evaluation_metrics(
    batch: PackedBatch, policy_logprobs: torch.Tensor, entropies: torch.Tensor, totals: Totals
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Shares of the loss and of the mean probability of whole completions.

    The latter is the expected accuracy of sampling at temperature 1 where each prompt has one right completion.
    """
    loss, _ = sft_loss(batch, policy_logprobs, entropies, totals)
    # An idle rank's lone token is no sequence: it has nothing that could be probable.
    probabilities = batch.sequence_sums(policy_logprobs).exp() * (batch.action_counts > 0)
    return loss, {"sequence_probability": probabilities.sum() / totals.sequences}


@dataclass(kw_only=True)
class SFT(Offline[Sequence]):
    """The loop, over sequences."""

    title = "SFT"

    def update(self, rows: list[Sequence]) -> Metrics:
        plans = self.plans([[row] for row in rows], len(self.policy))
        calls = [(plan, _totals(rows), sft_loss) for plan in plans]
        return with_token_counts(self.policy.scatter(TrainedWorker.learn, calls)[0], plans, "loss/nll")

    def measure(self, rows: list[Sequence]) -> Metrics:
        plans = self.plans([[row] for row in rows], len(self.policy))
        calls = [(plan, _totals(rows), evaluation_metrics) for plan in plans]
        return self.policy.scatter(TrainedWorker.evaluate, calls)[0]


def _totals(rows: list[Sequence]) -> Totals:
    # Of the update over all ranks: a mean of each rank's own would depend on how rows were dealt.
    trained = sum(int(sequence.action_mask.sum()) for sequence in rows)
    if not trained:
        raise ValueError(f"a batch of {len(rows)} sequences has no token to train on")
    return Totals(tokens=trained, sequences=len(rows), trained_tokens=trained)
