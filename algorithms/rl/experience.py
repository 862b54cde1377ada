"""From scored groups to the work of each rank: which sample, in which update and micro-batch, with which advantage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.train.worker import Totals
from algorithms.packing import plan_micro_batches
from algorithms.rollouts.sampler import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One scored response, as the driver sees it."""

    group: int
    """Index of its group in the step."""
    index: int
    """Number of the response within the group."""
    tokens: int
    """Prompt and response."""
    actions: int
    """Response tokens."""
    truncated: bool
    """Cut at the length limit."""
    advantage: float
    """Of all its tokens; NaN where advantages differ from token to token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWork:
    """What one rank gets: groups by reference, and plans that name them."""

    groups: list[Any]
    """References to list[Rollout], of the groups it works on."""
    keys: list[int]
    """Number, within the step, of each of `groups`."""
    plans: list[list[list[tuple[int, int, float]]]]
    """Per update, per micro-batch: (number of the group, response, advantage)."""


def samples_of(groups: Sequence[ScoredGroup], advantages: list[np.ndarray]) -> list[Sample]:
    """All samples of a step, group by group."""
    return [
        Sample(
            group=number,
            index=index,
            tokens=info.prompt_tokens + info.response_tokens,
            actions=info.response_tokens,
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


def divide(groups: Sequence[ScoredGroup], updates: list[list[Sample]], ranks: int, token_budget: int) -> list[RankWork]:
    """Give every rank its share of every update: balanced in tokens, equal in the number of micro-batches.

    Samples of a group stay together where that keeps the balance, so that they can share their prompt.
    """
    work = [RankWork(groups=[], plans=[], keys=[]) for _ in range(ranks)]
    for update in updates:
        lengths, numbers = [sample.tokens for sample in update], [sample.group for sample in update]
        plan = plan_micro_batches(lengths, ranks, token_budget, numbers)
        for rank, micro_batches in zip(work, plan, strict=True):
            rank.plans.append([[_place(rank, groups, update[i]) for i in batch] for batch in micro_batches])
    return work


def _place(rank: RankWork, groups: Sequence[ScoredGroup], sample: Sample) -> tuple[int, int, float]:
    if sample.group not in rank.keys:
        rank.keys.append(sample.group)
        rank.groups.append(groups[sample.group].rollouts)
    return sample.group, sample.index, sample.advantage


def deal_groups(groups: Sequence[ScoredGroup], ranks: int) -> list[list[int]]:
    """Numbers of the groups that each rank gets: whole groups, about as many tokens for every rank."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for number, group in enumerate(groups):
        rank = loads.index(min(loads))
        shares[rank].append(number)
        loads[rank] += sum(info.prompt_tokens + info.response_tokens for info in group.infos)
    return shares


def count_micro_batches(work: list[RankWork]) -> tuple[int, int]:
    """(all micro-batches, those with nothing to do) over ranks and updates."""
    sizes = [len(batch) for rank in work for plan in rank.plans for batch in plan]
    return len(sizes), sum(size == 0 for size in sizes)
