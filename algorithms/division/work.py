"""From scored groups to the work of each rank: which sample, in which update and micro-batch, with which advantage."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.episodes import Place
from actors.train.worker import Totals
from algorithms.division.packing import plan_micro_batches
from algorithms.rollouts.groups import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One scored episode, as the driver sees it."""

    group: int
    """Index of its group in the step."""
    index: int
    """Number of the episode within the group."""
    tokens: int
    """All that a model reads: prompt, sampled, and what was given in between."""
    actions: int
    """Sampled tokens: what is trained on."""
    truncated: bool
    """Cut at the length limit."""
    advantage: float
    """Of all its tokens; NaN where advantages differ from token to token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWork:
    """What one rank works on."""

    plans: list[list[list[tuple[int, int, float]]]]
    """Per update, per micro-batch: (number of the group, episode, advantage)."""

    @property
    def places(self) -> list[Place]:
        """Its episodes, each once, in the order in which they first come."""
        return list(
            dict.fromkeys((number, index) for plan in self.plans for batch in plan for number, index, _ in batch)
        )

    @property
    def held(self) -> dict[int, list[int]]:
        """Number of a group -> which of its episodes this rank works on."""
        held: dict[int, list[int]] = {}
        for number, index in self.places:
            held.setdefault(number, []).append(index)
        return {number: sorted(indices) for number, indices in held.items()}  # in the order of the group's list


def samples_of(groups: Sequence[ScoredGroup], advantages: list[np.ndarray]) -> list[Sample]:
    """All samples of a step, group by group."""
    return [
        Sample(
            group=number,
            index=index,
            tokens=info.tokens,
            actions=info.sampled_tokens,
            truncated=info.status == "truncated",
            advantage=float(advantages[number][index]),
        )
        for number, group in enumerate(groups)
        for index, info in enumerate(group.infos)
    ]


def split_updates(samples: list[Sample], per_update: int, seed: int) -> list[list[Sample]]:
    """Divide a step's samples into updates: all of them in order for one update, else whole groups in an order drawn by
    `seed`, of which one is divided where an update is full: an update reads few prompts, whose responses share them."""
    if per_update >= len(samples):
        return [samples]
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    # Groups, not samples, are shuffled: those of one prompt are computed together, and compared.
    drawn = np.random.default_rng(seed).permutation(list(groups)).tolist()
    order = [sample for number in drawn for sample in groups[number]]
    return [order[start : start + per_update] for start in range(0, len(order), per_update)]


def totals_of(update: list[Sample], trained: list[Sample]) -> Totals:
    """Global counts of an update: the loss is divided by those of all samples, metrics by those trained on."""
    return Totals(
        tokens=sum(sample.actions for sample in update),
        sequences=len(update),
        trained_tokens=sum(sample.actions for sample in trained),
    )


def divide(updates: list[list[Sample]], ranks: int, token_budget: int) -> list[RankWork]:
    """Give every rank its share of every update: balanced in tokens, equal in the number of micro-batches.

    Samples of a group stay together where that keeps the balance, so that they can share their prompt.
    """
    plans: list[list[list[list[tuple[int, int, float]]]]] = [[] for _ in range(ranks)]
    for update in updates:
        lengths, numbers = [sample.tokens for sample in update], [sample.group for sample in update]
        named = [(sample.group, sample.index, sample.advantage) for sample in update]
        for own, micro_batches in zip(plans, plan_micro_batches(lengths, ranks, token_budget, numbers), strict=True):
            own.append([[named[index] for index in batch] for batch in micro_batches])
    return [RankWork(plans=own) for own in plans]


def deal_groups(groups: Sequence[ScoredGroup], ranks: int) -> list[list[int]]:
    """Numbers of the groups that each rank gets: whole groups, about as many tokens for every rank."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for number, group in enumerate(groups):
        rank = loads.index(min(loads))
        shares[rank].append(number)
        loads[rank] += sum(info.tokens for info in group.infos)
    return shares


def count_micro_batches(work: list[RankWork]) -> tuple[int, int]:
    """(all micro-batches, those with nothing to do) over ranks and updates."""
    sizes = [len(batch) for rank in work for plan in rank.plans for batch in plan]
    return len(sizes), sum(size == 0 for size in sizes)
