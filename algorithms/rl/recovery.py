"""What groups of ranks that have lost some learn again: the steps since a state that was kept, from the same samples.

    work fails --> mend: new processes, newest state --> learn again from the steps since --> work again

What the driver knows does not go back: metrics of steps that are done are written, their samples and weights stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from actors.group import GroupError
from algorithms.rollouts.groups import ShapedGroup

_BYTES_PER_TOKEN = 24
"""Of a sampled token in the object store: its id, logprob, versions, and its share of the text."""


class Mender(Protocol):
    """Who brings groups back that have lost ranks."""

    def mend(self, error: GroupError, learn_again: Callable[[int], int | None]) -> bool:
        """Bring back the groups whose loss an error tells of.

        Args:
            error: what has failed.
            learn_again: learns from the steps after the one that it is given, and returns how many these are; None
                where they are not all there.

        Returns:
            Whether what has failed can be done again; False: no rank is lost, or too many were, or no state is kept.
        """
        ...

    def note(self, step: int, seconds: float) -> int:
        """A step is done, of whose time so many seconds would be spent again; its state may be kept now.

        Returns the step whose state was kept last.
        """
        ...


@dataclass(slots=True, kw_only=True)
class Learned:
    """A step that the groups have learned from."""

    step: int
    version: int
    """Of the weights that the engines had."""
    groups: Sequence[ShapedGroup]
    """Their responses stay where they are as long as this refers to them."""
    followed: bool = False
    """Whether the reference has been told of it."""

    @property
    def bytes(self) -> int:
        """About what its responses take."""
        return _BYTES_PER_TOKEN * sum(info.tokens for group in self.groups for info in group.infos)


@dataclass(slots=True)
class LearnedSteps:
    """The steps since a state that was kept, as far as there is room."""

    most_bytes: int = 0
    """Of their responses; beyond it the oldest are let go of, and with them what could be made again."""
    since: int = 0
    """Step after which all are here."""
    steps: list[Learned] = field(default_factory=list)

    def add(self, learned: Learned) -> None:
        """A step more."""
        self.steps.append(learned)
        while sum(each.bytes for each in self.steps) > self.most_bytes:
            self.since = self.steps.pop(0).step

    @property
    def is_full(self) -> bool:
        """Whether one more step like these may be too much."""
        taken = sum(each.bytes for each in self.steps)
        return bool(self.steps) and taken + max(each.bytes for each in self.steps) > self.most_bytes

    def followed(self, step: int) -> None:
        """The reference has been told of this step, the last one."""
        if self.steps and self.steps[-1].step == step:
            self.steps[-1].followed = True

    def drop(self, step: int) -> None:
        """The state after this step is kept: what it has learned from is not needed any more."""
        self.steps = [each for each in self.steps if each.step > step]
        self.since = max(self.since, step)

    def after(self, step: int) -> list[Learned] | None:
        """Those after a step, in order; None where not all of them are here."""
        return [each for each in self.steps if each.step > step] if step >= self.since else None
