"""Checkpoints written beside training: of the moment when they were captured, one at a time, and whole or nothing."""

import io
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from rich.console import Console

from actors.config import ModelConfig, OptimizerConfig, TrainerConfig, UserError
from actors.episodes import Sequence
from actors.files import own_files, parts
from actors.files.full_disk import storage_failure
from actors.files.parts import Entry, write_arrays
from actors.group import ActorGroup
from actors.group_errors import GroupError, RankLost
from actors.pulse import Pulse
from actors.train.policy import PolicyWorker
from actors.train.worker import Totals
from algorithms.offline.sft import sft_loss
from launch.config import validate
from launch.run import checkpointer
from launch.run.checkpoint import Checkpoints
from launch.run.checkpointer import RunCheckpointer
from launch.run.copies import Copies
from launch.run.ending import Ending
from launch.run.keepers import Keepers, NotKept
from launch.run.reserved import Placement
from launch.run.run import _prepare, _written_to_the_end
from launch.run.saves import Saves
from launch.run.signals import interruptible
from launch.screen.display import Display
from launch.tracking.events import Events
from tests.trainees import INIT, Trainee, started_trainees


class Storage:
    """Where files go: at once, or as soon as `open` is set."""

    def __init__(self) -> None:
        self.open = Event()
        self.open.set()
        self.reached = Event()
        """Whether somebody has wanted to write."""

    def create(self, path: Path) -> int:
        self.reached.set()
        assert self.open.wait(60)
        return own_files.create(path)


class Counting:
    """A part that is one number, which goes on."""

    def __init__(self) -> None:
        self.values = np.zeros(3)
        self.told: dict[str, Any] = {"seen": []}

    def learn(self) -> None:
        self.values += 1
        self.told["seen"].append(len(self.told["seen"]))

    def save(self, directory: Path) -> Entry:
        write_arrays({"a": self.values}, directory / "a")
        return self.told

    def load(self, directory: Path, entry: Entry) -> None:
        raise AssertionError("nothing is loaded here")


class FakeGroup:
    """One rank, that has an error for each call to write."""

    version, timeout_s = 0, 60

    def __init__(self) -> None:
        self.error: GroupError | None = None
        self.replaced = False

    def __len__(self) -> int:
        return 1

    def call(self, method: Callable[..., object], directory: Path) -> list[None]:
        assert method.__name__ == "capture" and not directory.exists()
        return [None]

    def submit(self, rank: int, method: Callable[..., object], directory: Path) -> Path:
        return directory

    def gather(self, refs: list[Path], what: str, timeout_s: float) -> list[list[Any]]:
        assert (what, timeout_s) == ("write", 3600), "of checkpoint.max_age_s"
        self.version += self.replaced
        if self.error:
            raise self.error
        refs[0].mkdir()
        (refs[0] / "weights").write_text("w")
        return [[("weights", 1, None)]]

    def wait(self, refs: list[Path]) -> None:
        pass


