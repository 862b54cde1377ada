"""What the loops of PPO and the GRPO family share between scored episodes and updates.

    ... -> shaped scores -> reference, values -> advantages -> update -> ...

A stage that computes per token leaves its results with the ranks, as references to TokenFields, one for each rank that
goes on with some of them (`algorithms.division.deals`); the driver sees lengths, scores and metrics.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from actors.episodes import Place
from actors.group import ActorGroup
from actors.train.policy import PolicyWorker
from actors.train.trainer import TrainedWorker
from actors.train.worker import LossFunction, Totals, Worker
from algorithms.division.deals import Parts, Taker, Updates, hand_episodes, submit_finding
from algorithms.division.work import (
    RankWork,
    Sample,
    count_micro_batches,
    deal_groups,
    divide,
    split_updates,
    totals_of,
)
from algorithms.loop import Metrics
from algorithms.rl.estimators import Estimator
from algorithms.rl.metrics import ReportedAdvantages, update_metrics
from algorithms.rl.overlapped_gradients import Accumulated
from algorithms.rl.policy_loss import divisors, policy_loss
from algorithms.rl.read_passes import Outstanding, Pending, ReadPass, begin_reading
from algorithms.rl.steps import Steps
from algorithms.rollouts.groups import ScoredGroup


@dataclass(kw_only=True)
class RL(Steps):
    """The stages of a step."""

    def read_frozen(self, groups: Sequence[ScoredGroup], takers: Sequence[Taker]) -> Pending:
        """Reference logprobs, where the algorithm has a reference."""
        return self.read(self.reference_pass, groups, takers)

    def read_old(self, groups: Sequence[ScoredGroup], takers: Sequence[Taker]) -> Pending:
        """Logprobs of the policy as it is now, where later updates of the step compare with them."""
        return self.read(self.old_pass, groups, takers)

    def passes(self) -> list[ReadPass]:
        return [each for each in (self.reference_pass, self.old_pass) if each]

    @property
    def reference_pass(self) -> ReadPass | None:
        """None where this step compares with no reference."""
        if self.reference is None or not (self.config.kl_in == "reward" or self.policy_learns):
            return None
        assert self.read_reference is not None
        return ReadPass(
            field="reference_logprobs",
            group=self.reference,
            method=self.read_reference,
            micro_batch_tokens=self.micro_batch_tokens["reference"],
            options=(self.sampling.temperature,),
        )

    @property
    def old_pass(self) -> ReadPass | None:
        """None where no update of this step compares with the policy of its start."""
        if not (self.config.reads_old_logprobs and self.policy_learns):
            return None
        return ReadPass(
            field="old_logprobs",
            group="policy",
            method=PolicyWorker.logprobs,
            micro_batch_tokens=self.micro_batch_tokens["policy"],
            options=(self.sampling.temperature,),
        )

    def read(self, what: ReadPass | None, groups: Sequence[ScoredGroup], takers: Sequence[Taker]) -> Pending:
        """Let the ranks of a group read all episodes that they have not read yet, for those who go on with the field.

        Returns what waits for them, so that other groups can read at the same time.
        """
        if what is None or not any(what.field in taker.fields for taker in takers):
            return Parts
        return self.reads.read(what, groups, takers)

    def estimation(self, group: ActorGroup[Any], groups: Sequence[ScoredGroup]) -> Taker:
        """What `estimate` by the ranks of `group` reads of fields: whole groups."""
        places = [
            [(number, index) for number in numbers for index in range(len(groups[number].infos))]
            for numbers in deal_groups(groups, len(group))
        ]
        return Taker.of("estimate", {"values"} | ({"reference_logprobs"} & self._kl_reads("reward")), places)

    def estimate(
        self,
        group: ActorGroup[Any],
        groups: Sequence[ScoredGroup],
        scores: list[np.ndarray],
        parts: Parts,
        taken: Taker,
        takers: Sequence[Taker],
    ) -> tuple[Metrics, ReportedAdvantages, Parts]:
        """Advantages token by token, computed by the ranks of `group` from what they have `taken`.

        Returns metrics, the mean advantages of those episodes that samples.jsonl keeps, and what each taker gets.
        """
        kl_coef = self.kl.coef if self.config.kl_in == "reward" else 0.0
        calls, whole = [], self._counted(groups)
        # Advantages of tokens stay with the ranks: the driver asks for means of those that it will report.
        kept = self.sample_report.choose(groups).written
        reported = {(number, index): groups[number].infos[index].sampled_tokens for number, index in kept}
        for rank, numbers in enumerate(deal_groups(groups, len(group))):
            own = {number: scores[number].tolist() for number in numbers}
            held = [(number, list(range(len(groups[number].infos)))) for number in numbers]
            counted = [whole[number].tolist() for number in numbers]
            estimator = Estimator(config=self.config, kl_coef=kl_coef, counted=counted)
            episodes = [groups[number].rollouts for number in numbers]
            arguments = (own, held, estimator, reported, *episodes, *parts.of(taken, rank))
            places = [(number, index) for number, indices in held for index in indices]
            fields = ["advantages", "returns"]
            calls.append(
                submit_finding(group, rank, Worker.advantages, *arguments, fields=fields, places=places, takers=takers)
            )
        told = group.gather([answer for answer, _ in calls], "advantages")
        metrics: Metrics = told[0][0]
        # While only the critic learns, the KL is what it was: it says nothing about the coefficient.
        if "reward/kl_per_response" in metrics and self.policy_learns:
            self.kl.update(metrics["reward/kl_per_response"], sum(len(each.infos) for each in groups))
        means = {place: mean for _, of_rank in told for place, mean in of_rank.items()}
        return metrics, means, sum((found for _, found in calls), Parts())

    def updates(self, samples: list[Sample]) -> list[list[Sample]]:
        """The samples of each update of the step, epoch by epoch."""
        per_update = self.config.samples_per_update or self.config.samples_per_step
        return [
            update
            for epoch in range(self.config.epochs_per_step)
            # Epochs draw other orders: seeds of one are the steps, those of two lie the millionth prime apart.
            for update in split_updates(samples, per_update, self.seed + self.step + 15_485_863 * epoch)
        ]

    def counted(self, update: list[Sample]) -> list[Sample]:
        """Samples that the loss is a mean of."""
        return [sample for sample in update if not self._left_out(sample.truncated)]

    def policy_loss(self) -> LossFunction:
        """The loss of this step."""
        config = self.config
        constant = config.aggregation_constant or self.sampling.max_tokens
        coef = self.kl.coef if config.kl_in == "loss" else 0.0
        own = {"version": self.version, "keeps_cache": self.keeps_cache}
        return partial(policy_loss, config=config, kl_coef=coef, constant=constant, **own)

    def _kl_reads(self, where: str) -> set[str]:
        """What the KL to the reference reads, where it is in the loss or in the reward."""
        return {"reference_logprobs"} if self.config.kl_in == where else set()

    def plan_policy(self, updates: list[list[Sample]], trained: list[list[Sample]]) -> Updates:
        """The policy's updates, of what `policy_loss` reads; see `plan`."""
        fields = {"advantages", "old_logprobs"} | self._kl_reads("loss")
        return self.plan(self.policy, "policy", updates, trained, fields)

    def plan(
        self,
        group: ActorGroup[Any],
        name: str,
        updates: list[list[Sample]],
        trained: list[list[Sample]],
        fields: set[str],
    ) -> Updates:
        """Deal a group's optimizer updates to its ranks.

        `updates` are the samples that losses are means of, `trained` those of them that are computed, `fields` what the
        loss reads.
        """
        totals = [totals_of(update, kept) for update, kept in zip(updates, trained, strict=True)]
        return Updates.of(group, name, totals, divide(trained, len(group), self.micro_batch_tokens[name]), fields)

    def submit_updates(
        self, updates: Updates, loss: LossFunction, groups: Sequence[ScoredGroup], parts: Parts
    ) -> Callable[[], Metrics]:
        """Start a group's optimizer updates; returns what waits for them and gives their metrics."""
        group, totals, temperature = updates.group, updates.totals, self.sampling.temperature
        if group is self.policy:
            # Where no sample has an advantage, weights stay what they are: there is nothing to publish.
            self.moved = any(each.trained_tokens for each in totals)
        given = hand_episodes(groups, updates.work, self.split)
        noting = self._note_tokens(updates, groups) if group is self.policy else None
        calls = [
            group.submit(
                rank,
                TrainedWorker.update,
                share.plans,
                held,
                totals,
                loss,
                temperature,
                *episodes,
                *parts.of(updates.taker, rank),
            )
            for rank, (share, (held, episodes)) in enumerate(zip(updates.work, given, strict=True))
        ]
        if noting is not None:
            # Behind the updates: told once these are done, and read only with the report.
            self.token_reads = [group.submit(rank, TrainedWorker.tell_noted) for rank in noting]
        return lambda: _told(group.gather(calls, "update")[0], totals, updates.work, updates.name)

    def _note_tokens(self, updates: Updates, groups: Sequence[ScoredGroup]) -> list[int]:
        """Ask ranks for what they read of the responses whose tokens are told; returns which will have some."""
        wanted = set(self.sample_report.choose(groups).tokens)
        found: dict[int, list[Place]] = {}
        # Each by the rank that is the first to learn from it: in another epoch it may be another one's.
        for number in range(len(updates.totals) if wanted else 0):
            for rank, share in enumerate(updates.work):
                places = {(key, index) for samples in share.plans[number] for key, index, _ in samples}
                if own := sorted(wanted & places):
                    found.setdefault(rank, []).extend(own)
                    wanted.difference_update(own)
        for rank, own in found.items():
            self.policy.submit(rank, TrainedWorker.note, own)
        return list(found)

    def beside_rollouts(self, wanted: int) -> AbstractContextManager[None]:
        if self.gradients:
            return self.gradients.overlapping(self.accumulate, wanted)
        return self.reads.overlapping(self.passes())

    def accumulate(self, groups: Sequence[ScoredGroup]) -> Accumulated:
        """Let ranks add the gradient of some of a step's groups to its only update, once others have read them."""
        raise NotImplementedError("only of those whose advantages are their group's own")

    def begin_accumulating(self, groups: Sequence[ScoredGroup], updates: Updates) -> Accumulated:
        """The same, of groups whose part of the update is planned."""
        outstanding, tokens = Outstanding(), updates.totals[0].trained_tokens
        if not tokens:  # of these groups, no response has an advantage
            return Accumulated(groups=groups, work=[], trained_tokens=0, calls=outstanding)
        given = hand_episodes(groups, updates.work, self.split)
        parts = self._read_for(groups, updates.taker, outstanding)
        threads = self.gradients.threads if self.gradients else None
        calls = [
            self.policy.submit(
                rank,
                TrainedWorker.accumulate,
                share.plans[0],
                held,
                threads,
                self.policy_loss(),
                self.sampling.temperature,
                *episodes,
                *parts.of(updates.taker, rank),
            )
            for rank, (share, (held, episodes)) in enumerate(zip(updates.work, given, strict=True))
        ]
        outstanding.add(self.policy, calls, "accumulate")
        return Accumulated(groups=groups, work=updates.work, trained_tokens=tokens, calls=outstanding)

    def finish_accumulated(
        self, begun: Sequence[Accumulated], groups: Sequence[ScoredGroup], updates: Updates, totals: Totals
    ) -> Metrics:
        """Make a step's only update, of `totals`, of what was `begun` and of these other `groups`."""
        self.moved = bool(totals.trained_tokens)
        outstanding, given = Outstanding(), hand_episodes(groups, updates.work, self.split)
        parts = self._read_for(groups, updates.taker, outstanding)
        calls = [
            self.policy.submit(
                rank,
                TrainedWorker.finish_update,
                share.plans[0],
                held,
                totals,
                divisors(self.config, totals),
                self.policy_loss(),
                self.sampling.temperature,
                *episodes,
                *parts.of(updates.taker, rank),
            )
            for rank, (share, (held, episodes)) in enumerate(zip(updates.work, given, strict=True))
        ]
        for each in [*(part.calls for part in begun), outstanding]:
            each.finish()  # what has failed there says more than what comes of it
        per_update = self.policy.gather(calls, "finish_update")[0]
        work = [share for part in begun for share in part.work] + updates.work
        early = sum(part.trained_tokens for part in begun)
        return _told(per_update, [totals], work, updates.name) | {
            "bubble/early_update_seconds": per_update[0]["time/early_rank"],
            "bubble/early_update_fraction": early / max(1, totals.trained_tokens),
        }

    def _read_for(self, groups: Sequence[ScoredGroup], taker: Taker, outstanding: Outstanding) -> Parts:
        """Let other groups, and the policy before it goes on, read what the loss needs of these groups."""
        found = Parts()
        for what in self.passes() if groups else ():
            ranks = self.roster[what.group]
            calls, parts = begin_reading(what, ranks, groups, range(len(groups)), self.split, [taker])
            outstanding.add(ranks, calls, what.method.__name__)
            found += parts
        return found


def _told(per_update: list[Metrics], totals: list[Totals], work: list[RankWork], name: str) -> Metrics:
    """Metrics of a step's updates."""
    metrics = update_metrics(per_update, [each.trained_tokens for each in totals], name)
    micro_batches, empty = count_micro_batches(work)
    # A shared prompt counts once, as in the layers; that attention copies it, and pads, is not counted.
    tokens = sum(update["tokens/trained"] for update in per_update)
    return metrics | {
        "tokens/trained": tokens,
        "tokens/micro_batches": float(micro_batches),
        "tokens/padding_fraction": empty / max(1, empty + tokens),
    }
