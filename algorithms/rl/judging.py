"""Which groups dynamic sampling keeps (DAPO, arXiv 2503.14476): decided by what trains, as soon as it is scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from algorithms.rl.metrics import teaches
from algorithms.rl.shaper import RewardShaper
from algorithms.rollouts.groups import ScoredGroup, ShapedGroup


def counted_of(groups: Sequence[ScoredGroup], *, mask_truncated: bool) -> list[np.ndarray]:
    """Whether the loss counts each response of each group, bool [N]."""
    return [np.array([not (mask_truncated and info.status == "truncated") for info in each.infos]) for each in groups]


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """An `algorithms.rollouts.lane.Judge`: shaped groups whose scores differ, and None for the others."""

    shaper: RewardShaper
    mask_truncated: bool

    def __call__(self, group: ScoredGroup) -> ShapedGroup | None:
        """Shaped before it is decided who teaches: equal rewards may differ by penalties for length."""
        [shaped] = self.shaper.shape([group], counted_of([group], mask_truncated=self.mask_truncated))
        return shaped if teaches(shaped) else None
