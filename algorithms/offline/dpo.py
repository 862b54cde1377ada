"""Direct Preference Optimization (arXiv 2305.18290) and its family, KTO (arXiv 2402.01306) included.

    pairs -> reference logprobs -> update (DeepSpeed) -> evaluate

The loss of an update is the weighted sum over `algorithm.loss` of the mean over pairs of `preference_loss`, with
logprobs summed over response tokens, plus, for the losses that have one, the mean negative log-likelihood of the tokens
of chosen responses. KTO's rows are single responses; its reference point is the mean log-ratio of responses that were
given to another prompt of the update.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from actors.config import UserError
from actors.episodes import Labelled, Sequence
from actors.models.packed import PackedBatch
from actors.train.trainer import TrainedWorker
from actors.train.worker import LossFunction, Totals
from algorithms.config_offline import LENGTH_AVERAGED, DPOConfig
from algorithms.data.pairs import Judged, Pair, prompt_length
from algorithms.loop import Clock, Metrics
from algorithms.losses import masked_sum
from algorithms.offline.loop import Offline, Plans, with_token_counts
from algorithms.offline.preference_losses import PairLogprobs, kto_loss, matched_references, nll_weight, preference_loss
from algorithms.offline.reference_cache import ReferenceCache

_MATCHED: tuple[Literal["aot"], Literal["aot_unpaired"]] = ("aot", "aot_unpaired")


def dpo_loss(
    batch: PackedBatch,
    policy_logprobs: torch.Tensor,
    _: torch.Tensor,
    totals: Totals,
    *,
    config: DPOConfig,
    chosen_tokens: int,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This micro-batch's share of the loss (see the module) and of its metrics; logprobs: [T], pairs side by side.

    `chosen_tokens` counts the tokens of all chosen responses of the update.
    """
    sums, counts, labels = batch.sequence_sums(policy_logprobs), batch.action_counts, batch.labels
    pairs = PairLogprobs(
        policy_chosen=sums[::2],
        policy_rejected=sums[1::2],
        reference_chosen=labels["reference"][::2],
        reference_rejected=labels["reference"][1::2],
        chosen_tokens=counts[::2],
        rejected_tokens=counts[1::2],
    )
    # Chosen ones have even numbers. A token of a shared prompt has the number of either, but is no action.
    of_chosen = batch.action_mask & (batch.sequence_ids % 2 == 0)
    nll = -masked_sum(policy_logprobs, of_chosen) / chosen_tokens
    loss = policy_logprobs.new_zeros(())
    for item in config.loss:
        compared = pairs
        if item.name in _MATCHED:
            matched = labels[f"reference_{item.name}"]
            compared = replace(pairs, reference_chosen=matched[::2], reference_rejected=matched[1::2])
        if item.name != "sft":  # which is its log-likelihood alone, below
            loss = loss + item.weight * preference_loss(item.name, compared, config).sum() / totals.sequences
        if weight := nll_weight(item.name, config):
            loss = loss + item.weight * weight * nll
    return loss, _reward_metrics(pairs, config, totals) | {"logprobs/chosen_per_token": -nll.detach()}


def _reward_metrics(pairs: PairLogprobs, config: DPOConfig, totals: Totals) -> dict[str, torch.Tensor]:
    """Shares of implicit rewards, beta x log-ratio (of the first loss: per token, or without a reference)."""
    chosen, rejected = pairs.policy_chosen.detach(), pairs.policy_rejected.detach()
    metrics = {"logprobs/chosen": chosen.sum(), "logprobs/rejected": rejected.sum()}
    if config.needs_reference:
        # Of the first loss only, so that curves of a weighted sum mean one thing.
        chosen, rejected = chosen - pairs.reference_chosen, rejected - pairs.reference_rejected
    if config.losses[0] in LENGTH_AVERAGED:
        chosen, rejected = chosen / pairs.chosen_tokens, rejected / pairs.rejected_tokens
    metrics |= {
        "rewards/chosen": config.beta * chosen.sum(),
        "rewards/rejected": config.beta * rejected.sum(),
        "rewards/margin": config.beta * (chosen - rejected).sum(),
        "rewards/accuracy": (chosen > rejected).float().sum(),
    }
    return {name: value / totals.sequences for name, value in metrics.items()}


