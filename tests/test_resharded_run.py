"""A run that two ranks with ZeRO-2 began goes on as one without ZeRO, and from storage alone, as if nothing were."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.storage.store import Storage
from launch.storage.stored import StoredCheckpoints
from tests.conftest import DEADLINE_S, Job
from tests.preloaded_commands import Commands

TOLD = "checkpoint step-4 was written by 2 policy ranks with ZeRO-2: resuming on 1 with ZeRO-0"
JOB: dict[str, Any] = {
    "algorithm": {"name": "sft", "steps": 8, "samples_per_update": 24, "eval_every": 4},
    "model": {"init": {"hidden_size": 32, "layers": 2, "heads": 2, "alphabet": "abcdefgh", "max_positions": 64}},
    "data": {
        "train": "algorithms.tasks:reverse",
        "eval": "algorithms.tasks:reverse",
        # Fewer than the rows of two updates: the order of the second pass is a resumed run's, too.
        "arguments": {"count": 100, "eval_count": 16, "length": 4, "letters": "abcdefgh"},
        "max_length": 32,
    },
    "policy": {"optimizer": {"lr": 3e-3, "schedule": "cosine", "warmup_updates": 2}, "ema_decay": 0.8},
    "checkpoint": {"every": 4, "keep": 3},
    "tracking": {"wandb": False},
}
TWO, ONE = ("policy.ranks=2", "policy.zero_stage=2"), ("policy.ranks=1", "policy.zero_stage=0")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the storage of `whole` is."""
    return tmp_path_factory.mktemp("there")


@pytest.fixture(scope="module")
def whole(tandem: Callable[..., Job], there: Path) -> Job:
    """A run of two ranks with ZeRO-2, from its beginning to its end."""
    job = tandem(JOB, *TWO, f"run.storage=file://{there}")
    assert job.wait() == 0, job.text
    return job


def test_a_run_goes_on_with_fewer_ranks_and_without_zero(
    whole: Job, tandem: Callable[..., Job], commands: Commands, tmp_path: Path
) -> None:
    """The same rows, losses, norms and rates, and the same model in the end; any of its checkpoints gives a model."""
    assert "was written by" not in whole.text
    shutil.copytree(whole.directory, tmp_path / "run", ignore=shutil.ignore_patterns("logs", "export", "step-8"))
    (tmp_path / "run/checkpoints/latest").write_text("step-4")
    resumed = tandem(JOB, *ONE, directory=tmp_path)
    assert resumed.wait() == 0, resumed.text
    assert TOLD in " ".join(resumed.text.split())
    compared = {"loss/nll", "grad_norm", "learning_rate", "tokens/trained", "eval/loss"}
    expected, found = whole.steps(), resumed.steps()
    assert sorted(found) == sorted(expected) == list(range(1, 9))
    for step, values in found.items():
        for name in compared if step % 4 == 0 else compared - {"eval/loss"}:
            assert values[name] == pytest.approx(expected[step][name], abs=1e-5), (step, name)
    assert abs(found[8]["loss/nll"] - found[4]["loss/nll"]) > 1e-2
    one, other = (
        json.loads((run.directory / "checkpoints/step-8/manifest.json").read_text()) for run in (whole, resumed)
    )
    assert one["parts"]["batches"] == other["parts"]["batches"], "the order of rows depends on ranks"
    models = [load_file(run.directory / "export/model.safetensors") for run in (whole, resumed)]
    assert models[0].keys() == models[1].keys()
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=0, atol=1e-5)
    _assert_exports_what_two_ranks_averaged(commands, resumed.directory)


def test_a_run_goes_on_from_storage_alone_bit_for_bit(
    whole: Job, there: Path, tandem: Callable[..., Job], tmp_path: Path
) -> None:
    """With an empty disk, where the newest object is damaged: it is named, and the one before is used."""
    stored = StoredCheckpoints(Storage(f"file://{there}"), "run", "nobody")
    assert stored.candidates() == [8, 4]
    model = whole.directory / "export"
    files = {path.relative_to(model): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert files == {name: (there / "run/export" / name).read_bytes() for name in files}
    # A copy, as its other test has this run, too.
    shutil.copytree(there, tmp_path / "there", ignore=shutil.ignore_patterns("export"))
    (damaged,) = (tmp_path / "there/run/checkpoints/step-8").glob("*/policy/average-1.pt")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    resumed = tandem(JOB, *TWO, f"run.storage=file://{tmp_path}/there", directory=tmp_path)
    assert resumed.wait() == 0, resumed.text
    told = " ".join(resumed.text.split())
    assert f"file://{tmp_path}/there/run/checkpoints/step-8 is damaged, " in told and "resuming from step 4" in told
    assert _numbers(resumed) == _numbers(whole)[4:]
    stored = StoredCheckpoints(Storage(f"file://{tmp_path}/there"), "run", "nobody")
    assert stored.candidates() == [8, 4] and stored.fetch(8, tmp_path / "fetched") is None
    one, other = (
        json.loads((path / "manifest.json").read_text())["sha256"]
        for path in (whole.directory / "checkpoints/step-8", tmp_path / "fetched")
    )
    assert one == other, "all that was saved is the same, bit for bit"
    for place in (resumed.directory / "export", tmp_path / "there/run/export"):
        assert (place / "model.safetensors").read_bytes() == files[Path("model.safetensors")]


def _numbers(job: Job) -> list[dict[str, Any]]:
    """Metrics that do not tell time."""
    told = re.compile(r"time/|tokens_per_second")
    return [{name: value for name, value in line.items() if not told.match(name)} for line in job.metrics()]


def _assert_exports_what_two_ranks_averaged(commands: Commands, run: Path) -> None:
    """Of step 4, by the one rank that the run's settings say now."""
    done = commands.run("export", str(run), "--step", "4", cwd=run.parent, env=commands.environment, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    flat = [each for rank in (0, 1) for each in torch.load(run / f"checkpoints/step-4/policy/average-{rank}.pt")]
    exported = [each.flatten() for each in load_file(run / "export-step-4/model.safetensors").values()]
    saved, model = (torch.cat(each).sort().values for each in (flat, exported))
    assert torch.equal(saved[saved != 0], model[model != 0])  # without padding
