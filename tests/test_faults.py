"""What is a fault of a run, what is written down of it, what becomes of the attempt; Ray's own processes, watched."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.config import UserError
from actors.group import GroupError
from actors.group_errors import DataLost, RankLate, RankLost
from launch.cli import main
from launch.config import RunConfig, validate
from launch.run import attempt_link, faults
from launch.run.checkpoint import Checkpoints
from launch.run.faults import Faults, faults_of, told_of_lost_ranks
from launch.run.ray_lost import RayLost
from launch.screen.display import Display
from launch.screen.reporter import RunReporter
from launch.tracking.events import Events, Fault, ended, read_events
from launch.tracking.now import Now
from launch.tracking.tracker import Tracker

ROOT = Path(__file__).resolve().parent.parent


def config_for(directory: Path, **run: Any) -> RunConfig:
    """A small job that writes below `directory`."""
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 3},
            "model": {"init": {}},
            "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
            "tracking": {"wandb": False},
            "run": {"output": str(directory), **run},
        }
    )


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """As in a driver that was forked: what it says is in `said()`."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    link = attempt_link._Link(writing, restarted=True, in_a_row=1, restarts=2)
    monkeypatch.setattr(attempt_link, "_link", link)

    def said() -> list[dict[str, Any]]:
        return [json.loads(line) for line in os.read(reading, 1 << 16).splitlines()]

    yield SimpleNamespace(link=link, said=said)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RayLost("the raylet died", ["raylet", "gcs"]), [("raylet", "died", "call"), ("gcs", "died", "call")]),
        (RankLost("gone", "policy", 1), [("policy[1]", "died", "call")]),
        (RankLate("late", "rollout", (0, 2)), [("rollout[0]", "froze", "silent"), ("rollout[2]", "froze", "silent")]),
        (DataLost("an answer is gone"), [("data", "died", "call")]),
        (GroupError("policy[0].update: ValueError: NaN"), []),
        (UserError("run.name: must be new"), []),
        (RuntimeError("rewards"), []),
        (KeyboardInterrupt(), []),
        (None, []),
    ],
)
def test_a_fault_is_that_something_was_lost(error: BaseException | None, told: list[tuple[str, str, str]]) -> None:
    assert [(fault.who, fault.what, fault.noticed_by) for fault in faults_of(error)] == told


class Group:
    """Answers pulses: of a rank that is alive, and from the third on of one that has died."""

    def __init__(self) -> None:
        self.asked = 0

    def pulses(self, within_s: float) -> list[object]:
        """As ActorGroup has it."""
        self.asked += 1
        dead = RankLost("policy[1].pulse: the process died", "policy", 1)
        return [RankLate("rollout.pulse: no answer", "rollout", (0,)), dead if self.asked > 2 else None]


@pytest.mark.usefixtures("parent")
def test_an_error_that_another_process_death_has_caused_says_so() -> None:
    """A rank whose connection to it is lost tells of that first."""
    groups: Any = {"policy": Group()}
    with pytest.raises(RankLost) as caught, told_of_lost_ranks(groups):
        raise GroupError("policy[0] lost a connection")
    assert str(caught.value) == "policy[1].pulse: the process died; first told of: policy[0] lost a connection"
    assert (caught.value.group, caught.value.rank) == ("policy", 1)


