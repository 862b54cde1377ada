"""All responses to one prompt: as the engines gave them, with their rewards, and with what advantages come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayError

from actors.episodes import Episode, Prompt
from actors.group import GroupError
from actors.rollout.types import Begun, BegunInfo, RolloutInfo
from algorithms.rewards.scores import Score

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """All responses to one prompt, with their rewards."""

    prompt: Prompt
    rollouts: ObjectRef[list[Episode]]
    """They stay where they were sampled."""
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
        # -1: no token.
        return min((info.oldest_version for info in self.infos if info.oldest_version >= 0), default=None)

    def with_shape(self, shaped: np.ndarray, counted: np.ndarray) -> "ShapedGroup":
        """The group with what advantages are computed from, float64 [N] and bool [N]."""
        return ShapedGroup(
            prompt=self.prompt,
            rollouts=self.rollouts,
            infos=self.infos,
            scores=self.scores,
            shaped=shaped,
            counted=counted,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunGroup:
    """What the samples of a group have so far, for an engine to go on from."""

    samples: ObjectRef[tuple[Begun, ...]]
    """They stay where they were sampled, or read from a checkpoint."""
    infos: tuple[BegunInfo, ...]

    @classmethod
    def of(cls, samples: tuple[Begun, ...]) -> "BegunGroup":
        """A group of samples that this process keeps."""
        return cls(samples=kept(samples), infos=tuple(map(BegunInfo.of, samples)))

    @property
    def oldest_version(self) -> int | None:
        """Of the weights that sampled any of their tokens; None where there is no token."""
        return min((info.oldest_version for info in self.infos if info.oldest_version >= 0), default=None)

    def is_older(self, version: int | None) -> bool:
        """Whether older weights than of this version have sampled any token; None: of no version."""
        oldest = self.oldest_version
        return oldest is not None and version is not None and oldest < version

    @property
    def going_on(self) -> int:
        """Samples that have not ended."""
        return sum(not info.ended for info in self.infos)


def begun_of(group: BegunGroup, timeout_s: float) -> tuple[Begun, ...]:
    """What is behind a group's reference; raises GroupError when it is lost, or does not come in time."""
    try:
        return ray.get(group.samples, timeout=timeout_s)
    except RayError as error:
        raise GroupError(f"rollout.progress: what responses had so far is lost ({type(error).__name__})") from error


def episodes_of(group: ScoredGroup, timeout_s: float) -> list[Episode]:
    """The episodes behind a group's reference; raises GroupError when they are lost, or do not come in time."""
    try:
        return ray.get(group.rollouts, timeout=timeout_s)
    except RayError as error:
        why = type(error).__name__
        raise GroupError(f"rollout.collect: the responses to data row {group.prompt.index} are lost ({why})") from error


def prompt_finder(prompts: Sequence[Prompt]) -> Callable[[str, int], Prompt]:
    """Finds prompts by the name of their set and their row in it; raises KeyError where there is none."""
    by_place = {(prompt.of_set, prompt.index): prompt for prompt in prompts}
    # By set and row, as a checkpoint has no prompts: the data is read anew.
    return lambda of_set, row: by_place[of_set, row]


def kept(value: T) -> ObjectRef[T]:
    """A reference to what this process keeps."""
    return ray.put(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapedGroup(ScoredGroup):
    """A group with what advantages are computed from: what decides about it is what trains."""

    shaped: np.ndarray
    """Rewards normalised, clipped and less penalties for length, with the rewards of turns added, float64 [N]."""
    counted: np.ndarray
    """Whether the loss counts the response, bool [N]."""

    @property
    def compared(self) -> np.ndarray:
        """The scores that are compared with each other: of the responses that the loss counts, float64 [up to N]."""
        return self.shaped[self.counted]
