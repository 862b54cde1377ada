"""Lost engines are restarted beside the run, one that never lasts ends it, and nothing starts once all is closed."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RaySystemError

from actors.group import GroupError
from algorithms.rollouts.membership import Membership
from launch.run import fleet as fleet_module
from launch.run.fleet import Fleet
from launch.tracking.events import Events, read_events
from launch.tracking.lost_time import LostTime

DEADLINE_S = 30.0


class FakeGroup:
    """An ActorGroup whose processes are ready, or fail, as a script says: `starts` by engine."""

    name = "rollout"

    def __init__(self, **starts: list[str]) -> None:
        self.starts = {int(name.removeprefix("engine")): outcomes for name, outcomes in starts.items()}
        self.replaced: list[int] = []
        self.waits: list[tuple[str, float | None]] = []
        self.may_start = threading.Event()
        self.may_start.set()

    def replace(self, rank: int, slot: Any = None) -> None:
        self.replaced.append(rank)

    def submit(self, rank: int, method: Callable[..., object]) -> int:
        assert method.__name__ == "ready"
        return rank

    def gather(self, refs: list[int], what: str, timeout_s: float | None, ranks: list[int]) -> list[None]:
        assert refs == ranks and self.may_start.wait(DEADLINE_S)
        self.waits.append((what, timeout_s))
        outcome = self.starts[ranks[0]].pop(0)
        if outcome != "ready":
            raise GroupError(outcome)
        return [None]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between two starts are not waited for."""
    monkeypatch.setattr(fleet_module, "_LONGEST_PAUSE_S", 0.01)


def made(
    directory: Path, group: FakeGroup, engines: int = 2, max_restarts: int = 2, **options: Any
) -> tuple[Fleet, Membership, Events]:
    members, events, found = Membership(2), Events(directory), dict(enumerate(["data row 3", "data row 5"]))
    any_group: Any = group
    now: Any = SimpleNamespace(events=events, lost=LostTime())
    fleet = Fleet(
        any_group,
        members,
        now,
        start_timeout_s=7.0,
        max_restarts=max_restarts,
        had=lambda engine: [found[engine]],
        **options,
    )
    return fleet, members, events


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, "it never happens"
        time.sleep(0.005)


def test_a_lost_engine_is_restarted_and_serves_once_it_has_weights(tmp_path: Path) -> None:
    group = FakeGroup(engine1=["ready"])
    fleet, members, _ = made(tmp_path, group)
    members.lose(1, GroupError("rollout[1].poll: the process died"), 0)
    until(lambda: members.stale() == [1])
    assert group.replaced == [1] and group.waits == [("ready", 7.0)] and members.serving() == [0]
    members.serve([1], 3, list(members.losses))
    fleet.close()
    lines = read_events(tmp_path / "events.jsonl")
    assert [line["event"] for line in lines] == ["noticed", "restarting", "stale", "recovered"]
    assert lines[0]["who"] == "rollout[1]" and lines[0]["cause"] == "rollout[1].poll: the process died"
    assert lines[-1]["did"] == "restarted" and lines[-1]["samples"] == ["data row 5"] and lines[-1]["stood_s"] >= 0


def test_engines_that_die_with_ray_are_no_faults_of_their_own(tmp_path: Path) -> None:
    """The attempt ends, for Ray."""
    group = FakeGroup(engine1=["ready"])
    fleet, members, _ = made(tmp_path, group, excuse=lambda: True)
    members.lose(1, GroupError("rollout[1].poll: the process died"), 0)
    fleet.close()
    assert read_events(tmp_path / "events.jsonl") == [] and group.replaced == []


def test_one_that_is_lost_while_it_restarts_is_started_again(tmp_path: Path) -> None:
    """Each time is a fault of its own, and all are over when it serves."""
    group = FakeGroup(engine0=["no memory", "ready"])
    fleet, members, events = made(tmp_path, group)
    members.lose(0, GroupError("it died"), 0)
    until(lambda: members.stale() == [0])
    assert group.replaced == [0, 0] and members.generation(0) == 2 and members.streaks[0] == 2
    members.serve([0], 3, list(members.losses))
    members.proved(0)
    assert events.open() == [] and len({line["fault"] for line in read_events(tmp_path / "events.jsonl")}) == 2
    group.starts[0] = ["ready"]
    members.lose(0, GroupError("it died"), 2)
    until(lambda: members.stale() == [0])
    assert members.streaks[0] == 1, "it had worked in between"
    fleet.close()


