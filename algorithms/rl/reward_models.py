"""Reward models as sources of rewards: groups that score whole rollouts, and how their scores join the others."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray import ObjectRef

from actors.episodes import Place
from actors.group import ActorGroup, GroupError
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


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """All reward models of a run; they work at the same time."""

    models: list[RewardModelGroup]
    roster: Mapping[str, ActorGroup[Any]]
    """Has their groups, looked up at every use."""
    split: Split

    def score(self, groups: list[ScoredGroup]) -> list[ScoredGroup]:
        """The groups with the scores of all reward models added.

        Raises GroupError when a rank fails, RewardFailure when a score is not finite.
        """
        # What was made ahead, before a resume without it, has them already.
        lacking = [group for group in groups if not self._has_scored(group)]
        if not self.models or not lacking:
            return groups
        found = iter(self.begin(lacking).finish())
        return [group if self._has_scored(group) else next(found) for group in groups]

    def _has_scored(self, group: ScoredGroup) -> bool:
        return all(model.label in score.parts for model in self.models for score in group.scores)

    def begin(self, groups: Sequence[ScoredGroup]) -> "Scoring":
        """Give all models their work; returns what waits for them."""
        # Advantages come later, and nothing here reads them.
        samples = samples_of(groups, [np.zeros(len(group.infos)) for group in groups])
        calls = []
        for model in self.models:
            ranks = self.roster[model.group]
            work = divide([samples], len(ranks), model.micro_batch_tokens)
            given = hand_episodes(groups, work, self.split)
            plans = [[[(number, index) for number, index, _ in batch] for batch in share.plans[0]] for share in work]
            calls.append(
                [
                    ranks.submit(rank, ScoringWorker.scores, plan, held, *episodes)
                    for rank, (plan, (held, episodes)) in enumerate(zip(plans, given, strict=True))
                ]
            )
        return Scoring(self, groups, calls, time.monotonic())


@dataclass(frozen=True)
class Scoring:
    """Groups that reward models have."""

    scorers: Scorers
    groups: Sequence[ScoredGroup]
    calls: list[list[ObjectRef[dict[Place, float]]]]
    """Of each model, one for each of its ranks."""
    began: float
    """On time.monotonic()."""

    def refs(self) -> list[ObjectRef[dict[Place, float]]]:
        """What is waited for."""
        return [call for of_model in self.calls for call in of_model]

    def done(self) -> bool:
        """Whether `finish` has nothing to wait for: all is there, or one is late, which it tells."""
        refs = self.refs()
        if len(ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[0]) == len(refs):
            return True
        return any(time.monotonic() > self.began + self._group(model).timeout_s for model in self.scorers.models)

    def finish(self) -> list[ScoredGroup]:
        """The groups with all scores; raises as `Scorers.score` does."""
        weights = {model.label: model.weight for model in self.scorers.models}
        found: dict[Place, dict[str, float]] = {}
        for model, calls in zip(self.scorers.models, self.calls, strict=True):
            for part in self._group(model).gather(calls, "scores", timeout_s=self._left_s(model)):
                for place, score in part.items():
                    found.setdefault(place, {})[model.label] = score
        return [
            replace(group, scores=[_added(score, found[number, i], weights) for i, score in enumerate(group.scores)])
            for number, group in enumerate(self.groups)
        ]

    def _left_s(self, model: RewardModelGroup) -> float:
        return max(0.0, self.began + self._group(model).timeout_s - time.monotonic())

    def _group(self, model: RewardModelGroup) -> ActorGroup[Any]:
        return self.scorers.roster[model.group]


class BesideRollouts:
    """Reward models that score groups while others are generated: always those that have come while they scored the
    ones before. See `algorithms.rollouts.model_pool.ModelPool`."""

    def __init__(self, scorers: Scorers) -> None:
        self._scorers = scorers
        self._waiting: list[tuple[int, ScoredGroup]] = []
        self._out: tuple[list[int], Scoring] | None = None

    def submit(self, number: int, group: ScoredGroup) -> None:
        """Take a group that functions and endpoints have scored."""
        self._waiting.append((number, group))

    def send(self) -> None:
        """Give the models what waits, if they have nothing; waits where engines split groups for ranks."""
        if self._out is None and self._waiting:
            numbers, groups = [number for number, _ in self._waiting], [group for _, group in self._waiting]
            self._out = numbers, self._scorers.begin(groups)
            self._waiting = []

    def refs(self) -> list[ObjectRef[dict[Place, float]]]:
        """What is waited for: not ranks that are done before others, or nothing would be waited for as long as that."""
        if not self._out:
            return []
        refs = self._out[1].refs()
        return ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[1] or refs

    def ready(self) -> list[tuple[int, ScoredGroup]]:
        """Groups that all models have scored, by number. Raises as `Scorers.score` does; what it has raised for is
        given to the models again, where anybody goes on."""
        if self._out is None or not self._out[1].done():
            return []
        numbers, scoring = self._out
        self._out = None
        try:
            return list(zip(numbers, scoring.finish(), strict=True))
        except GroupError:
            self._waiting = [*zip(numbers, scoring.groups, strict=True), *self._waiting]
            raise


def _added(score: Score, parts: dict[str, float], weights: dict[str, float]) -> Score:
    whole = add_scores(score, parts, weights)
    if whole.status == "failed":
        raise RewardFailure(f"a reward model's score cannot be used: {whole.cause}")
    return whole
