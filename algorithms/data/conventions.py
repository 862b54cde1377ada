"""Data conventions, detected by column name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data import readers
from algorithms.data.bad_rows import BadRows
from algorithms.data.messages import EmptyRow
from algorithms.data.sources import Row
from algorithms.words import nearest

Use = Literal["sft", "rl", "pairs", "unpaired"]

_READS = {
    "sft": "sft needs",
    "rl": "reinforcement learning needs",
    "pairs": "preference pairs need",
    "unpaired": "loss kto needs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """A set of columns that many data sets share, and how to read it."""

    name: str
    columns: tuple[str, ...]
    """Columns every row must have."""
    description: str
    """For people."""
    read: Callable[[Row], Any]
    """Row to Example (SFT), string or list of messages (RL), Preference (pairs) or Judgement. Raises RowError."""
    optional: tuple[str, ...] = ()
    """Columns that it reads too, and that all rows or none must have."""


SFT_CONVENTIONS = (
    Convention(
        name="messages", columns=("messages",), read=readers.read_messages, description="messages of {role, content}"
    ),
    Convention(
        name="sharegpt",
        columns=("conversations",),
        read=readers.read_sharegpt,
        description="ShareGPT turns of {from, value}",
    ),
    Convention(
        name="prompt-completion",
        columns=("prompt", "completion"),
        read=readers.read_prompt_completion,
        description="prompt and completion, as text or messages",
    ),
    Convention(
        name="alpaca",
        columns=("instruction", "output"),
        read=readers.read_alpaca,
        description="Alpaca: instruction, optional input and system, output",
    ),
    Convention(name="text", columns=("text",), read=readers.read_text, description="plain text"),
)
RL_CONVENTIONS = (
    Convention(
        name="prompt",
        columns=("prompt",),
        read=readers.read_prompt,
        description="prompt, as text or messages, and any columns",
    ),
    Convention(
        name="messages",
        columns=("messages",),
        read=readers.read_prompt_messages,
        description="messages that end with a user turn",
    ),
)
PAIR_CONVENTIONS = (
    Convention(
        name="pairs",
        columns=("prompt", "chosen", "rejected"),
        optional=("margin",),
        read=readers.read_pair,
        description="prompt, chosen and rejected, as text or messages",
    ),
    Convention(
        name="pairs-without-prompt",
        columns=("chosen", "rejected"),
        optional=("margin",),
        read=readers.read_implicit_pair,
        description="chosen and rejected, as text or messages, whose common beginning is the prompt",
    ),
)
UNPAIRED_CONVENTIONS = (
    Convention(
        name="labelled",
        columns=("prompt", "completion", "label"),
        read=readers.read_labelled,
        description="prompt and completion, as text or messages, and whether it is desirable",
    ),
)
QUESTION_ANSWER = Convention(
    name="question-answer",
    columns=("question", "answer"),
    read=readers.read_prompt,
    description="question (read as prompt) and answer",
)


_CONVENTIONS: dict[Use, tuple[Convention, ...]] = {
    "sft": SFT_CONVENTIONS,
    "rl": RL_CONVENTIONS,
    "pairs": PAIR_CONVENTIONS,
    "unpaired": UNPAIRED_CONVENTIONS,
}


_FOR_TEMPLATES = {"tools", "chat_template_kwargs"}
_ALSO_READ: dict[Use, set[str]] = {
    "sft": {"input", "system", *_FOR_TEMPLATES},
    "rl": _FOR_TEMPLATES,
    "pairs": _FOR_TEMPLATES,
    "unpaired": _FOR_TEMPLATES,
}
"""Columns beside those of the conventions that are read where they are there."""


def read_examples(
    rows: list[Row], data: DataConfig, use: Use, field: str
) -> tuple[Convention, list[Row], dict[int, Any], BadRows]:
    """The convention of the rows, the rows after `data.columns` was applied (under both names), what is read in each,
    by index, and those in which nothing can be read.

    Raises UserError as `detect` does, and with the first one's number when more rows are bad than data.max_bad_rows
    allows: they lack a column, or their values are not what they must be.
    """
    convention, wanted = detect(rows, data, use, field)
    bad = BadRows(field=field, most=data.max_bad_rows, total=len(rows))

    def named(row: Row) -> Row:
        row = _renamed(row, data.columns)
        if convention is QUESTION_ANSWER and "question" in row:
            row = row | {"prompt": row["question"]}
        if missing := next((column for column in wanted if column not in row), None):
            raise EmptyRow(
                f"lacks column {missing!r} of the {convention.name} convention{nearest(missing, row)}, "
                f"its columns are {_names(row)}"
            )
        return row

    found = bad.kept(enumerate(rows), named)
    examples = bad.kept(found.items(), convention.read)
    bad.check()
    return convention, [found.get(index, row) for index, row in enumerate(rows)], examples, bad


def columns_read(convention: Convention, data: DataConfig, use: Use) -> set[str]:
    """Names of the columns that rows of a convention may have and that something reads."""
    renamed = {name for new, old in data.columns.items() for name in (new, old)}
    return {*convention.columns, *convention.optional, *_ALSO_READ[use], *renamed, "source"}


def detect(rows: list[Row], data: DataConfig, use: Use, field: str) -> tuple[Convention, list[str]]:
    """The convention of `rows`, by the first one, and the columns that every row must have.

    A name in `data.columns` also chooses: {text: text} reads rows that have messages too as plain text. In RL, question
    and answer stand for prompt and answer where no other convention fits. Of pairs, those with a prompt are preferred.

    Raises:
        UserError: no convention or several fit the first row; names columns and nearest name.
    """
    if use != "rl":  # there a reward may take any column
        _check_names(data.columns, use)
    first, conventions = _first_renamed(rows[0], data.columns, field), _CONVENTIONS[use]
    # By the first row alone: every other must have its columns, or is a bad one.
    fitting = [convention for convention in conventions if first.keys() >= set(convention.columns)]
    chosen = [convention for convention in fitting if data.columns.keys() & set(convention.columns)]
    # Rows of prompt, chosen and rejected also fit the pairs without a prompt.
    found = _most_specific(chosen or fitting)
    # Last, as question and answer may be further columns of rows that have a prompt.
    if not found and use == "rl" and first.keys() >= set(QUESTION_ANSWER.columns):
        found = [QUESTION_ANSWER]
    if len(found) > 1:
        names = ", ".join(convention.name for convention in found)
        column = found[0].columns[0]
        raise UserError(
            f"{field}: columns {_names(first)} fit several conventions ({names}); choose with data.columns, "
            f"for example {{{column}: {column}}}"
        )
    if not found:
        raise UserError(_no_convention(first, conventions, use, field))
    # A margin that only some rows have would be 0 in the others, a mistake that nothing would show.
    given = [name for name in found[0].optional if name in data.columns or any(name in row for row in rows)]
    return found[0], [*found[0].columns, *given]


def _check_names(columns: dict[str, str], use: Use) -> None:
    """Raise UserError for a name in data.columns that no convention reads."""
    reads = {name for convention in _CONVENTIONS[use] for name in (*convention.columns, *convention.optional)}
    reads |= _ALSO_READ[use]
    for new, old in columns.items():
        if new not in reads:
            raise UserError(
                f"data.columns.{new}: must be a column that is read, one of {', '.join(sorted(reads))}"
                f"{nearest(new, reads)}, got {new} for {old}"
            )


def _most_specific(conventions: list[Convention]) -> list[Convention]:
    """Those whose columns are not a part of another one's."""
    return [item for item in conventions if not any(set(item.columns) < set(other.columns) for other in conventions)]


