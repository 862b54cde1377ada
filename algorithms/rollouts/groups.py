"""All responses to one prompt: as the engines gave them, with their rewards, and with what advantages come from."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.batch import Prompt
from actors.rollout.types import RolloutInfo
from algorithms.rewards.scores import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """All responses to one prompt, with their rewards."""

    prompt: Prompt
    rollouts: Any
    """Reference to list[Episode]."""
    infos: list[RolloutInfo]
    scores: list[Score]

    @property
    def rewards(self) -> np.ndarray:
        """float64 [N]"""
        return np.array([score.reward for score in self.scores])

    @property
    def compared(self) -> np.ndarray:
        """What says whether the responses differ: the rewards as they are, float64 [N]."""
        return self.rewards

    @property
    def oldest_version(self) -> int | None:
        """Of the weights that sampled any token of the group; None where there is no token."""
        return min((info.oldest_version for info in self.infos if info.oldest_version >= 0), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapedGroup(ScoredGroup):
    """A group with what advantages are computed from: what decides about it is what trains."""

    shaped: np.ndarray
    """Rewards normalised, clipped and less penalties for length, float64 [N]."""
    counted: np.ndarray
    """Whether the loss counts the response, bool [N]."""

    @property
    def compared(self) -> np.ndarray:
        """The scores that are compared with each other: of the responses that the loss counts, float64 [up to N]."""
        return self.shaped[self.counted]
