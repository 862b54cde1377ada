"""The metrics of a run as programs ask for them: what is damaged is counted and left out, NaN is null."""

import difflib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from actors.config_base import UserError

MetricRow = dict[str, float | None]
"""Of one step, without it."""
_LARGEST_STEP = 2**53
_MAIN = re.compile(
    r"(eval/)?reward/mean|eval/(.*/)?(loss|accuracy|sequence_probability|majority|ndcg@10|spearman|pass@\d+)"
    r"|loss/\w+|grad_norm|policy/(kl|entropy)|\w+/accuracy|rollout/(response_tokens_mean|truncated_fraction)|time/step"
)


@dataclass(slots=True)
class RunRows:
    """The lines of a run's metrics.jsonl."""

    rows: list[tuple[int, MetricRow]] = field(default_factory=list)
    """(step, metrics), in order; null or a number that is finite."""
    damaged: list[int] = field(default_factory=list)
    """Numbers of the lines that are none of a run's; a last line that is still being written is not one."""

    @property
    def names(self) -> list[str]:
        """All metrics, in the order in which they came."""
        return list(dict.fromkeys(name for _, row in self.rows for name in row))

    @property
    def note(self) -> str | None:
        """What was left out, in one line."""
        if not self.damaged:
            return None
        lines = "1 line" if len(self.damaged) == 1 else f"{len(self.damaged)} lines"
        return f"metrics.jsonl: {lines} left out, which are none of a run's (the first is line {self.damaged[0]})"


def main_metrics(names: Iterable[str]) -> list[str]:
    """Those of the metrics that tell most of a job, whatever it is, in their order."""
    return [name for name in names if _MAIN.fullmatch(name)]


def run_directory(run: str) -> Path:
    """The directory of a run; raises UserError where there is none, with the nearest one."""
    directory = Path(run)
    if any((directory / name).is_file() for name in ("metrics.jsonl", "config.json")):
        return directory
    runs = [str(file.parent) for file in directory.parent.glob("*/metrics.jsonl")]
    near = difflib.get_close_matches(run, runs, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"RUN: must be the directory of a run, with metrics.jsonl{hint}, got {run}")


def read_run_rows(directory: Path) -> RunRows:
    """Read a run's metrics.jsonl, which may be written meanwhile; none where there is no such file.

    Raises:
        UserError: it cannot be read.
    """
    found = RunRows()
    try:
        with (directory / "metrics.jsonl").open("rb") as file:
            _take(file, found)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"RUN: its metrics cannot be read ({error.strerror}), got {directory}") from None
    return found


def _take(lines: Iterable[bytes], found: RunRows) -> None:
    for number, line in enumerate(lines, start=1):
        content = line.strip(b"\0\r\n ")  # NUL bytes: what a power cut leaves
        row = _row(content)
        if row is not None:
            found.rows.append(row)
        elif line.endswith(b"\n") and content:
            found.damaged.append(number)


def _row(line: bytes) -> tuple[int, MetricRow] | None:
    try:
        values = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    step = values.pop("step", None) if isinstance(values, dict) else None
    if type(step) is not int or not 0 <= step < _LARGEST_STEP:
        return None
    # `left_out` has names of prompts, and is no metric.
    return step, {str(name): _finite(value) for name, value in values.items() if value is None or _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: float | None) -> float | None:
    try:
        return None if value is None or not math.isfinite(value) else float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
