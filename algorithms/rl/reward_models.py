"""Reward models as sources of rewards: groups that score whole rollouts, and how their scores join the others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.group import ActorGroup
from actors.train.frozen import ScoringWorker
from algorithms.division.deals import Split, hand_episodes
from algorithms.division.work import divide, samples_of
from algorithms.rewards.pool import RewardFailure
from algorithms.rewards.scores import Score, add_scores
from algorithms.rollouts.groups import ScoredGroup


@dataclass(frozen=True, kw_only=True)
class RewardModelGroup:
    """A group that holds a reward model."""

    label: str
    """Name of its scores in Score.parts."""
    weight: float
    group: str
    """Its name in the roster."""
    micro_batch_tokens: int


def score_with_models(
    groups: list[ScoredGroup], models: list[RewardModelGroup], roster: Mapping[str, ActorGroup[Any]], split: Split
) -> list[ScoredGroup]:
    """The groups with the scores of all reward models added; the models, which `roster` has, work at the same time.

    Raises GroupError when a rank fails, RewardFailure when a score is not finite.
    """
    if not models or not groups:
        return groups
    # Advantages come later, and nothing here reads them.
    samples = samples_of(groups, [np.zeros(len(group.infos)) for group in groups])
    pending = []
    for model in models:
        ranks = roster[model.group]
        work = divide([samples], len(ranks), model.micro_batch_tokens)
        given = hand_episodes(groups, work, split)
        plans = [[[(number, index) for number, index, _ in batch] for batch in share.plans[0]] for share in work]
        pending.append(  # all models have their work before one is waited for
            [
                ranks.submit(rank, ScoringWorker.scores, plan, held, *episodes)
                for rank, (plan, (held, episodes)) in enumerate(zip(plans, given, strict=True))
            ]
        )
    weights = {model.label: model.weight for model in models}
    found: dict[tuple[int, int], dict[str, float]] = {}
    for model, calls in zip(models, pending, strict=True):
        for part in roster[model.group].gather(calls, "scores"):
            for place, score in part.items():
                found.setdefault(place, {})[model.label] = score
    return [
        replace(group, scores=[_added(score, found[number, i], weights) for i, score in enumerate(group.scores)])
        for number, group in enumerate(groups)
    ]


def _added(score: Score, parts: dict[str, float], weights: dict[str, float]) -> Score:
    whole = add_scores(score, parts, weights)
    if whole.status == "failed":
        raise RewardFailure(f"a reward model's score cannot be used: {whole.cause}")
    return whole
