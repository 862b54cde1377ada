"""Who may ask the page's server, and where it listens."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.config import UserError
from launch.cli import main
from launch.page import app as app_module
from launch.page import server as server_module
from launch.page.guard import Access
from launch.page.server import listening
from tests.page_client import LOOPBACK, TOKEN, append, client_of, write_grpo

OPEN = Access("0.0.0.0", 8400, TOKEN)


@pytest.fixture
def static(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a page, instead of ours."""
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "index.html").write_text("<p>page</p>")
    (folder / "page.js").write_text("1")
    append(tmp_path / "secret.txt", ["secret"])
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    monkeypatch.setattr(app_module, "STATIC", folder)
    return folder


def test_every_answer_confines_the_browser(tmp_path: Path, static: Path) -> None:
    write_grpo(tmp_path / "outputs/one")
    client = client_of(tmp_path / "outputs")
    for path, status in (
        ("/", 200),
        ("/page.js", 200),
        ("/api/runs", 200),
        ("/api/run?id=x", 404),
        ("/nothing", 404),
        ("/api/none", 404),
    ):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == status and "default-src 'self'" in policy and "unsafe" not in policy
        assert (
            answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
        )
        assert "access-control-allow-origin" not in answer.headers
    assert client.get("/").text == "<p>page</p>"
    assert client.get("/api/runs", headers={"host": "evil.example"}).headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/%2e%2e%2fsecret.txt", "/out.txt",
        "/..%5csecret.txt", "/%00", "/static/../../secret.txt", "/%2fetc%2fhostname",
        "/api/run?id=..%2fsecret", "/api/log?id=one&name=..%2f..%2f..%2fsecret.txt", "/api/run?id=%2fetc",
        "/api/config?id=one&other=..%2f", "/api/..%2f..%2fsecret.txt", "/api/run?id=%252e%252e%2fone",
        "/api/groups?id=..&step=1",
    ],
)  # fmt: skip
def test_nothing_outside_is_served(tmp_path: Path, static: Path, path: str) -> None:
    write_grpo(tmp_path / "outputs/one")
    write_grpo(tmp_path / "secret")
    answer = client_of(tmp_path / "outputs").get(path)
    assert answer.status_code == 404 and "secret\n" not in answer.text and answer.json()["error"]


@pytest.mark.parametrize(
    ("access", "host", "served"),
    [
        (LOOPBACK, "127.0.0.1:8400", True), (LOOPBACK, "localhost:8400", True), (LOOPBACK, "LOCALHOST", True),
        (LOOPBACK, "localhost:9999", True), (LOOPBACK, "[::1]:8400", True), (LOOPBACK, "evil.example:8400", False),
        (LOOPBACK, "127.0.0.1.evil.example", False), (LOOPBACK, "", False), (LOOPBACK, "10.0.0.1:8400", False),
        (OPEN, "10.0.0.1:8400", True), (OPEN, "proxy.example", True), (OPEN, "", True),
        (Access("train.example", 8400, TOKEN), "another.example", True), (Access("::1", 8400, TOKEN), "[::1]", True),
    ],
)  # fmt: skip
def test_a_name_that_somebody_has_led_here_is_refused(tmp_path: Path, access: Access, host: str, served: bool) -> None:
    """On loopback. Elsewhere a proxy may have any name: the token decides."""
    answer = client_of(tmp_path, access).get("/api/runs", headers={"host": host})
    assert answer.status_code == (200 if served else 403)
    assert served or answer.json()["error"].startswith("Host: must be a name of this server, got")


@pytest.mark.parametrize("access", [LOOPBACK, OPEN], ids=["loopback", "elsewhere"])
def test_all_but_the_pages_own_files_needs_the_token(tmp_path: Path, static: Path, access: Access) -> None:
    client = client_of(tmp_path, access, token="")
    for path in ("/api/runs", "/api/live", "/api/run?id=one", "/api/none", f"/api/runs?token={TOKEN}", "/api/"):
        answer = client.get(path)
        assert answer.status_code == 403 and answer.json()["error"].startswith("token: must be that of the address")
    for given in ("wrong", "", TOKEN + "x", TOKEN[:-1], "\xe9"):
        for headers in ({"X-Tandem-Token": given}, {"cookie": f"tandem-8400={given}"}, {"cookie": f"other={TOKEN}"}):
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            assert client.get("/api/runs", headers=raw).status_code == 403, headers
    assert client.get("/").status_code == client.get("/page.js").status_code == 200, "the page says how to get in"
    assert client.get("/api/runs", headers={"X-Tandem-Token": TOKEN}).status_code == 200
    cookies = f'odd={{"a": "b"}}; tandem-8401=x; tandem-8400={TOKEN}; last=1'
    assert client.get("/api/runs", headers={"cookie": cookies}).status_code == 200, "those of others may be odd"


