"""Where a run meets its storage: at a checkpoint, at a resume, and in the end."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from launch.alerts.alerts import Alerts
from launch.config import CheckpointConfig
from launch.run import signals
from launch.run.checkpointer import RunCheckpointer
from launch.run.ending import Ending
from launch.run.faults import Faults
from launch.run.manifest import step_of
from launch.run.run import _end, _prepare
from launch.run.saves import Saves, resume
from launch.tracking.events import read_events
from tests.test_saves import Notes, StandInForALoop, job
from tests.test_storage import memory, stored
from tests.test_uploads import Uploads, until


class Recorder:
    """Uploads that only note what they are asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.ends_by: UserError | None = None

    def put(self, step: int, directory: Path, *, best: bool = False) -> None:
        self.asked.append((step, directory, best))

    def put_earlier(self, directories: Iterable[Path], best: Path | None) -> None:
        self.asked += [(step_of(directory), directory, directory == best) for directory in directories]

    def spared(self) -> set[Path]:
        return {directory for _, directory, _ in self.asked}

    def check(self) -> None:
        if self.ends_by:
            raise self.ends_by


class StandInForADisplay:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.note = self.warning = self.told.append


def with_uploads() -> Any:
    notes: Any = Notes()
    notes.uploads = Recorder()
    return notes


@pytest.mark.parametrize("beside", [True, False])
def test_a_checkpoint_that_is_whole_is_put_and_spared_while_it_is_needed(
    beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one that a start goes on from: an earlier one has not put it there, perhaps."""
    monkeypatch.setattr("launch.run.checkpointer.reason_to_end", lambda _: None)  # without a Ray that could be asked
    config, reporter = job(tmp_path), with_uploads()
    checkpoint = config.checkpoint.model_copy(update={"every": 1, "keep": 1, "beside": beside})
    config = config.model_copy(update={"checkpoint": checkpoint})
    _prepare(config, print)
    saves = Saves({})
    resume(config, saves, StandInForALoop(seed=1), reporter)
    saver = RunCheckpointer(config, saves, set(), reporter)
    for step in (1, 2):
        saver.save(step, last=step == 2)
        saver.keep()
        saver.finish()
    kept = config.directory / "checkpoints"
    assert reporter.uploads.asked == [(step, kept / f"step-{step}", False) for step in (1, 2)]
    assert sorted(path.name for path in kept.glob("step-*")) == ["step-1", "step-2"]
    again = with_uploads()
    resume(config, Saves({}), StandInForALoop(), again)
    assert again.uploads.asked == [(2, kept / "step-2", False)]
    reporter.uploads.ends_by = UserError("run.storage: must take checkpoints again")
    saver.save(3, last=False)
    saver.keep()
    with pytest.raises(UserError, match="must take checkpoints again"):
        saver.end_if_asked()
    assert (kept / "latest").read_text() == "step-3", "the run ends with what it has"
    saver.save(4, last=True)
    saver.keep()
    saver.end_if_asked()
    assert reporter.uploads.asked[-1] == (4, kept / "step-4", False), "its end waits for that, and tells"
    saver.save(5, last=False)
    monkeypatch.setattr("launch.run.checkpointer.reason_to_end", lambda _: Ending("stopped", 130))
    saver.save(6, last=False)
    saver.keep()
    assert (kept / "latest").read_text() == "step-6"
    with pytest.raises(Ending):
        saver.end_if_asked()


class Ended:
    """A run that has ended, one checkpoint of which is not in storage, which fails until it is `mended`."""

    def __init__(self, directory: Path) -> None:
        self.config = job(directory)
        self.config.directory.mkdir(parents=True)
        self.display: Any = StandInForADisplay()
        self.faults = Faults(self.config)
        self.faults.open(anew=True, told=lambda _: None)
        self.storage = memory()
        checkpoints = stored(self.storage)
        self.storage.fails = lambda count, name: True
        rules = CheckpointConfig(every=1)
        warn = self.display.warning
        self.uploads = Uploads(checkpoints, None, rules, self.faults.events, warn, first_back_off_s=0.001)
        model = self.config.directory / "export"
        model.mkdir()
        (model / "config.json").write_text("{}")
        self.uploads.put_export(model)
        until(lambda: len(self.display.told) > 1)

    def mend(self) -> None:
        self.storage.fails = lambda count, name: False

    def end(self, by: BaseException | None) -> bool:
        alerts = Alerts(
            self.config, self.faults.events, show=lambda _, text: pytest.fail(text), warn=self.display.warning
        )
        return _end(self.config, self.uploads, self.display, self.faults, alerts, by)

    def events(self) -> list[str]:
        return [line.get("did", line["event"]) for line in read_events(self.config.directory / "events.jsonl")]


def test_the_end_of_a_run_waits_for_storage(tmp_path: Path) -> None:
    ended = Ended(tmp_path)
    ended.mend()
    assert not ended.end(None)
    assert ended.storage.text("first/export/config.json") == "{}"
    assert ended.events() == ["noticed", "uploaded"]
    assert not [line for line in ended.display.told if "not in" in line]


@pytest.mark.parametrize("by", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_who_interrupts_a_run_does_not_wait_for_storage(by: BaseException, tmp_path: Path) -> None:
    """Nor does it hold up an end by an error for longer than a job has to stop; what is missing is told."""
    ended = Ended(tmp_path)
    cluster = ended.config.cluster.model_copy(update={"stop_wait_s": 0.2})
    ended.config = ended.config.model_copy(update={"cluster": cluster})
    assert not ended.end(by)
    waited = any("waiting for uploads to" in line for line in ended.display.told)
    assert waited == isinstance(by, RuntimeError)
    assert "not in memory://" in ended.display.told[-1] and "first: export (cannot write" in ended.display.told[-1]
    assert "uploaded" not in ended.events() and len(ended.events()) == 2


@pytest.mark.parametrize("by", [Ending("stopped", 130), None])
def test_who_stops_a_run_is_not_kept_waiting_until_it_is_killed(
    by: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where SIGTERM has come in the last step: step and checkpoint have taken 289.8 of its 300 s, 10 are left for
    the end."""
    ended = Ended(tmp_path)
    monkeypatch.setattr(signals, "_asked", True)
    monkeypatch.setattr(signals, "_asked_at", time.monotonic() - 289.8)
    began = time.monotonic()
    assert not ended.end(by)
    assert time.monotonic() - began < 60 and "not in memory://" in ended.display.told[-1]


def test_the_next_attempt_has_what_is_missing(tmp_path: Path) -> None:
    """So this one neither waits nor tells."""
    ended = Ended(tmp_path)
    told = len(ended.display.told)
    ended.faults.end = lambda error, warn: True  # type: ignore[method-assign]
    assert ended.end(RuntimeError("a fault"))
    assert not [line for line in ended.display.told[told:] if "not in" in line or "waiting" in line]


def test_interrupting_the_wait_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Ended(tmp_path)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ended.uploads._news, "wait", interrupted, raising=True)
    assert not ended.end(None)
    assert "not in memory://" in ended.display.told[-1]