def test_an_error_of_its_own_stays_what_it_is(parent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all live; a mistake of the user's, a known fault, and a run that survives none are not asked about."""
    monkeypatch.setattr(faults, "_ECHO_S", 0.0)
    group = Group()
    groups: Any = {"policy": group}
    with pytest.raises(GroupError, match=r"^NaN$"), told_of_lost_ranks(groups):
        raise GroupError("NaN")
    asked = group.asked
    mistake, cause = GroupError("x"), RuntimeError("of a worker")
    vars(cause)["cause"] = UserError("a path")  # as Ray's has it
    mistake.__cause__ = cause
    for error in (mistake, RankLate("late"), ValueError("y")):
        with pytest.raises(type(error)), told_of_lost_ranks(groups):
            raise error
    parent.link.restarts = 0
    with pytest.raises(GroupError, match=r"^z$"), told_of_lost_ranks(groups):
        raise GroupError("z")
    assert group.asked == asked > 0


def test_the_next_attempt_says_what_it_has_survived_when_its_first_step_begins(tmp_path: Path, parent: Any) -> None:
    """And steps that are only done again are no progress."""
    config = config_for(tmp_path)
    config.directory.mkdir(parents=True)
    Events(config.directory).noticed(Fault(who="driver", what="died", noticed_by="exit"))
    (config.directory / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(8)))
    found, told = Faults(config), list[str]()
    found.open(anew=False, told=told.append)
    (config.directory / "logs").mkdir()
    tracker, display = Tracker(config.directory, config, 5), Display()
    reporter = RunReporter(display, tracker, Now(config.directory, found.events, 5), None, found)
    reporter.phase("loading model")
    reporter.start("SFT", 10, 5)
    reporter.phase("sync")
    reporter.phase("evaluate")
    assert found.events.open() == [1] and not told
    reporter.phase("data")
    reporter.phase("update")
    [line] = ended(read_events(config.directory / "events.jsonl"))
    assert (line["did"], line["attempt"], len(told)) == ("resumed", 2, 1)
    for step in (6, 7):  # done before: a fault that always comes after them shall not be met for ever
        reporter.step(step, {})
    assert parent.said() == [{"attempt": 2}] and parent.link.in_a_row == 1
    reporter.step(8, {})
    assert parent.said() == [{"step": 8}] and parent.link.in_a_row == 0
    tracker.close()
    display.close()


def test_an_evaluation_before_the_first_step_is_none(tmp_path: Path, parent: Any) -> None:
    config = config_for(tmp_path)
    tracker, found = Tracker(config.directory, config), Faults(config)
    found.open(anew=True, told=pytest.fail)
    (config.directory / "logs").mkdir()
    RunReporter(Display(), tracker, Now(config.directory, found.events), None, found).step(0, {"eval/loss": 1.0})
    assert parent.said() == [{"attempt": 1}] and parent.link.in_a_row == 1
    tracker.close()


def test_a_fault_ends_the_attempt_and_asks_for_another(tmp_path: Path, parent: Any) -> None:
    """The last one that is allowed is given up."""
    config, warned = config_for(tmp_path), list[str]()
    (config.directory / "logs").mkdir(parents=True)
    found = Faults(config)
    found.open(anew=True, told=lambda _: None)
    assert not found.end(ValueError("NaN"), warned.append)
    assert found.end(RankLost("policy[1].update: the process died", "policy", 1), warned.append)
    assert warned == ["policy[1].update: the process died"]
    assert "RankLost" in (config.directory / "logs/driver.log").read_text()
    parent.link.in_a_row = 2
    assert not found.end(RankLost("critic[0].update: the process died", "critic", 0), warned.append)
    assert [line["who"] for line in ended(read_events(config.directory / "events.jsonl"))] == ["critic[0]", "policy[1]"]
    assert found.events.open() == [] and len(warned) == 1


@pytest.mark.parametrize(("error", "how"), [(KeyboardInterrupt(), "KeyboardInterrupt"), (ValueError("NaN"), "NaN")])
def test_an_end_by_no_fault_gives_up_those_that_are_not_over(
    tmp_path: Path, parent: Any, error: BaseException, how: str
) -> None:
    """As that of an engine that was on its way back; another attempt would have gone on with it."""
    config = config_for(tmp_path)
    (config.directory / "logs").mkdir(parents=True)
    found = Faults(config)
    found.open(anew=True, told=lambda _: None)
    found.events.noticed(Fault(who="rollout[0]", what="died", noticed_by="exit"))
    assert found.end(RankLost("policy[1].update: the process died", "policy", 1), lambda _: None)
    assert found.events.open() == [1, 2], "the next attempt tells when they are over"
    assert not found.end(error, pytest.fail)
    lines = ended(read_events(config.directory / "events.jsonl"))
    assert [(line["who"], line["event"], line["did"]) for line in lines] == [
        ("rollout[0]", "given up", how),
        ("policy[1]", "given up", how),
    ]


