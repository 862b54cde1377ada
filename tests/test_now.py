"""now.json says where a run is, whole or as before; what was lost is carried over from attempt to attempt, exactly."""

import ast
import errno
import io
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from launch.config import RunConfig, validate
from launch.run.checkpoint import Checkpoints, Written
from launch.screen.display import Display
from launch.screen.reporter import RunReporter
from launch.tracking import now as now_module
from launch.tracking.events import Events, Fault, ended, read_events
from launch.tracking.now import Now, Whereabouts, read_now
from launch.tracking.tracker import Tracker

ROOT = Path(__file__).parent.parent
BEGAN = 1_790_000_000.0
WORDS = {"start", "rollout", "score", "reference", "update", "sync", "evaluate", "checkpoint", "end"}


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = BEGAN

    def __call__(self) -> float:
        return self.now


def job(output: Path, resume: bool = True) -> RunConfig:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 30},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl"},
            "checkpoint": {"resume": resume},
            "tracking": {"wandb": False},
            "run": {"output": str(output), "name": "first"},
        }
    )


def saved(directory: Path) -> Written:
    (directory / "weights").write_bytes(b"1")
    return Written({"policy": {}}, [("weights", 1, None)])


class Attempt:
    """One start of a run, up to where `launch.run.run` starts the cluster, with steps of which only time passes."""

    def __init__(self, output: Path, clock: Clock, *, resume: bool = True, again: bool = False) -> None:
        config = job(output, resume)
        self.clock, self.directory, self.checkpoints = clock, config.directory, Checkpoints(config)
        found = self.checkpoints.latest()
        (self.directory / "logs").mkdir(parents=True, exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("launch.run.checkpoint.is_restarted", lambda: again)
            self.checkpoints.prepare(found)
        self.done = found.step if found else 0
        display = Display(Console(file=io.StringIO(), width=200))
        self.tracker = Tracker(self.directory, config, self.done, lambda _: None)
        self.events = Events(self.directory, anew=found is None and not again, clock=clock)
        self.now = Now(self.directory, self.events, self.done, clock=clock, seconds=clock)
        self.reporter = RunReporter(display, self.tracker, self.now)

    def begin(self, seconds: float) -> None:
        """All that comes before the first step."""
        self.phase("loading models", seconds / 2)
        self.reporter.start("GRPO", 30, self.done)
        self.phase("sync", seconds / 2)

    def phase(self, name: str, seconds: float) -> None:
        self.reporter.phase(name)
        self.clock.now += seconds

    def step(self, seconds: float, *, save: bool = False) -> dict[str, Any]:
        """Of two phases; returns its metrics."""
        self.phase("rollout", seconds / 2)
        self.phase("update", seconds / 2)
        self.done += 1
        self.reporter.phase("checkpoint")
        self.reporter.step(self.done, {"loss/nll": 1.0})
        if save:
            self.checkpoints.save(self.done, saved)
        return self.lines()[-1]

    def kill(self, after_s: float = 0.0) -> None:
        """The driver dies, and so many seconds later whoever starts it again notes that."""
        self.tracker.close()
        self.clock.now += after_s
        Events(self.directory, clock=self.clock).noticed(
            Fault(who="driver", what="died", noticed_by="exit", noticed_s=after_s)
        )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]

    def where(self) -> tuple[int, str]:
        """Step and phase by now.json, which must be those of the events."""
        found = json.loads((self.directory / "logs/now.json").read_bytes())
        assert (found["step"], found["phase"]) == (self.events.step, self.events.phase)
        return found["step"], found["phase"]


