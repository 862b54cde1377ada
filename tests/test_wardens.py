"""Wardens are posted, asked and replaced; if one is silent and its node opens no door, the node is lost."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from actors.pulse import ProcessId
from launch.run import wardens as module
from launch.run.processes import look
from launch.run.warden import DistantSigns
from launch.run.wardens import Wardens
from tests.children import SLEEPS, Start, processes
from tests.test_watch import has_ended, wait_until


class Door:
    """Of the node; the test shuts it."""

    opens = True

    def __init__(self, address: str, port: int) -> None:
        assert port > 0

    def answered(self) -> bool:
        """Whether somebody opens."""
        return Door.opens


class Run:
    """Wardens of one run, whose only node is another one than the driver's for them."""

    def __init__(self) -> None:
        [node] = ray.nodes()
        self.address, self.node = node["NodeManagerAddress"], node["NodeID"]
        self.lost, self.signs = set[str](), list[DistantSigns]()
        self.wardens = Wardens(2.0, self.lost)
        self.wardens._own = "the driver's"

    def look_until(self, condition: Callable[[], object], what: str, now: float = 0.0) -> None:
        """Look until this holds."""

        def holds() -> bool:
            self.wardens.look(now, [self.address, ""], self.signs)
            return bool(condition())

        wait_until(holds, what)

    def post(self) -> ProcessId:
        """The warden's process, as soon as there is one."""
        posts = self.wardens._posts
        self.look_until(lambda: self.address in posts and posts[self.address].pids, "a warden that has said who it is")
        told: Any = ray.get(posts[self.address].handle.node.remote())
        return told


@pytest.fixture
def run(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setattr(module, "Knock", Door)
    made = Run()
    yield made
    made.wardens.close()


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as start:
        yield start


def test_a_warden_looks_ends_is_replaced_and_is_silent(run: Run, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first, found = run.post(), look(start(SLEEPS)[0])
    assert found and found.process.pids == first.pids
    signs = run.wardens.signs(found.process, 0.0, family=True)
    assert signs and signs.node == run.address
    run.signs.append(signs)
    os.kill(found.process.pid, signal.SIGSTOP)
    run.look_until(lambda: signs.look(0.0) == "stopped", "a process that has stopped")
    signs.kill()
    run.look_until(lambda: has_ended(found.process.pid), "its end")
    run.signs.clear()

    # One that has died is replaced.
    os.kill(first.pid, signal.SIGKILL)
    run.look_until(lambda: run.address not in run.wardens._posts, "news of the warden's end")
    second = run.post()
    assert second != first and not run.lost

    # One that is silent says nothing of its node while that opens its door.
    os.kill(second.pid, signal.SIGSTOP)
    for now in (100.0, 101.0, 110.0):
        run.wardens.look(now, [run.address], [])
        assert run.wardens.fallen({}, now) == {} and not run.lost
    monkeypatch.setattr(Door, "opens", False)
    assert [list(run.wardens.fallen({}, now)) for now in (110.0, 111.0)] == [[run.address], []]
    assert run.lost == {run.node} and run.wardens.back() == []
    os.kill(second.pid, signal.SIGCONT)
    run.look_until(lambda: not run.lost, "its return", 112.0)
    assert (run.wardens.back(), run.wardens.back()) == ([run.address], [])
    run.wardens.look(113.0, [run.address], [])

    # Its node lives on where it dies while that is held for lost: the next one answers for it.
    os.kill(second.pid, signal.SIGSTOP)
    for now in (200.0, 204.0, 208.0):
        run.wardens.look(now, [run.address], [])
        run.wardens.fallen({}, now)
    assert run.lost == {run.node}
    os.kill(second.pid, signal.SIGKILL)
    run.look_until(lambda: not run.lost, "an answer of the next one", 210.0)
    assert run.wardens.back() == [run.address]
