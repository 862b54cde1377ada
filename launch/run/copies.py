"""Copies of the state of groups that learn, between checkpoints, in the memory of other processes.

a step is done --> due? --> ranks copy their state --> training goes on
                                 `--> a thread: keepers take it in ... whole: it replaces the one before
"""

import math
import time
from collections.abc import Callable, Mapping
from threading import Thread
from typing import TYPE_CHECKING

from actors.group import GroupError, first_line
from actors.group_errors import RankLost
from launch.config import MemoryEvery
from launch.run.keeper import Of
from launch.run.keepers import Keepers, NotKept, Unfinished

if TYPE_CHECKING:
    from actors.group import ActorGroup
    from actors.train.trainer import TrainedWorker

_LEAST_S, _SHARE = 10.0, 50.0
"""With auto, one is taken where learning again would take so long, and so many times as long as the last one took."""
_END_S = 5.0
"""For the thread to end when keepers have."""


class Copies:
    """When one is taken, one at a time, and what becomes of it; nothing of it ends a run.

    Example:
        copies = Copies("auto", saves.groups, Keepers(placement), print)
        if copies.due(7, again_s=60.0, soon=False):
            copies.begin(7)
        copies.step  # 7, as soon as it is whole
    """

    def __init__(
        self,
        every: MemoryEvery,
        groups: "Mapping[str, ActorGroup[TrainedWorker]]",
        keepers: Keepers,
        tell_of: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            every: `checkpoint.memory_every`.
            groups: that go back together.
            keepers: who keep them.
            tell_of: shows a line.
            clock: gives seconds.
        """
        self._every, self._groups, self._keepers, self._tell_of, self._clock = every, groups, keepers, tell_of, clock
        self._thread: Thread | None = None
        self._wanted = False
        """Whether what is taken in is to count."""
        self._steps: dict[int, int] = {}
        """Number of a copy -> step that it is of; for the next one, and the one that counts."""
        self._number = 0
        self._failed: NotKept | None = None
        """Why the last one was not kept; the thread says it."""
        self._took_s = 0.0
        """That the last one took, copying and keeping."""
        self._failures, self._next_try = 0, 0
        """In a row; step from which it is tried again."""
        self._told: set[str] = set()
        """What was told, which is done once."""
        self._had: int | None = None
        """Number of the last copy that was whole."""

    @property
    def step(self) -> int | None:
        """Of the copy that ranks can go back to; None: there is none."""
        whole = self._keepers.whole
        return None if whole is None else self._steps[whole]

    @property
    def in_flight(self) -> bool:
        """Whether one is on its way."""
        return self._thread is not None and self._thread.is_alive()

    def due(self, step: int, again_s: float, soon: bool) -> bool:
        """Whether one is to be taken after this step.

        Args:
            step: that is done.
            again_s: seconds that learning again what comes after the state that is kept would take; infinite where
                there is no room for what it needs.
            soon: whether a checkpoint will be whole soon.
        """
        if self._every is None or self.in_flight:
            return False
        self._look(step)
        if step < self._next_try:
            return False
        if self._is_lost:
            return True
        if isinstance(self._every, int):
            return step % self._every == 0 or math.isinf(again_s)
        # Where a checkpoint will be whole soon, only if there is no room to wait for it.
        return (math.isinf(again_s) or not soon) and again_s > max(_LEAST_S, _SHARE * self._took_s)

    def begin(self, step: int) -> None:
        """Let ranks copy their state as it is now, and keepers take it in beside training."""
        from actors.train.kept import KeptWorker

        began, sizes = self._clock(), dict[Of, int]()
        try:
            for name, group in self._groups.items():
                of_ranks = group.call(KeptWorker.begin_copy)
                sizes |= {(name, rank): size for rank, size in enumerate(of_ranks)}
        except GroupError as error:
            if not isinstance(error, RankLost):  # one that is lost is met by the next call, and then mended
                self._not_kept(step, NotKept(first_line(str(error))))
            return
        copied_s = self._clock() - began
        self._number += 1
        self._steps = {copy: of for copy, of in self._steps.items() if copy == self._had}
        self._steps[self._number] = step
        self._wanted, self._failed = True, None
        # A daemon: it must not keep the process from ending.
        self._thread = Thread(target=self._keep, args=(self._number, sizes, copied_s), name="copy", daemon=True)
        self._thread.start()

    def finish(self, within_s: float) -> None:
        """Wait until none is on its way, for so many seconds; then it is given up."""
        if self._thread:
            self._thread.join(within_s)
        self._wanted = False

    def load(self) -> None:
        """Let new ranks go back to the one that there is; raises as `Keepers.give_back` does."""
        if self.in_flight:
            raise NotKept("its keepers do not answer")  # they belong to the thread
        self._keepers.give_back(self._groups)

    def close(self) -> None:
        """End those who keep them."""
        self._wanted = False
        self._keepers.close()
        if self._thread:
            self._thread.join(_END_S)  # it asks Ray, which is to end next

    def _keep(self, number: int, sizes: Mapping[Of, int], copied_s: float) -> None:
        """On a thread: nothing but this touches the keepers meanwhile."""
        try:
            self._keepers.prepare(self._groups)
            began = self._clock()
            self._keepers.take_in(self._groups, number, sizes, lambda: self._wanted)
            self._took_s, self._had, self._failures = copied_s + self._clock() - began, number, 0
        except NotKept as error:
            self._failed = error
        except Exception as error:  # of Ray, as the run ends or its head is away: it is as well no copy
            self._failed = NotKept(first_line(str(error)))

    def _look(self, step: int) -> None:
        """Take in what has become of the last one, and of those who keep it."""
        self._keepers.look()
        failed, self._failed = self._failed, None
        if failed:
            self._not_kept(step, failed)
        if self._is_lost:
            self._tell_once("lost", "the copy of the state in memory was lost with who kept it: it is taken anew")

    @property
    def _is_lost(self) -> bool:
        """Whether there was a copy, and is none."""
        return self._had is not None and self._keepers.whole is None

    def _not_kept(self, step: int, error: NotKept) -> None:
        """Wait before the next try, and tell once why there is none; but of the loss of a rank others tell."""
        if isinstance(error, Unfinished):
            return
        self._next_try = step + 2**self._failures
        self._failures += 1
        text = f"no copy of the state was taken into memory ({error}): the run goes on, and tries again later"
        self._tell_once(type(error).__name__, text)

    def _tell_once(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._tell_of(text)
