"""A resume from a checkpoint whose content was damaged, which is found when it is read: the one before is used."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.config import UserError
from launch.config import RunConfig, validate
from launch.run.checkpoint import Checkpoints
from launch.run.checkpointer import RunCheckpointer
from launch.run.saves import Saves, resume
from launch.screen.display import Display
from launch.screen.reporter import RunReporter
from launch.tracking.events import Events, Fault
from launch.tracking.now import Now
from launch.tracking.tracker import Tracker
from tests.test_saves import StandInForALoop

FILE = "rollouts/groups.safetensors"
Damage = Callable[[Path], object]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Attempt:
    """One start of a run, as `launch.run.run` makes it, up to its loop; `told`: what it says."""

    def __init__(self, output: Path, clock: Clock) -> None:
        self.config, self.clock, self.told = job(output), clock, list[str]()
        checkpoints = Checkpoints(self.config)
        found = checkpoints.latest()
        (self.config.directory / "logs").mkdir(parents=True, exist_ok=True)
        checkpoints.prepare(found)
        reached = found.step if found else 0
        self.tracker = Tracker(self.config.directory, self.config, reached, self.told.append)
        self.events = Events(self.config.directory, anew=found is None, clock=clock)
        self.now = Now(self.config.directory, self.events, reached, clock=clock, seconds=clock)
        self.reporter = RunReporter(Display(Console(file=io.StringIO())), self.tracker, self.now)
        self.reporter.note = self.reporter.warning = self.told.append  # type: ignore[method-assign]
        self.loop, self.saves = StandInForALoop(seed=1), Saves({})
        self.reached: int = 0

    def begin(self) -> None:
        found = resume(self.config, self.saves, self.loop, self.reporter)  # type: ignore[arg-type]
        self.reached = found.step if found else 0
        self.saver = RunCheckpointer(self.config, self.saves, set(), self.reporter)
        self.reporter.start("SFT", 30, self.reached)

    def train(self, to: int) -> None:
        for step in range(self.reached + 1, to + 1):
            self.reporter.phase("update")
            self.clock.now += 10
            self.loop.buffer.dropped = step
            self.saver.save(step, last=step % 3 == 0)
            self.reporter.step(step, {"loss/nll": 1.0})
            self.saver.keep()
        self.tracker.close()


def job(output: Path) -> RunConfig:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 30},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl"},
            "checkpoint": {"keep": 3},
            "tracking": {"wandb": False, "tensorboard": True},
            "run": {"output": str(output), "name": "first"},
        }
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr("launch.run.checkpointer.reason_to_end", lambda _: None)
    return Clock()


@pytest.fixture
def run(tmp_path: Path, clock: Clock) -> Path:
    """A run with checkpoints of steps 3, 6 and 9 whose driver was killed after step 11."""
    first = Attempt(tmp_path, clock)
    first.begin()
    first.train(11)
    clock.now += 5
    Events(first.config.directory, clock=clock).noticed(
        Fault(who="driver", what="died", noticed_by="exit", noticed_s=5.0)
    )
    return first.config.directory


def flipped(*steps: int) -> Damage:
    """One byte in the middle, of the same length."""

    def damage(run: Path) -> None:
        for step in steps:
            path = run / f"checkpoints/step-{step}/{FILE}"
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)

    return damage


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("steps", "reached"), [((9,), 6), ((9, 6), 3)])
def test_a_flipped_byte_is_named_and_the_one_before_is_used(
    steps: tuple[int, ...], reached: int, run: Path, clock: Clock
) -> None:
    """With all that follows: metrics, times, where the run is, what newer checkpoints and their metrics become."""
    flipped(*steps)(run)
    seconds = {line["step"]: line["time/elapsed"] for line in lines(run)}
    clock.now += 100  # of the restart
    attempt = Attempt(run.parent, clock)
    assert [line["step"] for line in lines(run)] == list(range(1, 10))
    clock.now += 7  # until it is found
    attempt.begin()
    assert attempt.reached == reached and attempt.loop.buffer.dropped == reached
    for step in steps:
        file = run / f"checkpoints/step-{step}/{FILE}"
        why = "is not what was saved: its SHA-256 is another one than the manifest's"
        if step == 6:  # before newer ones are moved
            file, why = run / "checkpoints/step-6", f"is damaged, {FILE} is not what was saved"
        assert f"{file} {why}: going on from step-{reached}, the newest whole one before it" in attempt.told
    moved = [f"step-{step}" for step in sorted({6, 9} - set(range(reached + 1)))]
    assert sorted(path.name for path in (run / "set-aside-1/checkpoints").iterdir()) == moved
    assert f"resuming from step {reached}" in attempt.told
    assert (run / "checkpoints/latest").read_text() == f"step-{reached}"
    assert [line["step"] for line in lines(run)] == list(range(1, reached + 1))
    assert len((run / "set-aside-1/metrics.jsonl").read_text().splitlines()) >= 9
    attempt.train(reached + 2)
    found = lines(run)
    assert [line["step"] for line in found] == list(range(1, reached + 3))
    # All since the last step that is kept is lost, but for the update of the next one.
    since = (11 - reached) * 10 + 5 + 100 + 7
    assert found[reached]["time/lost"] == pytest.approx(since) and found[reached + 1]["time/lost"] == 0
    assert found[reached]["time/elapsed"] == pytest.approx(seconds[reached] + since + 10)
    (line,) = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if "recovered" in line]
    assert line["redone_steps"] == 10 - reached  # it was killed while it made step 11
    again = Checkpoints(job(run.parent)).latest()
    assert again is not None and not again.passed_over


def test_after_a_run_that_was_stopped_its_rest_is_not_lost_time(run: Path, clock: Clock) -> None:
    (run / "events.jsonl").unlink()
    flipped(9)(run)
    elapsed = lines(run)[5]["time/elapsed"]
    clock.now += 1000
    attempt = Attempt(run.parent, clock)
    clock.now += 7
    attempt.begin()
    attempt.train(7)
    line = lines(run)[-1]
    assert (line["step"], line["time/lost"]) == (7, 0) and line["time/elapsed"] == pytest.approx(elapsed + 17)


def test_none_that_is_whole_is_refused(run: Path, clock: Clock) -> None:
    """By the latest, and nothing has changed but what a start cuts anyway."""
    flipped(3, 6, 9)(run)
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        Attempt(run.parent, clock).begin()
    (line,) = caught.value.problems
    assert line == (
        f"checkpoint.resume: {run}/checkpoints/step-9/{FILE} is not what was saved: its SHA-256 is another one than "
        f"the manifest's; to start anew: checkpoint.resume=false, or another run.name than first"
    )
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == before
    assert not list(run.glob("set-aside-*"))


def writable_by_all(name: str) -> Damage:
    return lambda run: (run / name).chmod(0o646)


STRANGE: dict[str, tuple[Damage, str]] = {
    "a file": (writable_by_all(f"checkpoints/step-9/{FILE}"), f"step-9/{FILE} can be written by everybody"),
    "the manifest": (writable_by_all("checkpoints/step-9/manifest.json"), "step-9/manifest.json can be written by "),
    "the manifest of the one before": (
        lambda run: (flipped(9)(run), writable_by_all("checkpoints/step-6/manifest.json")(run)),
        "step-6/manifest.json can be written by everybody"),
    "a file of the one before": (
        lambda run: (flipped(9)(run), writable_by_all(f"checkpoints/step-6/{FILE}")(run)),
        f"step-6/{FILE} can be written by everybody"),
    "a further file": (
        lambda run: (run / "checkpoints/step-9/rollouts/more.pt").touch(), "does not have rollouts/more.pt"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_what_may_be_somebody_elses_is_refused_and_not_passed_over(name: str, run: Path, clock: Clock) -> None:
    damage, part = STRANGE[name]
    damage(run)
    with pytest.raises(UserError) as caught:
        Attempt(run.parent, clock).begin()
    assert part in caught.value.problems[0] and caught.value.problems[0].startswith("checkpoint.resume: ")
    assert (run / "checkpoints/latest").read_text() == "step-9" and not list(run.glob("set-aside-*"))
    assert {path.name for path in (run / "checkpoints").glob("step-*")} == {"step-3", "step-6", "step-9"}