def test_where_a_run_is_from_its_start_to_its_end(tmp_path: Path) -> None:
    """In words that are the same in all jobs; a step counts from its first phase until it is reported."""
    clock = Clock()
    run = Attempt(tmp_path, clock)
    assert run.where() == (0, "start")
    clock.now += 2.5
    found = []
    for name in ("reading data", "starting engines"):
        run.reporter.phase(name)
        found.append(run.where())
    run.reporter.start("PPO", 30, 0)
    for name in ("sync", "evaluate"):
        run.reporter.phase(name)
        found.append(run.where())
    run.reporter.step(0, {"eval/reward/mean": 0.1})
    for step in (1, 2):
        for name in ("rollout", "score", "reference", "values", "advantages", "update", "sync", "evaluate"):
            run.reporter.phase(name)
            found.append(run.where())
        run.reporter.phase("checkpoint")
        run.reporter.step(step, {})
        found.append(run.where())
    for name in ("exporting", "ending processes"):
        run.reporter.phase(name)
        found.append(run.where())
    assert found[:4] == [(0, "start"), (0, "start"), (0, "sync"), (0, "evaluate")]
    words = ["rollout", "score", "reference", "reference", "reference", "update", "sync", "evaluate", "checkpoint"]
    assert found[4:-2] == [(step, word) for step in (1, 2) for word in words]
    assert found[-2:] == [(2, "end")] * 2 and {word for _, word in found} == WORDS
    assert json.loads((run.directory / "logs/now.json").read_text()) == {
        "at": "2026-09-21T14:13:22.500+00:00", "attempt": 1, "step": 2, "phase": "end",
        "since": "2026-09-21T14:13:22.500+00:00", "driver": os.getpid(), "host": socket.gethostname(), "steps": 30,
        "namespace": os.readlink("/proc/self/ns/pid"), "began_step": 0, "began_at": "2026-09-21T14:13:20.000+00:00",
        "elapsed_s": 2.5, "processes": {},
    }  # fmt: skip
    assert read_now(run.directory) == Whereabouts(BEGAN + 2.5, 1, 2, "end", 2.5)
    clock.now += 1
    run.now.end("stopped", "stopped by SIGTERM after step 2 of 30")
    found = json.loads((run.directory / "logs/now.json").read_text())
    assert (found["ended"], found["why"]) == ("stopped", "stopped by SIGTERM after step 2 of 30")
    assert found["since"] == "2026-09-21T14:13:22.500+00:00", "the phase is the one of before"


def test_each_phase_of_each_loop_has_a_word() -> None:
    """One that is new, or called otherwise, must not be taken for the run's start."""
    named = {
        str(node.args[0].value)
        for path in (ROOT / "algorithms").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "clock" and isinstance(node.args[0], ast.Constant)
    }
    assert {"rollout", "score", "reference", "update", "sync", "evaluate", "checkpoint"} <= named
    assert named - now_module._WORDS.keys() == {"prepare"}, "of given data, what comes before the first step"
    assert {*now_module._WORDS.values(), "start"} == WORDS


def test_processes_are_told_at_each_phase_and_when_they_change(tmp_path: Path) -> None:
    run, pids = Attempt(tmp_path, Clock()), {"policy[0]": 11}

    def told() -> dict[str, int]:
        return json.loads((run.directory / "logs/now.json").read_text())["processes"]

    run.now.processes = lambda: pids
    run.reporter.phase("sync")
    assert told() == {"policy[0]": 11}
    pids = {"policy[0]": 12, "rollout[1]": 13}
    run.now.write()
    assert told() == pids and run.where() == (0, "sync")


@pytest.mark.parametrize("how", ["a part", "nothing"])
def test_a_full_disk_ends_no_run_and_the_next_phase_writes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run, write = Attempt(tmp_path, Clock()), os.write

    def full(file: int, data: bytes) -> int:
        if how == "nothing":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:20])

    before = (run.directory / "logs/now.json").read_bytes()
    monkeypatch.setattr(now_module.os, "write", full)
    run.reporter.phase("rollout")
    assert (run.directory / "logs/now.json").read_bytes() == before, "what was whole stays"
    assert (run.events.step, run.events.phase) == (1, "rollout")
    monkeypatch.setattr(now_module.os, "write", write)
    run.reporter.phase("update")
    assert run.where() == (1, "update")
    (run.directory / "logs").rename(run.directory / "gone")
    run.reporter.phase("sync")
    (run.directory / "gone").rename(run.directory / "logs")
    run.reporter.phase("evaluate")
    assert run.where() == (1, "evaluate")


def test_a_reader_finds_it_whole(tmp_path: Path) -> None:
    run, stop, found = Attempt(tmp_path, Clock()), threading.Event(), list[bytes]()

    def read() -> None:
        while not stop.is_set():
            found.append((run.directory / "logs/now.json").read_bytes())

    thread = threading.Thread(target=read)
    thread.start()
    for place in range(400):
        run.reporter.phase(["rollout", "evaluate"][place % 2])
    stop.set()
    thread.join()
    assert len(found) > 10 and {json.loads(each)["phase"] for each in found} <= {"start", "rollout", "evaluate"}


