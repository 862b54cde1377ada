"""Where the rows of each step are in a file, read on as it grows: completions are read only where they are shown."""

import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.page.files import Below
from launch.page.rows import parsed_row
from launch.page.tail import FileTail

_BEGINNING = re.compile(rb'\{"step": ?(0|[1-9][0-9]{0,14})[,}]')
"""How the tracker begins a row: it need not be parsed to know its step."""
_LONGEST = 2**26

Row = dict[str, Any]


class StepLines:
    """The rows of one file, by their step.

    Args:
        below: directory that the file must lie in.
        path: of the file, which need not be there yet.
    """

    def __init__(self, below: Below, path: Path) -> None:
        self._below, self._path = below, path
        self._tail = FileTail(below, path, self._take, self._forget)
        self._forget()

    def read(self) -> bool:
        """Take what is new; returns whether there is a file."""
        return self._tail.read()

    @property
    def steps(self) -> list[int]:
        """Those that have rows, ascending."""
        return sorted(self._places)

    def count(self, step: int) -> int:
        """Rows of a step."""
        return len(self._places.get(step, ()))

    def size(self, step: int) -> int:
        """Bytes of the rows of a step."""
        return sum(self._lengths.get(step, ()))

    def rows(self, step: int) -> list[Row | None]:
        """Those of a step, in order; None for one that is damaged. Raises FileNotFoundError where the file is gone."""
        return [self.row(step, index) for index in range(self.count(step))]

    def row(self, step: int, index: int) -> Row | None:
        """One of them; None where there is no such one. Raises FileNotFoundError where the file is gone."""
        if not 0 <= index < self.count(step):
            return None
        start, length = self._places[step][index], self._lengths[step][index]
        row = parsed_row(self._below.read(self._path, length, end=start + length))
        # Else the file was cut a moment ago, and what is there now is another row.
        return row if row is not None and row["step"] == step else None

    def lines(self, start: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Place, step, index within it, and the line, of each row from a place in the file on.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with os.fdopen(self._below.open(self._path), "rb") as file:
            file.seek(start)
            place = start
            while line := file.readline(_LONGEST):
                step = _step_of(line)
                if step is not None and (index := self._index(step, place)) is not None:
                    yield place, step, index, line
                place += len(line)

    def _index(self, step: int, place: int) -> int | None:
        """Which row of its step begins there; None for one that was not taken yet."""
        places = self._places.get(step)
        if places is None:
            return None
        index = bisect_left(places, place)
        return index if index < len(places) and places[index] == place else None

    def _take(self, place: int, line: bytes) -> None:
        step = _step_of(line)
        if step is None:
            self.damaged += bool(line.strip(b"\0\r "))
            return
        self._places.setdefault(step, array("q")).append(place)
        self._lengths.setdefault(step, array("q")).append(len(line))

    def _forget(self) -> None:
        self.damaged = 0
        """Lines that are no rows."""
        self._places: dict[int, array[int]] = {}
        self._lengths: dict[int, array[int]] = {}


def _step_of(line: bytes) -> int | None:
    if found := _BEGINNING.match(line):
        return int(found[1])
    row = parsed_row(line)
    return None if row is None else row["step"]
