"""What the checks know of the rows of a configuration, once `row_checks` has read them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from launch.checks.reward_checks import ProbeRow

if TYPE_CHECKING:
    from algorithms.offline.comparable import Unpaired

Field = Literal["data.train", "data.eval"]
Row = dict[str, object]
Sets = dict[str, list[Row]]
"""Rows of each set, by its name; "" where there is one."""


@dataclass(slots=True, kw_only=True)
class Rows:
    """What is known about the training or the evaluation rows."""

    count: int = 0
    """Rows read that the run draws, at most READ_ROWS of each set: without those that are bad, too long or held out."""
    complete: bool = True
    """Whether these are all: no set has as many rows as are read here."""
    whole: bool = True
    """Whether none of them is left out for its length."""
    rendered: bool = True
    """Whether all were, as far as that may show that one is to be skipped: then the run counts as many."""
    unpaired: dict[str, list["Unpaired"]] = field(default_factory=dict)
    """For KTO: what decides whether rows can be compared, of each set."""
    columns: set[str] = field(default_factory=set)
    """Columns that every row has, under the names rewards see."""
    lacking: dict[str, str] = field(default_factory=dict)
    """Columns that only some rows have -> the first row without, as data.train: row 11."""
    mean_tokens: float | None = None
    """Mean length of a prompt, sequence or pair; None when nothing was tokenised."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each sequence of the rows that were tokenised for that, as far as it may be read; none of prompts."""
    examples: list[ProbeRow] = field(default_factory=list)
    """Prompts to call rewards with."""
    notes: list[str] = field(default_factory=list)
    """A line for each set of which rows are skipped as bad ones, or are too long, and are left out or cut."""
    warnings: list[str] = field(default_factory=list)
    digest: int = 0
    """Differs for rows that differ; 0 without data.eval, where there is nothing to compare with."""
