"""The metrics of one run in memory, a column of numbers for each, and the warnings that its steps have given."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.page.files import Below
from launch.page.rows import number, parsed_row
from launch.page.tail import FileTail
from launch.screen.health import Health
from launch.tracking.curves import phases_of

_FIRST_ROOM = 256
_MOST_METRICS = 1000
"""Others are left out: no run of ours has as many."""

Column = NDArray[np.float64]


class MetricTable:
    """metrics.jsonl of one run, read on as it grows; NaN where a step has no such metric."""

    def __init__(self, below: Below, directory: Path) -> None:
        self._tail = FileTail(below, directory / "metrics.jsonl", self._take, self._forget)
        self.damaged = 0
        """Lines that are none of a run's."""
        self.times_cut = 0
        """How often what was read has become void: what was given away of before is, too."""
        self._forget()
        self.times_cut = 0

    def read(self) -> bool:
        """Take what is new; returns whether there is a file."""
        return self._tail.read()

    @property
    def steps(self) -> NDArray[np.int64]:
        """The steps, ascending: [rows]."""
        return self._steps[: self.rows]

    @property
    def names(self) -> list[str]:
        """All metrics, in the order in which they came."""
        return list(self._columns)

    def column(self, name: str) -> Column:
        """The values of a metric: [rows]; NaN throughout where there is none of this name."""
        found = self._columns.get(name)
        return np.full(self.rows, np.nan) if found is None else found[: self.rows]

    def last(self, name: str) -> float | None:
        """The last value there is of a metric."""
        return self._at(name, -1)

    def first(self, name: str) -> float | None:
        """The first one."""
        return self._at(name, 0)

    def after(self, step: int) -> int:
        """How many rows are of steps up to this one."""
        return int(np.searchsorted(self.steps, step, side="right"))

    def _at(self, name: str, place: int) -> float | None:
        column = self.column(name)
        there = np.flatnonzero(~np.isnan(column))
        return float(column[there[place]]) if there.size else None

    def _take(self, _: int, line: bytes) -> None:
        row = parsed_row(line)
        if row is None:
            self.damaged += bool(line.strip(b"\0\r "))
            return
        step = row.pop("step")
        if self.rows and step <= self._steps[self.rows - 1]:
            self.damaged += 1  # whoever makes a step again has cut the file before
            return
        values = {name: value for name in row if (value := number(row[name])) is not None}
        self._add(step, values)
        self.warnings += [(step, line) for line in self._health.warnings(values)]
        if news := self._health.good_news(values):
            self.warnings.append((step, news))

    def _add(self, step: int, values: dict[str, float]) -> None:
        if self.rows == len(self._steps):
            room = max(_FIRST_ROOM, 2 * self.rows)
            self._steps = _grown(self._steps, room, 0)
            self._columns = {name: _grown(column, room, np.nan) for name, column in self._columns.items()}
        for name, value in values.items():
            column = self._columns.get(name)
            if column is None:
                if len(self._columns) >= _MOST_METRICS:
                    continue
                column = self._columns[name] = np.full(len(self._steps), np.nan)
            column[self.rows] = value
        self._steps[self.rows] = step
        self.rows += 1

    def _forget(self) -> None:
        self.rows = 0
        self._steps = np.zeros(0, dtype=np.int64)
        self._columns: dict[str, Column] = {}
        self._health = Health()
        self.warnings: list[tuple[int, str]] = []
        """(step, line) of what the screen has said of metrics."""
        self.damaged = 0
        self.times_cut += 1


