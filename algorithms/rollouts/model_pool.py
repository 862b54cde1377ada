"""Reward models as rollouts see them: whoever takes groups, and gives them back with all scores."""

from collections.abc import Sequence
from typing import Protocol

from ray import ObjectRef

from algorithms.rollouts.groups import ScoredGroup


class ModelPool(Protocol):
    """Reward models that score groups while others are generated."""

    def submit(self, number: int, group: ScoredGroup) -> None:
        """Take a group, which has what functions and endpoints say of it."""

    def send(self) -> None:
        """Let the models begin with what was submitted, if they have nothing else; may wait for engines, which split
        groups for ranks. Raises GroupError."""

    def refs(self) -> Sequence[ObjectRef]:
        """What is waited for; when all of it is done, `ready` gives it."""
        ...

    def ready(self) -> list[tuple[int, ScoredGroup]]:
        """Groups with all scores, by the number that they were submitted with. Raises RewardFailure, and GroupError,
        after which the models are given the same groups again by `send`."""
        ...