class Run:
    """A run that saves after each step, or every so many, up to its loop."""

    def __init__(self, output: Path, storage: Storage, every: int = 1) -> None:
        values = {
            "algorithm": {"name": "sft", "steps": 30},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl"},
            "checkpoint": {"every": every, "keep": 9},
            "tracking": {"wandb": False},
            "run": {"output": str(output), "name": "first"},
        }
        self.config, self.storage, self.part, self.group = validate(values), storage, Counting(), FakeGroup()
        _prepare(self.config, print)
        group: Any = self.group
        saves = Saves({"policy": group})
        saves.add("counting", self.part)
        self.warnings: list[str] = []
        now = SimpleNamespace(events=Events(self.config.directory, told=print))
        reporter: Any = SimpleNamespace(now=now, warning=self.warnings.append, uploads=None)
        self.saver = RunCheckpointer(self.config, saves, set(), reporter)

    def save(self, step: int, *, last: bool = False, best: bool = False) -> None:
        self.part.learn()
        self.saver.save(step, last, best)

    def step(self, step: int) -> None:
        self.save(step)
        self.saver.keep()

    @property
    def latest(self) -> int | None:
        found = Checkpoints(self.config).latest()
        return found.step if found else None

    def values_of(self, step: int) -> tuple[float, list[int]]:
        directory = self.config.directory / f"checkpoints/step-{step}"
        [found] = [each for each in [Checkpoints(self.config).latest()] if each]
        arrays = parts.read_arrays(directory / "counting/a")
        return float(arrays["a"][0]), found.parts["counting"]["seen"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    storage = Storage()
    monkeypatch.setattr(parts, "create", storage.create)
    monkeypatch.setattr(checkpointer, "reason_to_end", lambda _: None)
    yield Run(tmp_path, storage)
    storage.open.set()


def test_training_goes_on_while_a_checkpoint_is_written(run: Run) -> None:
    """It has what there was when it was captured; until it is whole, the one before is what a start would find."""
    run.step(1)
    run.saver.finish()
    assert run.latest == 1 and run.saver.kept == (1, run.config.directory / "checkpoints/step-1")
    run.storage.open.clear()
    run.step(2)
    assert run.saver.in_flight and run.latest == 1 and run.saver.kept[0] == 1
    run.part.learn()
    run.storage.open.set()
    run.saver.finish()
    assert run.latest == 2 and run.values_of(2) == (2.0, [0, 1])
    assert run.saver.kept == (2, run.config.directory / "checkpoints/step-2") and not run.saver.in_flight


def test_the_next_one_waits_for_it(run: Run) -> None:
    run.storage.open.clear()
    run.step(1)
    waiting = Thread(target=run.step, args=(2,))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and run.latest is None
    run.storage.open.set()
    waiting.join()
    run.saver.finish()
    assert run.latest == 2 and (run.config.directory / "checkpoints/step-1").is_dir()


def test_it_counts_when_its_step_is_reported(run: Run) -> None:
    """However quickly it is written; one of a step that was never reported never does."""
    run.save(1)
    partial = run.config.directory / "checkpoints/step-1.partial/manifest.json"
    until(partial.is_file)
    assert run.latest is None
    run.saver.keep()
    run.saver.finish()
    assert run.latest == 1
    run.save(2)
    run.saver.finish()
    assert run.latest == 1 and not run.saver.in_flight


@pytest.mark.parametrize("why", ["last", "best", "told to stop"])
def test_what_somebody_relies_on_is_waited_for(why: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "told to stop":
        monkeypatch.setattr(checkpointer, "reason_to_end", lambda _: Ending("stopped", 130))
    run.storage.open.clear()
    saving = Thread(target=lambda: run.save(1, last=why == "last", best=why == "best"))
    saving.start()
    saving.join(0.2)
    assert saving.is_alive()
    run.storage.open.set()
    saving.join()
    run.saver.keep()
    assert run.latest == 1 and not run.saver.in_flight


@pytest.mark.parametrize("how", ["it tells", "by its place"])
def test_one_that_is_lost_with_a_rank_is_given_up_and_made_again(how: str, run: Run, tmp_path: Path) -> None:
    """After the next step, once."""
    run = Run(tmp_path / "rare", run.storage, every=9)
    run.group.replaced = how == "by its place"  # before it was asked: the new one knows of nothing
    run.group.error = RankLost("policy[0].write: died", "policy", 0) if how == "it tells" else GroupError("no such")
    run.step(9)
    run.saver.finish()
    why = "policy[0].write: died" if how == "it tells" else "no such"
    assert run.warnings == [
        f"the checkpoint of step 9 was given up, as a rank was lost that had not written it ({why}): the next one "
        "comes after step 10"
    ]
    assert run.latest is None
    run.group.error, run.group.replaced = None, False
    for step in (10, 11):
        run.step(step)
        run.saver.finish()
        assert run.latest == 10


def test_a_rank_that_is_lost_in_one_that_is_waited_for_is_told_to_the_loop(run: Run) -> None:
    """Who brings the rank back and saves again."""
    run.group.error = RankLost("policy[0].write: died", "policy", 0)
    with pytest.raises(RankLost):
        run.save(1, last=True)
    assert run.warnings == []
    run.group.error = None
    run.saver.save(1, last=True)
    run.saver.keep()
    assert run.latest == 1


def test_another_driver_that_has_taken_over_meanwhile_keeps_its_checkpoints(run: Run) -> None:
    run.storage.open.clear()
    run.step(1)
    assert run.storage.reached.wait(60)
    (run.config.directory / "logs/driver.id").write_text("another")
    run.storage.open.set()
    run.saver.finish()
    assert run.latest is None
    with pytest.raises(UserError, match="another driver has taken over"):
        run.step(2)


@pytest.mark.parametrize(("error", "latest"), [(ValueError("a bug"), 1), (KeyboardInterrupt(), None)])
def test_a_run_that_fails_writes_it_to_its_end(error: BaseException, latest: int | None, run: Run) -> None:
    """Who interrupts it does not wait for storage that hangs."""
    run.storage.open.clear()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error)):
        patch.setattr("launch.run.run._PATIENCE_S", 0.1)
        with interruptible(), _written_to_the_end(run.saver, Display(Console(file=io.StringIO()))):
            run.step(1)
            if latest:
                run.storage.open.set()
            raise error
    assert run.latest == latest and run.saver.in_flight == (latest is None)


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Real ranks