def test_the_printed_address_gives_a_cookie_and_leads_to_the_page(tmp_path: Path, static: Path) -> None:
    client = client_of(tmp_path, token="")
    for path in ("/?token=wrong", "/?token=", f"/page.js?token={TOKEN}"):
        answer = client.get(path)
        assert answer.status_code == 200 and "set-cookie" not in answer.headers
    first = client.get(f"/?token={TOKEN}")
    assert (first.status_code, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"]
    assert cookie.startswith(f"tandem-8400={TOKEN};") and "HttpOnly" in cookie and "SameSite=lax" in cookie
    assert client.get("/api/runs").status_code == 200, "the cookie is kept"


def test_what_changes_something_needs_a_header_that_no_other_site_can_send(tmp_path: Path) -> None:
    client, known = client_of(tmp_path, token=""), {"cookie": f"tandem-8400={TOKEN}"}
    for headers in (known, known | {"X-Tandem": "x"}, {"X-Tandem-Token": TOKEN}, {"X-Tandem": "stop"}):
        assert client.post("/api/stop?id=one", headers=headers).status_code == 403, headers
    for headers in (known, {"X-Tandem-Token": TOKEN}):
        assert client.post("/api/stop?id=one", headers=headers | {"X-Tandem": "stop"}).status_code == 404
        assert client.get("/api/stop?id=one", headers=headers | {"X-Tandem": "stop"}).status_code in (404, 405)
    asks = {"origin": "http://127.0.0.1:9000", "access-control-request-method": "POST"}
    before = client.options("/api/stop?id=one", headers=asks | {"access-control-request-headers": "x-tandem"})
    assert before.status_code == 403 and not any(name.startswith("access-control") for name in before.headers)


@pytest.mark.parametrize(
    ("access", "address"),
    [
        (LOOPBACK, f"http://127.0.0.1:8400/?token={TOKEN}"),
        (Access("::1", 81, TOKEN), f"http://[::1]:81/?token={TOKEN}"),
        (OPEN, f"http://{socket.gethostname()}:8400/?token={TOKEN}"),
        (Access("train.example", 8400, TOKEN), f"http://train.example:8400/?token={TOKEN}"),
    ],
)
def test_the_address_has_the_token(access: Access, address: str) -> None:
    assert access.address == address


def test_a_package_that_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["watch", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith("error: package uvicorn: must be installed for ") and not told.out


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_two_servers_at_one_port_is_one_line(tmp_path: Path, taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path), "--port", str(taken)]) == 2
    assert capsys.readouterr() == ("", f"error: --port: must be free, got {taken}, at which another program listens\n")


def test_without_a_port_the_next_free_one_is_taken(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setattr(server_module, "PORT", taken)
    with listening("127.0.0.1", None) as listener:
        assert taken < listener.getsockname()[1] <= taken + 20
    monkeypatch.setattr(server_module, "_TRIED", 0)
    with pytest.raises(UserError, match=f"--port: must be free, got none, and {taken} to {taken} are taken"):
        listening("127.0.0.1", None)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nothing-here"], "DIRECTORY: must be a run, or a directory of runs, got nothing-here, which is none"),
        ([".", "--host", "no.such.name.invalid"], "--host: must be an address of this machine ("),
        ([".", "--host", "203.0.113.7"], "--host: must be an address of this machine ("),
        ([".", "--port", "0"], "--port: must be a port from 1 to 65535, got 0"),
        ([".", "--port", "65536"], "--port: must be a port from 1 to 65535, got 65536"),
        ([".", "--token", "short"], "--token: must be 8 to 200 letters, digits, - and _, got something else"),
        (["."], "TANDEM_WATCH_TOKEN: must be 8 to 200 letters, digits, - and _, got something else"),
    ],
)
def test_a_mistake_of_the_users_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_WATCH_TOKEN", "not good" if words == ["."] else "one-that-is-good")
    assert main(["watch", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}") and told.count("\n") == 1


def test_the_verb_says_the_address_and_serves_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken: int
) -> None:
    served: list[tuple[Path, Access, int]] = []

    def server_of(path: Path, access: Access) -> SimpleNamespace:
        return SimpleNamespace(run=lambda sockets: served.append((path, access, sockets[0].getsockname()[1])))

    monkeypatch.setattr(server_module, "PORT", taken)
    monkeypatch.setattr(server_module, "page_server", server_of)
    assert main(["watch", str(tmp_path), "--token", "a-token-of-mine"]) == 0
    [(path, access, port)] = served
    assert (path, access) == (tmp_path, Access("127.0.0.1", port, "a-token-of-mine")) and port > taken
    told = capsys.readouterr()
    assert told.out == f"http://127.0.0.1:{port}/?token=a-token-of-mine  (Ctrl-C ends it)\n"
    assert told.err == f"port {taken} is taken: {port} is used\n"
    monkeypatch.setenv("TANDEM_WATCH_TOKEN", "a-token-of-mine")
    main(["watch", str(tmp_path)])
    main(["watch", str(tmp_path), "--token", "another-of-mine"])
    assert [access.token for _, access, _ in served[1:]] == ["a-token-of-mine", "another-of-mine"]
    del served[1:]
    monkeypatch.setenv("TANDEM_WATCH_TOKEN", "")
    main(["watch", str(tmp_path)])
    main(["watch", str(tmp_path)])
    assert len({access.token for _, access, _ in served}) == 3 and all(
        len(access.token) > 14 for _, access, _ in served
    )
