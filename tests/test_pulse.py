"""What a worker says of itself while it works, without Ray."""

import os
import threading
import time

import pytest

from actors.pulse import Watched, Work
from actors.train.critic import CriticWorker
from actors.train.policy import PolicyWorker


class Reader(Watched):
    """Reads until it is told to stop."""

    def __init__(self) -> None:
        self.reading, self.go_on = threading.Event(), threading.Event()

    def read(self, batches: int) -> int:
        """Count its batches, as others do in the middle of their work."""
        for _ in range(batches):
            self.count()
        self.reading.set()
        assert self.go_on.wait(30)
        return batches

    def count(self) -> None:
        self.work.progressed()

    def fail(self) -> None:
        raise ValueError("broken")


class Careful(Reader):
    """A kind of it, with a method of its own."""

    def read(self, batches: int) -> int:
        """More of them."""
        return super().read(batches + 1)


@pytest.mark.parametrize(("kind", "done"), [(Reader, 3), (Careful, 4)])
def test_a_pulse_tells_of_the_method_that_was_called(kind: type[Reader], done: int) -> None:
    """Not of what this one calls, be it the method that it overrides; and how far it is."""
    reader = kind()
    thread = threading.Thread(target=reader.read, args=(3,))
    thread.start()
    assert reader.reading.wait(30)
    time.sleep(0.05)
    first, second = reader.pulse(), reader.pulse()
    reader.go_on.set()
    thread.join(30)
    assert (first.pid, first.method, first.done) == (os.getpid(), "read", done)
    assert 0.05 <= first.seconds <= second.seconds
    last = reader.pulse()
    assert (last.method, last.done) == (None, done)
    assert last.seconds < second.seconds, "since it waits, not since it was called"


def test_a_method_that_fails_is_over() -> None:
    reader = Reader()
    with pytest.raises(ValueError, match="broken"):
        reader.fail()
    assert reader.pulse().method is None


def test_what_is_expected_is_of_one_method() -> None:
    """Tensors of a build are none of the next method's; what one method expects after another thing begins at none."""
    work = Work()
    with work.on("build"):
        work.progressed()
        work.expect(3, "tensors")
        work.progressed()
        pulse = work.pulse()
        assert (pulse.done, pulse.of, pulse.what) == (1, 3, "tensors")
    with work.on("update"):
        assert (work.pulse().of, work.pulse().what) == (0, "")


def test_the_next_method_begins_at_no_micro_batch() -> None:
    """A step of an engine goes on counting."""
    work = Work()
    for expected in (1, 1):
        with work.on("update"):
            work.progressed()
        assert work.pulse().done == expected
    for expected in (2, 3):
        with work.on("step", goes_on=True):
            work.progressed()
        assert work.pulse().done == expected


@pytest.mark.parametrize(
    ("method", "owner"),
    [("update", PolicyWorker), ("save", PolicyWorker), ("publish", PolicyWorker), ("values", CriticWorker)],
)
def test_all_that_ranks_are_called_for_is_told_of(method: str, owner: type) -> None:
    """Calls pass methods by their names: they keep these."""
    assert getattr(owner, method).__name__ == method
    assert hasattr(getattr(owner, method), "__wrapped__")


def test_work_that_would_outlive_its_call_is_refused() -> None:
    """Of a coroutine or a generator only the making would be told of."""
    with pytest.raises(AssertionError, match="would end before its work"):

        class Lazy(Watched):
            async def read(self) -> None:
                pass

        assert Lazy
