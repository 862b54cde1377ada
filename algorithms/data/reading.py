"""From rows to the items that a job learns from, and what becomes of rows that are longer than the limit."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, fields, is_dataclass
from dataclasses import field as field_of
from typing import Generic, TypeVar

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data.bad_rows import BadRows
from algorithms.data.conventions import Convention
from algorithms.data.sources import Row

Item = TypeVar("Item")
_HUGE, _PART = 500_000, 50_000
"""Characters of a text of which only a part is tokenised at first, and of this part."""
_TOLD_ROWS = 2048
"""Rows after which it is told how many are done."""
Told = Callable[[int, int], None]
"""Hears how many rows are done, and of how many."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """How many of the rows looked at are longer than the limit, and what becomes of those."""

    total: int
    """Rows there are."""
    looked_at: int = 0
    over: int = 0
    truncated: int = 0
    longest: int = 0
    first: int = 0
    """Number of the first row that is too long."""
    huge: bool = False
    """Whether the tokens of one are not all counted, so that `longest` may be more."""

    @property
    def dropped(self) -> int:
        """Rows that are left out."""
        return self.over - self.truncated

    @property
    def of(self) -> str:
        """What the counts are a part of."""
        every = self.looked_at == self.total
        return f"{self.total:,} rows" if every else f"the first {self.looked_at:,} rows"


@dataclass(kw_only=True)
class Reading(Generic[Item]):
    """Rows that follow a convention, and how they become items (prompts, sequences, pairs, judged responses)."""

    convention: Convention
    rows: list[Row]
    """With data.columns applied."""
    examples: Mapping[int, object]
    """What the convention reads in each row, by index; none in bad ones."""
    bad: BadRows
    """Those, and later those of which no item can be made."""
    data: DataConfig
    field: str
    """For messages."""
    limit: int
    rule: str
    """Setting of the limit."""
    encode: Callable[[Items[int]], dict[int, Item]]
    """Items of the rows of these indices, which have examples, in their order. Those that cannot be rendered or have no
    tokens are bad ones; raises UserError once it is clear that these are too many."""
    length: Callable[[Item], int]
    cut: Callable[[Item], Item | None]
    """An item that is too long, cut to the limit; None where that leaves nothing to learn from."""
    overhead: int = 0
    """Bytes that the chat template writes beside the messages."""
    growth: int = 1
    """Times by which the tokenizer's normalizer may lengthen a text, in bytes."""
    unknown_id: int = -1
    """The token that stands for text which the tokenizer cannot express, where it stands for that alone."""
    count: Callable[[str], int] | None = None
    """Tokens of a text."""
    notes: list[str] = field_of(default_factory=list)
    """A line for what rows hold and nothing reads."""

    def items(self, tally: Tally | None = None, told: Told | None = None) -> list[Item]:
        """All rows as items, by `data.overlong` where they are too long; counts them in `tally`. `told` hears how many
        rows are done, of how many.

        Raises:
            UserError: rows that are too long where that is an error, more bad ones than may be, or when no row is left.
        """
        tally = tally or self.tally()
        indices = self.without_huge([*self.examples], tally)
        found: dict[int, Item] = {}
        for start in range(0, len(indices), _TOLD_ROWS):
            if told:
                told(start, len(indices))
            found |= self.encode(indices[start : start + _TOLD_ROWS])
        kept = self.limited(found, indices, tally)
        self.conclude(tally)
        return kept

    def tally(self) -> Tally:
        """Counts of nothing yet but the rows in which nothing can be read."""
        return Tally(total=len(self.rows), looked_at=len(self.rows) - len(self.examples))

    def without_huge(self, indices: Items[int], tally: Tally) -> list[int]:
        """Those of the rows that must be tokenised as a whole; of the others a part is longer than the limit already.

        A text of megabytes takes seconds and gigabytes, so such rows are counted here where they need not be cut.
        """
        # What is to be cut is tokenised whole, as the cut is counted in tokens.
        if self.data.overlong == "truncate" or self.count is None:
            return list(indices)
        kept = []
        for index in indices:
            text = max(_texts(self.examples[index]), key=len, default="")
            length = self.count(text[:_PART]) if len(text) > _HUGE else 0
            # A few tokens of the part's end may be others in the whole text.
            if length <= max(self.limit, 100) * 1.1:
                kept.append(index)
                continue
            tally.looked_at += 1
            tally.over += 1
            tally.longest, tally.huge = max(tally.longest, length), True
            tally.first = min(tally.first or index + 1, index + 1)
        return kept

    def limited(self, found: Mapping[int, Item], indices: Items[int], tally: Tally) -> list[Item]:
        """Those of the items of these rows that are short enough, or are once they were cut."""
        kept: list[Item] = []
        tally.looked_at += len(indices)
        for index, item in found.items():
            length = self.length(item)
            if length <= self.limit:
                kept.append(item)
                continue
            tally.over += 1
            tally.longest = max(tally.longest, length)
            tally.first = min(tally.first or index + 1, index + 1)
            # Only now: cutting costs as much as encoding did, and most rows are short enough.
            shorter = self.cut(item) if self.data.overlong == "truncate" else None
            if shorter is not None:
                tally.truncated += 1
                kept.append(shorter)
        return kept

    def conclude(self, tally: Tally) -> None:
        """Raise UserError when more rows are bad than may be, when rows are too long and that is an error, or when none
        is left; those that were looked at are the first ones."""
        self.bad.check(tally.looked_at)
        if not tally.over:
            return
        longer = (
            f"{tally.over:,} of {tally.of} {'is' if tally.over == 1 else 'are'} longer than {self.rule} {self.limit}"
        )
        if self.data.overlong == "error":
            raise UserError(
                f"{self.field}: {longer} (first row {tally.first}, the longest has {'over ' * tally.huge}"
                f"{tally.longest:,} tokens); "
                f"data.overlong=drop leaves them out, data.overlong=truncate cuts them"
            )
        if tally.dropped + sum(index < tally.looked_at for index in self.bad.found) == tally.looked_at:
            raise UserError(f"{self.field}: data.overlong {self.data.overlong} leaves no row, as {longer}")

    def accounts(self, tally: Tally) -> list[str]:
        """A line about the bad rows and one about those that were too long, where there are any."""
        lines = [self.bad.account(may_be_more=tally.total > len(self.rows)), self.account(tally)]
        return [line for line in lines if line]

    def account(self, tally: Tally) -> str | None:
        """One line about the rows that were too long; None when there were none."""
        if not tally.over:
            return None
        how = {"error": "an error, data.overlong=drop leaves them out", "drop": "left out (data.overlong drop)"}.get(
            self.data.overlong
        )
        if self.data.overlong == "truncate":
            side = f"cut at the {self.data.truncation_side}"
            how = f"{tally.truncated:,} of them {side}, {tally.dropped:,} left out (data.overlong truncate)"
        return f"{self.field}: {tally.over:,} of {tally.of} longer than {self.rule} {self.limit}: {how}"


def _texts(example: object) -> list[str]:
    """The texts in what a convention reads in a row."""
    if isinstance(example, str):
        return [example]
    if isinstance(example, dict):  # a message, which may have keys that no template reads
        return _texts(example.get("content"))
    if isinstance(example, list | tuple):
        return [text for value in example for text in _texts(value)]
    if is_dataclass(example):
        return [text for item in fields(example) for text in _texts(getattr(example, item.name))]
    return []
