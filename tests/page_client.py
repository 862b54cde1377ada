"""A page's server in process, and run directories written line by line: for tests of what it answers."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from launch.page.app import page_app
from launch.page.guard import Access
from launch.tracking.now import pid_namespace

TOKEN = "token-of-a-test"
LOOPBACK = Access("127.0.0.1", 8400, TOKEN)
CONFIG = {
    "algorithm": {"name": "grpo", "steps": 9},
    "model": {"path": "models/small", "lora": None},
    "run": {"name": "first"},
}


def client_of(directory: Path, access: Access = LOOPBACK, token: str = TOKEN) -> TestClient:
    """Asks as a program on the server's machine does, with a token if it is not empty; a fault of the server's own is
    raised here."""
    client = TestClient(page_app(directory, access), base_url=f"http://127.0.0.1:{access.port}", follow_redirects=False)
    client.headers |= {"X-Tandem-Token": token} if token else {}
    return client


def asked(client: TestClient, path: str, status: int = 200, /, **words: object) -> Any:
    """The answer to a question of the API, which must be JSON without NaN, of this status."""
    answer = client.get(f"/api/{path}", params={name: str(value) for name, value in words.items()} or None)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.content, parse_constant=_refused)


def _refused(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def append(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> None:
    """Add lines to a file; a text is written as it is, with a line end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


def write_grpo(directory: Path, steps: int = 3, **config: Any) -> Path:
    """A run of GRPO that has done so many steps; returns its directory."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    append(directory / "metrics.jsonl", (metrics(step) for step in range(1, steps + 1)))
    return directory


def metrics(step: int) -> dict[str, Any]:
    """Those of a step of GRPO."""
    return {"step": step, "reward/mean": step / 10, "reward/max": 1.0, "time/rollout": 1.0, "time/step": 2.0}


def sample(step: int, completion: str, **more: Any) -> dict[str, Any]:
    """A row of samples.jsonl."""
    known = {"reward": 1.0, "rewards": {"right": 1.0}, "advantage": 0.5, "version": step, "status": "ok"}
    return {"step": step, "prompt": "2+2", "completion": completion} | known | more


def write_now(directory: Path, **values: Any) -> None:
    """Where the run is, by a driver that is this process."""
    known = {"at": "2026-11-30T08:00:00.000+00:00", "attempt": 1, "step": 3, "phase": "update", "driver": os.getpid()}
    known |= {"namespace": pid_namespace()}
    path = directory / "logs/now.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known | {"elapsed_s": 30.0, "processes": {}} | values))
