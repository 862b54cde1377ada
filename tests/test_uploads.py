"""What goes to storage beside training, and what a start fetches from there."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from launch.checks.check import _latest
from launch.config import CheckpointConfig, RunConfig
from launch.run.checkpoint import Checkpoints
from launch.run.manifest import Damaged
from launch.run.restore import RunStorage
from launch.run.run import _prepare
from launch.storage import store
from launch.storage.store import Storage, StorageError
from launch.storage.uploads import Uploads
from launch.tracking.events import Events, read_events
from tests.test_storage import Faulty, assert_same, job, memory, save, stored


class Beside:
    """Uploads of a run, whose failures are tried again at once; `seconds` is what their clock says."""

    def __init__(self, directory: Path, storage: Faulty, rules: CheckpointConfig) -> None:
        self.directory, self.seconds = directory, 0.0
        self.storage: Any = storage
        directory.mkdir(parents=True, exist_ok=True)
        self.warnings: list[str] = []
        self.stored = stored(storage)
        self.uploads = Uploads(
            self.stored, None, rules, Events(directory), self.warnings.append, lambda: self.seconds, 0.001
        )

    def faults(self) -> list[tuple[str, str]]:
        return [(line["who"], line.get("did", line["event"])) for line in read_events(self.directory / "events.jsonl")]


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Callable[..., Beside]]:
    made: list[Beside] = []

    def make(storage: Faulty | None = None, **checkpoint: Any) -> Beside:
        rules = job(tmp_path, **checkpoint).checkpoint
        made.append(Beside(tmp_path / "first", storage or memory(), rules))
        return made[-1]

    yield make
    for each in made:
        each.uploads.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


class Held(Faulty):
    """Storage whose next write waits to be let go."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.held, self.go = threading.Event(), threading.Event()

    def put(self, path: Path, name: str) -> None:
        self.held.set()
        assert self.go.wait(60)
        super().put(path, name)


