"""What the page's server tells of a run: its starts, its remaining time and its settings; and how often it looks."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.page import answers as answers_module
from launch.page import files as files_module
from launch.page import run_list as run_list_module
from launch.page.answers import Answers
from launch.page.files import Below, find_runs
from launch.page.live import ListNews, RunNews
from launch.page.logs import log_names
from launch.page.rows import encoded
from launch.page.snapshot import snapshot
from launch.page.state import RunState
from launch.tracking.events import Events, Fault
from tests.page_client import append, asked, client_of, metrics, sample, write_grpo, write_now


def test_an_attempt_begins_where_it_goes_on(tmp_path: Path) -> None:
    """After a driver that died in step 10, with a checkpoint of step 5."""
    run, began = write_grpo(tmp_path / "one", 9), "2026-11-30T08:33:02.000+00:00"
    write_now(run, at="2026-11-30T08:33:03.000+00:00", attempt=4, step=12, began_step=11, began_at=began)
    first = Events(run, clock=lambda: 1_796_000_000.0)
    first.step = 10
    number = first.noticed(Fault(who="driver", what="died", noticed_by="exit"))
    second = Events(run, clock=lambda: 1_796_000_100.0)
    second.recovered(number, "resumed", redone_steps=4)
    third = Events(run, clock=lambda: 1_796_000_200.0)  # it was stopped, goes on, and meets a fault much later
    third.step = 11
    third.recovered(third.noticed(Fault(who="rollout[0]", what="died", noticed_by="exit")), "restarted")
    found = asked(client_of(tmp_path), "run", id="one")
    assert found["attempts"] == [
        {"number": 1, "step": 0, "at": None}, {"number": 2, "step": 6, "at": 1_796_000_100.0},
        {"number": 3, "step": None, "at": None}, {"number": 4, "step": 11, "at": 1_796_027_582.0},
    ]  # fmt: skip
    starts = [(mark["step"], mark["text"]) for mark in found["marks"] if mark["kind"] == "start"]
    assert starts == [(0, "attempt 1"), (6, "attempt 2"), (11, "attempt 4")]


@pytest.mark.parametrize(
    ("now", "starts"),
    [
        ({"attempt": 1, "began_step": 0, "began_at": "2026-11-30T08:33:02+00:00"}, [(1, 0, 1_796_027_582.0)]),
        ({"attempt": 1, "began_step": 7, "began_at": "2026-11-30T08:33:02+00:00"},
         [(1, 0, None), (1, 7, 1_796_027_582.0)]),
        ({"attempt": 3, "step": 8, "since": "2026-11-30T08:33:02+00:00"}, [(1, 0, None), (3, None, None)]),
    ],
    ids=["the first", "without a fault", "an older version"],
)  # fmt: skip
def test_a_start_that_is_not_known_has_no_place(
    tmp_path: Path, now: dict[str, Any], starts: list[tuple[int, int | None, float | None]]
) -> None:
    write_now(write_grpo(tmp_path / "one", 9), **now)
    found = asked(client_of(tmp_path), "run", id="one")
    assert [(each["number"], each["step"], each["at"]) for each in found["attempts"]] == starts
    marked = [mark["step"] for mark in found["marks"] if mark["kind"] == "start"]
    assert marked == [step for _, step, _ in starts if step is not None]


def test_the_remaining_time_is_that_of_steps_with_as_many_evaluations(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "one", 0, algorithm={"name": "grpo", "steps": 1000})
    append(run / "metrics.jsonl", ({"step": step, "time/step": 90.0} for step in range(1, 51)))
    rows = ({"step": step, "time/step": 52.0 if step % 50 == 0 else 2.0} for step in range(51, 251))
    append(run / "metrics.jsonl", rows)
    assert asked(client_of(tmp_path), "run", id="one")["eta_s"] == 3.0 * 750


def test_secrets_of_a_configuration_are_not_shown(tmp_path: Path) -> None:
    """As where configurations are printed; in a report neither."""
    for name in ("one", "two"):
        endpoint = {"url": f"https://me:hidden-{name}@host/v1", "headers": {"X-Team": f"hidden-{name}", "A": "$TOKEN"}}
        model = {"path": f"https://me:hidden-{name}@host/model"}
        write_grpo(tmp_path / name, reward={"endpoints": [endpoint]}, model=model, run={"name": name}, steps=2)
    client = client_of(tmp_path)
    found = asked(client, "config", id="one", other="two")
    assert found["config"]["reward.endpoints"] == [
        {"url": "https://***@host/v1", "headers": {"X-Team": "***", "A": "$TOKEN"}}
    ]
    told = [found, asked(client, "run", id="one"), asked(client, "runs"), snapshot(tmp_path, ["one", "two"], 0)]
    assert b"hidden" not in encoded(told) and asked(client, "run", id="one")["model"] == "https://***@host/model"


def kinds(events: list[bytes]) -> list[str]:
    """What some events are."""
    lines = [line for event in events for line in event.decode().splitlines()]
    return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[object]:
    """What a function of a module is called with from now on."""
    calls, real = list[object](), getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: calls.append(given) or real(*given))
    return calls


def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass, which nothing else does."""
    now = [1000.0]
    for module in (answers_module, run_list_module):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_a_run_is_told_anew_only_where_it_has_changed_and_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, wait = write_grpo(tmp_path / "one"), passes(monkeypatch)
    told, looks = counted(monkeypatch, answers_module, "_told"), counted(monkeypatch, answers_module, "state_of")
    answers = Answers(tmp_path)
    first, second = RunNews(answers, "one", ""), RunNews(answers, "one", "")
    for _ in range(20):
        first.look()
        second.look()
        wait(0.5)
    assert len(told) == 1 and len(looks) == 5, "every 2 s, for both together"
    write_now(run, phase="sync")
    append(run / "metrics.jsonl", [metrics(4)])
    assert kinds(first.look()) == ["steps", "run"] and len(told) == 2
    wait(0.5)
    append(run / "metrics.jsonl", [metrics(5)])
    assert kinds(first.look()) == ["steps"] and len(told) == 2, "steps are told at once"
    assert kinds(second.look()) == ["steps", "run"] and len(told) == 2
    assert answers.run("one")["step"] == 5, "whoever asks has what is there now"
    monkeypatch.setattr(answers_module, "state_of", lambda *_: RunState("died", "killed"))
    wait(2)
    assert any(b'"died"' in line for line in second.look()), "although no file has changed"