def test_no_link_is_followed(tmp_path: Path) -> None:
    victim, logs = tmp_path / "victim", tmp_path / "first/logs"
    victim.write_text("kept")
    logs.mkdir(parents=True)
    (logs / "now.json").symlink_to(victim)
    (logs / "now.json.partial").symlink_to(victim)
    run = Attempt(tmp_path, Clock())
    run.reporter.phase("rollout")
    assert victim.read_text() == "kept"


@pytest.mark.parametrize(
    "damaged", ["", "[]", "{}", '{"at": 3}', '{"at": "2026-09-21T14:13:22+00:00", "elapsed_s": NaN}']
)
def test_a_damaged_one_says_nothing(tmp_path: Path, damaged: str) -> None:
    run = Attempt(tmp_path, Clock())
    run.kill()
    (run.directory / "logs/now.json").write_text(damaged)
    assert read_now(run.directory) is None
    again = Attempt(tmp_path, run.clock, again=True)
    assert again.step(4)["time/lost"] == 0


def test_the_loop_waits_for_groups_in_rollouts_and_evaluations(tmp_path: Path) -> None:
    run = Attempt(tmp_path, Clock())
    run.begin(4)
    run.now.lost.engines(1, 2)
    for name in ("rollout", "score", "reference", "update", "sync", "evaluate", "checkpoint"):
        run.phase(name, 10)
    assert run.now.lost.read_step() == 10
    run.phase("evaluate", 4)
    run.reporter.step(0, {})
    run.clock.now += 100  # until the next phase, nobody waits for groups
    assert run.step(8)["time/lost"] == 4 * 0.5


def test_a_run_without_a_fault_has_lost_nothing(tmp_path: Path) -> None:
    """Also one that was stopped, and rested for a day."""
    run = Attempt(tmp_path, Clock())
    run.begin(7)
    run.step(3, save=True)
    last = run.step(3.25, save=True)
    assert (last["time/lost"], last["time/effective"], last["time/elapsed"]) == (0.0, 1.0, 13.25)
    run.clock.now += 86_400
    run = Attempt(tmp_path, run.clock)
    run.begin(7)
    last = run.step(3)
    assert (last["time/lost"], last["time/effective"], last["time/elapsed"]) == (0.0, 1.0, 23.25)
    assert all(line["time/lost"] == 0.0 and line["time/effective"] == 1.0 for line in run.lines())
    assert not (run.directory / "events.jsonl").exists()


def test_what_a_killed_driver_has_lost_is_from_its_last_kept_step_to_where_the_next_trains(tmp_path: Path) -> None:
    run = Attempt(tmp_path, Clock())
    run.begin(5)
    run.step(10, save=True)
    run.step(10)
    run.phase("rollout", 2)  # of the third step
    run.phase("sync", 1)
    run.kill(after_s=0.5)
    run.clock.now += 1.5
    run = Attempt(tmp_path, run.clock)
    run.begin(6)
    assert run.events.open() == [1]
    line = run.step(10)
    lost = 10 + 2 + 1 + 0.5 + 1.5 + 6
    assert line["time/lost"] == lost and line["time/elapsed"] == 15 + lost + 10
    assert line["time/effective"] == 1 - lost / (25 + lost)
    (fault,) = ended(read_events(run.directory / "events.jsonl"))
    # The second step, and the third, whose update had been made.
    assert (fault["who"], fault["event"], fault["did"]) == ("driver", "recovered", "resumed")
    assert (fault["redone_steps"], fault["stood_s"]) == (2, 8.0)


def test_a_run_that_is_killed_before_its_first_checkpoint_has_lost_all_of_it(tmp_path: Path) -> None:
    """Twice, the second time before its first step. Its faults stay, while its results are moved aside."""
    run = Attempt(tmp_path, Clock())
    run.begin(5)
    run.step(10)
    run.kill()
    run = Attempt(tmp_path, run.clock, again=True)
    run.phase("loading models", 3)
    run.kill()
    run = Attempt(tmp_path, run.clock, again=True)
    run.begin(4)
    line = run.step(10)
    assert [each["step"] for each in run.lines()] == [1]
    assert (line["time/lost"], line["time/elapsed"]) == (22, 32) and line["time/effective"] == 1 - 22 / 32
    faults = ended(read_events(run.directory / "events.jsonl"))
    assert [(fault["fault"], fault["redone_steps"]) for fault in faults] == [(1, 0), (2, 0)]
    assert sorted(path.name for path in (run.directory / "set-aside-1").iterdir()) == ["metrics.jsonl"]


