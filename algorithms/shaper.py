"""From raw rewards to the scores that advantages are computed from."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from algorithms.config_rl import OverlongPenalty
from algorithms.sampler import ScoredGroup
from algorithms.shaping import RunningMoments, overlong_penalty


@dataclass(kw_only=True)
class RewardShaper:
    """Normalises and clips rewards, then subtracts penalties for length; all before any baseline."""

    normalize: bool
    clip: float | None
    overlong: OverlongPenalty | None
    missing_eos_penalty: float
    max_response_tokens: int
    moments: RunningMoments = field(default_factory=RunningMoments)
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last step: the mean of its scores, where they are not the rewards."""

    def __call__(self, groups: list[ScoredGroup]) -> list[np.ndarray]:
        """Scores of each group's responses, float64 [N]."""
        scores = [group.rewards.astype(np.float64) for group in groups]
        if self.normalize:
            self.moments.update(np.concatenate(scores))
            scores = [self.moments.normalise(each) for each in scores]
        if self.clip is not None:
            scores = [each.clip(-self.clip, self.clip) for each in scores]
        scores = [each - self._penalties(group) for group, each in zip(groups, scores, strict=True)]
        if self.normalize or self.clip is not None or self.overlong or self.missing_eos_penalty:
            self.metrics = {"reward/shaped_mean": float(np.concatenate(scores).mean())}
        return scores

    def _penalties(self, group: ScoredGroup) -> np.ndarray:
        penalties = np.zeros(len(group.infos))
        for index, info in enumerate(group.infos):
            if info.status == "truncated":
                penalties[index] += self.missing_eos_penalty
            if self.overlong is not None:
                penalties[index] -= overlong_penalty(
                    info.response_tokens,
                    self.max_response_tokens,
                    buffer=self.overlong.buffer,
                    penalty=self.overlong.penalty,
                )
        return penalties

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.moments.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.moments.load_state_dict(state)
