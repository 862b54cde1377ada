"""Storage that fails while a checkpoint is written: the run goes on as if nothing had been tried, and tries again."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.config import UserError
from actors.files import own_files, parts
from actors.files.full_disk import DiskFull, storage_failure
from actors.files.parts import Entry, write_arrays
from actors.group import GroupError
from algorithms.loop import Best
from launch.config import validate
from launch.run import checkpointer
from launch.run.checkpoint import Checkpoints, Written
from launch.run.checkpointer import RunCheckpointer
from launch.run.ending import Ending
from launch.run.run import _prepare
from launch.run.saves import Saves
from launch.tracking.events import Events, read_events

ROOT = Path(__file__).resolve().parent.parent


def job(output: Path, **checkpoint: Any) -> Any:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 30, "eval_every": 1, "best_by": "eval/loss"},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
            "checkpoint": checkpoint,
            "tracking": {"wandb": False},
            "run": {"output": str(output), "name": "first"},
        }
    )


class Store:
    """A part whose storage takes what it is given, or fails with an error."""

    of_now: "Store"

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.tried = 0
        Store.of_now = self

    def save(self, directory: Path) -> Entry:
        write_arrays({"a": np.ones(9)}, directory / "a")
        return {}

    def create(self, path: Path) -> int:
        """As `actors.files.own_files.create`, of the file of arrays."""
        self.tried += 1
        descriptor = own_files.create(path)
        if self.error:
            os.close(descriptor)
            raise self.error
        return descriptor

    def load(self, directory: Path, entry: Entry) -> None:
        raise AssertionError("nothing is loaded here")


class Run:
    """A run that saves, up to its loop."""

    def __init__(self, output: Path, **checkpoint: Any) -> None:
        self.config = job(output, **checkpoint)
        _prepare(self.config, print)
        self.store, self.best, self.seconds = Store(), Best("eval/loss"), 0.0
        saves = Saves({})
        saves.add("store", self.store)
        saves.add("best", self.best)
        self.warnings: list[str] = []
        self.told: list[str] = []
        self.events = Events(self.config.directory, told=self.told.append)
        now = SimpleNamespace(events=self.events)
        reporter: Any = SimpleNamespace(now=now, warning=self.warnings.append, uploads=None)
        self.saver = RunCheckpointer(self.config, saves, set(), reporter, lambda: self.seconds)

    def step(self, step: int, *, last: bool = False, best: float | None = None) -> None:
        improved = best is not None and self.best.improved_by({"eval/loss": best})
        self.saver.save(step, last, improved)
        self.saver.keep()
        self.saver.end_if_asked()
        self.saver.finish()  # before the next step ends, as where storage is quick

    def fails_in(self, steps: range) -> list[int]:
        """The steps after which a checkpoint was tried."""
        tried = []
        for step in steps:
            before = self.store.tried
            self.step(step)
            tried += [step] * (self.store.tried > before)
        return tried

    @property
    def kept(self) -> list[str]:
        return sorted(path.name for path in (self.config.directory / "checkpoints").iterdir())

    def faults(self) -> list[tuple[str, str, str]]:
        lines = read_events(self.config.directory / "events.jsonl")
        return [(line["who"], line["event"], line.get("did", line["cause"])) for line in lines]


@pytest.fixture(autouse=True)
def _no_node_leaves() -> Iterator[None]:
    """Without a Ray that could be asked; files go where `Store` says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer, "reason_to_end", lambda _: None)
        patch.setattr(parts, "create", lambda path: Store.of_now.create(path))
        yield


@pytest.fixture(params=[True, False], ids=["beside", "on the training path"])
def beside(request: pytest.FixtureRequest) -> bool:
    return request.param


def of_a_rank(error: BaseException) -> GroupError:
    """As an error of a rank arrives."""
    arrived = GroupError("policy[1].save: " + str(error))
    arrived.__cause__ = RuntimeError("in a rank")
    arrived.__cause__.cause = error  # pyright: ignore[reportAttributeAccessIssue]
    return arrived


FAILING = {
    os.strerror(number): OSError(number, os.strerror(number), "/a")
    for number in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EROFS,
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
    )
}
FAILING |= {
    "a rank's": of_a_rank(OSError(errno.ESTALE, "Stale file handle", "/a")),
    "a rank's full disk": of_a_rank(DiskFull("run.output: must be on a disk with room: /a did not fit")),
}