def _first_renamed(row: Row, columns: dict[str, str], field: str) -> Row:
    """The first row with data.columns applied; what it lacks is a mistake of the setting."""
    for new, old in columns.items():
        if old not in row:
            raise UserError(
                f"data.columns.{new}: {field} row 1 has no column {old!r}{nearest(old, row)}, "
                f"its columns are {_names(row)}"
            )
    return _renamed(row, columns)


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    for new, old in columns.items():
        if old not in row:
            raise EmptyRow(
                f"lacks column {old!r}, which data.columns.{new} names{nearest(old, row)}, "
                f"its columns are {_names(row)}"
            )
    return row | {new: row[old] for new, old in columns.items()} if columns else row


def _no_convention(row: Row, conventions: tuple[Convention, ...], use: Use, field: str) -> str:
    """Says what would fit; where one known column is there or nearly there, which one is missing."""
    # Rows of the other preference job: renaming their columns would not help.
    if use == "unpaired" and row.keys() >= {"chosen", "rejected"}:
        return (
            f"{field}: loss kto needs prompt + completion + label, these rows are pairs (columns {_names(row)}): "
            f"choose another algorithm.loss, or make two labelled rows of each pair"
        )
    if use == "pairs" and row.keys() >= {"prompt", "completion", "label"}:
        return (
            f"{field}: preference pairs need chosen + rejected, these rows are single labelled responses "
            f"(columns {_names(row)}): dpo learns from them with algorithm.loss kto"
        )
    known = [column for convention in conventions for column in convention.columns if column not in row]
    spare = [column for column in row if not any(column in convention.columns for convention in conventions)]
    near = [(column, match[0]) for column in known if (match := difflib.get_close_matches(column, spare, 1))]
    hint = f" (should {near[0][1]} be {near[0][0]}?)" if near else ""
    # The convention with most columns there already is the one that was probably meant.
    closest = max(conventions, key=lambda convention: len(row.keys() & set(convention.columns)))
    missing = next(column for column in closest.columns if column not in row)
    new, old = near[0] if near else (missing, next(iter(spare), "NAME"))
    wanted = "; ".join(" + ".join(convention.columns) for convention in conventions)
    return (
        f"{field}: row 1 has columns {_names(row)}{hint}, {_READS[use]} one of: {wanted}; "
        f"rename with data.columns, for example {{{new}: {old}}}"
    )


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
