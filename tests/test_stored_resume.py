"""A start whose disk has less than storage, or other things: what it goes on from, and what becomes of both."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from algorithms.loop import Best
from launch.config import RunConfig
from launch.run import manifest
from launch.run.checkpoint import Checkpoints
from launch.run.checkpointer import RunCheckpointer
from launch.run.saves import Saves, resume
from launch.storage import store
from launch.storage.store import StorageError
from launch.storage.stored import Attempt
from launch.storage.uploads import Uploads
from launch.tracking.events import Events
from tests.test_saves import Notes, StandInForALoop
from tests.test_storage import Faulty, assert_same, job, memory, save, stored
from tests.test_uploads import Start, trained

FILE = "rollouts/groups.safetensors"


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_WAITS_S", (0.0, 0.0))


def four_steps(output: Path, **checkpoint: Any) -> tuple[RunConfig, Faulty, Path]:
    """A run of four steps, the second one the best, in a directory and in storage, and where its checkpoints are."""
    config, storage = job(output, storage="file:///elsewhere", **checkpoint), memory()
    trained(config, storage, range(1, 5), best=2)
    return config, storage, output / "first/checkpoints"


def test_the_best_one_is_fetched_beside_the_latest(tmp_path: Path) -> None:
    """Also where the disk keeps one checkpoint beside the best: the newest is the latest, there and in storage."""
    config, storage, kept = four_steps(tmp_path, keep=1)
    kept.rename(tmp_path / "original")
    start = Start(config, storage)
    assert start.step == 4 and Checkpoints(config).best() == kept / "step-2"
    for step in (2, 4):
        assert_same(kept / f"step-{step}", tmp_path / f"original/step-{step}")
    assert start.storage.stored.candidates() == [4, 2]
    assert Start(config, storage).told == []
    shutil.rmtree(kept / "step-2")  # as if that start had ended before it had the best one
    again = Start(config, storage)
    assert again.step == 4 and Checkpoints(config).best() == kept / "step-2"
    assert again.told[0] == f"fetching step-2 from {storage.url}/first, the best one"


def test_a_best_one_that_the_run_has_left_is_not_fetched(tmp_path: Path) -> None:
    """By going back before it, when storage has it still."""
    config, storage = job(tmp_path, storage="file:///elsewhere", keep=9), memory()
    trained(config, storage, range(1, 5), best=4)
    (tmp_path / "first/checkpoints/latest").write_text("step-2")
    assert Start(config, storage).step == 2
    assert Start(config, storage).told == []
    shutil.rmtree(config.directory)
    start = Start(config, storage)
    assert start.step == 2 and Checkpoints(config).best() is None
    assert [line.split()[1] for line in start.told if line.startswith("fetching")] == ["step-2"]


def test_whoever_goes_back_stays_there(tmp_path: Path) -> None:
    """Also where that start, or a later one, puts nothing into storage; what is newer there goes when one does."""
    config, storage, kept = four_steps(tmp_path, keep=9)
    (kept / "latest").write_text("step-2")
    first = Start(config, storage)
    assert first.step == 2 and "step-4 there is newer than where this run goes on: it does not count" in first.told[0]
    assert first.storage.stored.candidates() == [2, 1] and first.storage.stored.steps() == [1, 2, 3, 4]
    second = Start(config, storage)
    assert second.step == 2 and second.told == []
    uploads = first.storage.uploads(Events(config.directory), print)
    stored_again = first.storage.stored
    stored_again.claim(first.storage._id)
    uploads.put(2, kept / "step-2")
    assert uploads.finish(60, lambda _: None)
    assert stored_again.steps() == [1, 2]


def test_a_run_without_a_checkpoint_in_storage_is_not_taken_over(tmp_path: Path) -> None:
    """Nor is what it has put there removed; its own directory may begin anew."""
    storage = memory()
    Start(job(tmp_path, storage="file:///elsewhere"), storage)
    storage.put_text("{}", "first/export/config.json")
    before = storage.sizes("first")
    other = job(tmp_path / "other", storage="file:///elsewhere", resume=False)
    with pytest.raises(UserError) as caught:
        Start(other, storage)
    line = f"{storage.url}/first holds another directory's run (without a checkpoint yet): remove it yourself, or "
    assert str(caught.value) == f"checkpoint.resume: {line}take another run.name, got false"
    assert storage.sizes("first") == before
    Start(job(tmp_path, storage="file:///elsewhere", resume=False), storage)
    assert not storage.sizes("first/export")


def test_a_driver_without_a_checkpoint_is_restarted_without_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with checkpoints is; where the one before it had not asked storage yet, there may be some there."""
    config, storage = job(tmp_path, storage="file:///elsewhere"), memory()
    monkeypatch.setattr("launch.run.restore.is_restarted", lambda: True)

    def fail(*_: object) -> None:
        raise StorageError("cannot reach it")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "text", fail)
        with pytest.raises(UserError, match="must be storage that can be read and written"):
            Start(config, storage)
    Start(config, storage)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "text", fail)
        start = Start(config, storage)
    assert start.step == 0 and start.told[0] == f"cannot reach it: going on from what is in {config.directory}"