@pytest.mark.parametrize("name", FAILING)
def test_the_run_goes_on_says_so_and_tries_again(name: str, beside: bool, tmp_path: Path) -> None:
    run = Run(tmp_path, beside=beside, every=5)
    run.step(5)
    run.store.error = FAILING[name]
    run.step(10)
    assert run.kept == ["latest", "step-5"]
    (line,) = run.warnings
    assert line.startswith("the checkpoint of step 10 was not written, ") and "\n" not in line
    assert line.endswith("; the one before has 136 bytes: the run goes on, and tries again after step 11")
    assert ("did not fit" in line) == ("full" in name or name in (os.strerror(28), os.strerror(122)))
    run.store.error = None
    run.step(11)
    assert run.kept == ["latest", "step-11", "step-5"]
    found = Checkpoints(run.config).latest()
    assert found is not None and found.step == 11
    assert [(who, event) for who, event, _ in run.faults()] == [("disk", "noticed"), ("disk", "recovered")]
    assert run.faults()[1][2] == "written"
    (over,) = run.told
    assert over.startswith("disk is back after 0.") and len(run.warnings) == 1


def test_it_is_tried_again_ever_more_rarely_and_when_it_is_time(beside: bool, tmp_path: Path) -> None:
    """And the next time that storage fails is another fault."""
    run = Run(tmp_path, beside=beside, every=10)
    run.store.error = FAILING["Input/output error"]
    assert run.fails_in(range(1, 36)) == [10, 11, 13, 17, 20, 30]
    run.store.error = None
    assert run.fails_in(range(36, 111)) == [40, 50, 60, 70, 80, 90, 100, 110]
    run.store.error = FAILING["Input/output error"]
    assert run.fails_in(range(111, 122)) == [120, 121]
    assert [event for _, event, _ in run.faults()] == ["noticed", "recovered", "noticed"]
    assert len(run.warnings) == 8


def test_a_run_without_a_whole_checkpoint_for_too_long_ends(beside: bool, tmp_path: Path) -> None:
    """With the error itself; counted from the last whole one, and tried as soon as it is too old."""
    run = Run(tmp_path, beside=beside, every=100, max_age_s=50)
    run.store.error = of_a_rank(FAILING["Read-only file system"])
    run.seconds = 40
    run.step(100)
    run.step(101)
    run.seconds = 50
    run.step(102)
    run.seconds = 50.5
    with pytest.raises(GroupError) as caught:
        run.step(103)
    assert caught.value is run.store.error and "step-103.partial" not in run.kept
    assert run.faults()[-1] == ("disk", "given up", "Read-only file system: /a")


def test_the_age_counts_from_the_last_whole_one(beside: bool, tmp_path: Path) -> None:
    run = Run(tmp_path, beside=beside, every=1, max_age_s=50)
    for step in (1, 2, 3):
        run.seconds += 40
        run.step(step)
    run.store.error = FAILING["Input/output error"]
    run.seconds += 40
    run.step(4)
    run.seconds += 40
    with pytest.raises(OSError, match="Input/output error"):
        run.step(5)


@pytest.mark.parametrize("why", ["last step", "told to stop"])
def test_what_nothing_comes_after_must_be_written(
    why: str, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, beside=beside)
    run.store.error = DiskFull("run.output: must be on a disk with room: /a did not fit")
    if why == "told to stop":
        monkeypatch.setattr(checkpointer, "reason_to_end", lambda _: Ending("stopped", 130))
    with pytest.raises(DiskFull):
        run.step(7, last=why == "last step")
    assert run.kept == [] and not run.warnings


def test_what_is_no_failure_of_storage_ends_the_run_at_once(beside: bool, tmp_path: Path) -> None:
    """Other errors, another driver, and a directory that is gone: as the step ends, or beside training the next one."""
    run = Run(tmp_path, beside=beside, every=1)
    for error in (ValueError("a bug"), UserError("a mistake"), OSError(errno.ENOTDIR, "no directory"), GroupError("?")):
        run.store.error = error
        with pytest.raises(type(error)):
            run.step(1)
            run.store.error = None
            run.step(2)  # whose thread has nothing more to say
    run.store.error = None
    (run.config.directory / "logs/driver.id").write_text("another")
    with pytest.raises(UserError, match="another driver has taken over"):
        run.step(2)
    shutil.rmtree(run.config.directory)
    with pytest.raises(UserError, match="was removed or moved"):
        run.step(3)
    assert not run.warnings


