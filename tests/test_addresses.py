"""Every verb that talks to an address, against what is no cluster: one line, soon, with exit code 2."""

import signal
import time
from pathlib import Path

import pytest

from launch.cli import main
from launch.jobs import client
from launch.jobs.call_deadline import DeadlinePassed, within
from launch.kube import kubeconfig
from tests.bad_servers import ANSWERS, bad_server

KINDS = ["silent", "dripping", *ANSWERS]
VERBS = {"list": ["list"], "status": ["status", "id"], "logs": ["logs", "id", "-f"], "stop": ["stop", "id"]}
KUBECONFIG = """
current-context: c
clusters: [{{name: c, cluster: {{server: "{}"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{token: x}}}}]
"""


def test_a_deadline_is_that_of_the_whole_call_and_leaves_other_alarms_alone() -> None:
    rang: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda number, _: rang.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(DeadlinePassed, match=r"no whole answer within 0.1 s"):
            within(0.1, lambda: time.sleep(5))
        assert within(5, lambda: 7) == 7
        time.sleep(0.4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert rang == [signal.SIGALRM]
    with pytest.raises(ValueError, match="mine"):
        within(5, lambda: int("mine"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    for module, name in ((client, "FIRST_S"), (client, "_SLOW_S"), (kubeconfig, "READ_S"), (kubeconfig, "_SLOW_S")):
        monkeypatch.setattr(module, name, 0.2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def line_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    began = time.monotonic()
    assert main(words) == 2
    assert time.monotonic() - began < 25  # 0.4 s, and the import of a client that is slow to come
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_dashboard_is_one_line(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    with bad_server(kind) as port:
        for words in VERBS.values() if kind in ("silent", "html") else [VERBS["list"]]:
            line = line_of(capsys, *words, "--address", f"http://127.0.0.1:{port}")
            assert line.startswith("error: --address: ")
            assert f"http://127.0.0.1:{port}" in line
    if kind in ("silent", "dripping"):
        assert "must be a dashboard that answers (no" in line


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_kubernetes_is_one_line(
    capsys: pytest.CaptureFixture[str], kind: str, tmp_path: Path, monkeypatch
) -> None:
    pytest.importorskip("kubernetes")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with bad_server(kind) as port:
        (tmp_path / "config").write_text(KUBECONFIG.format(f"http://127.0.0.1:{port}"))
        line = line_of(capsys, "list", "--kube")
    assert line.startswith("error: kubernetes: ")
    if kind in ("silent", "dripping"):
        assert "answer within " in line


@pytest.mark.parametrize(
    "server", ["", "junk", "127.0.0.1:1", "ftp://a:1", "http://", "http://:1", "http://h:99999", "http://a b:1"]
)
def test_a_server_that_is_no_url_is_one_line(
    capsys: pytest.CaptureFixture[str], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    (tmp_path / "config").write_text(KUBECONFIG.format(server))
    assert f"{tmp_path}/config must name an http(s) server, such as" in line_of(capsys, "list", "--kube")


@pytest.mark.parametrize(
    "address",
    [
        "ftp://head:8265",
        "http://",
        "http://:8265",
        "http://head:99999",
        "http://he ad:8265",
        "http://[::1",
        "http://a..b:1",
        f"http://{'a' * 64}:1",
        "ray://head:10001",
        "auto",
        "://",
    ],
)
def test_an_address_that_is_no_url_is_one_line(capsys: pytest.CaptureFixture[str], address: str) -> None:
    rule = "must be the http(s) address of the cluster's dashboard, such as http://head:8265"
    assert line_of(capsys, "list", "--address", address) == f"error: --address: {rule}, got {address}"


def test_the_line_names_where_the_address_is_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "127.0.0.1:1")
    assert line_of(capsys, "list").startswith(
        "error: RAY_API_SERVER_ADDRESS: must be a dashboard that can be reached ("
    )