@pytest.fixture(scope="module")
def group(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActorGroup[Trainee]]:
    """Two ranks."""
    with started_trainees(tmp_path_factory.mktemp("trainees")) as started:
        yield started.groups[2]


def start(group: ActorGroup[Trainee], stage: int, dtype: str) -> None:
    address, port = group.gather([group.submit(0, Trainee.address)], "address")[0]
    settings = TrainerConfig(
        zero_stage=stage, optimizer=OptimizerConfig(lr=2e-3), ema_decay=0.7, timeout_s=60,
        deepspeed={"zero_optimization": {"reduce_bucket_size": 1_000_000}} if stage else {},
    )  # fmt: skip
    lora = {"lora": {"rank": 3, "dropout": 0.1}} if stage != 1 else {}
    model = ModelConfig.model_validate({"init": INIT, "dtype": dtype} | lora)
    group.call(Trainee.restart, PolicyWorker, address, port, model, settings, share_prompts=False, updates=9)


def learn(group: ActorGroup[Trainee]) -> list[float]:
    generator = np.random.default_rng(3)
    given = [Sequence(token_ids=generator.integers(3, 90, size=9), action_mask=np.arange(9) > 1) for _ in range(4)]
    totals = Totals(tokens=28, sequences=4, trained_tokens=28)
    plans = [([given[rank::2]], totals, sft_loss) for rank in range(2)]
    return [group.scatter(Trainee.learn, plans)[0]["loss"] for _ in range(2)]


@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_what_is_written_beside_training_is_what_was_captured(
    stage: int, dtype: str, group: ActorGroup[Trainee], tmp_path: Path
) -> None:
    """Byte by byte what `save` writes at that moment, although ranks learn before they write, and while they do."""
    start(group, stage, dtype)
    learn(group)
    group.call(Trainee.save, tmp_path / "on the path")
    group.call(Trainee.capture, tmp_path / "beside")
    assert not (tmp_path / "beside").exists()
    learn(group)
    group.call(Trainee.hold_disk, tmp_path / "go on")
    writing = [group.submit(rank, Trainee.write_captured, tmp_path / "beside") for rank in range(2)]
    learn(group)
    assert group.ended(writing) == set()
    for pulse in group.pulses(10):
        assert isinstance(pulse, Pulse) and pulse.method is None, "it waits for work"
    (tmp_path / "go on").touch()
    told = [{name: sha256 for name, _, sha256 in each if sha256} for each in group.gather(writing, "write")]
    group.call(Trainee.fill_disk, full=False)
    expected = contents(tmp_path / "on the path")
    assert contents(tmp_path / "beside") == expected
    hashes = told[0] | told[1]
    assert hashes == {name: own_files.sha256_of(tmp_path / "beside" / name) for name in hashes}
    assert {name for name in expected if name.endswith(".pt")} == set(hashes)
    group.call(Trainee.save, tmp_path / "later")
    assert contents(tmp_path / "later") != expected, "else nothing was learned"


def test_what_was_not_captured_is_not_written(group: ActorGroup[Trainee], tmp_path: Path) -> None:
    start(group, 0, "fp32")
    with pytest.raises(GroupError, match="nothing was captured for"):
        group.call(Trainee.write_captured, tmp_path / "beside")


