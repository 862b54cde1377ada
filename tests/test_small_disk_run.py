"""A run on a disk of 64 MiB that something else fills up while a checkpoint is written, and frees again."""

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.files import stored
from launch.run.manifest import damage_of, read_manifest
from launch.tracking.events import read_events
from tests.conftest import LETTERS, Job

Start = Callable[..., Job]
STEPS, MORE = 28, 4
CONFIG: dict[str, Any] = {
    "algorithm": {"name": "sft", "steps": STEPS, "samples_per_update": 32},
    "model": {"init": {"hidden_size": 128, "layers": 4, "heads": 2, "alphabet": LETTERS, "max_positions": 64}},
    "policy": {"optimizer": {"lr": 3e-3}, "ranks": 2, "zero_stage": 2},
    "checkpoint": {"every": 4},
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid():
        pytest.skip("needs root to mount a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tandem-test", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a disk here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, name: str) -> Path:
    """Leave no room; returns the file that takes it."""
    filler = disk / name
    with filler.open("wb") as file, contextlib.suppress(OSError):
        for size in (2**20, 2**12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
    return filler


def numbers(job: Job) -> list[dict[str, Any]]:
    """Metrics that do not tell time, nor whether a step was the last one at first."""
    told = re.compile(r"time/|tokens_per_second|eval/")
    return [{name: value for name, value in line.items() if not told.match(name)} for line in job.metrics()]


def test_a_run_goes_on_while_its_disk_is_full(
    tandem: Start, reverse: dict[str, Any], disk: Path, tmp_path: Path
) -> None:
    """It says so, its lines wait, and its next checkpoint is whole; in the end all is as if the disk had had room."""
    data = {"data": reverse | {"max_length": 32}}
    job = tandem(CONFIG | data, f"run.output={disk}", directory=tmp_path)
    job.directory = disk / "run"
    job.wait_until(lambda: (job.directory / "checkpoints/step-4").exists(), "checkpoint")
    partial = job.directory / "checkpoints"
    job.wait_until(lambda: any(partial.glob("step-*.partial")), "next checkpoint")
    fillers = [fill(disk, "filler")]
    told = r"warning: the checkpoint of step (\d+) was not written, .* did not fit on .*, 64\.0 MiB with 0 bytes free"
    job.wait_until(lambda: bool(re.search(told, words(job))), "warning")
    # What was written of the checkpoint has gone, and made room for lines.
    fillers.append(fill(disk, "another"))
    job.wait_until(lambda: "lines of metrics and samples wait in memory" in words(job), "second warning")
    known = sorted(path.name for path in partial.glob("step-*"))
    for filler in fillers:
        filler.unlink()
    job.wait_until(lambda: bool(set(known) - {path.name for path in partial.glob("step-*")}), "whole checkpoint")
    assert job.wait() == 0, job.text
    assert job.text.count("lines of metrics and samples wait") == 1 and "run failed" not in job.text
    assert "Traceback" not in job.text, "of a rank whose error was another one's, too"
    events = [line for line in read_events(job.directory / "events.jsonl") if line["who"] == "disk"]
    assert [(line["event"], line.get("did")) for line in events] == [("noticed", None), ("recovered", "written")]
    assert_whole(job.directory / f"checkpoints/step-{STEPS}")
    resumed = tandem(CONFIG | data, f"run.output={disk}", f"algorithm.steps={STEPS + MORE}", directory=tmp_path)
    assert resumed.wait() == 0 and f"resuming from step {STEPS}" in resumed.text, resumed.text
    undisturbed = tandem(CONFIG | data, f"algorithm.steps={STEPS + MORE}")
    assert undisturbed.wait() == 0, undisturbed.text
    assert [line["step"] for line in job.metrics()] == list(range(1, STEPS + MORE + 1))
    assert numbers(job) == numbers(undisturbed)
    model = (job.directory / "export/model.safetensors").read_bytes()
    assert model == (undisturbed.directory / "export/model.safetensors").read_bytes()


def words(job: Job) -> str:
    """What it has printed, in one line."""
    return " ".join(job.text.split())


def assert_whole(directory: Path) -> None:
    _, sizes, hashes = read_manifest(directory)
    assert damage_of(directory, sizes) is None
    assert stored.faults(directory, {name: sha256 for name, sha256 in hashes.items() if not name.endswith(".pt")}) == []
    assert all(sha256 and stored.sha256_of(directory / name) == sha256 for name, sha256 in hashes.items())