@pytest.mark.parametrize("every", [2, 3, 5])
def test_storage_that_fails_again_and_again_has_all_in_the_end(
    every: int, beside: Callable[..., Beside], tmp_path: Path
) -> None:
    """Of writes, every k-th; each failure is a fault that is over, and the model comes last."""
    run = beside(keep=9)
    run.storage.fails = lambda count, name: count % every == 0
    config, directories = job(tmp_path, keep=9), []
    for step in range(1, 4):
        directories.append(save(config, step))
        run.uploads.put(step, directories[-1], best=step == 2)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    run.uploads.put_export(tmp_path / "model")
    assert run.uploads.finish(20, lambda _: None)
    assert run.stored.candidates()[0] == 3 and 2 in run.stored.candidates() and run.stored.pointer("best") == 2
    for step in run.stored.steps():
        assert run.stored.fetch(step, tmp_path / f"fetched-{step}") is None
        assert_same(tmp_path / f"fetched-{step}", directories[step - 1])
    assert run.storage.text("first/export/config.json") == "{}"
    told = run.faults()
    assert told and told == [("storage", "noticed"), ("storage", "uploaded")] * (len(told) // 2)
    line = run.warnings[0]
    assert " was not put into storage, cannot write " in line and line.endswith(
        "the run goes on, and tries again in 0.001 s"
    )


def test_what_waits_gives_way_to_what_is_newer(beside: Callable[..., Beside], tmp_path: Path) -> None:
    """But for the newest best one and those that are kept for good; the disk keeps what is still to be read."""
    config, storage = job(tmp_path, keep=1, keep_every=4), Held(memory().url)
    run = beside(storage, keep=1, keep_every=4)
    run.uploads.put(1, save(config, 1))
    assert storage.held.wait(60)
    for step in range(2, 8):
        directory = save(config, step, best=step in (2, 3), spared=run.uploads.spared)
        run.uploads.put(step, directory, best=step in (2, 3))
    names = {path.name for path in run.uploads.spared()}
    assert names == {"step-1", "step-3", "step-4", "step-7"}
    assert names <= {path.name for path in (tmp_path / "first/checkpoints").iterdir()}
    storage.go.set()
    assert run.uploads.finish(20, lambda _: None)
    put = [name.split("/")[2] for name in storage.writes if name.endswith("/b.json")]
    assert put == ["step-1", "step-7", "step-3", "step-4"], "the newest first, as soon as one is there"
    assert run.stored.candidates() == [7, 4, 3] and run.stored.pointer("best") == 3
    assert run.stored.steps() == [3, 4, 7] and not run.uploads.spared()


def test_a_newer_one_replaces_one_that_fails(beside: Callable[..., Beside], tmp_path: Path) -> None:
    config, run = job(tmp_path, keep=9), beside(keep=9)
    run.storage.fails = lambda count, name: "step-1" in name
    run.uploads.put(1, save(config, 1))
    until(lambda: len(run.warnings) > 1)
    run.uploads.put(2, save(config, 2))
    assert run.uploads.finish(20, lambda _: None)
    assert run.stored.steps() == [2] and run.faults()[-1] == ("storage", "uploaded")


def test_storage_that_fails_for_too_long_ends_the_run(beside: Callable[..., Beside], tmp_path: Path) -> None:
    """Counted from its first failure: what is on the disk is whole."""
    config, run = job(tmp_path, max_age_s=50), beside(max_age_s=50)
    run.seconds = 1000.0
    run.uploads.check()
    run.storage.fails = lambda count, name: True
    run.uploads.put(1, save(config, 1))
    until(lambda: len(run.warnings) > 1)
    run.seconds += 50
    run.uploads.check()
    run.seconds += 0.5
    with pytest.raises(UserError) as caught:
        run.uploads.check()
    line = str(caught.value)
    assert line.startswith("run.storage: must take checkpoints again within checkpoint.max_age_s (50) of its first")
    assert line.endswith(f"got {run.stored.url}") and "cannot write" in line
    assert run.faults()[0] == ("storage", "noticed") and run.faults()[-1][1].startswith("cannot write")
    began = time.monotonic()
    assert not run.uploads.finish(600, lambda _: None)
    assert time.monotonic() - began < 60, "nobody waits for it again"
    run.seconds = float("nan")
    with pytest.raises(UserError):
        run.uploads.check()


def test_the_end_waits_no_longer_than_it_says(beside: Callable[..., Beside], tmp_path: Path) -> None:
    """And says what is not there."""
    config, storage, said = job(tmp_path), Held(memory().url), list[str]()
    run = beside(storage)
    run.uploads.put(1, save(config, 1))
    assert storage.held.wait(60)
    run.uploads.put_export(tmp_path)
    assert not run.uploads.finish(0.1, said.append)
    storage.go.set()
    assert said == ["step-1, export, for 0 s at most"]
    kept = "the same command puts it there, as long as the run's directory is"
    assert run.warnings == [f"not in {run.stored.url}: step-1, export; {kept}"]


def test_another_driver_ends_the_run_and_lost_files_do_not(beside: Callable[..., Beside], tmp_path: Path) -> None:
    config, run = job(tmp_path), beside()
    directory = save(config, 1)
    shutil.rmtree(directory)
    run.uploads.put(1, directory)
    until(lambda: bool(run.warnings))
    assert run.warnings[0].startswith(f"step-1 was not put into {run.stored.url}: its files are gone or damaged (")
    run.uploads.check()
    stored(run.storage, "another")
    run.uploads.put(2, save(config, 2))

    def raised() -> bool:
        try:
            run.uploads.check()
        except UserError as error:
            return "another driver has taken over" in str(error)
        return False

    until(raised)
    assert not run.uploads.finish(60, lambda _: None) and run.stored.steps() == []


# What a start fetches


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_WAITS_S", (0.0, 0.0))


class Start:
    """A start of a run, up to its cluster."""

    def __init__(self, config: RunConfig, storage: Storage) -> None:
        self.told: list[str] = []
        self.storage = RunStorage(config, storage)
        self.found = _prepare(config, self.told.append, self.storage)
        self.step = self.found.step if self.found else 0


def trained(config: RunConfig, storage: Storage, steps: range, best: int = 0) -> None:
    """A run that makes these steps, from where it is."""
    start = Start(config, storage)
    for step in steps:
        checkpoint = save(config, step, best=step == best)
        uploads = start.storage.uploads(Events(config.directory), print)
        uploads.put(step, checkpoint, best=step == best)
        assert uploads.finish(60, lambda _: None)


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunConfig, Faulty, Path]:
    """A run of four steps, in a directory and in storage, and where its checkpoints are."""
    config, storage = job(tmp_path, storage="file:///elsewhere", keep=9), memory()
    trained(config, storage, range(1, 5), best=2)
    return config, storage, tmp_path / "first/checkpoints"


