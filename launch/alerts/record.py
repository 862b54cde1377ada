"""alerts.jsonl of a run: what was told, when, and in which attempt; it outlives attempts and steps that come again."""

import contextlib
import json
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


class AlertRecord:
    """Appends to a run's alerts.jsonl, from any thread. Storage that fails harms nobody: the next line tries again."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since 1970."""
        self._path, self._clock, self._lock = directory / NAME, clock, threading.Lock()
        self._waiting: list[bytes] = []

    def write(self, row: Mapping[str, object]) -> dict[str, object]:
        """Write a row, with when it was; returns it as it is in the file."""
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        whole: dict[str, object] = {"at": at, **row}
        with self._lock:
            self._waiting.append(json.dumps(whole, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            del self._waiting[:-_MOST_WAITING]
            self._flush()
        return whole

    def close(self) -> None:
        """Write what storage has not taken before."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            with contextlib.suppress(OSError):
                append_whole(self._path, b"".join(self._waiting))
                self._waiting.clear()


def read_alerts(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's alerts.jsonl, without damaged ones; none where there is no file."""
    try:
        lines = (directory / NAME).read_bytes().splitlines()
    except OSError:
        return []
    return [row for line in lines if (row := _row(line)) is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = {"at": str, "rule": str, "level": str, "text": str, "attempt": int, "step": int}
    whole = isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in known.items())
    return row if whole else None
