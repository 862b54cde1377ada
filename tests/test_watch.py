"""Processes that die, stop or sleep with the interpreter lock are told of once and ended; those at work never are."""

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors.group import ActorGroup, GroupError, Slot
from actors.group_errors import RankLost
from actors.pulse import ProcessId, Pulse, own_process
from actors.train.worker import Worker
from launch.run import signs as signs_module
from launch.run import watch as watch_module
from launch.run.processes import look
from launch.run.reserved import Placement
from launch.run.roster import Roster
from launch.run.watch import Loss, ProcessWatch
from launch.tracking.events import Events, read_events
from tests.children import HAS_A_CHILD, SLEEPS, Start, processes

# Actors get the classes of this file with the call, as they cannot import it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

DEADLINE_S = 60.0
HEARTBEAT_S = 1.5


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.01)


class Told(list[Loss]):
    """Takes in losses, and warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.at: list[float] = []
        """When each was told of, as time.monotonic has it."""

    def append(self, loss: Loss) -> None:
        """Take in a loss."""
        self.at.append(time.monotonic())
        super().append(loss)

    def signs(self) -> list[tuple[str, int, str, str]]:
        """Who, generation, what, and how it was noticed."""
        return [(loss.who, loss.generation, loss.what, loss.noticed_by) for loss in self]


# --- without Ray: children of this process, as reward processes


class Children:
    """What a reward pool tells of its workers."""

    def __init__(self, *pids: int) -> None:
        self.found: dict[int, tuple[int, ProcessId | None]] = {}
        self.died: list[tuple[int, int]] = []
        self.gone: list[tuple[int, int]] = []
        for pid in pids:
            self.put(len(self.found), 0, pid)

    def put(self, place: int, generation: int, pid: int) -> None:
        """A worker that has started."""
        found = look(pid)
        self.found[place] = generation, found and found.process

    def processes(self) -> dict[int, tuple[int, ProcessId | None]]:
        return dict(self.found)

    def actor(self, place: int, generation: int) -> None:
        """Nothing that Ray could end."""

    def deaths(self) -> list[tuple[int, int]]:
        died, self.died = self.died, []
        return died

    def lost(self, place: int, generation: int) -> bool:
        if self.found.get(place, (None, None))[0] != generation:
            return False
        self.gone.append((place, generation))
        return True


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as start:
        yield start


def watching(directory: Path, children: Children, told: Told, **options: Any) -> ProcessWatch:
    roster: Any = Roster(str(directory))
    roster.pool = children
    options = {"on_lost": told.append, "clock": Clock()} | options
    return ProcessWatch(roster, Events(directory), warn=told.warnings.append, **options)


def looks(watch: ProcessWatch, *seconds: float) -> None:
    """A look at each of these times of the test's clock."""
    clock: Any = watch._clock
    for now in seconds:
        clock.now = now
        watch.look()


def halt(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: (found := look(pid)) is not None and found.is_halted, "a stopped process")


def has_ended(pid: int) -> bool:
    found = look(pid)
    return found is None or found.is_dead


def test_the_dead_and_the_stopped_are_told_of_once(start: Start, tmp_path: Path) -> None:
    pids = [start(SLEEPS)[0] for _ in range(3)]
    children, told = Children(*pids), Told()
    watch = watching(tmp_path, children, told)
    looks(watch, 101, 102)
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: has_ended(pids[0]), "the end of a killed process")
    halt(pids[1])
    looks(watch, 103, 104, 105, 106)
    wait_until(lambda: has_ended(pids[1]), "the end of a stopped process")
    assert told.signs() == [("reward[0]", 0, "died", "exit"), ("reward[1]", 0, "froze", "stopped")]
    assert [(loss.pid, loss.noticed_s) for loss in told] == [(pids[0], 1.0), (pids[1], 2.0)]
    assert told[1].text == f"reward[1] froze (process {pids[1]}), noticed by stopped within 2.0 s; it was killed"
    assert children.gone == [(0, 0), (1, 0)] and not has_ended(pids[2])
    lines = read_events(tmp_path / "events.jsonl")
    assert [(line["event"], line["who"], line["what"], line["noticed_by"], line["pid"]) for line in lines] == [
        ("noticed", "reward[0]", "died", "exit", pids[0]),
        ("noticed", "reward[1]", "froze", "stopped", pids[1]),
    ]
    assert told.warnings == []


