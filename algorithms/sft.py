"""Supervised fine-tuning: next-token cross-entropy on completions, one group, sequences packed.

    rows -> sequences (tokens, mask) -> update (DeepSpeed) -> evaluate

The loss of an update is -sum(log pi of trained tokens) / number of trained tokens, over all ranks and micro-batches.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from actors.batch import Sequence
from actors.group import ActorGroup
from actors.packed import PackedBatch
from actors.packing import plan_micro_batches
from actors.policy import PolicyWorker
from actors.worker import Totals
from algorithms.config import SFTConfig
from algorithms.data import Batches
from algorithms.loop import Clock, Metrics, Reporter, good_enough
from algorithms.losses import aggregate, masked_sum, nll_loss


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
    per_sequence = torch.zeros(len(batch.lengths), device=policy_logprobs.device)
    per_sequence = per_sequence.index_add(0, batch.sequence_ids, policy_logprobs * batch.action_mask)
    # An idle rank's lone token is no sequence: it has nothing that could be probable.
    real = torch.zeros_like(per_sequence).index_add(0, batch.sequence_ids, batch.action_mask.float()) > 0
    return loss, {"sequence_probability": (per_sequence.exp() * real).sum() / totals.sequences}


@dataclass(kw_only=True)
class SFT:
    """The loop, and what it holds between updates."""

    config: SFTConfig
    policy: ActorGroup[PolicyWorker]
    sequences: list[Sequence]
    batches: Batches
    evaluation: list[Sequence]
    checkpoint: Callable[[int, dict[str, Any], bool], None]
    """Save after this update, if it is one to save after; the last argument says that it is the last."""
    reporter: Reporter
    micro_batch_tokens: int
    total_updates: int
    step: int = 0
    last_evaluation: Metrics = field(default_factory=dict)

    def train(self) -> None:
        """Run all updates."""
        clock = Clock(self.reporter)
        self.reporter.start("SFT", self.total_updates, self.step)
        while not self.done:
            with clock("data"):
                batch = [self.sequences[i] for i in self.batches.next(self.config.samples_per_update)]
            with clock("update"):
                metrics = self._update(batch)
            self.step += 1
            metrics |= self._evaluate(clock)
            with clock("checkpoint"):
                self.checkpoint(self.step, self.state(), self.done)
            seconds = clock.lap()
            metrics["tokens_per_second"] = metrics["tokens/trained"] / seconds["time/step"]
            self.reporter.step(self.step, metrics | seconds)

    @property
    def done(self) -> bool:
        """Whether all updates are done, or the last evaluation was good enough to stop."""
        return self.step >= self.total_updates or good_enough(self.config.stop_when, self.last_evaluation)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the loop."""
        return {"step": self.step, "batches": self.batches.state_dict(), "last_evaluation": self.last_evaluation}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.step = state["step"]
        self.batches.load_state_dict(state["batches"])
        self.last_evaluation = state["last_evaluation"]

    def _update(self, batch: list[Sequence]) -> Metrics:
        calls = self._divided(batch, sft_loss)
        metrics = self.policy.scatter(PolicyWorker.imitate, calls)[0]
        empty = sum(not micro_batch for plan, *_ in calls for micro_batch in plan)
        tokens = sum(map(len, batch))
        return {"loss/nll" if name == "loss" else name: value for name, value in metrics.items()} | {
            "tokens/trained": float(tokens),
            "tokens/padding_fraction": empty / (empty + tokens),
        }

    def _evaluate(self, clock: Clock) -> Metrics:
        due = self.step % self.config.eval_every == 0 or self.step == self.total_updates
        if not self.evaluation or not due:
            return {}
        with clock("evaluate"):
            calls = self._divided(self.evaluation, evaluation_metrics)
            metrics = self.policy.scatter(PolicyWorker.evaluate, calls)[0]
        self.last_evaluation = {f"eval/{name}": value for name, value in metrics.items()}
        return self.last_evaluation

    def _divided(self, batch: list[Sequence], loss: Any) -> list[tuple[Any, Totals, Any]]:
        plan = plan_micro_batches([len(sequence) for sequence in batch], len(self.policy), self.micro_batch_tokens)
        trained = sum(int(sequence.action_mask.sum()) for sequence in batch)
        if not trained:
            raise ValueError(f"a batch of {len(batch)} sequences has no token to train on")
        totals = Totals(tokens=trained, sequences=len(batch), trained_tokens=trained)
        return [([[batch[i] for i in batch_] for batch_ in rank], totals, loss) for rank in plan]
