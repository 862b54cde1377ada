"""A start whose disk has less than storage, or other things: what it goes on from, and what becomes of both."""

import shutil
from pathlib import Path

import pytest

from launch.config import RunConfig
from launch.run.checkpoint import Checkpoints
from launch.storage import store
from tests.test_storage import Faulty, assert_same, job, memory
from tests.test_uploads import Start, trained


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_WAITS_S", (0.0, 0.0))


def four_steps(output: Path, **checkpoint: int) -> tuple[RunConfig, Faulty, Path]:
    """A run of four steps, the second one the best, in a directory and in storage, and where its checkpoints are."""
    config, storage = job(output, storage="file:///elsewhere", **checkpoint), memory()
    trained(config, storage, range(1, 5), best=2)
    return config, storage, output / "first/checkpoints"


def test_the_best_one_is_fetched_beside_the_latest(tmp_path: Path) -> None:
    """Also where the disk keeps one checkpoint beside the best: the run goes on from the newest, there and in storage."""
    config, storage, kept = four_steps(tmp_path, keep=1)
    kept.rename(tmp_path / "original")
    start = Start(config, storage)
    assert start.step == 4 and Checkpoints(config).best() == kept / "step-2"
    for step in (2, 4):
        assert_same(kept / f"step-{step}", tmp_path / f"original/step-{step}")
    assert start.storage.stored.candidates() == [4, 2]
    shutil.rmtree(kept / "step-2")
    again = Start(config, storage)
    assert again.step == 4 and again.told == []