def test_all_are_ended_before_anybody_hears_of_one(start: Start, tmp_path: Path) -> None:
    """What fails then is a warning, and the others are told of all the same."""
    pids = [start(SLEEPS)[0] for _ in range(2)]
    children, told = Children(*pids), Told()
    alive: list[list[int]] = []

    def hear(loss: Loss) -> None:
        wait_until(lambda: all(map(has_ended, pids)), f"the end of both, as {loss.who} is told of")
        alive.append([pid for pid in pids if not has_ended(pid)])
        told.append(loss)
        raise ValueError("no room")

    watch = watching(tmp_path, children, told, on_lost=hear)
    looks(watch, 101)
    for pid in pids:
        halt(pid)
    looks(watch, 102, 103, 104)
    assert (told.signs(), alive) == (
        [("reward[0]", 0, "froze", "stopped"), ("reward[1]", 0, "froze", "stopped")],
        [[], []],
    )
    assert told.warnings == [f"reward[{n}] is lost, and telling of it failed: ValueError: no room" for n in (0, 1)]
    assert len(read_events(tmp_path / "events.jsonl")) == 2


def test_the_thread_outlives_what_fails(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are told of after a look has failed, and after one who heard of a loss has; nothing is, once it is
    stopped."""
    monkeypatch.setattr(watch_module, "_LOOK_S", 0.2)
    monkeypatch.setattr(signs_module, "_HALTED_S", 0.18)
    pids = [start(SLEEPS)[0] for _ in range(3)]
    children, told = Children(*pids[:2]), Told()
    whole, failed = children.processes, threading.Event()

    def broken() -> Any:
        failed.set()
        raise OSError("nobody answers")

    def hear(loss: Loss) -> None:
        told.append(loss)
        raise ValueError

    watch = watching(tmp_path, children, told, on_lost=hear, clock=time.monotonic)
    children.processes = broken
    watch.start()
    assert failed.wait(DEADLINE_S)
    children.processes = whole
    halt(pids[0])
    wait_until(lambda: len(told) == 1, "the first loss")
    os.kill(pids[1], signal.SIGKILL)
    wait_until(lambda: len(told) == 2, "the second loss")
    assert told.warnings == [
        "looking at the run's processes failed: OSError: nobody answers",
        "reward[0] is lost, and telling of it failed: ValueError: ",
        "reward[1] is lost, and telling of it failed: ValueError: ",
    ]
    assert all(0 <= loss.noticed_s <= 5 for loss in told)
    watch.stop()
    children.put(2, 0, pids[2])
    os.kill(pids[2], signal.SIGKILL)
    time.sleep(0.6)
    assert len(told) == 2


def test_what_was_replaced_is_forgotten_and_ended(start: Start, tmp_path: Path) -> None:
    """No fault: but a process that stands still, and whatever it had started, would stay."""
    (old, child), (new, _) = start(HAS_A_CHILD, SLEEPS), start(SLEEPS)
    children, told = Children(old), Told()
    watch = watching(tmp_path, children, told)
    looks(watch, 101)
    halt(old)
    children.put(0, 1, new)
    looks(watch, 102)
    wait_until(lambda: has_ended(old) and has_ended(child), "the end of the one before")
    looks(watch, 103, 104)
    assert told == [] and not has_ended(new)
    halt(new)
    looks(watch, 105, 106)
    assert told.signs() == [("reward[0]", 1, "froze", "stopped")]


@pytest.mark.parametrize("ended", [False, True])
def test_a_stopped_process_whose_place_is_taken_is_told_of(start: Start, tmp_path: Path, ended: bool) -> None:
    """Its group was built anew as another one has died, before a second look at it; perhaps it has been ended by then.
    Nobody has to mend it, and one that is told of already is not told of again."""
    first, second, third = (start(SLEEPS)[0] for _ in range(3))
    children, told = Children(first), Told()
    watch = watching(tmp_path, children, told)
    looks(watch, 101)
    halt(first)
    if ended:
        looks(watch, 101.5)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: has_ended(first), "the end of a killed process")
    children.put(0, 1, second)
    looks(watch, 102)
    wait_until(lambda: has_ended(first), "the end of a stopped process")
    children.put(0, 2, third)
    looks(watch, 103)
    lines = read_events(tmp_path / "events.jsonl")
    assert [(line["event"], line["who"], line["what"], line["noticed_by"], line["pid"]) for line in lines] == [
        ("noticed", "reward[0]", "froze", "stopped", first),
        ("recovered", "reward[0]", "froze", "stopped", first),
    ]
    assert lines[1]["did"] == "rebuilt" and told == []


def test_an_end_that_was_meant_is_no_fault(start: Start, tmp_path: Path) -> None:
    """The look has found it before the pool has another one, which does not take it for lost."""
    pid, _ = start(SLEEPS)
    children, told = Children(pid), Told()
    watch = watching(tmp_path, children, told)
    looks(watch, 101)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: has_ended(pid), "the end of a killed process")
    children.lost = lambda place, generation: False
    looks(watch, 102)
    assert told == []


def test_a_death_that_is_mended_before_it_is_told_of(start: Start, tmp_path: Path) -> None:
    """One look finds both, as a worker may start within the second between two looks."""
    (old, _), (new, _) = start(SLEEPS), start(SLEEPS)
    children, told = Children(old), Told()
    watch = watching(tmp_path, children, told)
    looks(watch, 101)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: has_ended(old), "the end of a killed process")
    children.died = [(0, 0)]
    children.put(0, 1, new)
    looks(watch, 102)
    assert [line["event"] for line in read_events(tmp_path / "events.jsonl")] == ["noticed", "recovered"]
    looks(watch, 103)
    assert len(told) == 1 and watch._faults == {}


def test_a_death_that_a_call_has_told_of_first(start: Start, tmp_path: Path) -> None:
    """It is told of once, and mended by another worker in its place, when that has started."""
    (old, _), (new, _) = start(SLEEPS), start(SLEEPS)
    children, told = Children(old), Told()
    watch = watching(tmp_path, children, told)
    looks(watch, 101)
    os.kill(old, signal.SIGKILL)
    children.died.append((0, 0))
    children.found[0] = 1, None
    looks(watch, 102, 103)
    events = read_events(tmp_path / "events.jsonl")
    assert (told.signs(), len(events)) == ([("reward[0]", 0, "died", "call")], 1)
    children.put(0, 1, new)
    looks(watch, 104, 105)
    noticed, recovered = read_events(tmp_path / "events.jsonl")
    assert (noticed["pid"], noticed["noticed_s"], noticed["noticed_by"]) == (old, 1.0, "call")
    assert (recovered["event"], recovered["fault"], recovered["did"]) == ("recovered", noticed["fault"], "restarted")


def test_the_last_look_tells_also_of_what_stopped_just_before(start: Start, tmp_path: Path) -> None:
    """Beside what ends the attempt, which nobody mends any more."""
    pids = [start(SLEEPS)[0] for _ in range(3)]
    children, told = Children(*pids), Told()
    watch = watching(tmp_path, children, told, clock=time.monotonic)
    watch.start()
    watch.look()
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: has_ended(pids[0]), "the end of a killed process")
    halt(pids[1])
    watch.look_last()
    lines = read_events(tmp_path / "events.jsonl")
    assert [(line["who"], line["what"]) for line in lines] == [("reward[0]", "died"), ("reward[1]", "froze")]
    assert told == [] and not has_ended(pids[2])
    assert not watch._thread.is_alive()


def test_a_driver_that_stood_still_condemns_nobody(start: Start, tmp_path: Path) -> None:
    """Its clock has gone on: what it saw before says nothing, and what it sees now must be seen again."""
    pid, _ = start(SLEEPS)
    children, told = Children(pid), Told()
    watch = watching(tmp_path, children, told)
    looks(watch, 101)
    halt(pid)
    looks(watch, 102, 106.5)
    os.kill(pid, signal.SIGCONT)
    looks(watch, 107.5, 108.5)
    assert told == [] and not has_ended(pid)
    halt(pid)
    looks(watch, 109.5, 110.5)
    assert told.signs() == [("reward[0]", 0, "froze", "stopped")]


# --- with Ray


class Rank(Worker):
    """A rank that does what it is told to."""

    def spend(self, seconds: float) -> None:
        """Without the lock."""
        time.sleep(seconds)

    def hold(self, seconds: int) -> None:
        """Sleep with the lock."""
        ctypes.PyDLL(None).sleep(seconds)

    def compute(self, seconds: float) -> float:
        """Compute with the lock for about so long; returns for how long."""
        letters, began = 20, time.monotonic()
        while (took := time.monotonic() - began) < seconds / 3:
            letters += 1
            re.match(r"(a+)+$", "a" * letters + "b")
        began = time.monotonic()
        re.match(r"(a+)+$", "a" * (letters + 1) + "b")
        return took + time.monotonic() - began

    def pair(self, address: str, port: int, rank: int) -> None:
        """Meet one other."""
        self.rank, self.world_size = rank, 2
        self.join(address, port, 600)


class Distant(Rank):
    """A rank that says that it is another machine's, and has done half of what it has to do."""

    def pulse(self) -> Pulse:
        process = own_process()
        there = ProcessId(process.pid, process.started, "elsewhere-1")
        return Pulse(process=there, method=None, seconds=0, done=1, of=2, what="tensors")


class Unbuilt(Rank):
    """A rank that cannot be made."""

    def __init__(self, *arguments: Any) -> None:
        raise ValueError("no such model")


@pytest.fixture(scope="module")
def run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A roster of a few groups under one watch; each test has ranks of its own, and nothing else may be told of."""
    directory = tmp_path_factory.mktemp("watch")
    bundles = placement_group([{"CPU": 1.0}])
    assert bundles.wait(30)
    slot = Slot(placement=bundles, bundle=0, cpus=0.05, gpus=0, threads=1)
    workers = {"policy": (Rank, 7), "distant": (Distant, 2), "brief": (Rank, 1), "unbuilt": (Unbuilt, 1)}
    placement = Placement([bundles], {name: [slot] * count for name, (_, count) in workers.items()})
    roster, told, work = Roster(str(directory)), Told(), list[str]()
    watch = ProcessWatch(
        roster,
        Events(directory),
        on_lost=told.append,
        warn=told.warnings.append,
        on_work=work.append,
        heartbeat_s=HEARTBEAT_S,
    )
    for name, (worker, _) in workers.items():
        roster.add(name, worker, DEADLINE_S, placement)
    watch.start()
    for name in workers:
        roster[name].spawn(0)
    started = [rank for name, (worker, count) in workers.items() for rank in [(name, n) for n in range(count)]]
    started.remove(("unbuilt", 0))
    wait_until(lambda: all((rank := watch._ranks.get(key)) and rank.process for key in started), "the first pulses")
    wait_until(lambda: work[-1:] == ["distant[0] 1 of 2 tensors"], "what they have done")
    expected = list[tuple[str, int, str, str]]()
    yield SimpleNamespace(roster=roster, policy=roster["policy"], watch=watch, told=told, expected=expected)
    watch.stop()
    assert sorted(told.signs()) == sorted(expected)
    assert told.warnings == []
    lines = read_events(directory / "events.jsonl")
    replaced = [("policy[6]", "froze", "stopped")] * 2  # and over at once: nobody has to hear of it
    assert sorted((line["who"], line["what"], line["noticed_by"]) for line in lines) == sorted(
        [(who, what, by) for who, _, what, by in expected] + replaced
    )
    roster.shutdown()
    remove_placement_group(bundles)


@pytest.fixture(scope="module")
def begun(run: SimpleNamespace) -> SimpleNamespace:
    """What takes longer than a heartbeat, all at one time: a process elsewhere stands still and another one is killed,
    and of two ranks that have the lock one sleeps, and one is at work."""
    distant = run.roster["distant"]
    stopped, killed = pid_of(distant, 0), pid_of(distant, 1)
    os.kill(stopped, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)
    at = time.monotonic()
    works, sleeps = run.policy.submit(5, Rank.compute, 2.5 * HEARTBEAT_S), run.policy.submit(4, Rank.hold, 600)
    return SimpleNamespace(at=at, stopped=stopped, killed=killed, works=works, sleeps=sleeps)


def pid_of(group: ActorGroup[Any], rank: int) -> int:
    pulse = ray.get(group.ask_pulse(group.handles[rank]), timeout=DEADLINE_S)
    return pulse.pid


def loss_of(run: SimpleNamespace, group: str, rank: int, what: str, by: str) -> Loss:
    """What is told of a rank, soon."""
    who = f"{group}[{rank}]"
    run.expected.append((who, 0, what, by))
    wait_until(lambda: any(loss.who == who for loss in run.told), f"the loss of {who}")
    [loss] = [loss for loss in run.told if loss.who == who]
    assert (loss.what, loss.noticed_by) == (what, by)
    return loss


def failure(group: ActorGroup[Any], ref: Any) -> BaseException:
    """How a call of which the watch has ended the process fails; it does not wait for the group's deadline."""
    began = time.monotonic()
    with pytest.raises(GroupError) as caught:
        group.gather([ref], "call", ranks=[group.origin(ref)[0]])
    assert time.monotonic() - began < DEADLINE_S / 4
    return caught.value


def test_a_rank_that_stops_at_rest_and_one_that_stops_at_work(run: SimpleNamespace) -> None:
    group = run.policy
    pids = [pid_of(group, rank) for rank in (0, 1)]
    call = group.submit(1, Rank.spend, 600)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert isinstance(failure(group, call), RankLost)
    for rank, pid in enumerate(pids):
        loss = loss_of(run, "policy", rank, "froze", "stopped")
        assert loss.pid == pid and 0 < loss.noticed_s < 5
    assert isinstance(failure(group, group.submit(0, Rank.spend, 0)), RankLost)
    # Ray has noticed: another one starts in its place, and is not blamed.
    group.replace(0)
    assert pid_of(group, 0) not in pids


def meet(group: ActorGroup[Rank], ranks: tuple[int, int]) -> None:
    """Let two processes be ranks 0 and 1 of their own."""
    address, port = group.gather([group.submit(ranks[0], Rank.address)], "address")[0]
    calls = [group.submit(rank, Rank.pair, address, port, place) for place, rank in enumerate(ranks)]
    group.gather(calls, "pair", ranks=ranks)


@pytest.mark.usefixtures("begun")
def test_who_waits_for_another_is_at_rest_and_is_freed_by_its_end(run: SimpleNamespace) -> None:
    """In a collective, where the other comes late; and where the other stops, whose deadline is ten minutes."""
    group = run.policy
    meet(group, (2, 3))
    waits = group.submit(2, Rank.sum_over_ranks, np.ones(1))
    late = group.submit(3, Rank.spend, 2.5 * HEARTBEAT_S), group.submit(3, Rank.sum_over_ranks, np.ones(1))
    found = group.gather([waits, late[1]], "sum_over_ranks", ranks=(2, 3))
    assert [sums.tolist() for sums in found] == [[2.0], [2.0]]
    waits = group.submit(2, Rank.sum_over_ranks, np.ones(1))
    os.kill(pid_of(group, 3), signal.SIGSTOP)
    error = failure(group, waits)
    assert not isinstance(error, RankLost) and "policy[2].call" in str(error)
    loss_of(run, "policy", 3, "froze", "stopped")


def test_the_interpreter_lock_held_asleep_is_silence_and_held_at_work_is_not(
    run: SimpleNamespace, begun: SimpleNamespace
) -> None:
    group = run.policy
    assert isinstance(failure(group, begun.sleeps), RankLost)
    loss = loss_of(run, "policy", 4, "froze", "silent")
    assert loss.noticed_s >= HEARTBEAT_S and run.told.at[run.told.index(loss)] - begun.at > HEARTBEAT_S
    assert group.gather([begun.works], "compute", ranks=[5])[0] > 2 * HEARTBEAT_S, "it was too short to prove anything"


def test_processes_of_other_machines_only_die(run: SimpleNamespace, begun: SimpleNamespace) -> None:
    """Nobody here sees why they are silent; Ray says when they are dead."""
    assert loss_of(run, "distant", 1, "died", "exit").pid == begun.killed
    time.sleep(max(0.0, begun.at + 3 * HEARTBEAT_S - time.monotonic()))
    assert not has_ended(begun.stopped)
    os.kill(begun.stopped, signal.SIGCONT)


def test_what_is_ended_on_purpose_is_no_fault(run: SimpleNamespace) -> None:
    """A rank that is replaced, of which it is told that it stood still, and a group that has done its work."""
    group, brief = run.policy, run.roster["brief"]
    old, other = pid_of(group, 6), pid_of(brief, 0)
    os.kill(old, signal.SIGSTOP)
    group.replace(6)
    brief.shutdown()
    wait_until(lambda: has_ended(old) and has_ended(other), "the end of both")
    ranks = run.watch._ranks
    wait_until(lambda: ranks["policy", 6].generation == 1 and ranks["policy", 6].process, "the new one's pulse")
    wait_until(lambda: ("brief", 0) not in ranks, "a look")


def test_one_that_cannot_be_made_is_no_fault(run: SimpleNamespace) -> None:
    """Whoever calls it hears why."""
    group = run.roster["unbuilt"]
    assert "no such model" in str(failure(group, group.submit(0, Rank.spend, 0)))
    wait_until(lambda: run.watch._ranks["unbuilt", 0].is_lost, "the pulse's failure")
