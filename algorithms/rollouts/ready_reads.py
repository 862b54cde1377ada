"""What rollouts tell those who go on with groups before they are taken.

`algorithms.rl.overlapped_reads` reads them, `algorithms.rl.overlapped_gradients` trains on them.
"""

from collections.abc import Sequence
from typing import Protocol

from ray import ObjectRef

from algorithms.rollouts.groups import ScoredGroup


class ReadyReads(Protocol):
    """Models that read groups which are ready for training while others are generated; who trains asks them."""

    def submit(self, group: ScoredGroup, *, certain: bool) -> None:
        """Take a group that is ready; `certain`: the step that is waited for trains on it, whatever comes."""

    def forget(self, group: ScoredGroup) -> None:
        """A group that was ready is not trained on."""

    @property
    def busy(self) -> bool:
        """Whether anything is to be sent, or waited for."""
        ...

    def send(self) -> None:
        """Let the models begin with what was submitted, if they have nothing else; may wait for engines, which split
        groups for ranks. Raises GroupError."""

    def refs(self) -> Sequence[ObjectRef]:
        """What is waited for: then more may be sent."""
        ...


class NoReads:
    """Nobody reads before groups are taken."""

    busy = False

    def submit(self, group: ScoredGroup, *, certain: bool) -> None:
        """Nobody takes it."""

    def forget(self, group: ScoredGroup) -> None:
        """Nobody has it."""

    def send(self) -> None:
        """Nothing waits."""

    def refs(self) -> Sequence[ObjectRef]:
        """Nothing is waited for."""
        return ()


NO_READS = NoReads()
