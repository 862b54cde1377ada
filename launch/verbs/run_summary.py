"""A run in one JSON object, from its directory alone: how it is, what was reached, where the time went."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from actors.config_base import UserError
from algorithms.loop import less_is_better
from launch.alerts.record import read_alerts
from launch.kinds.table import KINDS
from launch.page.files import Below
from launch.page.state import current, state_of
from launch.run.manifest import UNREADABLE, finished, read_manifest, step_of
from launch.screen.faults import kinds_of
from launch.screen.health import Health
from launch.settings.file import read_yaml
from launch.tracking.events import NAME, NOTICED, read_events
from launch.verbs.run_rows import MetricRow, RunRows, main_metrics, read_run_rows, run_directory

_NO_PHASES = ("time/step", "time/update_rank", "time/lost", "time/effective", "time/elapsed")
_MORE = ("mean", "accuracy", "sequence_probability", "majority", "ndcg@10", "spearman")
"""Last parts of the names of metrics of which more is better."""

Json = dict[str, Any]


def run_summary(run: str) -> Json:
    """All of it; docs/verbs.md has the fields. Raises UserError where there is no run."""
    directory = run_directory(run)
    config, found = _config(directory), read_run_rows(directory)
    events, alerts, below = read_events(directory / NAME), read_alerts(directory), Below(directory)
    state = state_of(below, directory, current(below, directory), events)
    algorithm = _section(config, "algorithm")
    kind = KINDS.get(str(algorithm.get("name")))
    return {
        "run": str(_section(config, "run").get("name") or directory.absolute().name),
        "directory": str(directory.absolute()),
        "job": kind.title if kind else algorithm.get("name"),
        "model": _model(_section(config, "model")),
        "state": state.name,
        "why": state.why,
        "step": found.rows[-1][0] if found.rows else None,
        "steps": algorithm.get("steps"),
        "attempts": max([1, *(line["attempt"] for line in [*events, *alerts] if isinstance(line["attempt"], int))]),
        "metrics": {metric: _values(metric, found.rows) for metric in main_metrics(found.names)},
        "time": _time(found),
        "faults": _faults(events),
        "health": list(_health(found)),
        "alerts": alerts,
        "checkpoints": list(_checkpoints(directory)),
        "export": _path(directory / "export", holding="config.json"),
        "damaged_lines": len(found.damaged),
    }


def _values(name: str, rows: Sequence[tuple[int, MetricRow]]) -> Json:
    """First, last and best value of a metric with their steps; null where there is none, or none is better."""
    points = [{"step": step, "value": value} for step, row in rows if (value := row.get(name)) is not None]
    better = _better(name)
    best = None
    if points and better:
        best = (max if better == "up" else min)(points, key=lambda point: point["value"])
    return {"first": points[0] if points else None, "last": points[-1] if points else None, "best": best,
            "better": better}  # fmt: skip


def _better(name: str) -> str | None:
    if name.startswith("loss/"):
        # Of reinforcement, a loss says nothing.
        return None if name in ("loss/policy", "loss/critic") else "down"
    if less_is_better(name):
        return "down"
    last = name.rpartition("/")[2]
    return "up" if last in _MORE or last.startswith("pass@") else None


def _time(found: RunRows) -> Json:
    """Seconds of the run so far, and where they went, by phase of its steps."""
    phases: dict[str, float] = {}
    lost, told = 0.0, {"time/elapsed": None, "time/effective": None}
    for _, row in found.rows:
        for name, value in row.items():
            if value is not None and name.startswith("time/") and name not in _NO_PHASES:
                phases[name.removeprefix("time/")] = phases.get(name.removeprefix("time/"), 0.0) + value
        lost += row.get("time/lost") or 0.0
        told |= {name: value for name in told if (value := row.get(name)) is not None}
    ordered = sorted(phases.items(), key=lambda phase: -phase[1])
    return {
        "elapsed_s": told["time/elapsed"],
        "effective": told["time/effective"],
        "lost_s": round(lost, 3),
        "phases_s": {name: round(seconds, 3) for name, seconds in ordered},
    }


def _faults(events: Sequence[Json]) -> list[Json]:
    """Faults by kind, the most frequent first."""
    whole = [line for line in events if line["event"] != NOTICED or isinstance(line.get("what"), str)]
    with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):  # of an edited file
        return [
            {
                "kind": kind.name,
                "times": kind.times,
                "noticed_s": _middle_and_most(kind.noticed_s),
                "stood_s": _middle_and_most(kind.stood_s),
                "done": dict(kind.done),
                "redone_steps": kind.redone_steps,
            }
            for kind in kinds_of(whole)
        ]
    return []


def _middle_and_most(seconds: Sequence[float]) -> Json | None:
    return {"median": round(median(seconds), 3), "most": round(max(seconds), 3)} if seconds else None


def _health(found: RunRows) -> Iterable[Json]:
    """What the screen has warned about, or would have."""
    health = Health()
    for step, row in found.rows:
        known = {name: value for name, value in row.items() if value is not None}
        for metric, line in health.out_of_range(known).items():
            yield {"step": step, "metric": metric, "text": line}


def _checkpoints(directory: Path) -> Iterable[Json]:
    """Those that are there, the oldest first; bytes are null where the manifest cannot be read."""
    latest, best = (_pointer(directory / "checkpoints" / name) for name in ("latest", "best"))
    for path in finished(directory / "checkpoints"):
        size = None
        with contextlib.suppress(*UNREADABLE):
            size = sum(read_manifest(path)[1].values())
        yield {"step": step_of(path), "bytes": size, "latest": path.name == latest, "best": path.name == best,
               "path": str(path.absolute())}  # fmt: skip


def _pointer(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _config(directory: Path) -> Json:
    try:
        return dict(read_yaml(str(directory / "config.json")))
    except UserError:  # a run that has written none, or a copy without it
        return {}


def _section(config: Json, name: str) -> Json:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _model(model: Json) -> str | None:
    init = _section(model, "init")
    return model.get("path") or (f"new {init.get('family', 'qwen2')}" if init else None)


def _path(path: Path, *, holding: str) -> str | None:
    return str(path.absolute()) if (path / holding).is_file() else None
