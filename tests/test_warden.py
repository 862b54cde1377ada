"""A warden sees of processes what the driver would see of its own, and the watch acts on what it tells."""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.pulse import ProcessId, own_process
from launch.run.processes import look
from launch.run.roster import Roster
from launch.run.warden import DistantSigns, Order, Sight, Warden
from launch.run.watch import Loss, ProcessWatch
from launch.tracking.events import Events, read_events
from tests.children import HAS_A_CHILD, SLEEPS, SPINS, Start, processes
from tests.test_watch import Children, Clock, halt, has_ended, looks, wait_until

QUIET = Sight(found=None, halted=False, still_s=0.0, alive_s=0.0, moved_s=0.0)


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as start:
        yield start


def order(pid: int, *, family: bool = True, quiet: bool = False) -> Order:
    found = look(pid)
    assert found
    return Order(process=found.process, family=family, quiet=quiet)


def test_a_warden_tells_the_dead_the_stopped_and_the_still_from_those_at_work(start: Start) -> None:
    pids = [start(program)[0] for program in (SLEEPS, SLEEPS, SLEEPS, SPINS)]
    orders = [order(pid, quiet=True) for pid in pids]
    clock = Clock()
    warden = Warden(clock)
    assert warden.node() == own_process()
    assert [sight.found for sight in warden.look(orders)] == [None] * 4
    halt(pids[0])
    os.kill(pids[1], signal.SIGKILL)
    wait_until(lambda: has_ended(pids[1]), "its end")
    for now in (101.0, 102.0, 103.0):
        clock.now = now
        sights = warden.look(orders)
    assert [sight.found for sight in sights] == ["stopped", "exit", None, None]
    assert [sight.halted for sight in sights] == [True, False, False, False]
    assert sights[2].still_s >= 1.0 and sights[3].still_s == 0.0
    assert (sights[0].alive_s, sights[2].alive_s, sights[3].moved_s) == (3.0, 0.0, 0.0)
    assert warden.look([replace(orders[2], quiet=False)])[0].still_s == 0.0, "nobody has asked"


def test_a_warden_that_has_stood_still_itself_begins_anew(start: Start) -> None:
    pid, _ = start(SLEEPS)
    clock = Clock()
    warden = Warden(clock)
    halt(pid)
    warden.look([order(pid)])
    clock.now = 120.0
    assert warden.look([order(pid)])[0].found is None, "it may go on by now"
    clock.now = 121.0
    assert warden.look([order(pid)])[0].found == "stopped"


def test_a_warden_ends_a_process_and_what_it_has_started(start: Start) -> None:
    pid, child = start(HAS_A_CHILD, SLEEPS)
    other, _ = start(SLEEPS)
    warden = Warden()
    warden.look([order(pid), order(other)])
    halt(pid)
    process = order(pid).process
    warden.kill([process, replace(order(other).process, started=1)])
    wait_until(lambda: has_ended(pid) and has_ended(child), "their end")
    assert not has_ended(other), "who has the number of another is left alone"


def test_what_is_told_of_a_distant_process_ages_with_the_clock_here() -> None:
    ended: list[ProcessId] = []
    process = ProcessId(7, 11, "elsewhere")
    signs = DistantSigns(process, 100.0, ended.append, node="10.0.0.3")
    assert signs.look(100.0) is None and signs.order == Order(process=process, family=True, quiet=False)
    assert signs.still_s(100.0) == 0.0 and signs.order.quiet, "the next look asks whether it is at work"
    signs.take_in(Sight(found=None, halted=False, still_s=3.0, alive_s=0.5, moved_s=4.0), 104.0)
    assert (signs.alive_at, signs.moved_at, signs.still_s(104.0)) == (103.5, 100.0, 3.0)
    signs.take_in(replace(QUIET, found="stopped", halted=True, alive_s=2.0), 106.0)
    assert signs.look(106.0) == "stopped" and signs.is_halted and signs.alive_at == 104.0
    signs.begin_anew()
    assert signs.look(106.0) is None and not signs.is_halted
    signs.kill()
    assert ended == [process]


