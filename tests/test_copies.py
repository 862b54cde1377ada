"""When the state of groups that learn is copied into memory, and that nothing which goes wrong with it ends a run."""

import math
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any

import pytest

from actors.group import GroupError
from actors.group_errors import RankLost
from launch.config import MemoryEvery
from launch.run.copies import Copies
from launch.run.keepers import Keepers, NoMemory, NotKept, Unfinished


class FakeKeepers(Keepers):
    """They take in copies as soon as they may, or fail as they are told; `whole` is what counts."""

    whole: int | None = None

    def __init__(self) -> None:
        self.may = Event()
        self.fails: Sequence[Exception] = []
        self.may.set()
        self.closed = False
        self.takes: Callable[[], object] = lambda: None
        """Time."""

    def prepare(self, groups: Any) -> None:
        pass

    def take_in(self, groups: Any, copy: int, sizes: Any, go_on: Callable[[], bool]) -> None:
        assert sizes == {("policy", 0): 5, ("policy", 1): 7}
        assert self.may.wait(60)
        if not go_on():
            raise Unfinished("it was given up")
        self.takes()
        if self.fails:
            error, *self.fails = self.fails
            raise error
        self.whole = copy

    def give_back(self, groups: Any) -> None:
        if self.whole is None:
            raise NotKept("it is lost")

    def look(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class FakeGroup:
    """Copies, or fails."""

    error: GroupError | None = None
    copied = 0

    def call(self, method: Callable[..., object]) -> list[int]:
        assert method.__name__ == "begin_copy"
        if self.error:
            raise self.error
        self.copied += 1
        return [5, 7]


class Run:
    """Copies of one group; learning a step again takes `again_s`."""

    def __init__(self, every: MemoryEvery, again_s: float = 1.0) -> None:
        self.again_s, self.log, self.seconds = again_s, list[str](), 0.0
        self.keepers, self.group = FakeKeepers(), FakeGroup()
        groups: Any = {"policy": self.group}
        self.copies = Copies(every, groups, self.keepers, self.log.append, lambda: self.seconds)
        self.since = 0

    def step(self, step: int, *, soon: bool = False, full: bool = False) -> int | None:
        again_s = math.inf if full else (step - (self.copies.step or 0)) * self.again_s
        if self.copies.due(step, again_s, soon):
            self.copies.begin(step)
        if self.keepers.may.is_set():
            self.copies.finish(60)
        return self.copies.step


def test_one_is_taken_every_so_many_steps() -> None:
    """Or when there is no room for what learning again needs."""
    run = Run(3)
    assert [run.step(step) for step in range(1, 8)] == [None, None, 3, 3, 3, 6, 6]
    assert run.step(8, full=True) == 8 and run.log == []


def test_none_is_taken_where_none_is_wanted() -> None:
    run = Run(None, again_s=1e9)
    assert [run.step(step, full=True) for step in (1, 2)] == [None, None] and run.group.copied == 0


def test_auto_takes_one_where_it_would_take_long_to_learn_again() -> None:
    run = Run("auto", again_s=4.0)
    assert [run.step(step) for step in range(1, 7)] == [None, None, 3, 3, 3, 6]
    assert [run.step(step, soon=True) for step in range(7, 15)] == [6] * 8, "a checkpoint is on its way"
    assert run.step(15, soon=True, full=True) == 15, "for which there is no room to wait"


def test_auto_is_rarer_where_one_takes_long() -> None:
    run = Run("auto", again_s=4.0)
    run.keepers.takes = lambda: setattr(run, "seconds", run.seconds + 1.0)
    assert [run.step(step) for step in range(1, 4)] == [None, None, 3]
    assert [step for step in range(4, 20) if run.step(step) == step] == [16], "50 times as long as the last"


def test_training_goes_on_while_one_is_on_its_way() -> None:
    """One at a time; until it is whole, the one before is what there is."""
    run = Run(1)
    assert run.step(1) == 1
    run.keepers.may.clear()
    assert [run.step(step) for step in (2, 3, 4)] == [1, 1, 1] and run.copies.in_flight and run.group.copied == 2
    with pytest.raises(NotKept):
        run.copies.load()
    run.keepers.may.set()
    run.copies.finish(60)
    assert run.copies.step == 2 and run.step(5) == 5


def test_one_that_is_given_up_does_not_count() -> None:
    run = Run(1)
    run.keepers.may.clear()
    run.step(1)
    run.copies.finish(0.01)
    run.keepers.may.set()
    run.copies.finish(60)
    assert run.copies.step is None and run.step(2) == 2 and run.log == []


def test_without_room_it_is_told_once_and_tried_more_and_more_rarely() -> None:
    run = Run(1)
    run.step(1)
    run.keepers.fails = [NoMemory("it has 9 MiB, and 8 MiB of memory are free")] * 4
    assert {run.step(step) for step in range(2, 16)} == {1}
    assert run.group.copied == 5, "at steps 2, 4, 7, 12: 1, 2, 4, 8 steps after it was known"
    assert run.log == [
        "no copy of the state was taken into memory (it has 9 MiB, and 8 MiB of memory are free): the run goes on, and "
        "tries again later"
    ]
    assert [run.step(step) for step in range(16, 22)][-1] == 21, "there is room again"


def test_a_copy_that_is_lost_is_taken_anew() -> None:
    """At once, whatever was asked for."""
    run = Run(100)
    assert run.step(100) == 100
    run.keepers.whole = None
    assert run.copies.step is None and run.step(101) == 101
    assert run.log == ["the copy of the state in memory was lost with who kept it: it is taken anew"]
    run.keepers.whole = None
    assert run.step(102) == 102 and len(run.log) == 1, "told once"
    run.keepers.whole = None
    with pytest.raises(NotKept):
        run.copies.load()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RankLost("policy[0].begin_copy: died", "policy", 0), False),
        (GroupError("policy[0].begin_copy: MemoryError"), True),
    ],
)
def test_ranks_that_cannot_copy_end_nothing(error: GroupError, told: bool) -> None:
    """Of one that is lost, who brings it back tells."""
    run = Run(1)
    run.group.error = error
    assert run.step(1) is None and len(run.log) == told
    run.group.error = None
    assert [run.step(2), run.step(3)] == [2, 3]


@pytest.mark.parametrize("error", [ValueError("of Ray"), Unfinished("policy[1] died")])
def test_whatever_keeps_it_from_being_whole_ends_nothing(error: Exception) -> None:
    run = Run(1)
    run.keepers.fails = [error]
    assert [run.step(step) for step in (1, 2, 3)][-1] == 3
    assert len(run.log) == isinstance(error, ValueError)
    run.copies.close()
    assert run.keepers.closed
