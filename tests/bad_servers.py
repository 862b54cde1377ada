"""Servers on the loopback that are no cluster: silent, rude, slow, or some other program's."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LIFE_S = 60.0
"""After which a connection ends whatever happens, in seconds."""


def _http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


ANSWERS = {
    "closing": b"",
    "garbage": b"\x00\x16\x03\x01\xff\xfe not http\r\n\r\n" * 4,
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "html": _http("200 OK", b"<html><body>hello</body></html>", "Content-Type: text/html"),
    "error": _http("500 Internal Server Error", b"oops\nTraceback (most recent call last):\n"),
    "redirect": _http("302 Found", b"", "Location: /again"),
    "missing": _http("404 Not Found", b"nothing here"),
    "list": _http("200 OK", b"[1, 2]", "Content-Type: application/json"),
    "gzip": _http("200 OK", b"not gzip", "Content-Encoding: gzip"),
    "short": b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
}
"""What each server says to the first bytes it gets, before it closes the connection."""


@contextmanager
def bad_server(kind: str) -> Iterator[int]:
    """A server of one of ANSWERS, or `silent` (accepts and says nothing) or `dripping` (a byte of a header every 0.05
    s, for ever); its port."""
    ended = threading.Event()
    threads: list[threading.Thread] = []
    talk: Callable[[socket.socket], None] = {"silent": lambda _: None, "dripping": lambda c: _drip(c, ended)}.get(
        kind, lambda connection: connection.sendall(ANSWERS[kind])
    )

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_LIFE_S)
            if kind != "closing":
                connection.recv(65536)
            talk(connection)
            if kind == "silent":
                ended.wait(_LIFE_S)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(connection,), daemon=True))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listening = threading.Thread(target=accept, args=(listener,), daemon=True)
        listening.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in [listening, *threads]:
                thread.join(5)


def _drip(connection: socket.socket, ended: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while not ended.wait(0.05):
        connection.sendall(b"x")
