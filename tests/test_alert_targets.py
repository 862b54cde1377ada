"""Where alerts go: a real HTTP server as the webhook, real commands; what fails or hangs there is told once."""

import json
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launch.alerts.command import TIMEOUT_S, AlertCommand
from launch.alerts.delivery import MOST_WAITING, Delivery, DeliveryError
from launch.alerts.webhook import Webhook, is_web_address

FAR = 60.0
"""Seconds after which a test has failed; none is waited for."""


class Hook(ThreadingHTTPServer):
    """Answers with the given statuses, one after the other and the last for ever; a status of 0 is no answer."""

    daemon_threads = True

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses, self.got, self.asked = list(statuses), list[Any](), threading.Event()
        self.headers: dict[str, str] = {}
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/services/T0/SECRETPART"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.server.asked.set()
        status = self.server.statuses.pop(0) if len(self.server.statuses) > 1 else self.server.statuses[0]
        if not status:
            self.server.released.wait(FAR)
            return
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.got.append("followed")
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def hook(*statuses: int) -> Iterator[Hook]:
    """A server for the block."""
    server = Hook(*statuses)
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


def send(server: Hook, text: str = "hello", timeout_s: float = 5.0) -> list[float]:
    """Send a text; returns the pauses that were made."""
    pauses: list[float] = []
    Webhook(server.url, timeout_s, pauses.append).send(text)
    return pauses


def test_a_webhook_gets_an_alert_in_slacks_form() -> None:
    with hook(200) as server:
        assert send(server, "a < b & <!channel>") == []
        assert server.got == [
            ("/services/T0/SECRETPART", "application/json", {"text": "a &lt; b &amp; &lt;!channel&gt;"})
        ]
        send(server, "x" * 10**6)
        assert len(server.got[1][2]["text"]) == 3000


@pytest.mark.parametrize(("statuses", "pauses"), [((500, 204), [1.0]), ((503, 500, 200), [1.0, 3.0])])
def test_what_may_pass_is_tried_again(statuses: tuple[int, ...], pauses: list[float]) -> None:
    with hook(*statuses) as server:
        assert send(server) == pauses
        assert len(server.got) == len(statuses)


@pytest.mark.parametrize(
    ("status", "attempts", "why"),
    [(500, 3, "it answered 500"), (404, 1, "it answered 404"), (302, 1, "it answered 302")],
)
def test_what_does_not_pass_is_told_without_the_address(status: int, attempts: int, why: str) -> None:
    """A redirect is not followed: its GET would have no alert in it."""
    with hook(status) as server, pytest.raises(DeliveryError) as caught:
        server.headers["Location"] = "/elsewhere"
        send(server)
    assert str(caught.value) == why and len(server.got) == attempts


def test_where_nobody_answers_later_alerts_are_tried_once_until_one_arrives() -> None:
    with hook(500, 500, 500, 500, 200, 500, 200) as server:
        pauses: list[float] = []
        target = Webhook(server.url, pause=pauses.append)
        for attempts in (3, 4):
            with pytest.raises(DeliveryError):
                target.send("a")
            assert len(server.got) == attempts and pauses == [1.0, 3.0]
        target.send("a")
        target.send("a")
        assert len(server.got) == 7 and pauses == [1.0, 3.0, 1.0]


@pytest.mark.parametrize(("after", "paused"), [("7", 7.0), ("9999", 30.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0)])
def test_a_service_that_is_asked_too_often_says_when_to_come_again(after: str, paused: float) -> None:
    with hook(429, 200) as server:
        server.headers["Retry-After"] = after
        assert send(server) == [paused]


def test_a_webhook_that_hangs_or_is_not_there_is_given_up() -> None:
    with hook(0) as server, pytest.raises(DeliveryError, match=r"^no answer in time$"):
        send(server, timeout_s=0.1)
    assert len(server.got) == 3
    with pytest.raises(DeliveryError, match=r"^it cannot be reached \(ConnectionRefusedError\)$"):
        send(server)  # it is closed


@pytest.mark.parametrize("url", ["https://hooks.slack.com/services/a", "http://127.0.0.1:80/x"])
def test_addresses_that_a_webhook_can_have(url: str) -> None:
    assert is_web_address(url)


@pytest.mark.parametrize("url", ["", "hooks.slack.com/x", "file:///etc/passwd", "ftp://a/b", "http://", "http://[x/",
                                 "http://a/b c", "http://a/\nHost: b"])  # fmt: skip
def test_addresses_that_it_cannot_have(url: str) -> None:
    assert not is_web_address(url)


def script(tmp_path: Path, text: str) -> list[str]:
    """A command that is a program of Python's."""
    path = tmp_path / "command.py"
    path.write_text(text)
    return [sys.executable, "-S", str(path), str(tmp_path / "out")]