def test_one_that_never_lasts_ends_the_run_with_the_cause(tmp_path: Path) -> None:
    group = FakeGroup(engine0=["no memory", "still no memory"])
    fleet, members, events = made(tmp_path, group, max_restarts=2)
    members.lose(0, GroupError("it died"), 0)
    until(lambda: members.failure is not None)
    expected = r"rollout[0] was lost 3 times in a row (run.max_restarts 2); the last: still no memory"
    assert str(members.failure) == expected and members.state(0) == "lost" and len(group.replaced) == 2
    assert read_events(tmp_path / "events.jsonl")[-1]["event"] == "given up" and events.open() == []
    fleet.close()


def test_what_is_not_over_at_the_end_is_left_to_the_run(tmp_path: Path) -> None:
    """The next attempt may bring it back, where this one ends by another fault."""
    group = FakeGroup(engine0=["ready"])
    fleet, members, events = made(tmp_path, group)
    members.lose(0, GroupError("it died"), 0)
    until(lambda: members.stale() == [0])
    fleet.close()
    assert events.open() == [1]


def test_what_cannot_be_restarted_ends_the_run_at_once(tmp_path: Path) -> None:
    """Whatever goes wrong there: else all would wait for the engine up to their deadline."""
    group = FakeGroup(engine0=[])
    fleet, members, _ = made(tmp_path, group)
    members.lose(0, GroupError("it died"), 0)
    until(lambda: members.failure is not None)
    assert str(members.failure) == "rollout[0] could not be restarted: IndexError: pop from empty list"
    fleet.close()


@pytest.mark.parametrize("times", [2, 3])
def test_ray_is_asked_again_for_a_process_as_often_as_one_may_fail(tmp_path: Path, times: int) -> None:
    """Its head may be away for a while."""
    group = FakeGroup(engine0=["ready"])
    fleet, members, _ = made(tmp_path, group, max_restarts=2 + (times == 2))
    replace, errors = group.replace, [RaySystemError("the head is away")] * times

    def unheard(rank: int, slot: Any = None) -> None:
        if errors:
            raise errors.pop()
        replace(rank, slot)

    group.replace = unheard  # type: ignore[method-assign]
    members.lose(0, GroupError("it died"), 0)
    until(lambda: members.stale() == [0] or members.failure is not None)
    if times == 2:
        assert members.stale() == [0] and group.replaced == [0]
    else:
        line = r"^rollout\[0\] was lost 3 times in a row .*; the last: rollout\[0\]: RaySystemError: .*the head is away"
        assert re.search(line, str(members.failure))
    fleet.close()


def test_its_end_waits_once_for_all_that_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []
    group = FakeGroup(engine0=["ready"], engine1=["ready"])
    group.may_start.clear()
    fleet, members, _ = made(tmp_path, group)
    for engine in (0, 1):
        members.lose(engine, GroupError("it died"), 0)
    until(lambda: sorted(group.replaced) == [0, 1])
    threads = list(fleet._threads.values())
    for thread in threads:
        monkeypatch.setattr(thread, "join", lambda seconds: (waits.append(seconds), time.sleep(0.05)))
    fleet.close()
    first, second = waits
    assert first is not None and second is not None and second <= first - 0.05
    group.may_start.set()
    monkeypatch.undo()
    for thread in threads:
        thread.join(DEADLINE_S)


def test_one_that_is_lost_as_soon_as_it_is_ready_is_restarted(tmp_path: Path) -> None:
    """By the thread that has just seen it come back, or by another."""
    group = FakeGroup(engine0=["ready"] * 40)
    fleet, members, _ = made(tmp_path, group, max_restarts=100)
    for generation in range(30):
        members.lose(0, GroupError("it died"), generation)
        until(lambda: members.stale() == [0])
    assert members.generation(0) == 30
    fleet.close()


def test_both_restart_at_one_time_and_none_once_it_is_closed(tmp_path: Path) -> None:
    group = FakeGroup(engine0=["ready", "ready"], engine1=["ready"])
    group.may_start.clear()
    fleet, members, _ = made(tmp_path, group)
    for engine in (0, 1):
        members.lose(engine, GroupError("it died"), 0)
    until(lambda: sorted(group.replaced) == [0, 1])
    group.may_start.set()
    until(lambda: members.stale() == [0, 1])
    members.serve([0, 1], 3, list(members.losses))
    fleet.close()
    members.lose(0, GroupError("it was ended"), 1)
    time.sleep(0.1)
    assert sorted(group.replaced) == [0, 1] and members.state(0) == "lost"
