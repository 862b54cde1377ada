"""A trial's metric by its steps, from metrics.jsonl, which is read on from where it was read to."""

import json
import math
import os
from pathlib import Path


class MetricRows:
    """Values of one metric, as a run writes them."""

    def __init__(self, path: Path, metric: str) -> None:
        self._path, self._metric = path, metric
        self._key = json.dumps(metric).encode()
        self._read, self._inode = 0, 0
        self.values: dict[int, float] = {}
        """Step -> value; one that is no finite number is NaN."""
        self.step = 0
        """The last step there is."""

    def update(self) -> list[int]:
        """Read what is new; returns the steps that have got a value.

        A run that goes on from a checkpoint puts a shorter file in place of the one before: it is read anew.
        """
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._read:
                    self._read, self._inode, self.values, self.step = 0, found.st_ino, {}, 0
                file.seek(self._read)
                text = file.read()
        except OSError:
            return []
        whole = text.rfind(b"\n") + 1  # a line that is being written waits
        self._read += whole
        steps = [self._take(line) for line in text[:whole].splitlines()]
        return [step for step in steps if step is not None]

    def _take(self, line: bytes) -> int | None:
        """The step of a row with the metric."""
        try:
            row = json.loads(line)
            step = row["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if type(step) is not int:
            return None
        self.step = step
        if self._key not in line or self._metric not in row:
            return None
        value = row[self._metric]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        self.values[step] = float(value) if number else math.nan
        return step

    def best(self, *, least: bool) -> tuple[int, float] | None:
        """Step and value of the best number after a step; None without one. That of step 0 is the untrained model's,
        which no trial exports."""
        numbers = [(step, value) for step, value in self.values.items() if step and math.isfinite(value)]
        if not numbers:
            return None
        return (min if least else max)(numbers, key=lambda item: item[1])

    def last(self) -> tuple[int, float] | None:
        """Step and value of the last row after a step; None without one, or where it holds no number."""
        if not self.values:
            return None
        step, value = next(reversed(self.values.items()))
        return (step, value) if step and math.isfinite(value) else None
