"""alerts.jsonl of a run: what was told, when, and in which attempt; it outlives attempts and steps that come again."""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.tracking.events import append_whole

NAME = "alerts.jsonl"
_MOST_WAITING = 1000
"""Most lines that wait for a disk that takes none."""
_KEY = "at", "attempt", "text"
"""Fields that tell one row from another."""


class AlertRecord:
    """Appends to a run's alerts.jsonl, from any thread, on one of its own: storage may fail, when the next line tries
    again, or hang."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since 1970."""
        self._path, self._clock, self._lock = directory / NAME, clock, threading.Lock()
        self._waiting: queue.Queue[bytes | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    def write(self, row: Mapping[str, object]) -> dict[str, object]:
        """Write a row, with when it was, some time; returns at once, with the row as it is in the file."""
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        whole: dict[str, object] = {"at": at, **row}
        self._put(whole)
        return whole

    def tried(self, row: Mapping[str, object], target: str) -> None:
        """A target has got a row, or has failed to: nobody need try it again."""
        self._put({"tried": {name: row[name] for name in _KEY}, "by": target})

    def close(self, until: float) -> None:
        """Wait, until this time on time.monotonic() at most, for what storage has not taken before."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=max(0.0, until - time.monotonic()))
                self._thread.join(max(0.0, until - time.monotonic()))

    def _put(self, line: Mapping[str, object]) -> None:
        with contextlib.suppress(queue.Full):  # of storage that hangs
            self._waiting.put_nowait(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        with self._lock:
            if self._thread is None:
                # Daemon: storage that hangs must not keep a finished run alive.
                thread = threading.Thread(target=self._write_on, name="alerts.jsonl", daemon=True)
                with contextlib.suppress(RuntimeError):  # the system gives this user no further one: the next row asks
                    thread.start()
                    self._thread = thread

    def _write_on(self) -> None:
        lines = list[bytes]()
        while True:
            line = self._waiting.get()
            lines = [*lines, line][-_MOST_WAITING:] if line else lines
            if lines:
                with contextlib.suppress(OSError):
                    append_whole(self._path, b"".join(lines))
                    lines = []
            if line is None:
                return


def read_alerts(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's alerts.jsonl, without damaged ones; none where there is no file."""
    return [line for line in _lines(directory) if _is_row(line)]


def read_untried(directory: Path, target: str, attempt: int) -> list[dict[str, Any]]:
    """The rows from this attempt on that a target has neither got nor failed to, in their order."""
    lines = _lines(directory)
    tried = {_key(line["tried"]) for line in lines if line.get("by") == target and isinstance(line.get("tried"), dict)}
    return [line for line in lines if _is_row(line) and line["attempt"] >= attempt and _key(line) not in tried]


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps([row.get(name) for name in _KEY])


def _lines(directory: Path) -> list[dict[str, Any]]:
    found = list[dict[str, Any]]()
    with contextlib.suppress(OSError):
        for line in (directory / NAME).read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(row := json.loads(line), dict):
                    found.append(row)
    return found


def _is_row(line: Mapping[str, Any]) -> bool:
    known = {"at": str, "rule": str, "level": str, "text": str, "attempt": int, "step": int}
    return all(isinstance(line.get(name), kind) for name, kind in known.items())