def test_a_command_gets_the_alert_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("SLACK_WEBHOOK_URL", "https://hooks.slack.com/services/x")
    monkeypatch.setenv("HARMLESS", "1")
    text = (
        "import json, os, sys; json.dump([json.load(sys.stdin), {**os.environ}, os.getsid(0)], open(sys.argv[1], 'w'))"
    )
    AlertCommand(script(tmp_path, text)).run({"rule": "limits", "value": None, "text": "ü"})
    row, environment, session = json.loads((tmp_path / "out").read_text())
    assert row == {"rule": "limits", "value": None, "text": "ü"}
    assert environment["HARMLESS"] == "1" and not {"HF_TOKEN", "SLACK_WEBHOOK_URL"} & environment.keys()
    assert session != os.getsid(0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import sys; sys.exit('no pager\\nhf_" + "a" * 40 + "')", r"^it ended with 1: \*\*\*$"),
        ("import os; os._exit(3)", r"^it ended with 3$"),
        ("import os, sys; os.close(0); os._exit(0)", None),  # reads nothing
    ],
)
def test_a_command_that_fails_says_why(tmp_path: Path, text: str, why: str | None) -> None:
    command = AlertCommand(script(tmp_path, text))
    if why is None:
        command.run({"text": "x" * 10**6})
        return
    with pytest.raises(DeliveryError, match=why):
        command.run({"text": "a"})


def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match=r"^it cannot be started \(FileNotFoundError: .*nowhere'\)$"):
        AlertCommand([str(tmp_path / "nowhere")]).run({})
    plain = tmp_path / "plain"
    plain.write_text("no program")
    plain.chmod(stat.S_IRUSR)
    with pytest.raises(DeliveryError, match=r"^it cannot be started \("):
        AlertCommand([str(plain)]).run({})


HANGS = """sleep 600 & echo $! $$ > "$0.partial"; mv "$0.partial" "$0"; sleep 600"""
"""A program of the shell, which starts another one."""


def pids(tmp_path: Path) -> list[int]:
    """Of the processes of a command that hangs, as soon as they are there."""
    until = time.monotonic() + FAR
    while not (tmp_path / "out").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    return [int(pid) for pid in (tmp_path / "out").read_text().split()]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, soon: long before a command's own time is up."""
    until = time.monotonic() + TIMEOUT_S / 2
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_command_that_hangs_is_ended_with_all_that_it_has_started(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match=r"^it took longer than 1 s, and was ended$"):
        AlertCommand(["sh", "-c", HANGS, str(tmp_path / "out")], timeout_s=1.0).run({})
    assert all(is_gone(pid) for pid in pids(tmp_path))


def test_the_end_of_a_run_ends_a_command_that_hangs(tmp_path: Path) -> None:
    command, warned = AlertCommand(["sh", "-c", HANGS, str(tmp_path / "out")]), list[str]()
    delivery = Delivery("the command", command.run, warned.append)
    delivery.put({"text": "a"})
    running = pids(tmp_path)
    delivery.close(time.monotonic())
    command.end()
    assert all(is_gone(pid) for pid in running)
    assert warned == [
        "alerts do not arrive at the command: the last of them were not all delivered before the run ended; they are "
        "in alerts.jsonl"
    ]
    with pytest.raises(DeliveryError, match=r"^the run has ended$"):
        command.run({})


def test_a_target_that_fails_is_warned_about_once_and_gets_the_next() -> None:
    warned: list[str] = []
    with hook(404, 404, 200) as server:
        target = Webhook(server.url)
        delivery = Delivery("the webhook", lambda row: target.send(str(row["text"])), warned.append)
        for text in "abc":
            delivery.put({"text": text})
        delivery.close(time.monotonic() + FAR)
    assert [body["text"] for _, _, body in server.got] == ["a", "b", "c"]
    assert warned == ["alerts do not arrive at the webhook: it answered 404; they are in alerts.jsonl"]


def test_what_waits_for_a_slow_target_is_bounded() -> None:
    """And whoever puts something there never waits."""
    free, took, warned = threading.Event(), list[object](), list[str]()

    def deliver(row: Any) -> None:
        free.wait(FAR)
        took.append(row["number"])

    delivery = Delivery("it", deliver, warned.append)
    for number in range(2 * MOST_WAITING):
        delivery.put({"number": number})
    assert warned == ["alerts do not arrive at it: 100 of them wait for it already; they are in alerts.jsonl"]
    free.set()
    delivery.close(time.monotonic() + FAR)
    assert took[:MOST_WAITING] == list(range(MOST_WAITING)) and len(took) <= MOST_WAITING + 1


def test_an_error_that_nobody_expects_ends_no_thread() -> None:
    took, warned = list[object](), list[str]()

    def deliver(row: Any) -> None:
        took.append(row["number"])
        raise ZeroDivisionError("secret")

    delivery = Delivery("it", deliver, warned.append)
    for number in range(3):
        delivery.put({"number": number})
    delivery.close(time.monotonic() + FAR)
    assert took == [0, 1, 2] and warned == ["alerts do not arrive at it: ZeroDivisionError; they are in alerts.jsonl"]
