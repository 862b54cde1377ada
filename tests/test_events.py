"""events.jsonl: a fault is one, however often it is noticed, and is known in the next attempt, whatever was torn."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from launch.tracking import events as events_module
from launch.tracking.events import Events, Fault, ended, read_events


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


def died(who: str, **more: Any) -> Fault:
    """A process that has died."""
    return Fault(**{"who": who, "what": "died", "noticed_by": "exit", "noticed_s": 0.5} | more)


def lines(directory: Path) -> list[dict[str, Any]]:
    """Those of the file, all of which must be whole."""
    return [json.loads(line) for line in (directory / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_fault_from_its_notice_to_its_end(tmp_path: Path) -> None:
    clock = Clock()
    events = Events(tmp_path, clock=clock)
    events.step, events.phase = 12, "rollout"
    number = events.noticed(died("rollout[1]", pid=4711, node="10.0.0.2", generation=2, cause="killed by signal 9"))
    clock.now += 1
    events.state(number, "restarting")
    clock.now += 6.25
    events.recovered(number, "restarted", samples=["data row 17"], redone_steps=0)
    first, second, last = lines(tmp_path)
    assert first == {
        "at": "2026-09-21T14:13:20.000+00:00", "attempt": 1, "step": 12, "phase": "rollout", "fault": 1,
        "event": "noticed", "who": "rollout[1]", "what": "died", "noticed_by": "exit", "noticed_s": 0.5,
        "generation": 2, "pid": 4711, "node": "10.0.0.2", "cause": "killed by signal 9",
    }  # fmt: skip
    assert second["event"] == "restarting" and second["fault"] == 1 and second["who"] == "rollout[1]"
    # Who reads only last lines knows all of a fault; it stood since its last sign of life.
    assert last["event"] == "recovered" and last["stood_s"] == 7.75 and last["step"] == 12
    assert last["samples"] == ["data row 17"] and last["noticed_s"] == 0.5 and last["did"] == "restarted"
    assert ended(read_events(tmp_path / "events.jsonl")) == [last] and events.open() == []


def test_a_fault_noticed_twice_is_one(tmp_path: Path) -> None:
    events = Events(tmp_path)
    number = events.noticed(died("policy[0]"))
    assert events.noticed(Fault(who="policy[0]", what="died", noticed_by="call")) == number
    assert events.noticed(died("policy[0]", generation=1)) != number  # its successor
    assert events.noticed(died("policy[1]")) not in (number, number + 1)
    events.recovered(number, "rebuilt")
    assert events.noticed(died("policy[0]")) == number and events.open() == [2, 3]
    events.recovered(number, "rebuilt")
    events.given_up(2, "too many")
    events.recovered(2, "rebuilt")
    assert [line["event"] for line in lines(tmp_path)] == [*["noticed"] * 3, "recovered", "given up"]


def test_the_next_attempt_knows_what_was_open(tmp_path: Path) -> None:
    clock = Clock()
    first = Events(tmp_path, clock=clock)
    first.noticed(died("driver", noticed_s=None))
    clock.now += 20
    second = Events(tmp_path, clock=clock)
    assert second.attempt == 2 and second.open() == [1]
    assert second.noticed(died("driver")) == 2  # another driver, of the same name and generation
    second.recovered(1, "resumed", redone_steps=1)
    last = lines(tmp_path)[-1]
    assert last["stood_s"] == 20.0 and last["redone_steps"] == 1 and last["attempt"] == 2 and last["who"] == "driver"
    anew = Events(tmp_path, anew=True, clock=clock)
    assert anew.attempt == 1 and anew.open() == [] and not (tmp_path / "events.jsonl").exists()


@pytest.mark.parametrize("torn", [b'{"fault": 2, "ev', b'{"fault": 2}\n', b"\xff\n", b"[]\n", b'"noticed"'])
def test_a_torn_line_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    Events(tmp_path).noticed(died("policy[0]"))
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(torn)
    events = Events(tmp_path)
    assert events.open() == [1]
    events.recovered(1, "rebuilt")
    assert [line["event"] for line in read_events(tmp_path / "events.jsonl")] == ["noticed", "recovered"]


def test_a_full_disk_delays_lines_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events, write = Events(tmp_path), os.write
    events.noticed(died("policy[0]"))

    def full(file: int, data: bytes) -> int:
        if len(data) > 20:  # takes a part, as a disk does that is about to be full
            return write(file, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events_module.os, "write", full)
    events.noticed(died("policy[1]"))
    events.state(2, "restarting")
    monkeypatch.setattr(events_module.os, "write", write)
    assert [line["fault"] for line in lines(tmp_path)] == [1]
    events.recovered(2, "rebuilt")
    assert [line["event"] for line in lines(tmp_path)] == ["noticed", "noticed", "restarting", "recovered"]


def test_threads_may_tell_at_one_time(tmp_path: Path) -> None:
    events = Events(tmp_path)

    def tell(rank: int) -> None:
        for generation in range(20):
            number = events.noticed(died(f"rollout[{rank}]", generation=generation))
            events.recovered(number, "restarted")

    threads = [threading.Thread(target=tell, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines(tmp_path)
    assert len(found) == 320 and {line["fault"] for line in found} == set(range(1, 161)) and events.open() == []


def test_each_fault_is_told_when_it_is_noticed_and_when_it_is_over(tmp_path: Path) -> None:
    clock, told = Clock(), list[str]()
    events = Events(tmp_path, told=told.append, clock=clock)
    first = events.noticed(died("raylet", noticed_s=None), "restarting")
    events.step, events.phase = 12, "rollout"
    second = events.noticed(died("rollout[1]", noticed_s=0.7), "restarting")
    assert events.noticed(died("rollout[1]"), "restarting") == second
    events.state(second, "stale")
    clock.now += 8.4
    events.recovered(second, "restarted")
    events.recovered(second, "restarted")
    events.recovered(first, "resumed", redone_steps=1)
    third = events.noticed(died("policy[0]", cause="killed by signal 9"))
    events.given_up(third, "4 faults in a row")
    assert told == [
        "raylet died (noticed by exit): restarting",
        "step 12, rollout: rollout[1] died (noticed by exit after 0.7 s): restarting",
        "rollout[1] is back after 9.1 s",
        "raylet is back after 8.4 s; 1 step is made again",
        "step 12, rollout: policy[0] died (noticed by exit after 0.5 s; killed by signal 9)",
        "policy[0] is given up after 0.5 s: 4 faults in a row",
    ]


def test_who_is_told_may_ask_from_another_thread(tmp_path: Path) -> None:
    """A screen that is told has a lock of its own, whose holder may be asking what is open."""

    def told(_: str) -> None:
        thread = threading.Thread(target=events.open)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()

    events = Events(tmp_path, told=told)
    events.recovered(events.noticed(died("policy[0]")), "rebuilt")


def test_what_is_no_fault_has_a_line_without_a_number(tmp_path: Path) -> None:
    """Nobody who reads faults meets it; people are told, also of a fault that ends as its engine is not replaced."""
    told: list[str] = []
    clock = Clock()
    events = Events(tmp_path, told=told.append, clock=clock)
    events.step, events.phase = 12, "rollout"
    for event in ("joined", "drained", "left"):
        events.tell(event, "rollout[1]", "10.0.0.2")
    assert lines(tmp_path)[0] == {
        "at": "2026-09-21T14:13:20.000+00:00", "attempt": 1, "step": 12, "phase": "rollout",
        "event": "joined", "who": "rollout[1]", "node": "10.0.0.2",
    }  # fmt: skip
    assert read_events(tmp_path / "events.jsonl") == [] and events.open() == []
    number = events.noticed(died("rollout[0]"), told=False)
    clock.now += 2
    events.recovered(number, "left")
    assert number == 1 and told == [
        "step 12, rollout: rollout[1] has joined (10.0.0.2)",
        "step 12, rollout: rollout[1] has handed over what it had (10.0.0.2)",
        "step 12, rollout: rollout[1] has left (10.0.0.2)",
        "rollout[0] is not replaced, 2.5 s after it was lost",
    ]
    assert Events(tmp_path).attempt == 2, "the fault is counted"
