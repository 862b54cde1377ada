"""A stand-in for the Hugging Face hub on loopback: makes repositories and takes commits, as far as an upload asks."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """What it has been sent."""

    def __init__(self) -> None:
        self.url = ""
        self.refuses = False
        """Whether it forbids commits."""
        self.private = True
        """Whether its repository is."""
        self.tokens: set[str | None] = set()
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A server, until the end of the block."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.tokens.add(self.headers.get("Authorization"))
            kind = self.path.partition("?")[0]
            if kind == "/api/repos/create":
                hub.made.append(json.loads(body))
                self._answer(200, {"url": f"{hub.url}/ours/model", "name": "ours/model"})
            elif kind == "/api/validate-yaml":
                self._answer(200, {"errors": [], "warnings": []})
            elif "/preupload/" in kind:
                files = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
                self._answer(200, {"files": modes})
            elif "/commit/" in kind and hub.refuses:
                self._answer(403, {"error": "this token may not write"})
            elif "/commit/" in kind:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self._answer(200, {"commitUrl": f"{hub.url}/ours/model/commit/1", "commitOid": "1"})
            else:
                self._answer(404, {"error": f"not faked: {self.path}"})

        def do_GET(self) -> None:
            if self.path.startswith("/api/models/ours/model"):
                self._answer(200, {"id": "ours/model", "private": hub.private, "siblings": []})
            else:
                self._answer(404, {"error": f"not faked: {self.path}"})

        def log_message(self, format: str, *args: Any) -> None:
            """Be quiet."""

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    thread.join(10)
    server.server_close()
