"""Lost ranks in the middle of a step: the groups are built anew, go back to a state that was kept, and learn again what
came after it, from the very same samples.

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

    def mend(self, error: GroupError, redo: Callable[[int], int]) -> bool:
        """Bring back the groups whose loss an error tells of.

        Args:
            error: what has failed.
            redo: learns again from the steps after the one that it is given, and returns how many these are.

        Returns:
            Whether what has failed can be done again; False: no rank is lost, or too many were, or no state is kept.
        """
        ...

    def note(self, step: int, seconds: float) -> None:
        """A step is done, of whose time so many seconds would be spent again; its state may be kept now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A step that the groups have learned from."""

    step: int
    version: int
    """Of the weights that the engines had."""
    groups: Sequence[ShapedGroup]
    """Their responses stay where they are as long as this refers to them."""

    @property
    def bytes(self) -> int:
        """About what its responses take."""
        return _BYTES_PER_TOKEN * sum(info.tokens for group in self.groups for info in group.infos)


@dataclass(slots=True)
class LearnedSteps:
    """The steps since a state that was kept, as far as there is room."""

    most_bytes: int
    """Of their responses; beyond it the oldest are let go of, and with them what could be made again."""
    since: int = 0
    """Step after which all are here."""
    steps: list[Learned] = field(default_factory=list)

    def add(self, learned: Learned) -> None:
        """A step more."""
        self.steps.append(learned)
        while sum(each.bytes for each in self.steps) > self.most_bytes:
            self.since = self.steps.pop(0).step

    def drop(self, step: int) -> None:
        """The state after this step is kept: what it has learned from is not needed any more."""
        self.steps = [each for each in self.steps if each.step > step]
        self.since = max(self.since, step)

    def after(self, step: int) -> list[Learned] | None:
        """Those after a step, in order; None where not all of them are here."""
        return [each for each in self.steps if each.step > step] if step >= self.since else None
