"""FakeRayServer: what Ray's dashboard answers to the Jobs API (Ray 2.60), without Ray.

Its jobs do what a test tells them to. It shares Ray's quirks: a duplicate id is a 500, and a job that is PENDING
ignores a stop and says that it obeyed.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


@dataclass
class FakeJob:
    """A job as GET shows it, and what it has printed."""

    submission_id: str
    entrypoint: str = "echo"
    runtime_env: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    entrypoint_label_selector: dict[str, str] | None = None
    status: str = "PENDING"
    message: str = "Job has not started yet."
    driver_exit_code: int | None = None
    start_time: int = field(default_factory=lambda: int(time.time() * 1000))
    end_time: int | None = None
    log: str = ""

    def end(self, status: str, exit_code: int | None = None, message: str = "") -> None:
        self.driver_exit_code, self.message, self.end_time = exit_code, message, int(time.time() * 1000)
        self.status = status


@dataclass
class FakeRayServer:
    """State of the fake; `requests` lists method and path of all that came in."""

    token: str | None = None
    version: str = "2.60.0"
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    """Method -> how many of its next requests are answered 500."""
    not_ray: bool = False
    address: str = ""

    def add(self, job_id: str, status: str = "RUNNING", **values: Any) -> FakeJob:
        self.jobs[job_id] = FakeJob(job_id, status=status, **values)
        return self.jobs[job_id]


@contextmanager
def fake_ray_server(**values: Any) -> Iterator[FakeRayServer]:
    """A fake that listens on a free port until the block ends."""
    fake = FakeRayServer(**values)
    handler = type("_Handler", (_FakeHandler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    fake.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


class _FakeHandler(BaseHTTPRequestHandler):
    fake: FakeRayServer

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        fake, method = self.fake, self.command
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fake.requests.append(f"{method} {self.path}")
        if fake.token is not None:
            given = self.headers.get("Authorization")
            if given is None:
                return self._send(401, "Unauthorized: Missing authentication token")
            if given != f"Bearer {fake.token}":
                return self._send(403, "Forbidden: Invalid authentication token")
        if fake.not_ray:
            return self._send(200, "<html>welcome</html>")
        if fake.broken.get(method):
            fake.broken[method] -= 1
            return self._send(500, "Traceback (most recent call last):\n  x\nRuntimeError: the head is unwell.\n")
        parts = [unquote(part) for part in self.path.strip("/").split("/")]
        if parts == ["api", "version"]:
            return self._send(200, {"version": "4", "ray_version": fake.version, "ray_commit": "", "session_name": ""})
        if parts[:2] == ["api", "packages"]:
            return self._package(method, parts[3], body)
        if parts[:2] == ["api", "jobs"]:
            return self._job(method, parts[2:], body)
        return self._send(404, "404: Not Found")

    def _package(self, method: str, name: str, body: bytes) -> None:
        if method == "PUT":
            self.fake.packages[name] = body
        known = name in self.fake.packages
        self._send(200 if known else 404, "" if known else f"Package gcs://{name} does not exist")

    def _job(self, method: str, rest: list[str], body: bytes) -> None:
        jobs = self.fake.jobs
        if not rest:
            if method == "GET":
                return self._send(200, [_shown(job) for job in jobs.values()])
            values = json.loads(body)
            if values["submission_id"] in jobs:
                said = f"ValueError: Job with submission_id {values['submission_id']} already exists."
                return self._send(500, f"Traceback (most recent call last):\n{said}\n.")
            jobs[values["submission_id"]] = FakeJob(**values)
            return self._send(200, {"submission_id": values["submission_id"]})
        job = jobs.get(rest[0])
        if job is None:
            return self._send(404, f"Job {rest[0]} does not exist")
        if rest[1:] == ["logs"]:
            return self._send(200, {"logs": job.log})
        if rest[1:] == ["stop"]:
            if job.status == "RUNNING":
                job.end("STOPPED", message="Job was intentionally stopped.")
            return self._send(200, {"stopped": True})
        if method == "DELETE":
            del jobs[rest[0]]
            return self._send(200, {"deleted": True})
        return self._send(200, _shown(job))

    def _send(self, status: int, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _shown(job: FakeJob) -> dict[str, Any]:
    values = {name: value for name, value in vars(job).items() if name != "log"}
    return {"type": "SUBMISSION", "job_id": None, **values}