def averaged(table: MetricTable, names: Sequence[str], first: int, most: int) -> dict[str, Any]:
    """As `thinned`, with one point for each stretch: its middle step, and the mean of a metric over the steps that have
    it, whose number `counts` has beside `values`. Of time/step and the phases it is that over all steps from 1 on: one
    that has no such phase has spent nothing in it, and 0 is an evaluation before the first."""
    steps = table.steps[first:]
    if len(steps) <= most:
        return thinned(table, names, first, most)
    size = -(-len(steps) // max(1, most))  # rounded up
    starts = np.arange(0, len(steps), size)
    middles = (starts + np.minimum(starts + size, len(steps)) - 1) // 2
    timed = ~np.isnan(table.column("time/step")[first:]) & (steps > 0)
    phases = {"time/step", *phases_of(names)} if timed.any() else set[str]()
    values, counts = {}, {}
    for name in names:
        column = table.column(name)[first:]
        there = timed if name in phases else ~np.isnan(column)
        sums = np.add.reduceat(np.where(there, np.nan_to_num(column), 0.0), starts)
        known = np.add.reduceat(there.astype(np.int64), starts)
        values[name] = finite_or_none(np.divide(sums, known, out=np.full(len(sums), np.nan), where=known > 0))
        counts[name] = known.tolist()
    return {"step": steps[middles].tolist(), "values": values, "counts": counts}


def thinned(table: MetricTable, names: Sequence[str], first: int, most: int) -> dict[str, Any]:
    """The rows from number `first` on, `{"step": [...], "values": {name: [...]}}`; numbers are finite or None.

    Of more than `most` rows, each stretch of equal length gives two points, the least and the greatest value of a
    metric in their order: of a single metric with its own steps, of several ones with the first and the last step of
    the stretch, which they share.
    """
    steps = table.steps[first:]
    columns = {name: table.column(name)[first:] for name in names}
    if len(steps) <= most:
        return {"step": steps.tolist(), "values": {name: finite_or_none(column) for name, column in columns.items()}}
    size = -(-len(steps) // max(1, most // 2))  # rounded up
    picked = {name: _extremes(column, size) for name, column in columns.items()}
    if len(names) == 1:
        [(places, values)] = picked.values()
        single = ~np.isnan(values) | (np.arange(len(values)) % 2 == 0)  # a step once
        return {"step": steps[places[single]].tolist(), "values": {names[0]: finite_or_none(values[single])}}
    starts = np.arange(0, len(steps), size)
    places = np.stack([starts, np.minimum(starts + size, len(steps)) - 1], axis=1).ravel()
    values = {name: finite_or_none(values) for name, (_, values) in picked.items()}
    return {"step": steps[places].tolist(), "values": values}


def finite_or_none(values: Iterable[float] | Column) -> list[float | None]:
    """As a list, with None instead of NaN."""
    column = np.asarray(values, dtype=np.float64)
    found: list[float | None] = column.tolist()
    for place in np.flatnonzero(~np.isfinite(column)).tolist():
        found[place] = None
    return found


def _extremes(column: Column, size: int) -> tuple[NDArray[np.int64], Column]:
    """Of each stretch of `size` rows, places and values of the least and the greatest one, as they come: [2 stretches]
    each; NaN for the second where there is but one, and for both where there is none."""
    count = -(-len(column) // size)
    whole = np.full(count * size, np.nan)
    whole[: len(column)] = column
    parts, nothing = whole.reshape(count, size), np.isnan(whole).reshape(count, size)
    found = [np.where(nothing, np.inf, parts).argmin(axis=1), np.where(nothing, -np.inf, parts).argmax(axis=1)]
    places = np.sort(np.stack(found, axis=1), axis=1)
    values = np.take_along_axis(parts, places, axis=1)
    values[places[:, 0] == places[:, 1], 1] = np.nan
    flat = (places + size * np.arange(count)[:, None]).ravel()
    return np.minimum(flat, len(column) - 1), values.ravel()


def _grown(column: NDArray[Any], room: int, empty: float) -> NDArray[Any]:
    new = np.full(room, empty, dtype=column.dtype)
    new[: len(column)] = column
    return new


def last_rows(text: bytes, *, whole_file: bool) -> list[dict[str, Any]]:
    """The rows in the last bytes of a file, the newest first; the first line of them may be half a one, and so may the
    last."""
    lines = text.split(b"\n")[:-1]
    found = (parsed_row(line) for line in reversed(lines if whole_file else lines[1:]))
    return [row for row in found if row is not None]
