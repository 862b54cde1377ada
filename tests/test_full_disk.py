"""A full disk is told as that: disk, file and sizes; what was whole before is whole after it. And one that is gone."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.config import UserError
from actors.files import stored
from actors.files.full_disk import disk_problem, told_when_full
from actors.group import GroupError
from algorithms.batches import Batches
from algorithms.config_offline import SFTConfig
from algorithms.config_rl import GRPOConfig
from algorithms.loop import Clock
from algorithms.offline.loop import Offline
from algorithms.rl.grpo import GRPO
from algorithms.rollouts.discards import Discards
from launch.checks.output import require_there
from launch.config import validate
from launch.run.checkpoint import Checkpoints, Written
from launch.run.checkpointer import RunCheckpointer
from launch.run.run import _farewell, _prepare
from launch.run.saves import Saves
from launch.screen.display import Display
from launch.tracking import lines
from launch.tracking.tracker import Tracker
from tests.fake_engines import FakeEngines

ROOT = Path(__file__).resolve().parent.parent
ON_A_SMALL_DISK = f"""
import json, os, sys
from pathlib import Path
import torch
from actors.files import stored
from actors.config import UserError
from actors.files.full_disk import told_when_full
from algorithms.batches import Batches
from algorithms.config_offline import SFTConfig
from algorithms.offline.loop import Offline
from launch.run.checkpoint import Checkpoints, Written
from launch.tracking.tracker import Tracker
from safetensors.torch import save_file
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_full_disk import job

def rank(count):
    def write(directory):
        with told_when_full(directory):
            (directory / "policy").mkdir()
            sha256 = stored.write(torch.ones(count), directory / "policy/rank0.pt")
        size = (directory / "policy/rank0.pt").stat().st_size
        return Written({{"policy": {{}}}}, [("policy/rank0.pt", size, sha256)])
    return write

config = job(Path(sys.argv[1]))
checkpoints = Checkpoints(config)
told = []
filler = config.directory / "filler"
config.directory.mkdir(parents=True)
filler.write_bytes(bytes(200_000))
tracker = Tracker(config.directory, config, warn=told.append)
checkpoints.save(1, rank(50_000))
try:
    checkpoints.save(2, rank(400_000))
except UserError as error:
    print(*error.problems)
print(sorted(path.name for path in (config.directory / "checkpoints").iterdir()), checkpoints.latest().step)
try:
    with told_when_full(config.directory / "export"):
        (config.directory / "export").mkdir()
        save_file({{"a": torch.ones(400_000)}}, config.directory / "export/model.safetensors")
except UserError as error:
    print(*error.problems)
step = 0
while not told:
    step += 1
    tracker.log(step, {{"loss" + "x" * 9000: 1.0}})
tracker.samples(step, [{{"completion": "a" * 9000}}])
full = (config.directory / "metrics.jsonl").read_text().splitlines(keepends=True)
filler.unlink()
for step in (step + 1, step + 2):
    tracker.log(step, {{"loss" + "x" * 9000: 1.0}})