def test_without_a_parent_a_fault_ends_the_run_as_ever(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    config.directory.mkdir(parents=True)
    found = Faults(config)
    found.open(anew=True, told=lambda _: None)
    assert not found.end(RankLost("gone", "policy", 1), pytest.fail)
    assert list(config.directory.iterdir()) == []


def test_events_stay_with_the_run_that_they_are_of(
    tmp_path: Path, parent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart without a checkpoint keeps them; another command's are put aside with its results."""
    config = config_for(tmp_path)
    config.directory.mkdir(parents=True)
    for name in ("events.jsonl", "metrics.jsonl"):
        (config.directory / name).write_text("{}\n")
    assert "(metrics.jsonl)" in Checkpoints(config).prepare(Checkpoints(config).latest())[0]
    assert (config.directory / "events.jsonl").exists()
    monkeypatch.setattr(attempt_link, "_link", None)
    assert "(events.jsonl)" in Checkpoints(config).prepare(Checkpoints(config).latest())[0]
    assert (config.directory / "set-aside-2/events.jsonl").exists()


WATCH = """
import os, signal, subprocess, sys, time
from pathlib import Path
from launch.config import validate
from launch.run import attempt_link, ray_watch
from launch.run.faults import Faults

directory = Path(sys.argv[1])
config = validate({
    "algorithm": {"name": "sft", "steps": 3}, "model": {"init": {}}, "run": {"output": str(directory)},
    "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
})
config.directory.mkdir()
attempt_link._link = attempt_link._Link(os.open(os.devnull, os.O_WRONLY), False, 0, int(sys.argv[2]))
process = subprocess.Popen(["sleep", "600"])
ray_watch.own_processes = lambda: [("raylet", process)]
ray_watch._LOOK_S, ray_watch._GRACE_S, ray_watch._ENDING_S = 0.2, 0.4, 0.4
faults = Faults(config)
faults.open(anew=True, told=lambda _: None)
print(process.pid, flush=True)
with ray_watch.watched_ray(faults) as watch:
    with watch.running():
        time.sleep(0.5)
"""


@pytest.mark.parametrize(
    ("how", "where", "what"),
    [
        (signal.SIGKILL, "        ", "died"),
        (signal.SIGSTOP, "        ", "froze"),
        (signal.SIGSTOP, "    ", "froze"),
    ],
)
def test_ray_that_dies_or_freezes_ends_the_attempt(tmp_path: Path, how: int, where: str, what: str) -> None:
    """Whatever the run waits for; also while it waits for Ray's own end."""
    done = watched(tmp_path, f"{where}os.kill(process.pid, {int(how)})\n{where}time.sleep(60)\n")
    assert done.returncode == attempt_link.AGAIN, done
    [line] = read_events(tmp_path / "run/events.jsonl")
    assert (line["who"], line["what"], line["pid"]) == ("raylet", what, int(done.stdout))
    assert 0 < line["noticed_s"] < 5
    assert done.stderr.startswith(f"warning: raylet (process {line['pid']}) {what}: ")
    assert not Path(f"/proc/{line['pid']}").exists(), "one that was stopped is killed"


@pytest.mark.parametrize(
    ("lines", "restarts"),
    [
        ("    process.kill(); time.sleep(0.8)\n", 3),
        ("        process.kill(); time.sleep(1.2)\n", 0),
        ("        os.kill(process.pid, signal.SIGSTOP); time.sleep(0.1); os.kill(process.pid, signal.SIGCONT)\n", 3),
    ],
    ids=["when the run ends it", "where nothing is survived", "stopped for a moment"],
)
def test_what_is_no_fault_of_ray(tmp_path: Path, lines: str, restarts: int) -> None:
    done = watched(tmp_path, lines + "process.kill()\n", restarts)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "run/events.jsonl").exists()


def watched(directory: Path, lines: str, restarts: int = 3) -> subprocess.CompletedProcess[str]:
    """A program with a process that it holds for its raylet; the lines come while that runs, or is ended."""
    command = [sys.executable, "-c", WATCH + lines, str(directory), str(restarts)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--retries", "-1"], "--retries: must be a whole number from 0, got -1 (see tandem {verb} --help)"),
        (
            ["--retries", "2", "checkpoint.resume=false"],
            "--retries: must be 0 with checkpoint.resume false: each would start anew, got 2",
        ),
        (["run.max_restarts=-1"], "run.max_restarts: must be at least 0, got -1"),
        (["run.heartbeat_s=1.5"], "run.heartbeat_s: must be at least 2, got 1.5"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "submit"])
def test_settings_that_cannot_hold_are_refused(
    arguments: list[str], told: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, str(ROOT / "configs/sft.yaml"), *arguments]) == 2
    assert capsys.readouterr().err == f"error: {told.format(verb=verb)}\n"
