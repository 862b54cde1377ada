"""The logs of a run, a stretch of whole lines at a time."""

from pathlib import Path
from typing import Any

from launch.page.files import Below

_STRETCH = 2**16
"""Most bytes of one answer."""
_MOST_LOGS = 300
_FIRST = "driver.log"
_ENDS = (".log", ".txt", ".out", ".err")


def log_names(below: Below, directory: Path) -> list[str]:
    """Names of a run's logs, below `logs/`: the driver's first, those of ranks and engines, Ray's own last."""
    folder = directory / "logs"
    first = [_FIRST] if below.stamp(folder / _FIRST) else []
    own = [name for name in below.names(folder, _ENDS, _MOST_LOGS) if name != _FIRST]
    rays = [f"ray/{name}" for name in below.names(folder / "ray", _ENDS, _MOST_LOGS)]
    return [*first, *own, *rays][:_MOST_LOGS]


def read_log(below: Below, directory: Path, name: str, before: int | None) -> dict[str, Any]:
    """The lines of a log that end at the byte `before`, by default at its end: `{"text", "start", "end"}`, in bytes.

    `start` is what to ask for `before` next; 0: there is nothing before it. A line that is longer than an answer is
    given in parts.

    Raises:
        FileNotFoundError: there is no such log.
    """
    if name not in log_names(below, directory):
        raise FileNotFoundError(name)
    path = directory / "logs" / name
    stamp = below.stamp(path)
    if stamp is None:
        raise FileNotFoundError(name)
    end = stamp.size if before is None else min(before, stamp.size)
    found = below.read(path, _STRETCH, end=end)
    start = end - len(found)
    if start > 0:
        cut = found.find(b"\n") + 1
        found = found[cut:] if 0 < cut < len(found) else found
        start = end - len(found)
    return {"text": found.decode("utf-8", "replace"), "start": start, "end": end}