def test_one_that_is_not_the_latest_is_put_beside_it(tmp_path: Path) -> None:
    """And what has been put of another one that is not whole yet is left alone."""
    config, storage = job(tmp_path, keep=2), memory()
    checkpoints = stored(storage)
    directories = {step: save(job(tmp_path, keep=9), step) for step in range(1, 6)}
    for step in (3, 4):
        checkpoints.put(Attempt(step, directories[step]), best=False, rules=config.checkpoint)
    storage.put_text("half", "first/checkpoints/step-2/begun/policy/a.bin")
    arguments: Any = {"rules": config.checkpoint, "latest": False, "unfinished": {2}}
    checkpoints.put(Attempt(1, directories[1]), best=True, **arguments)
    assert (checkpoints.pointer("latest"), checkpoints.pointer("best"), checkpoints.steps()) == (4, 1, [1, 3, 4])
    assert storage.text("first/checkpoints/step-2/begun/policy/a.bin") == "half"
    checkpoints.put(Attempt(5, directories[5]), best=False, **arguments)
    assert checkpoints.pointer("latest") == 4 and checkpoints.steps() == [1, 3, 4, 5]


# Content that is found to be damaged when the ranks are there


class Run:
    """A run of four steps with a part, in a directory and in storage."""

    def __init__(self, output: Path, **checkpoint: Any) -> None:
        self.config = job(output, storage="file:///elsewhere", keep=9, **checkpoint)
        self.kept = output / "first/checkpoints"
        self.storage = memory()
        self.uploads: list[Uploads] = []
        self.start()
        saver = RunCheckpointer(self.config, self.saves, set(), self.notes)
        for step in range(1, 5):
            self.loop.buffer.dropped = step
            saver.save(step, last=True, best=step == 2)
            saver.keep()
        assert self.uploads[-1].finish(60, lambda _: None)

    def start(self) -> Any:
        """A start up to its loop; what it goes on from."""
        self.notes: Any = Notes()
        self.notes.warning = self.notes.said.append
        self.notes.rewind = lambda step: None
        self.started = Start(self.config, self.storage)
        self.notes.uploads = self.started.storage.uploads(Events(self.config.directory), self.notes.said.append)
        self.uploads.append(self.notes.uploads)
        self.loop, self.saves = StandInForALoop(seed=1, best=Best("eval/loss", 1.0)), Saves({})
        loop: Any = self.loop
        return resume(self.config, self.saves, loop, self.notes)

    def damage(self, step: int) -> bytes:
        """Changes one bit; returns what the file was."""
        path = self.kept / f"step-{step}" / FILE
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        return before


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Its checkpoints count as too large to be read before the ranks are there."""
    monkeypatch.setattr(manifest, "_MOST_BYTES", 0)
    made = Run(tmp_path)
    yield made
    for uploads in made.uploads:
        uploads.stop()


def test_what_the_ranks_find_damaged_is_mended_from_storage(run: Run) -> None:
    before = run.damage(4)
    found = run.start()
    assert found.step == 4 and run.loop.buffer.dropped == 4
    assert (run.kept / f"step-4/{FILE}").read_bytes() == before
    assert f"fetching step-4 from {run.storage.url}/first" in run.notes.said
    assert "step-4/rollouts/groups.safetensors is not what was saved" in "".join(run.notes.said)
    assert run.uploads[-1].finish(60, lambda _: None)
    assert run.started.storage.stored.candidates() == [4, 3, 2, 1]


def test_one_that_is_damaged_on_both_sides_costs_storage_nothing(run: Run) -> None:
    """The run goes on from the one before; what is newer stays in storage until the run has newer ones itself."""
    run.damage(4)
    (name,) = (name for name in run.storage.sizes("first") if "step-4/" in name and name.endswith(FILE))
    run.storage.put_text("x", name)
    found = run.start()
    assert found.step == 3 and run.loop.buffer.dropped == 3
    assert run.uploads[-1].finish(60, lambda _: None)
    assert run.started.storage.stored.candidates() == [4, 3, 2, 1]


def test_storage_that_cannot_be_reached_then_ends_a_start_and_not_a_restart(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an older step would be gone on from although the newest is there; a restart leaves it there."""
    run.damage(4)

    def fail(*_: object) -> None:
        raise StorageError("cannot reach it")

    with monkeypatch.context() as patch:
        patch.setattr("launch.storage.stored.StoredCheckpoints.fetch", fail)
        with pytest.raises(UserError, match="must be storage that can be read and written"):
            run.start()
        patch.setattr("launch.run.restore.is_restarted", lambda: True)
        assert run.start().step == 3
    assert run.uploads[-1].finish(60, lambda _: None)
    assert run.started.storage.stored.candidates() == [4, 3, 2, 1]


def test_what_an_earlier_start_has_left_is_put_there(run: Run) -> None:
    """The best one and those that are kept for good, beside what is there; the one that the run goes on from, too."""
    checkpoint = run.config.checkpoint.model_copy(update={"keep_every": 3})
    run.config = run.config.model_copy(update={"checkpoint": checkpoint})
    run.started.storage.stored.remove_all()
    assert run.start().step == 4
    assert run.uploads[-1].finish(60, lambda _: None)
    there = run.started.storage.stored
    assert (there.steps(), there.pointer("latest"), there.pointer("best")) == ([2, 3, 4], 4, 2)
    writes = len(run.storage.writes)
    run.start()
    assert run.uploads[-1].finish(60, lambda _: None)
    assert not [name for name in run.storage.writes[writes:] if "step-" in name], "nothing is put twice"
    assert stored(run.storage).steps() == [2, 3, 4]
