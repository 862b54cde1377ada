"""A run that has lost its disk goes on from storage alone, as if nothing had happened."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.storage.store import Storage
from launch.storage.stored import StoredCheckpoints
from tests.conftest import LETTERS, Job

JOB: dict[str, Any] = {
    "algorithm": {"name": "sft", "steps": 6, "samples_per_update": 16},
    "model": {"init": {"hidden_size": 32, "layers": 2, "heads": 2, "alphabet": LETTERS, "max_positions": 64}},
    "policy": {"optimizer": {"lr": 3e-3, "schedule": "cosine"}},
    "checkpoint": {"every": 3},
    "tracking": {"wandb": False},
}


def numbers(job: Job) -> list[dict[str, Any]]:
    """Metrics that do not tell time."""
    told = re.compile(r"time/|tokens_per_second")
    return [{name: value for name, value in line.items() if not told.match(name)} for line in job.metrics()]


def test_a_run_goes_on_from_storage_alone_bit_for_bit(
    tandem: Callable[..., Job], reverse: dict[str, Any], tmp_path: Path
) -> None:
    """On another disk, where the newest object is damaged: it is named, and the one before is used."""
    there = tmp_path / "there"
    given = JOB | {"data": reverse | {"max_length": 32}}
    whole = tandem(given, f"run.storage=file://{there}")
    assert whole.wait() == 0, whole.text
    stored = StoredCheckpoints(Storage(f"file://{there}"), "run", "nobody")
    assert stored.candidates() == [6, 3]
    model = whole.directory / "export"
    files = {path.relative_to(model): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert files == {name: (there / "run/export" / name).read_bytes() for name in files}
    shutil.rmtree(there / "run/export")
    (manifest,) = (there / "run/checkpoints/step-6").glob("*/policy/state/mp_rank_00_model_states.pt")
    manifest.write_bytes(manifest.read_bytes()[:-1] + b"x")
    (tmp_path / "disk").mkdir()
    resumed = tandem(given, f"run.storage=file://{there}", directory=tmp_path / "disk")
    assert resumed.wait() == 0, resumed.text
    told = " ".join(resumed.text.split())
    assert f"file://{there}/run/checkpoints/step-6 is damaged, " in told and "resuming from step 3" in told
    assert numbers(resumed) == numbers(whole)[3:]
    assert (resumed.directory / "export/model.safetensors").read_bytes() == files[Path("model.safetensors")]
    assert (there / "run/export/model.safetensors").read_bytes() == files[Path("model.safetensors")]
    assert stored.candidates() == [6, 3] and stored.fetch(6, tmp_path / "fetched") is None
    one, other = (
        json.loads((path / "manifest.json").read_text())
        for path in (whole.directory / "checkpoints/step-6", tmp_path / "fetched")
    )
    assert {**one["sha256"]} == {**other["sha256"]}, "all that was saved is the same"
