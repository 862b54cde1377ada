"""now.json while a run goes on: where its attempt began, who starts it again, and a word now and then."""

import json
import os
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import launch.run.run
from launch.tracking.events import Events
from launch.tracking.now import Now, read_now
from tests.test_now import BEGAN, Clock, job


def made(directory: Path, clock: Clock, reached: int = 0, **more: Any) -> Now:
    (directory / "logs").mkdir(exist_ok=True)
    return Now(directory, Events(directory, clock=clock), reached, clock=clock, seconds=clock, **more)


def told(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "logs/now.json").read_text())


def test_where_an_attempt_began_is_where_it_goes_on_and_who_starts_it_again_is_told(tmp_path: Path) -> None:
    clock = Clock()
    now = made(tmp_path, clock, 5)
    assert (told(tmp_path)["began_step"], "starter" in told(tmp_path)) == (5, False)
    clock.now += 10
    now.rewind(3)
    now.phase("sync")
    assert told(tmp_path)["began_step"] == 3, "of a checkpoint that was damaged"
    now.start(4, 30)
    now.phase("rollout")
    now.step(5)
    now.phase("update")
    assert (told(tmp_path)["began_step"], told(tmp_path)["step"]) == (4, 6)
    assert datetime.fromisoformat(told(tmp_path)["began_at"]).timestamp() == BEGAN
    made(tmp_path, clock, starter=4711)
    assert told(tmp_path)["starter"] == 4711 and told(tmp_path)["began_step"] == 0
    assert datetime.fromisoformat(told(tmp_path)["began_at"]).timestamp() == BEGAN + 10


def test_it_is_written_anew_while_nothing_changes(tmp_path: Path) -> None:
    clock = Clock()
    now = made(tmp_path, clock)

    def comes(at: float) -> bool:
        """Whether a word comes that was written then."""
        clock.now, until = at, time.monotonic() + 10
        while (found := read_now(tmp_path)) is None or found.at != at:
            if time.monotonic() > until:
                return False
            time.sleep(0.002)
        return True

    with now.kept_fresh(0.005):
        assert comes(BEGAN + 100) and comes(BEGAN + 200)
    before = (tmp_path / "logs/now.json").stat().st_ino
    time.sleep(0.03)
    assert (tmp_path / "logs/now.json").stat().st_ino == before, "nothing is written once the run has ended"


def test_a_run_says_words_from_its_start_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = list[tuple[bool, int]]()

    def speaks() -> bool:
        return any(thread.name == "now" for thread in threading.enumerate())

    def train(config: Any, reporter: Any, display: Any, faults: Any) -> None:
        words.append((speaks(), told(config.directory)["starter"]))
        (config.directory / "export").mkdir()

    monkeypatch.setattr(launch.run.run, "_learn_and_export", train)
    assert launch.run.run.run(job(tmp_path)) == 0
    assert words == [(True, os.getpid())] and not speaks()