def test_a_new_node_goes_on_from_storage(run: tuple[RunConfig, Faulty, Path], tmp_path: Path) -> None:
    """With the best one; a directory that has all of it asks for nothing."""
    config, storage, kept = run
    assert Start(config, storage).told == []
    kept.rename(tmp_path / "original")
    shutil.rmtree(config.directory)
    start = Start(config, storage)
    assert start.step == 4 and Checkpoints(config).best() == kept / "step-2"
    assert sorted(path.name for path in kept.glob("step-*")) == ["step-2", "step-4"]
    assert_same(kept / "step-4", tmp_path / "original/step-4")
    assert_same(kept / "step-2", tmp_path / "original/step-2")
    url = f"{storage.url}/first"
    assert (
        start.told[0] == f"fetching step-4 from {url}" and start.told[2] == f"fetching step-2 from {url}, the best one"
    )


def test_a_disk_that_has_less_gets_the_newest(run: tuple[RunConfig, Faulty, Path]) -> None:
    config, storage, kept = run
    for step in (3, 4):
        shutil.rmtree(kept / f"step-{step}")
    (kept / "latest").write_text("step-2")
    assert Start(config, storage).step == 4


def test_a_disk_that_has_more_keeps_it(run: tuple[RunConfig, Faulty, Path]) -> None:
    config, storage, _ = run
    save(config, 5)
    start = Start(config, storage)
    assert start.step == 5 and start.told == []


def test_whoever_goes_back_on_the_disk_is_not_led_forward(run: tuple[RunConfig, Faulty, Path]) -> None:
    config, storage, kept = run
    (kept / "latest").write_text("step-2")
    start = Start(config, storage)
    assert start.step == 2 and "step-4 there is newer than where this run goes on" in start.told[0]


def test_a_newer_one_is_fetched_than_the_newest_that_is_whole_here(run: tuple[RunConfig, Faulty, Path]) -> None:
    config, storage, kept = run
    save(config, 5)
    for step in (3, 4, 5):
        (kept / f"step-{step}/policy/a.bin").write_bytes(bytes(1000))
    start = Start(config, storage)
    assert start.step == 4 and start.told[0] == f"{kept}/step-5 is damaged, a file is not what was saved"
    assert (kept / "step-4/policy/a.bin").read_bytes() == bytes([4]) * 1000


def test_storage_says_where_to_go_on_when_the_disk_does_not(run: tuple[RunConfig, Faulty, Path]) -> None:
    config, storage, kept = run
    (kept / "latest").unlink()
    start = Start(config, storage)
    assert start.step == 4 and start.told[-1].endswith("it is step-4, which is here, that the run goes on from")


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_disk_is_mended_from_storage(damage: str, run: tuple[RunConfig, Faulty, Path]) -> None:
    """Also where nothing on it is whole, of which `check` makes no mistake of the user's then."""
    config, storage, kept = run
    for step in range(1, 5):
        if damage == "flipped":
            (kept / f"step-{step}/policy/a.bin").write_bytes(bytes(1000))
        else:
            (kept / f"step-{step}/policy/a.bin").unlink()
    if damage == "missing":
        assert _latest(config) is None
        with pytest.raises(Damaged):
            _latest(config.model_copy(update={"run": config.run.model_copy(update={"storage": None})}))
    start = Start(config, storage)
    assert start.step == 4 and "is damaged" in start.told[0]
    assert (kept / "step-4/policy/a.bin").read_bytes() == bytes([4]) * 1000


