"""Waits for a checkpoint that is being written: how long, what is said of one that is slow, and who may end them."""

import errno
import io
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from rich.console import Console

from actors.files import parts
from actors.group_errors import RankLate, RankLost
from launch.run import checkpointer, signals
from launch.run.ending import Ending
from launch.run.run import _written_to_the_end
from launch.run.signals import interruptible
from launch.screen.display import Display
from launch.tracking.events import read_events
from tests.test_beside import FakeGroup, Run, Storage, until


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    storage = Storage()
    monkeypatch.setattr(parts, "create", storage.create)
    monkeypatch.setattr(checkpointer, "reason_to_end", lambda _: None)
    yield Run(tmp_path, storage)
    storage.open.set()


def faults(run: Run) -> list[tuple[str, str]]:
    return [
        (line["who"], line.get("did", line["event"])) for line in read_events(run.config.directory / "events.jsonl")
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_of_a_run_that_has_failed(number: int, run: Run) -> None:
    """The first one; the cause stays what is told. What is waited for is said."""
    run.storage.open.clear()
    display = Display(Console(file=io.StringIO()))
    phases: list[str] = []
    display.phase = lambda name, detail="": phases.append(name)  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(ValueError, match="a bug"), interruptible():
        signals.finish_steps()
        with _written_to_the_end(run.saver, display):
            run.step(1)
            assert run.storage.reached.wait(60)
            Timer(0.2, os.kill, (os.getpid(), number)).start()
            raise ValueError("a bug")
    assert phases == ["writing the checkpoint"] and time.monotonic() - began < 30
    assert run.saver.in_flight and run.latest is None


def test_a_run_that_fails_with_nothing_to_write_says_nothing_of_it(run: Run) -> None:
    phases: list[str] = []
    display = Display(Console(file=io.StringIO()))
    display.phase = lambda name, detail="": phases.append(name)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="a bug"), interruptible(), _written_to_the_end(run.saver, display):
        run.step(1)
        run.saver.finish()
        raise ValueError("a bug")
    assert phases == []


def test_storage_that_hangs_is_waited_for_as_long_as_a_checkpoint_may_be_old(run: Run) -> None:
    """Then it ends the run, as storage that fails does; what has failed is not waited for again."""
    run.storage.open.clear()
    run.saver._max_age_s = 0.2
    run.saver._saves.groups = {}
    run.step(1)
    with pytest.raises(TimeoutError) as caught:
        run.step(2)
    assert caught.value.errno == errno.ETIMEDOUT and "the checkpoint of step 1 is not written after " in str(caught)
    began = time.monotonic()
    assert not run.saver.close() and time.monotonic() - began < 0.2
    run.storage.open.set()
    until(lambda: not run.saver.in_flight)


def test_whoever_stops_the_run_is_not_kept_waiting_until_it_is_killed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM has come 289.9 of 300 s ago: 10 are left for the end."""
    run.storage.open.clear()
    run.step(1)
    monkeypatch.setattr(checkpointer, "reason_to_end", lambda _: Ending("stopped", 130))
    monkeypatch.setattr(signals, "_asked", True)
    monkeypatch.setattr(signals, "_asked_at", time.monotonic() - 289.9)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="the checkpoint of step 1 is not written"):
        run.step(2)
    assert time.monotonic() - began < 30
    assert signals.left_to_stop_s(300) == 0 and signals.left_to_stop_s(400) == pytest.approx(100, abs=30)
    monkeypatch.setattr(signals, "_asked", False)
    assert signals.left_to_stop_s(300) is None


class Waits(FakeGroup):
    """Ranks that still write whatever becomes of another one."""

    def __init__(self, error: Any) -> None:
        super().__init__()
        self.error = error

    def wait(self, refs: list[Path]) -> None:
        raise AssertionError("nobody waits for them")


def test_the_loss_of_a_rank_is_told_before_the_others_have_written(run: Run) -> None:
    group: Any = Waits(RankLost("policy[0].write: died", "policy", 0))
    run.saver._saves.groups = {"policy": group}
    with pytest.raises(RankLost):
        run.save(1, last=True)


def test_ranks_that_take_too_long_to_write_are_slow_storage(run: Run) -> None:
    """Not frozen: the run goes on, and tries again."""
    group: Any = Waits(RankLate("policy.write: no answer from rank(s) [0] within 3600 s", "policy", [0]))
    run.saver._saves.groups = {"policy": group}
    run.step(1)
    run.saver.finish()
    (line,) = run.warnings
    why = "it takes too long (policy.write: no answer from rank(s) [0] within 3600 s)"
    assert line.startswith(f"the checkpoint of step 1 was not written, {why}: ")
    assert line.endswith("the run goes on, and tries again after step 2") and faults(run) == [("disk", "noticed")]
    group.error = None
    run.step(2)
    run.saver.finish()
    assert run.latest == 2 and faults(run)[-1] == ("disk", "written")


@pytest.mark.parametrize("error", [RankLost("policy[0].write: died"), OSError(errno.EIO, "Input/output error", "/a")])
def test_nothing_is_tried_again_while_the_run_ends(error: Any, run: Run) -> None:
    """Ranks that are ended write no more, which says nothing; what storage says does."""
    group: Any = run.group
    group.error = error
    run.saver._closing = True  # as `close` says first
    run.step(1)
    run.saver.close()
    told = ["the checkpoint of step 1 was not written, Input/output error: /a"] if isinstance(error, OSError) else []
    assert run.warnings == told