def test_the_list_is_made_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_grpo(tmp_path / "one")
    wait, looks = passes(monkeypatch), counted(monkeypatch, run_list_module, "find_runs")
    answers = Answers(tmp_path)
    viewers = [ListNews(answers) for _ in range(5)]
    assert [len(viewer.look()) for viewer in viewers] == [1] * 5 and len(looks) == 1
    write_grpo(tmp_path / "two")
    wait(1.9)
    assert [viewer.look() for viewer in viewers] == [[]] * 5 and len(looks) == 1
    wait(0.2)
    assert [len(viewer.look()) for viewer in viewers] == [1] * 5 and len(looks) == 2
    wait(0.1)
    assert len(answers.runs()["runs"]) == 2 and len(looks) == 3, "whoever asks has what is there now"


def test_looks_that_take_long_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait, looks = passes(monkeypatch), list[int]()
    monkeypatch.setattr(run_list_module, "find_runs", lambda below: looks.append(1) or wait(4) or {})
    news = ListNews(Answers(tmp_path))
    for _ in range(40):
        news.look()
        wait(2)
    assert len(looks) == 3, "a tenth of the time"


def test_nobody_waits_for_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_grpo(tmp_path / "one")
    append(run / "samples.jsonl", [sample(1, "found")])
    answers, free = Answers(tmp_path), list[bool]()

    def search(*_: object, **__: object) -> dict[str, Any]:
        asked = threading.Thread(target=lambda: free.append(bool(answers.run("one") and answers.groups("one", 1))))
        asked.start()
        asked.join(10)
        return {"hits": [], "more": None}

    monkeypatch.setattr(answers_module, "search_samples", search)
    answers.search("one", "found")
    assert free == [True]


def test_nobody_waits_for_samples_that_are_read_for_the_first_time(tmp_path: Path) -> None:
    write_grpo(tmp_path / "one")
    answers, free = Answers(tmp_path), list[bool]()
    with answers.opened("one").rows_lock:
        asked = threading.Thread(target=lambda: free.append(bool(answers.run("one") and answers.metrics("one"))))
        asked.start()
        asked.join(10)
    assert free == [True]


def test_of_many_logs_only_those_that_are_shown_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_grpo(tmp_path / "one")
    for number in range(400):
        (run / "logs/ray").mkdir(parents=True, exist_ok=True)
        (run / f"logs/a-{number:03}.log").touch()
        (run / f"logs/ray/{number:03}.out").symlink_to(run / f"logs/a-{number:03}.log")
    (run / "logs/driver.log").touch()
    below, looked = Below(tmp_path), list[Path]()
    real = Below.inside
    monkeypatch.setattr(Below, "inside", lambda self, path: looked.append(path) or real(self, path))
    names = log_names(below, run)
    assert len(names) == 300 and names[:3] == ["driver.log", "a-000.log", "a-001.log"]
    assert len(looked) <= 310, "files lie where their directory does"


def test_a_search_for_runs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_grpo(tmp_path / "one")
    monkeypatch.setattr(files_module, "_LOOK_S", -1.0)
    assert find_runs(Below(tmp_path)) == {}


def test_a_word_that_is_said_in_any_case_is_no_change(tmp_path: Path) -> None:
    run, stamp = write_grpo(tmp_path / "one"), 1_700_000_000
    for name in ("config.json", "metrics.jsonl"):
        os.utime(run / name, (stamp, stamp))
    client = client_of(tmp_path)
    write_now(run, at="2026-11-30T08:33:02+00:00", since="2026-11-30T08:00:00+00:00", host="another")
    assert asked(client, "runs")["runs"][0]["updated"] == 1_796_025_600.0
    write_now(run, at="2026-11-30T08:33:02+00:00", since="2026-11-30T08:00:00+00:00", ended="stopped", why="x")
    assert asked(client, "runs")["runs"][0]["updated"] == 1_796_027_582.0


def test_the_page_is_told_how_many_runs_fit_over_one(tmp_path: Path) -> None:
    write_grpo(tmp_path / "one")
    client = client_of(tmp_path)
    assert asked(client, "runs")["most_beside"] == asked(client, "run", id="one")["most_beside"] == 7