def state(group: ActorGroup[Trainee]) -> dict[str, Any]:
    found = {"drawn": group.call(Trainee.drawn)}
    for rank, (weights, optimized) in enumerate(
        zip(group.call(Trainee.weights), group.call(Trainee.optimized), strict=True)
    ):
        found |= {f"{name} of {rank}": value for name, value in (weights | optimized).items()}
    return found


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_new_ranks_go_back_to_a_copy_in_memory(stage: int, group: ActorGroup[Trainee]) -> None:
    """It is of the moment at which it was begun, although ranks learn before it is kept: what they learn from there is,
    bit for bit, the same, with adapters, dropout, averages and moments. One lost with its keeper is taken anew."""
    ranks: Any = {"policy": group}
    start(group, stage, "fp32")
    learn(group)
    keepers, log = Keepers(Placement()), list[str]()
    copies = Copies(1, ranks, keepers, log.append)
    try:
        for lost in (False, True):
            assert copies.due(1, 1.0, False)
            copies.begin(1)
            undisturbed = learn(group), state(group)
            copies.finish(60)
            assert copies.step == 1 and len(log) == lost
            start(group, stage, "fp32")
            copies.load()
            found = learn(group), state(group)
            assert found[0] == undisturbed[0]
            for name, value in undisturbed[1].items():
                assert np.array_equal(found[1][name], value), name
            if not lost:
                [post] = keepers._posts.values()
                ray.kill(post.handle)
                with pytest.raises(NotKept, match=r"the share of policy\[\d\] is lost"):
                    copies.load()
                assert copies.step is None
    finally:
        copies.close()
    assert list(Path(tempfile.gettempdir()).glob("tandem-copy-*")) == []


@pytest.mark.parametrize(("stage", "rank"), [(0, 0), (2, 1), (3, 0)])
def test_one_rank_on_a_full_disk_leaves_no_other_one_waiting(
    stage: int, rank: int, group: ActorGroup[Trainee], tmp_path: Path
) -> None:
    """On the training path. Both train on, bit for bit as without the try, and the next checkpoint has what an
    undisturbed one has."""
    start(group, stage, "fp32")
    undisturbed: Any = [learn(group), group.call(Trainee.save, tmp_path / "whole") and learn(group)]
    state = group.call(Trainee.weights)[0]
    start(group, stage, "fp32")
    found = [learn(group)]
    group.gather([group.submit(rank, Trainee.fill_disk, full=True)], "fill_disk", ranks=[rank])
    with pytest.raises(GroupError) as caught:
        group.call(Trainee.save, tmp_path / "failed")
    why = str(storage_failure(caught.value))
    assert "did not fit" in why and "\n" not in why, why
    # Each has ended: what it would write still is nobody's.
    shutil.rmtree(tmp_path / "failed")
    group.gather([group.submit(rank, Trainee.fill_disk, full=False)], "fill_disk", ranks=[rank])
    group.call(Trainee.save, tmp_path / "again")
    assert not (tmp_path / "failed").exists()
    found.append(learn(group))
    assert found == undisturbed
    for name, value in group.call(Trainee.weights)[0].items():
        assert np.array_equal(value, state[name]), name
    names = {str(path.relative_to(tmp_path / "whole")) for path in (tmp_path / "whole").rglob("*")}
    assert names == {str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*")}
    assert "latest" in names and (tmp_path / "again/latest").read_text() == "state"


def test_one_rank_on_a_full_disk_is_told_beside_training(group: ActorGroup[Trainee], tmp_path: Path) -> None:
    """And the next one is written."""
    start(group, 2, "fp32")
    group.call(Trainee.capture, tmp_path / "failed")
    group.gather([group.submit(1, Trainee.fill_disk, full=True)], "fill_disk", ranks=[1])
    with pytest.raises(GroupError) as caught:
        group.call(Trainee.write_captured, tmp_path / "failed")
    group.call(Trainee.fill_disk, full=False)
    assert "did not fit" in str(storage_failure(caught.value))
    group.call(Trainee.capture, tmp_path / "again")
    group.call(Trainee.write_captured, tmp_path / "again")
    group.call(Trainee.save, tmp_path / "expected")
    assert contents(tmp_path / "again") == contents(tmp_path / "expected")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
