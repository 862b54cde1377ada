"""Rows that nothing can be learned from: which are skipped, what is told of them, and when they are too many."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from dataclasses import field as made_by
from typing import NamedTuple, TypeVar

from actors.config import UserError
from algorithms.data.messages import EmptyRow, RowError

Given = TypeVar("Given")
Made = TypeVar("Made")

USUAL = 0.01
"""Share of a set's rows that may be empty where data.max_bad_rows says nothing: so, none of fewer than a hundred."""
_COUNTED, _COUNTING_S = 1_000, 1.0
"""Bad rows, and CPU seconds, after which no more are counted once they are too many."""
_NUMBERS, _LONGEST = 10, 160
"""Row numbers that are told, and characters of what is wrong with them."""


class Bad(NamedTuple):
    """What is wrong with a row. Example: Bad("column answer must not be empty, got null", empty=True)."""

    text: str
    empty: bool
    """Whether it says nothing, and so is no mistake of form."""


@dataclass(kw_only=True)
class BadRows:
    """The bad rows of a set, as they are found."""

    field: str
    """For messages."""
    most: float | None
    """data.max_bad_rows: a number of rows, or a share of them."""
    total: int
    """Rows of the set."""
    found: dict[int, Bad] = made_by(default_factory=dict)
    """By index."""
    _until: float | None = None
    """When counting ends, once there are too many."""

    @property
    def allowed(self) -> int:
        """How many may be skipped; where `most` says nothing, of empty ones alone."""
        most = USUAL if self.most is None else self.most
        # Above the next float, as 0.29 of 100 would be 28.
        return most if isinstance(most, int) else math.floor(most * self.total + 1e-6)

    def kept(self, given: Iterable[tuple[int, Given]], make: Callable[[Given], Made]) -> dict[int, Made]:
        """What `make` makes of each row, by index, without the rows for which it raises RowError.

        Raises UserError as `check` does, before the last row once it is clear that too many are bad.
        """
        made: dict[int, Made] = {}
        for index, value in given:
            try:
                made[index] = make(value)
            except RowError as error:
                # As text: an error keeps all that was at hand where it was raised.
                self._add(index, Bad(str(error), isinstance(error, EmptyRow)))
            if self._until is not None and (
                len(self.found) > self.allowed + _COUNTED or time.process_time() > self._until
            ):
                self.check(max(index, *self.found) + 1)
        return made

    def check(self, looked_at: int | None = None) -> None:
        """Raise UserError when more rows are bad than may be, or all are; `looked_at`: of the first so many rows."""
        if self._until is None and len(self.found) < self.total:
            return
        rows = self._refused() or sorted(self.found)
        line = f"{self.field}: row {rows[0] + 1}: {self.found[rows[0]].text}"
        raise UserError(line + self._others(self.total if looked_at is None else looked_at))

    def account(self, *, may_be_more: bool = False) -> str | None:
        """One line about the rows that are skipped; None when there are none. `may_be_more`: than were read."""
        if not self.found:
            return None
        rows, groups = sorted(self.found), dict[str, list[str]]()
        for index in rows[:_NUMBERS]:
            groups.setdefault(_short(self.found[index].text), []).append(f"{index + 1:,}")
        why = [f"row{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {text}" for text, numbers in groups.items()]
        why += [f"and {len(rows) - _NUMBERS:,} more"] if len(rows) > _NUMBERS else []
        of = f"{'the first ' * may_be_more}{self.total:,} rows"
        return f"{self.field}: {len(rows):,} of {of} skipped ({'; '.join(why)})"

    def _add(self, index: int, bad: Bad) -> None:
        self.found[index] = bad
        wrong_form = self.most is None and not bad.empty
        if self._until is None and (wrong_form or len(self.found) > self.allowed):
            self._until = time.process_time() + _COUNTING_S

    def _refused(self) -> list[int]:
        """The rows for which the set is refused: of those that are too many all, else those of a wrong form."""
        if len(self.found) > self.allowed:
            return sorted(self.found)
        return sorted(index for index, bad in self.found.items() if not bad.empty) if self.most is None else []

    def _others(self, looked_at: int) -> str:
        """How many rows are bad beside the first, and what to do about it."""
        more = len(self.found) - 1
        of = f"{self.total:,} rows" if looked_at >= self.total else f"the first {looked_at:,} rows"
        counted = f"; and {more:,} more of {of} {'is' if more == 1 else 'are'} bad" if more else ""
        if self.most is None:
            # A file of a few rows is better mended.
            alone = not more and looked_at >= self.total
            advice = "data.max_bad_rows=1 skips it" if alone else "data.max_bad_rows skips up to so many"
            return f"{counted} ({advice})" if more or self.total >= 1 / USUAL else ""
        skips = "leaves no row" if len(self.found) <= self.allowed else f"allows {self.allowed:,}"
        return f"{counted} (data.max_bad_rows {self.most:g} {skips})"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
