"""What uploads say: of storage that hangs, of another driver, of files that are gone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_storage import job, memory, save, stored
from tests.test_uploads import Beside, Held, until


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Beside]:
    """Whose first write waits to be let go."""
    made = Beside(tmp_path / "first", Held(memory().url), job(tmp_path, max_age_s=50, keep=9).checkpoint)
    yield made
    made.storage.go.set()
    made.uploads.stop()


def test_storage_that_hangs_is_warned_of_once(run: Beside, tmp_path: Path) -> None:
    """By the age of what is there, while something newer waits: an upload that takes its time is no failure."""
    config = job(tmp_path, keep=9)
    run.seconds = 1000.0
    run.uploads.check()
    run.uploads.put(1, save(config, 1))
    assert run.storage.held.wait(60)
    run.seconds += 50
    run.uploads.check()
    assert run.warnings == []
    run.seconds += 1
    for step in (2, 3):
        run.uploads.put(step, save(config, step))
        run.uploads.check()
    age = "for longer than checkpoint.max_age_s (50)"
    slow = "storage is too slow, or hangs: the run goes on"
    assert run.warnings == [f"not in {run.stored.url} {age}: step-1, step-2; {slow}"]
    assert run.faults() == []
    run.storage.go.set()
    until(lambda: not run.uploads.spared())
    run.seconds += 1000
    run.uploads.check()
    assert len(run.warnings) == 1, "all is there, however old"
    run.storage.held.clear()
    run.storage.go.clear()
    run.uploads.put(4, save(config, 4))
    assert run.storage.held.wait(60)
    run.uploads.check()
    run.seconds = float("nan")
    run.uploads.check()
    assert len(run.warnings) == 2


def test_another_driver_is_told_when_it_takes_over_at_last(run: Beside, tmp_path: Path) -> None:
    """When nothing asks any more but the end: the line has the reason, and promises nothing."""
    run.uploads.put(1, save(job(tmp_path), 1))
    assert run.storage.held.wait(60)
    run.uploads.put_export(tmp_path)
    stored(run.storage, "another")
    run.storage.go.set()
    assert not run.uploads.finish(60, lambda _: None)
    url = run.stored.url
    assert run.warnings == [f"not in {url}: step-1, export (another driver has taken over {url}, so this one ends)"]


def test_files_that_are_gone_are_not_uploaded(run: Beside, tmp_path: Path) -> None:
    """Storage failed, and works again: the fault is over, but nothing was uploaded."""
    run.storage.go.set()
    run.storage.fails = lambda count, name: True
    directory = save(job(tmp_path), 1)
    run.uploads.put(1, directory)
    until(lambda: bool(run.warnings))
    shutil.rmtree(directory)
    assert run.uploads.finish(60, lambda _: None)
    (_, did) = run.faults()[-1]
    assert did.startswith("its files are gone or damaged (") and ("storage", "uploaded") not in run.faults()


def test_the_newest_is_tried_again_before_those_of_an_earlier_start(run: Beside, tmp_path: Path) -> None:
    """However many of them wait: it gives way to none of them, and stays the latest."""
    rules: Any = {"keep": 1, "keep_every": 2}
    run.uploads._rules = job(tmp_path, **rules).checkpoint
    config = job(tmp_path, **rules)
    directories = {step: save(config, step, best=step == 3) for step in (2, 3, 4, 5)}
    failed = 0

    def fails(count: int, name: str) -> bool:
        nonlocal failed
        failed += "step-5" in name
        return "step-5" in name and failed < 3

    run.storage.fails = fails
    run.uploads.put_earlier([directories[step] for step in (2, 3, 4)], directories[3])
    run.uploads.put(5, directories[5])
    run.storage.go.set()
    assert run.uploads.finish(60, lambda _: None)
    assert (run.stored.steps(), run.stored.pointer("latest"), run.stored.pointer("best")) == ([2, 3, 4, 5], 5, 3)
    named = [name.removeprefix("first/checkpoints/") for name in run.storage.writes]
    assert named.index("step-5/manifest.json") < named.index("step-3/manifest.json"), "2 may have begun before"
