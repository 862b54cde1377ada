"""The list of runs below a directory, from the ends of their files: none is read as a whole."""

import math
import threading
import time
from pathlib import Path
from typing import Any

from launch.page.configs import job_title, model_of, name_of, read_config, steps_of_config
from launch.page.files import Below, Stamp, find_runs
from launch.page.metric_table import last_rows
from launch.page.panels import MOST_LISTED, tile_metrics
from launch.page.rows import as_json, number
from launch.page.state import current, state_of
from launch.tracking.events import NAME

_END = 2**16
"""Bytes at the end of a file that are looked at."""
_LARGER_END = 2**20
"""Where not one whole row is among these."""
_LOOKS = 10.0
"""No more than one part of so many of the time goes into looks that nobody has asked for."""

Known = tuple[Stamp | None, Any]


class RunList:
    """The runs below a directory, in short; what has not changed is not read again."""

    def __init__(self, below: Below) -> None:
        self._below, self._lock = below, threading.Lock()
        self._known: dict[Path, Known] = {}
        self._found: list[dict[str, Any]] = []
        self._began, self._took_s = -math.inf, 0.0
        """When the last look at all of them began, and how long it took."""

    def read(self, fresh_s: float = 0.0) -> list[dict[str, Any]]:
        """Each run as /api/runs has it, the one that has changed last first; whoever asks at once shares one look.

        Args:
            fresh_s: what was found so many seconds ago will do, and longer where a look takes long.
        """
        asked = time.monotonic()
        with self._lock:
            enough_s = max(fresh_s, _LOOKS * self._took_s) if fresh_s else 0.0
            if self._began < asked - enough_s:
                self._began = time.monotonic()
                self._found = self._look()
                self._took_s = time.monotonic() - self._began
            return self._found

    def _look(self) -> list[dict[str, Any]]:
        runs = find_runs(self._below)
        found = [self._entry(name, directory) for name, directory in runs.items()]
        kept = {directory / name for directory in runs.values() for name in ("config.json", "metrics.jsonl", NAME)}
        self._known = {path: known for path, known in self._known.items() if path in kept}
        return sorted(found, key=lambda entry: -entry["updated"])

    def _entry(self, name: str, directory: Path) -> dict[str, Any]:
        config = self._unless_known(directory / "config.json", lambda: _described(self._below, directory))
        rows = self._unless_known(directory / "metrics.jsonl", lambda: _last_values(self._below, directory))
        events = self._unless_known(directory / NAME, lambda: _last_lines(self._below, directory / NAME))
        now = current(self._below, directory)
        state = state_of(self._below, directory, now, events or [])
        values, step = rows or ({}, None)
        stamps = [self._known.get(directory / each, (None, None))[0] for each in ("config.json", "metrics.jsonl")]
        # Not when it said its last word: that it does in any case.
        told = 0.0 if now is None else now.at if now.ended else now.since
        updated = max([stamp.mtime for stamp in stamps if stamp] + [told])
        described = config or {"name": directory.name, "job": "", "model": "", "steps": None}
        return {
            "id": name,
            **described,
            "state": state.name,
            "why": state.why,
            "phase": now.phase if now else "",
            "step": step,
            "steps": (now.steps if now else None) or described["steps"],
            "updated": updated,
            "values": values,
        }

    def _unless_known(self, path: Path, read: Any) -> Any:
        stamp = self._below.stamp(path)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = self._known[path] = (stamp, read() if stamp else None)
        return known[1]


def _described(below: Below, directory: Path) -> dict[str, Any]:
    config = read_config(below, directory)
    described = {"job": job_title(config), "model": model_of(config), "steps": steps_of_config(config)}
    return {"name": name_of(config, directory), **described}


def _last_values(below: Below, directory: Path) -> tuple[dict[str, float], int | None]:
    """The last values of the metrics that tell most, and the last step."""
    path = directory / "metrics.jsonl"
    for most in (_END, _LARGER_END):
        stamp = below.stamp(path)
        if stamp is None:
            return {}, None
        try:
            text = below.read(path, most, end=stamp.size)
        except FileNotFoundError:
            return {}, None
        rows = last_rows(text, whole_file=stamp.size <= most)
        if rows or stamp.size <= most:
            break
    wanted = [name for name, _, _ in tile_metrics({name for row in rows for name in row})][:MOST_LISTED]
    values: dict[str, float] = {}
    for name in wanted:
        found = (value for row in rows if (value := number(row.get(name))) is not None)
        if (value := next(found, None)) is not None:
            values[name] = value
    return values, rows[0]["step"] if rows else None


def _last_lines(below: Below, path: Path) -> list[dict[str, Any]]:
    stamp = below.stamp(path)
    if stamp is None:
        return []
    try:
        lines = below.read(path, _END, end=stamp.size).split(b"\n")
    except FileNotFoundError:
        return []
    return [line for line in map(as_json, lines) if line is not None]