def kto_batch_loss(
    batch: PackedBatch,
    policy_logprobs: torch.Tensor,
    _: torch.Tensor,
    totals: Totals,
    *,
    config: DPOConfig,
    kl: float,
    desirable: int,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This micro-batch's share of KTO's loss and of its metrics; `desirable` counts such rows of the update."""
    sums, reference, good = (
        batch.sequence_sums(policy_logprobs),
        batch.labels["reference"],
        batch.labels["desirable"] > 0,
    )
    weights = {"desirable_weight": config.desirable_weight, "undesirable_weight": config.undesirable_weight}
    losses = kto_loss(sums, reference, good, kl, beta=config.beta, **weights)
    rewards = config.beta * (sums.detach() - reference)
    undesirable = totals.sequences - desirable
    # Metrics are means over the rows of a kind, of which an update may have none.
    return losses.sum() / totals.sequences, {
        "rewards/chosen": rewards[good].sum() / max(1, desirable),
        "rewards/rejected": rewards[~good].sum() / max(1, undesirable),
        "logprobs/chosen": sums.detach()[good].sum() / max(1, desirable),
    }


@dataclass(kw_only=True)
class DPO(Offline[Pair | Judged]):
    """The loop, over pairs, or over judged responses for KTO."""

    title = "DPO"
    config: DPOConfig
    reference: str | None
    """Name of the group that gives reference logprobs."""
    read_reference: Callable[..., list[list[float]]] | None
    """Its method that gives summed logprobs of sequences."""
    reference_tokens: int
    """Token budget of a micro-batch of `reference`."""
    max_length: int
    """Longest sequence, in tokens."""
    cache: ReferenceCache | None
    """Where reference logprobs are kept, when they are computed once."""
    sync_reference: Callable[[int], None] | None = None
    """Lets the reference follow the policy after this update, when it is time."""

    def after_update(self, clock: Clock) -> None:
        if self.sync_reference:
            with clock("sync"):
                self.sync_reference(self.step)

    def prepare(self) -> None:
        """With a cache, compute all reference logprobs that it lacks; the reference's processes then end."""
        if self.cache is None or self.reference is None:
            return
        missing = self.cache.missing([self._sequences(row) for row in [*self.rows, *self.evaluation]])
        if missing:
            self.cache.add(missing, self._read(missing))
        # It has done its work, and the policy may have its memory. With adapters disabled, the policy is the reference.
        if self.reference != "policy":
            self.roster[self.reference].shutdown()

    def update(self, rows: list[Pair | Judged]) -> Metrics:
        plans, totals, loss = self._prepared(rows)
        # True: both responses of a pair hold their prompt once, where the model can.
        metrics = self.policy.scatter(TrainedWorker.learn, [(plan, totals, loss, True) for plan in plans])[0]
        return with_token_counts(metrics, plans, "loss/dpo")

    def measure(self, rows: list[Pair | Judged]) -> Metrics:
        plans, totals, loss = self._prepared(rows)
        return self.policy.scatter(TrainedWorker.evaluate, [(plan, totals, loss, True) for plan in plans])[0]

    def _sequences(self, row: Pair | Judged) -> list[Sequence]:
        return [row.sequence] if isinstance(row, Judged) else [row.chosen, row.rejected]

    def _read(self, rows: list[list[Sequence]]) -> np.ndarray:
        """Summed reference logprobs of every sequence; zeros without a reference."""
        if self.reference is None:
            return np.zeros(len(rows) * len(rows[0]))
        if self.cache is not None and not self.cache.missing(rows):
            return self.cache.read(rows)
        assert self.read_reference is not None
        return self.read(self.roster[self.reference], self.read_reference, rows, self.reference_tokens)

    def _prepared(self, rows: list[Pair | Judged]) -> tuple[Plans, Totals, LossFunction]:
        """Micro-batches of labelled sequences, global counts, and the loss."""
        sequences = [self._sequences(row) for row in rows]
        labels = {"reference": self._read(sequences)}
        tokens = sum(int(sequence.action_mask.sum()) for row in sequences for sequence in row)
        totals = Totals(tokens=tokens, sequences=len(rows), trained_tokens=tokens)
        if self.config.unpaired:
            good = np.array([row.desirable for row in rows if isinstance(row, Judged)])
            labels["desirable"] = good.astype(np.float64)
            loss: LossFunction = partial(
                kto_batch_loss, config=self.config, kl=self._mismatched_kl(sequences), desirable=int(good.sum())
            )
        else:
            # With the weights before this update, as the losses of all micro-batches compare by them.
            labels |= self._matched(sequences, labels["reference"])
            chosen = sum(int(row[0].action_mask.sum()) for row in sequences)
            loss = partial(dpo_loss, config=self.config, chosen_tokens=chosen)
        return self.plans(_labelled(sequences, labels), len(self.policy)), totals, loss

    def _matched(self, rows: list[list[Sequence]], reference: np.ndarray) -> dict[str, np.ndarray]:
        """For AOT, whose loss compares sorted values of the whole update: the references that it gives each pair."""
        names: list[Literal["aot", "aot_unpaired"]] = [name for name in _MATCHED if name in self.config.losses]
        if not names:
            return {}
        policy = self.read(self.policy, TrainedWorker.outputs, rows)
        found = {}
        for name in names:
            chosen, rejected = matched_references(
                name,
                policy_chosen=policy[::2],
                policy_rejected=policy[1::2],
                reference_chosen=reference[::2],
                reference_rejected=reference[1::2],
            )
            # Side by side again, as the sequences are.
            found[f"reference_{name}"] = np.stack([chosen, rejected], axis=1).reshape(-1)
        return found

    def _mismatched_kl(self, rows: list[list[Sequence]]) -> float:
        """KTO's reference point: mean log-ratio of every row's prompt with a response to another one, at least 0."""
        answered = [row[0] for row in rows]
        mixed = [
            [_joined(row, answered[other], self.max_length)]
            for row, other in zip(answered, strangers(answered), strict=True)
        ]
        policy = self.read(self.policy, TrainedWorker.outputs, mixed)
        # Python's max would make 0 of NaN.
        return float(np.maximum(0.0, (policy - self._read(mixed)).mean()))


def strangers(sequences: list[Sequence]) -> list[int]:
    """For each sequence, the number of the next one, in a circle, that has another prompt.

    Raises:
        UserError: when all have the same prompt.
    """
    prompts = [sequence.token_ids[: prompt_length(sequence)].tobytes() for sequence in sequences]
    if len(set(prompts)) < 2:
        raise UserError(
            f"data: kto compares responses to different prompts, so every update and the held-out rows must have two, "
            f"got {len(sequences)} rows of one prompt"
        )
    count, found = len(prompts), []
    for number, prompt in enumerate(prompts):
        # TRL takes the very next row, whose response may be to the same prompt, and right.
        steps = next(step for step in range(1, count) if prompts[(number + step) % count] != prompt)
        found.append((number + steps) % count)
    return found


def _joined(asked: Sequence, answered: Sequence, max_length: int) -> Sequence:
    """The prompt of one sequence with the response of another, cut where it would become too long."""
    prompt = prompt_length(asked)
    response = answered.token_ids[prompt_length(answered) :]
    # One response token at least.
    token_ids = np.concatenate([asked.token_ids[:prompt], response])[: max(max_length, prompt + 1)]
    return Sequence(token_ids=token_ids, action_mask=np.arange(len(token_ids)) >= prompt)


def _labelled(rows: list[list[Sequence]], labels: dict[str, np.ndarray]) -> list[list[Sequence]]:
    """The sequences, each with its number of every label; labels are [rows x sequences of a row]."""
    width = len(rows[0])
    return [
        [
            Labelled(
                token_ids=sequence.token_ids,
                action_mask=sequence.action_mask,
                labels={name: float(values[number * width + place]) for name, values in labels.items()},
            )
            for place, sequence in enumerate(row)
        ]
        for number, row in enumerate(rows)
    ]