def test_a_mistake_that_came_of_a_failure_is_a_mistake() -> None:
    try:
        raise UserError("a mistake") from FAILING["Permission denied"]
    except UserError as error:
        assert storage_failure(error) is None


@pytest.mark.parametrize("allowed", range(3))
def test_a_checkpoint_that_cannot_be_put_in_place_is_tried_again(
    allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each rename; nothing half-made is left, and another start finds a whole one."""
    run = Run(tmp_path, every=1)
    run.step(1, best=2.0)
    replace, left = os.replace, iter(range(allowed))

    def replaced(source: Path, target: Path) -> None:
        if next(left, None) is None:
            raise FAILING["Stale file handle"]
        replace(source, target)

    monkeypatch.setattr("launch.run.checkpoint.os.replace", replaced)
    run.step(2, best=1.0)
    monkeypatch.undo()
    assert len(run.warnings) == 1 and not [name for name in run.kept if name.startswith("step-2.")]
    found = Checkpoints(run.config).latest()
    assert found is not None and found.step == (2 if allowed else 1)
    run.step(3)
    assert "step-3" in run.kept and (run.config.directory / "checkpoints/latest").read_text() == "step-3"


def test_the_best_value_is_that_of_a_checkpoint(beside: bool, tmp_path: Path) -> None:
    """One that was better and not written must not keep those from being the best that are worse."""
    run = Run(tmp_path, beside=beside)
    run.store.error = FAILING["Input/output error"]
    run.step(1, best=1.0)
    assert run.best.value is None
    run.store.error = None
    run.step(2, best=3.0)
    run.store.error = FAILING["Input/output error"]
    run.step(3, best=2.0)
    assert run.best.value == 3.0 and Checkpoints(run.config).best() == run.config.directory / "checkpoints/step-2"


def test_checkpoints_that_cannot_be_removed_stand_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, every=1, keep=1)
    run.step(1)

    def rmtree(path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("launch.run.checkpoint.shutil.rmtree", rmtree)
    run.step(2)
    monkeypatch.undo()
    assert run.kept == ["latest", "step-1", "step-2"] and not run.warnings
    run.step(3)
    assert run.kept == ["latest", "step-3"]


def test_every_kth_is_kept_for_good(tmp_path: Path) -> None:
    checkpoints = Checkpoints(job(tmp_path, every=5, keep=2, keep_every=20))

    def write(directory: Path) -> Written:
        (directory / "a").write_text("a")
        return Written({}, [("a", 1, None)])

    for step in range(5, 66, 5):
        checkpoints.save(step, write)
    found = sorted(int(path.name[5:]) for path in (tmp_path / "first/checkpoints").glob("step-*"))
    assert found == [20, 40, 55, 60, 65]


@pytest.mark.parametrize(
    ("checkpoint", "line"),
    [
        ({"every": 20, "keep_every": 50}, "checkpoint.keep_every must be a multiple of every (20), got 50"),
        (
            {"keep_every": 50},
            "checkpoint.keep_every must be left out without every, as only the last step is saved, got 50",
        ),
        ({"max_age_s": 0}, "checkpoint.max_age_s: must be at least 0.1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(checkpoint: Any, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        job(tmp_path, **checkpoint)
    assert caught.value.problems == (line,)


def test_a_print_in_a_rank_whose_log_takes_nothing_fails_nothing() -> None:
    """Python's own output, and what is left of it in the end."""
    program = (
        "import sys; from actors.output_log import write_output_to_log; write_output_to_log()\n"
        "for _ in range(300): print('x' * 1000, flush=True); print('y' * 100_000, file=sys.stderr)\n"
        "print('left', end='')"
    )
    environment = os.environ | {"TANDEM_LOG": "/dev/full"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 0


def test_a_rank_writes_its_log_as_before(tmp_path: Path) -> None:
    """Line by line, in order with what children write."""
    program = (
        "import os, sys; from actors.output_log import write_output_to_log; write_output_to_log()\n"
        "print('one ä'); os.system('echo two'); print('three', file=sys.stderr); print('four \\udcff'); os._exit(0)"
    )
    environment = os.environ | {"TANDEM_LOG": str(tmp_path / "log")}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, timeout=120, check=True)
    assert (tmp_path / "log").read_text() == "one ä\ntwo\nthree\nfour \\udcff\n"
