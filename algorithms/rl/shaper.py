"""From raw rewards to the scores that advantages are computed from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from actors.files.parts import Entry
from algorithms.config_rl import OverlongPenalty
from algorithms.rl.shaping import RunningMoments, overlong_penalty
from algorithms.rollouts.groups import ScoredGroup, ShapedGroup


@dataclass(kw_only=True)
class RewardShaper:
    """Normalises and clips rewards, subtracts penalties for length, adds rewards of turns; all before any baseline.

    A score is what the whole episode has earned. Rewards of turns come from an environment, in its own units: they are
    neither normalised nor clipped.
    """

    normalize: bool
    clip: float | None
    overlong: OverlongPenalty | None
    missing_eos_penalty: float
    max_response_tokens: int
    moments: RunningMoments = field(default_factory=RunningMoments)
    _lock: Lock = field(default_factory=Lock, repr=False)
    """Of `moments`: with dynamic sampling a thread shapes groups, also while a checkpoint is written."""

    def shape(self, groups: Sequence[ScoredGroup], counted: list[np.ndarray]) -> list[ShapedGroup]:
        """The groups with their scores, and with whether the loss counts each response, bool [N].

        One that is shaped already stays as it is: the running mean has moved on, and would give it other scores than
        those that decided about it.
        """
        # With dynamic sampling they were shaped when they were judged.
        new = [(group, kept) for group, kept in zip(groups, counted, strict=True) if not isinstance(group, ShapedGroup)]
        scores = iter(self([group for group, _ in new], [kept for _, kept in new]))
        return [
            group if isinstance(group, ShapedGroup) else group.with_shape(next(scores), kept)
            for group, kept in zip(groups, counted, strict=True)
        ]

    def __call__(self, groups: Sequence[ScoredGroup], counted: list[np.ndarray] | None = None) -> list[np.ndarray]:
        """Scores of each group's responses, float64 [N]; the running mean is of those `counted`, bool [N] (default:
        all)."""
        scores = [group.rewards.astype(np.float64) for group in groups]
        if self.normalize and scores:
            seen = scores if counted is None else [each[chosen] for each, chosen in zip(scores, counted, strict=True)]
            with self._lock:
                # Before they are normalised: else the first step's would be divided by nothing.
                self.moments.update(np.concatenate(seen))
                scores = [self.moments.normalise(each) for each in scores]
        if self.clip is not None:
            scores = [each.clip(-self.clip, self.clip) for each in scores]
        scores = [each - self._penalties(group) for group, each in zip(groups, scores, strict=True)]
        return [_with_turns(group, each) for group, each in zip(groups, scores, strict=True)]

    def metrics(self, groups: Sequence[ShapedGroup]) -> dict[str, float]:
        """The mean of the scores that the loss counts, where they are not the rewards."""
        shapes = self.normalize or self.clip is not None or self.overlong or self.missing_eos_penalty
        shapes = shapes or any(info.turn_rewards for group in groups for info in group.infos)
        scores = np.concatenate([group.compared for group in groups])
        return {"reward/shaped_mean": float(scores.mean())} if shapes and len(scores) else {}

    def _penalties(self, group: ScoredGroup) -> np.ndarray:
        penalties = np.zeros(len(group.infos))
        for index, info in enumerate(group.infos):
            if info.status == "truncated":
                penalties[index] += self.missing_eos_penalty
            if self.overlong is not None:
                penalties[index] -= overlong_penalty(  # which is below 0
                    info.sampled_tokens,
                    self.max_response_tokens,
                    buffer=self.overlong.buffer,
                    penalty=self.overlong.penalty,
                )
        return penalties

    def save(self, directory: Path) -> Entry:
        """The running mean and variance of rewards, also where they are not used: a later start may use them."""
        with self._lock:
            return self.moments.state_dict()

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from `entry`."""
        self.moments.load_state_dict(entry)


def _with_turns(group: ScoredGroup, scores: np.ndarray) -> np.ndarray:
    earned = [math.fsum(info.turn_rewards) for info in group.infos]
    return scores + earned if any(info.turn_rewards for info in group.infos) else scores
