"""The page's server as a process has it: events while files grow, at a real port, and beside a run."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from launch import cli
from launch.page import beside as beside_module
from launch.page import live as live_module
from launch.page.answers import Answers
from launch.page.beside import Beside, page_beside
from launch.page.guard import Access
from launch.page.live import RunNews
from launch.page.server import listening, page_server
from tests.page_client import append, metrics, write_grpo, write_now

TOKEN = "token-of-a-test"
WITH = {"X-Tandem-Token": TOKEN}


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The address of a real server, in a thread."""
    listener = listening("127.0.0.1", None)
    access = Access("127.0.0.1", listener.getsockname()[1], TOKEN)
    server = page_server(directory, access)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{access.port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "a connection that waits for events must not keep the server"


class Events:
    """The events of one connection."""

    def __init__(self, opened: ExitStack, url: str, **headers: str) -> None:
        answer = opened.enter_context(httpx.stream("GET", url, headers=WITH | headers, timeout=10))
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        self._lines = answer.iter_lines()

    def next(self, name: str) -> tuple[Any, str]:
        """Value and id of the next event of this name."""
        found: dict[str, str] = {}
        for line in self._lines:
            field, _, value = line.partition(": ")
            found[field] = value
            if not line:
                if found.get("event") == name:
                    return json.loads(found["data"]), found.get("id", "")
                found = {}
        raise AssertionError(f"the connection has ended before an event {name}")


def test_steps_arrive_while_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_LOOK_S", 0.05)
    monkeypatch.setattr(live_module, "_RUN_S", 0.05)
    run = write_grpo(tmp_path / "one")
    with served(tmp_path) as address, ExitStack() as opened:
        mark = httpx.get(f"{address}/api/metrics?id=one", headers=WITH).json()["mark"]
        append(run / "metrics.jsonl", [metrics(4)])  # between the question and the connection
        events = Events(opened, f"{address}/api/live?id=one&mark={mark}")
        assert events.next("steps")[0]["step"] == [4]
        assert events.next("run")[0]["step"] == 4
        append(run / "metrics.jsonl", [metrics(5), metrics(6)])
        found, mark = events.next("steps")
        assert found == {
            "step": [5, 6],
            "values": {
                "reward/mean": [0.5, 0.6],
                "reward/max": [1.0] * 2,
                "time/rollout": [1.0] * 2,
                "time/step": [2.0] * 2,
            },
        }
        assert events.next("run")[0]["tiles"][0]["value"] == 0.6
        append(run / "metrics.jsonl", [metrics(7)])
        again = Events(opened, f"{address}/api/live?id=one", **{"Last-Event-ID": mark})
        assert again.next("steps")[0]["step"] == [7], "whoever connects again misses nothing"
        (run / "metrics.jsonl.new").write_text("".join(json.dumps(metrics(step)) + "\n" for step in (1, 2)))
        os.replace(run / "metrics.jsonl.new", run / "metrics.jsonl")
        assert again.next("steps")[0] == {"reset": True}
        append(run / "metrics.jsonl", [metrics(3) | {"reward/mean": 9.0}])
        assert again.next("steps")[0]["values"]["reward/mean"] == [9.0]
        shutil.rmtree(run)
        assert again.next("gone")[0] == {"error": "id: must be a run below the directory, got one"}
        assert httpx.get(f"{address}/api/live?id=one", headers=WITH).status_code == 404


def test_a_server_that_ends_ends_its_connections_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_grpo(tmp_path / "one")
    with ExitStack() as opened:
        with served(tmp_path) as address:
            connections = [Events(opened, f"{address}/api/live{query}") for query in ("", "?id=one")]
        for events in connections:
            with pytest.raises(AssertionError, match="the connection has ended"):
                events.next("nothing")
    assert capfd.readouterr() == ("", "")


def test_the_list_arrives_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_LIST_S", 0.1)
    write_grpo(tmp_path / "one")
    with served(tmp_path) as address, ExitStack() as opened:
        events = Events(opened, f"{address}/api/live")
        assert [entry["id"] for entry in events.next("runs")[0]["runs"]] == ["one"]
        write_grpo(tmp_path / "two", 5)
        while len(found := events.next("runs")[0]["runs"]) < 2 or found[0]["step"] != 5:
            pass  # whatever was there when it was looked at
        assert found[0]["id"] == "two"


def test_what_has_not_changed_is_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_RUN_S", 0.0)
    run = write_grpo(tmp_path / "one")
    news = RunNews(Answers(tmp_path), "one", "")
    assert [line.split(b"\n")[0] for line in news.look()] == [b"event: run"]
    assert news.look() == []
    write_now(run, phase="sync")
    assert [line.split(b"\n")[0] for line in news.look()] == [b"event: run"]
    # A mark of an earlier server.
    assert b'"reset":true' in RunNews(Answers(tmp_path), "one", "9.9").look()[0]


def test_a_silent_stream_says_now_and_then_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(live_module, "_COMMENT_S", 0.02)

    async def first(count: int) -> list[bytes]:
        stream = live_module.stream(list, 0.01, lambda: False)
        return [await anext(stream) for _ in range(count)]

    assert asyncio.run(first(3)) == [b": \n\n"] * 3


def test_the_server_beside_a_run_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(beside_module, "owner", lambda: owner.pid)
    monkeypatch.setenv("TANDEM_ATTEMPT", "mark.0.")
    monkeypatch.setenv("TANDEM_WATCH_TOKEN", "a-token-of-mine")
    with Beside(tmp_path / "one") as page:  # before there is such a directory
        page.start()
        reader = httpx.Client(base_url=page.address.partition("?")[0], follow_redirects=True, timeout=30)
        assert reader.get(page.address).status_code == 200
        assert reader.get("api/runs").json()["runs"] == [], "by the cookie of the address"
        write_grpo(tmp_path / "one")
        assert reader.get("api/runs").json()["runs"][0]["id"] == "."
        reader.close()
        process = page._process
        assert process is not None and process.poll() is None
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"TANDEM_ATTEMPT" not in environment, "else it would end with the attempt"
        told = Path(f"/proc/{process.pid}/cmdline").read_bytes() + environment
        assert page._access.token == "a-token-of-mine" and b"a-token-of-mine" not in told
    assert process.poll() is None, "an attempt that ends is not the end of the run"
    owner.communicate(b"\n")
    assert process.wait(10) == 0


def test_attempts_share_one_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside_module, "is_restarted", lambda: True)
    assert page_beside(tmp_path) is None


def test_run_says_the_address_first_and_its_page_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = {}

    def run(config: Any, display: Any) -> int:
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("page: ")]
        found["url"], _, token = line.removeprefix("page: ").partition("?token=")
        found["answer"] = httpx.get(f"{found['url']}api/runs", headers={"X-Tandem-Token": token}, timeout=30).json()
        return 0

    monkeypatch.setattr("launch.run.run.run", run)
    monkeypatch.setattr(cli, "_preflight", lambda config, aside, display: display.note("checked"))
    words = ["run.name=first", f"run.output={tmp_path}", "--watch"]
    monkeypatch.chdir(Path(__file__).resolve().parent.parent)
    assert cli.main(["run", "configs/own-task.yaml", *words]) == 0
    assert (found["answer"]["directory"], found["answer"]["runs"]) == ("first", [])
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            httpx.get(f"{found['url']}api/runs")
        except httpx.ConnectError:
            return
    raise AssertionError("the server has outlived its run")