def test_a_damaged_object_is_named_and_the_one_before_is_taken(run: tuple[RunConfig, Faulty, Path]) -> None:
    config, storage, _ = run
    (name,) = (name for name in storage.sizes("first") if "step-4/" in name and name.endswith("a.bin"))
    storage.put_text("x" * 1000, name)
    shutil.rmtree(config.directory)
    start = Start(config, storage)
    assert start.step == 3
    rest = name.partition("step-4/")[2]
    what = f"{rest} is not what was saved: its SHA-256 is another one than the manifest's"
    assert f"{storage.url}/first/checkpoints/step-4 is damaged, {what}" in start.told
    assert not list((config.directory / "checkpoints").glob("*.partial"))


def test_another_run_of_the_name_is_refused(run: tuple[RunConfig, Faulty, Path], tmp_path: Path) -> None:
    """Nothing of it is touched, on either side; the run itself goes on."""
    config, storage, _ = run
    other = job(tmp_path / "other", storage="file:///elsewhere")
    save(other, 7)
    before = storage.sizes("first")
    with pytest.raises(UserError) as caught:
        Start(other, storage)
    place = f"{storage.url}/first holds another run of this name than {tmp_path}/other/first"
    assert str(caught.value) == f"run.name: must be another one, as {place}, got first"
    anew = job(tmp_path / "other", storage="file:///elsewhere", resume=False)
    with pytest.raises(UserError) as caught:
        Start(anew, storage)
    line = (
        f"checkpoint.resume: {storage.url}/first holds another directory's run (steps 1, 2, 3, 4): remove it yourself, "
    )
    assert str(caught.value).startswith(line)
    assert storage.sizes("first") == before and Checkpoints(other).latest() is not None
    assert Start(config, storage).step == 4


def test_a_start_anew_removes_its_own(run: tuple[RunConfig, Faulty, Path], tmp_path: Path) -> None:
    """And is another run from then on."""
    _, storage, _ = run
    before = stored_id(storage)
    start = Start(job(tmp_path, storage="file:///elsewhere", resume=False), storage)
    told = f"checkpoint.resume is false: removed what an earlier run had put into {storage.url}/first"
    assert start.step == 0 and told in start.told
    assert not [name for name in storage.sizes("first") if "checkpoints" in name]
    assert stored_id(storage) not in (None, before)


def stored_id(storage: Storage) -> str | None:
    return storage.text("first/run.json")


def test_storage_that_cannot_be_reached_ends_a_start_and_not_a_restart(
    run: tuple[RunConfig, Faulty, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has its own checkpoint, claims the run later, and puts there what it has."""
    config, storage, _ = run
    save(config, 5)

    def fail(*_: object) -> None:
        raise StorageError("cannot reach it")

    with monkeypatch.context() as patch:
        for name in ("text", "sizes", "put_text"):
            patch.setattr(storage, name, fail)
        with pytest.raises(UserError) as caught:
            Start(config, storage)
        rule = "must be storage that can be read and written (cannot reach it)"
        assert str(caught.value) == f"run.storage: {rule}, got file:///elsewhere"
        patch.setattr("launch.run.restore.is_restarted", lambda: True)
        start = Start(config, storage)
    assert start.step == 5 and start.told == [f"cannot reach it: going on from what is in {config.directory}"]
    stored(storage, "the attempt before")
    uploads = start.storage.uploads(Events(config.directory), print)
    uploads.put(5, config.directory / "checkpoints/step-5")
    assert uploads.finish(60, lambda _: None)
    assert start.storage.stored.candidates()[0] == 5