class Posts:
    """Wardens of two other nodes; of what is there, they tell what the test says."""

    def __init__(self) -> None:
        self.sights: dict[str, Sight] = {}
        self.ended: list[ProcessId] = []
        self.fall: list[str] = []
        self.return_: list[str] = []
        self.said: list[str] = []
        self.addresses: set[str] = set()

    def look(self, now: float, addresses: Sequence[str], signs: Sequence[DistantSigns]) -> None:
        """Tell of these."""
        self.addresses = set(addresses)
        for each in signs:
            each.take_in(self.sights.get(each.node, QUIET), now)

    def signs(self, process: ProcessId, now: float, *, family: bool) -> DistantSigns:
        """Of a process there."""
        return DistantSigns(process, now, self.ended.append, node=process.pids, family=family)

    def fallen(self, heard: dict[str, float], now: float) -> dict[str, float]:
        """As the test says."""
        fall, self.fall = self.fall, []
        return dict.fromkeys(fall, 4.2)

    def back(self) -> list[str]:
        """As the test says."""
        return_, self.return_ = self.return_, []
        return return_

    def begin_anew(self, now: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def watching(directory: Path, children: Children, posts: Any, told: list[Loss]) -> ProcessWatch:
    roster: Any = Roster(str(directory))
    roster.pool = children
    warn, events = pytest.fail, Events(directory, told=posts.said.append)
    return ProcessWatch(roster, events, on_lost=told.append, warn=warn, wardens=posts, clock=Clock())


def on(*nodes: str) -> Children:
    children = Children()
    for place, node in enumerate(nodes):
        children.found[place] = 0, ProcessId(40 + place, 1, node)
    return children


def test_what_a_warden_sees_is_a_loss_and_is_ended_there(tmp_path: Path) -> None:
    children, posts, told = on("b", "c"), Posts(), list[Loss]()
    watch = watching(tmp_path, children, posts, told)
    looks(watch, 100.0, 101.0)
    assert told == [] and watch.pids() == {}, "its number says nothing here"
    posts.sights["c"] = replace(QUIET, found="stopped", halted=True, alive_s=0.5)
    looks(watch, 102.0, 103.0)
    [loss] = told
    assert (loss.who, loss.what, loss.noticed_by, loss.noticed_s) == ("reward[1]", "froze", "stopped", 0.5)
    assert [process.pid for process in posts.ended] == [41]
    assert read_events(tmp_path / "events.jsonl")[0]["node"] == "c"


def test_with_a_node_all_its_processes_are_lost_until_they_are_elsewhere(tmp_path: Path) -> None:
    children, posts, told = on("b", "c", "c"), Posts(), list[Loss]()
    watch = watching(tmp_path, children, posts, told)
    looks(watch, 100.0)
    posts.fall = ["c"]
    looks(watch, 101.0, 102.0)
    assert [(loss.who, loss.what, loss.noticed_by) for loss in told] == [
        ("reward[1]", "died", "node"),
        ("reward[2]", "died", "node"),
    ]
    assert children.gone == [(1, 0), (2, 0)] and len(posts.ended) == 2, "who is still there when it is back is ended"
    children.found[1] = children.found[2] = 1, ProcessId(50, 1, "b")
    looks(watch, 103.0, 104.0)
    lines = [(line["who"], line["event"], line.get("did")) for line in read_events(tmp_path / "events.jsonl")]
    assert read_events(tmp_path / "events.jsonl")[0]["noticed_s"] == 4.2
    assert posts.said[0] == "c vanished (noticed by its silence after 4.2 s)"
    assert any(line.startswith("c is done without after") for line in posts.said)
    assert lines[0] == ("c", "noticed", None) and ("c", "recovered", "done without") in lines


def test_a_node_that_is_back_is_no_fault_and_may_be_lost_again(tmp_path: Path) -> None:
    children, posts, told = on("c"), Posts(), list[Loss]()
    watch = watching(tmp_path, children, posts, told)
    looks(watch, 100.0)
    for begin in (101.0, 103.0):
        posts.fall = ["c"]
        looks(watch, begin)
        posts.return_ = ["c"]
        looks(watch, begin + 1)
    own = [line for line in read_events(tmp_path / "events.jsonl") if line["who"] == "c"]
    assert [(line["event"], line["generation"]) for line in own] == [
        ("noticed", 0),
        ("recovered", 0),
        ("noticed", 1),
        ("recovered", 1),
    ]
    assert len(told) == 1, "its process was lost once"


def test_a_node_with_reward_processes_alone_has_a_warden(tmp_path: Path) -> None:
    posts: Any = Posts()
    roster: Any = {"policy": SimpleNamespace(nodes=["10.0.0.2"])}
    nodes = ["10.0.0.3", "10.0.0.2"]
    options: Any = {"on_lost": pytest.fail, "warn": pytest.fail, "wardens": posts, "pool_nodes": lambda: nodes}
    watch = ProcessWatch(roster, Events(tmp_path), **options)
    watch._ask_wardens(100.0)
    assert posts.addresses == {"10.0.0.2", "10.0.0.3"}