def test_nothing_left_to_train_is_the_end_of_a_restart_too(tmp_path: Path) -> None:
    run = Attempt(tmp_path, Clock())
    run.begin(1)
    run.step(1, save=True)
    run.kill()
    run = Attempt(tmp_path, run.clock)
    run.begin(1)
    assert run.events.open() == [1]
    run.reporter.phase("exporting")
    assert run.events.open() == [] and run.where() == (1, "end")


def test_a_start_that_fails_has_not_brought_the_run_back(tmp_path: Path) -> None:
    run = Attempt(tmp_path, Clock())
    run.kill()
    run = Attempt(tmp_path, run.clock, again=True)
    run.reporter.phase("starting engines")
    run.reporter.phase("ending processes")
    assert run.events.open() == [1] and run.where() == (0, "end")


@pytest.mark.parametrize("resume", [True, False])
def test_who_begins_anew_has_no_faults_of_before(tmp_path: Path, resume: bool) -> None:
    """They are kept with the results that they belong to, or removed with them, as it is asked for."""
    run = Attempt(tmp_path, Clock())
    run.begin(5)
    run.step(10)
    run.kill()
    events, place = ((run.directory / name).read_bytes() for name in ("events.jsonl", "logs/now.json"))
    run = Attempt(tmp_path, run.clock, resume=resume)
    assert run.events.attempt == 1 and run.events.open() == [] and not (run.directory / "events.jsonl").exists()
    run.begin(5)
    line = run.step(10)
    assert (line["time/lost"], line["time/effective"], line["time/elapsed"]) == (0.0, 1.0, 15.0)
    aside = run.directory / "set-aside-1"
    assert aside.exists() == resume
    if resume:
        assert (aside / "events.jsonl").read_bytes() == events and (aside / "logs/now.json").read_bytes() == place


def test_where_a_start_was_that_has_done_nothing_is_kept_nowhere(tmp_path: Path) -> None:
    Attempt(tmp_path, Clock())
    for resume in (True, False):
        run = Attempt(tmp_path, Clock(), resume=resume)
        assert not list(run.directory.glob("set-aside-*"))


def test_a_run_that_goes_on_from_an_older_checkpoint_keeps_a_copy_of_its_faults(tmp_path: Path) -> None:
    run = Attempt(tmp_path, Clock())
    run.begin(1)
    run.step(1, save=True)
    run.step(1, save=True)
    run.kill()
    (run.directory / "checkpoints/latest").write_text("step-1")
    run = Attempt(tmp_path, run.clock)
    copied = (run.directory / "set-aside-1/events.jsonl").read_bytes()
    assert copied == (run.directory / "events.jsonl").read_bytes()
    run.begin(1)
    assert run.step(1)["time/lost"] == 2


EIGHTHS = st.integers(1, 40).map(lambda eighths: eighths / 8)
STEPS = st.lists(st.tuples(EIGHTHS, st.booleans(), st.integers(0, 4)), max_size=3)
"""Of an attempt: seconds, whether a checkpoint follows, how many of four engines do not serve."""


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(EIGHTHS, STEPS, EIGHTHS, EIGHTHS), min_size=1, max_size=4))
def test_what_is_not_lost_is_what_the_kept_steps_took(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[float, Any, float, float]]
) -> None:
    """However often a run is killed, and wherever."""
    clock, output = Clock(), tmp_path_factory.mktemp("run")
    taken: dict[int, float] = {}
    """Step -> seconds of the last time that it was made, less those lost in it."""
    kept = 0
    for place, (begin, steps, late, gap) in enumerate([*attempts, (1.0, [(8.0, False, 0)], 0.0, 0.0)]):
        run = Attempt(output, clock, again=place > 0)
        assert run.done == kept
        run.begin(begin)
        beginning = 0.0 if place else begin  # the first start is no fault's
        for seconds, save, away in steps:
            run.now.lost.engines(4 - away, 4)
            run.step(seconds, save=save)
            taken[run.done] = beginning + seconds - away / 4 * seconds / 2
            beginning, kept = 0.0, run.done if save else kept
        if place < len(attempts):
            run.phase("rollout", late)
            run.kill()
            clock.now += gap
    lines = run.lines()
    elapsed, useful = clock.now - BEGAN, sum(taken[line["step"]] for line in lines)
    assert [line["step"] for line in lines] == list(range(1, kept + 2)), "each step once"
    assert lines[-1]["time/elapsed"] == elapsed
    assert sum(line["time/lost"] for line in lines) == elapsed - useful
    assert lines[-1]["time/effective"] == 1 - (elapsed - useful) / elapsed