tracker.close()
lines = (config.directory / "metrics.jsonl").read_text().splitlines(keepends=True)
print(*told)
print(len(full) == step - 3 and all(line.endswith("}}\\n") for line in full + lines))
print([json.loads(line)["step"] for line in lines] == list(range(1, step + 1)))
print(len((config.directory / "samples.jsonl").read_text().splitlines()))
"""


def job(output: Path) -> Any:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 30},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl"},
            "tracking": {"wandb": False},
            "run": {"output": str(output), "name": "first"},
        }
    )


def line_of(error: Any) -> str:
    (line,) = error.value.problems
    return line


def test_on_a_disk_that_fills_up_nothing_whole_is_lost(tmp_path: Path) -> None:
    """A checkpoint that does not fit, then metrics that do not, until there is room: on a disk of 1 MiB, in mounts of
    the test's own."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root, and unshare, to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f'mount -t tmpfs -o size=1m tandem-test "{disk}"'
    command = ["unshare", "--mount", "sh", "-c", f'{mounted} || exit 77; exec "$@"', "sh", sys.executable]
    process = subprocess.run(
        [*command, "-c", ON_A_SMALL_DISK, str(disk)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    if process.returncode == 77:
        pytest.skip(f"cannot mount a disk here: {process.stderr.strip()}")
    assert process.returncode == 0, process.stderr
    checkpoint, kept, export, metrics, *written = process.stdout.splitlines()
    file = f"{disk}/first/checkpoints/step-2.partial/policy/rank0.pt"
    assert checkpoint.startswith(f"run.output: must be on a disk with room: {file} (") and " KiB so far" in checkpoint
    assert f"did not fit on {disk}, 1.0 MiB with 0 bytes free, got 'No space left on device'" in checkpoint
    assert kept == "['latest', 'step-1'] 1"
    assert export.startswith(f"run.output: must be on a disk with room: {disk}/first/export (")
    assert metrics == (
        f"{disk}/first/metrics.jsonl cannot be written (No space left on device): lines of metrics and samples wait in "
        f"memory, and are written when there is room"
    )
    assert written == ["True", "True", "1"]


@pytest.mark.parametrize("count", [1, 10_000, 3_000_000])
def test_a_rank_whose_disk_is_full_says_so(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of where in torch it was noticed; small files fail as they are closed, large ones in the middle."""

    def on_a_full_disk(path: Path) -> int:
        path.touch()
        return os.open("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(stored, "create", on_a_full_disk)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a.pt'"):
        stored.write(torch.ones(count), tmp_path / "a.pt")
    with pytest.raises(UserError) as caught, told_when_full(tmp_path):
        stored.write(torch.ones(count), tmp_path / "a.pt")
    assert line_of(caught).startswith(f"run.output: must be on a disk with room: {tmp_path}/a.pt (0 bytes so far) did ")


def test_words_of_libraries_count_and_what_is_told_already_is_not_told_again(tmp_path: Path) -> None:
    """As safetensors, in Rust, words it, and as it arrives from a rank."""
    (tmp_path / "model").write_bytes(bytes(3 * 2**20))
    problem = disk_problem(RuntimeError("Error: I/O error: No space left on device (os error 28)"), tmp_path)
    assert problem is not None and f"{tmp_path} (3.0 MiB so far) did not fit on " in str(problem)
    told = GroupError("policy[0].save: UserError: run.output: ..., got 'No space left on device'")
    told.__cause__ = RuntimeError("in a rank")
    told.__cause__.cause = problem  # pyright: ignore[reportAttributeAccessIssue]
    assert disk_problem(told, tmp_path) is None
    assert disk_problem(OSError(5, "Input/output error"), tmp_path) is None


def test_lines_that_no_memory_is_left_for_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bounded, over all files, and told once; in the end it is told what is lost."""
    monkeypatch.setattr(lines, "_MOST_WAITING", 100)
    (tmp_path / "first").mkdir()
    for name in ("metrics", "samples"):
        (tmp_path / f"first/{name}.jsonl").symlink_to("/dev/full")
    told: list[str] = []
    tracker = Tracker(tmp_path / "first", job(tmp_path), warn=told.append)
    tracker.log(1, {"loss": 1.0})
    tracker.samples(1, [{"completion": "a" * 20}])
    with pytest.raises(UserError) as caught:
        tracker.log(2, {"loss": 1.0 / 3})
    assert line_of(caught).startswith(f"run.output: must be on a disk with room: {tmp_path}/first/metrics.jsonl (0 ")
    assert len(told) == 1
    tracker.close()
    why = "its last lines, 1 of them, were not written (No space left on device)"
    assert told[1:] == [f"{tmp_path}/first/{name}.jsonl: {why}" for name in ("metrics", "samples")]


def test_a_file_that_is_removed_meanwhile_is_told_and_written_anew(tmp_path: Path) -> None:
    told: list[str] = []
    tracker = Tracker(tmp_path / "first", job(tmp_path), warn=told.append)
    tracker.log(1, {"loss": 1.0})
    (tmp_path / "first/metrics.jsonl").unlink()
    tracker.log(2, {"loss": 1.0})
    tracker.log(3, {"loss": 1.0})
    tracker.close()
    rows = [json.loads(line) for line in (tmp_path / "first/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3]
    path = tmp_path / "first/metrics.jsonl"
    assert told == [f"{path} was removed or replaced while the run goes on: the next lines go to the new one"]


def test_a_directory_that_is_removed_meanwhile_ends_the_run(tmp_path: Path) -> None:
    """At the next step, and as the cause of whatever failed because of it; nothing makes it anew."""
    config = job(tmp_path)
    _prepare(config, print)
    reporter: Any = None
    saver = RunCheckpointer(config, Saves({}), set(), reporter)
    require_there(config.directory)
    tracker = Tracker(config.directory, config)
    shutil.rmtree(config.directory)
    expected = f"run.output: must stay while the run goes on, and {tmp_path}/first was removed or moved: "
    for act in (
        lambda: saver.save(2, last=True),
        lambda: require_there(config.directory),
        lambda: _farewell(config, Display(), GroupError("policy[0].save: FileNotFoundError: no such file"), None),
    ):
        with pytest.raises(UserError) as caught:
            act()
        assert line_of(caught).startswith(expected) and line_of(caught).endswith(f"got {tmp_path}")
    with pytest.raises(UserError) as caught:
        tracker.log(2, {"loss": 1.0})
    assert line_of(caught).startswith("run.output: must be a directory whose files can be written (No such file or ")
    assert not config.directory.exists()


class Recorder:
    """A job, its reporter and its checkpointer: what happens, in its order."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.happened: list[str] = []
        self.fails_at = fails_at

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **_: self.happened.append(f"{name} {given[0]}" if given else name)

    def step(self, step: int, metrics: Any, left_out: Any = None) -> None:
        self.happened.append(f"report {step}")
        if step == self.fails_at:
            raise UserError("the disk is full")


class Counting(Offline[int]):
    title = "counting"

    def update(self, rows: list[int]) -> dict[str, float]:
        return {"tokens/trained": 1.0}

    def measure(self, rows: list[int]) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("fails_at", [None, 2])
def test_a_step_is_reported_before_its_checkpoint_counts(tmp_path: Path, fails_at: int | None) -> None:
    """A run that is killed in between does the step again; a report that fails does not cost the checkpoint."""
    record: Any = Recorder(fails_at)
    loop = Counting(
        config=SFTConfig(name="sft", steps=2), roster={}, rows=[7], batches=Batches(1, seed=0, shuffle=False),
        evaluation=[], checkpoint=record, reporter=record, micro_batch_tokens=8, total_updates=2,
    )  # fmt: skip
    with pytest.raises(UserError) if fails_at else nullcontext():
        loop.train()
    seen = [what for what in record.happened if what.split()[0] in ("save", "report", "keep", "end_if_asked")]
    expected = ["save 1", "report 1", "keep", "end_if_asked", "save 2", "report 2", "keep", "end_if_asked"]
    assert seen == expected[: len(expected) - (fails_at is not None)]


@pytest.mark.parametrize("fails_at", [None, 1])
def test_a_step_of_reinforcement_is_reported_before_its_checkpoint_counts(
    monkeypatch: pytest.MonkeyPatch, fails_at: int | None
) -> None:
    """As in jobs on given rows; the new weights go to the engines before either."""
    monkeypatch.setattr("algorithms.rl.steps.rollout_metrics", lambda *_: {"tokens/generated": 8.0})
    record: Any = Recorder(fails_at)
    empty: Any = SimpleNamespace(
        metrics=lambda _: {}, published=lambda _: None, engines=FakeEngines(),
        report=lambda: (SimpleNamespace(samples=0), Discards()),
    )  # fmt: skip
    loop = GRPO(
        config=GRPOConfig(name="grpo", steps=1), roster={}, reference=None, read_reference=None, models=[],
        rollouts=empty, shaper=empty, batches=Batches(1, seed=0, shuffle=False), evaluation=[],
        publish=lambda version: record.publish(version) or {}, checkpoint=record, reporter=record, sampling=empty,
        micro_batch_tokens={}, seed=0, total_steps=1, split=empty, reads=empty,
    )  # fmt: skip
    loop.moved = True
    with pytest.raises(UserError) if fails_at else nullcontext():
        loop.finish_step([], {}, Clock(record), {})
    steps = ("publish", "save", "report", "keep", "end_if_asked")
    seen = [what for what in record.happened if what.split()[0] in steps]
    expected = ["publish 1", "save 1", "report 1", "keep", "end_if_asked"]
    assert seen == expected[: len(expected) - (fails_at is not None)]


def test_what_is_written_counts_from_keep_on(tmp_path: Path) -> None:
    config = job(tmp_path)
    _prepare(config, print)
    checkpoints = Checkpoints(config)

    def write(directory: Path) -> Written:
        (directory / "a").write_text("a")
        return Written({}, [("a", 1, None)])

    checkpoints.write(5, write)
    assert checkpoints.latest() is None
    checkpoints.keep(5)
    found = checkpoints.latest()
    assert found and found.step == 5
