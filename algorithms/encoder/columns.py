"""What the columns of embedding and reranker data are, told by their names, never by their order, and what they hold.

The first row decides; every other row must have the same columns, or is an error.
"""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data.messages import RowError
from algorithms.data.sources import Row
from algorithms.words import kind_of, nearest

RowUse = Literal["ranking", "pair", "graded"]
Columns = tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ColumnRole:
    """Something that rows have, and the names by which its columns are known.

    Example: ColumnRole("negatives", (("neg",), ("negative",)), "negative")
    """

    what: str
    names: tuple[Columns, ...]
    """Each a column, or columns that belong together."""
    numbered: str = ""
    """Beginning of numbered columns that are it together: positive for positive_1, positive_2, ..."""

    def found(self, columns: Iterable[object]) -> list[Columns]:
        """Those of `columns` that are known as this; several entries are ambiguous."""
        there = list(columns)
        known = [tuple(name for name in names if name in there) for names in self.names]
        if self.numbered:
            matches = [str(name) for name in there if re.fullmatch(rf"{self.numbered}_[0-9]+", str(name))]
            # By number: positive_10 comes after positive_9.
            known.append(tuple(sorted(matches, key=lambda name: int(name.rpartition("_")[2]))))
        return [names for names in known if names]

    def __str__(self) -> str:
        names = [" + ".join(columns) for columns in self.names]
        names += [f"{self.numbered}_1, {self.numbered}_2, ..."] if self.numbered else []
        listed = f"{', '.join(names[:-1])} or {names[-1]}" if names[1:] else names[0]
        return f"{self.what} ({listed})"


def _role(what: str, *names: str, numbered: str = "") -> ColumnRole:
    return ColumnRole(what, tuple((name,) for name in names), numbered)


QUERY = _role("query", "query", "anchor", "text1")
POSITIVES = _role("positives", "pos", "positive", "positives", numbered="positive")
NEGATIVES = _role("negatives", "neg", "negative", "negatives", numbered="negative")
TEACHER_SCORES = ColumnRole(
    "teacher scores",
    (("pos_scores", "neg_scores"), ("scores",), ("score",), ("labels",), ("label",), ("teacher_scores",)),
)
PROMPT = _role("prompt", "prompt")
FIRST = _role("first text", "sentence1", "text1", "query", "anchor")
SECOND = _role("second text", "sentence2", "text2", "document", "passage", "text", "positive")
SCORE = _role("score", "score", "label")
GRADED_QUERY = _role("query", "query", "anchor", "text1", "sentence1")
PASSAGES = _role("passages", "documents", "docs", "passages", "document", "passage", "text", "sentence2", "text2")
LABELLED_PASSAGES = ColumnRole("passages", PASSAGES.names + POSITIVES.names, POSITIVES.numbered)
"""Of rows without negatives, where what is called positive may have any label."""
LABELS = _role("labels", "labels", "label")
GRADES = _role("scores", "scores", "score", "teacher_scores")

IDS = _role("ids of positives in data.corpus", "positive_ids")
_ROLES = (
    *(QUERY, POSITIVES, NEGATIVES, TEACHER_SCORES, PROMPT, FIRST, SECOND, SCORE),
    *(GRADED_QUERY, PASSAGES, LABELLED_PASSAGES, LABELS, GRADES, IDS),
)

ChosenColumns = dict[ColumnRole, Columns]
"""Which columns are what; () for what may be missing and is."""


def renamed_row(row: Row, data: DataConfig, number: int, field: str) -> Row:
    """The row after data.columns was applied, with both names. Raises UserError for a column that is not there."""
    for name, given in data.columns.items():
        # Once: the setting is the same for every row.
        if number == 1 and not any(role.found([name]) for role in _ROLES):
            known = [column for role in _ROLES for columns in role.names for column in columns]
            raise UserError(
                f"data.columns.{name}: must be a column that is read, such as query, pos or neg"
                f"{nearest(name, known)}, got {name} for {given}"
            )
        if given not in row:
            raise UserError(
                f"data.columns.{name}: {field} row {number} has no column {given!r}{nearest(given, map(str, row))}, "
                f"its columns are {_listed(row)}"
            )
    return row | {name: row[given] for name, given in data.columns.items()} if data.columns else row


def choose_columns(row: Row, data: DataConfig, use: RowUse, *, scores: bool) -> ChosenColumns:
    """How rows like this first one are read for `use`; a name in data.columns also chooses among several.

    `scores`: with a teacher's scores. A graded row is read as one with positives and negatives, or as passages with
    labels (`scores`: with scores), or with the other of these two where it has only that.
    Raises RowError when columns are missing or ambiguous.
    """
    if use == "pair":
        return _columns(row, data, (FIRST, SECOND, SCORE))
    if use == "ranking" or _is_ranking(row, data):
        return _columns(row, data, (QUERY, POSITIVES, *([TEACHER_SCORES] if scores else [])), (NEGATIVES, PROMPT))
    target = next(role for role in ((GRADES, LABELS) if scores else (LABELS, GRADES)) if role.found(row))
    passages = PASSAGES if NEGATIVES.found(row) else LABELLED_PASSAGES
    return _columns(row, data, (GRADED_QUERY, passages, target), (PROMPT,))


def check_columns(row: Row, data: DataConfig, first: ChosenColumns) -> None:
    """Raises RowError unless the row's columns are the first row's, but for the prompt."""
    read = {column for columns in first.values() for column in columns}
    for role, columns in first.items():
        if role is PROMPT:  # a row may have no instruction of its own
            continue
        for column in columns:
            if column not in row:
                hint = nearest(column, [str(other) for other in row if other not in read])
                raise RowError(f"lacks column {column!r}{hint}, its columns are {_listed(row)}")
        # More of what is read already; columns that nothing reads may come and go.
        added = [name for name in _columns(row, data, (), (role,))[role] if name not in columns]
        if added:
            raise RowError(f"has column {added[0]!r}, which row 1 lacks; all rows must have the same")


def text_of(row: Row, column: str) -> str:
    """A text. Raises RowError when it is none, or empty."""
    value = row[column]
    if not isinstance(value, str):
        raise RowError(f"{column} must be text, got {kind_of(value)}")
    if not value or value.isspace():
        raise RowError(f"{column} must not be empty, got {kind_of(value)}")
    return value


def texts_of(row: Row, columns: Columns) -> tuple[str, ...]:
    """The texts of columns that each hold one or a list of them. Raises RowError when one is none, or empty."""
    found: list[str] = []
    for column in columns:
        value = row[column]
        listed = isinstance(value, list | tuple)
        for number, text in enumerate(value if listed else (value,), start=1):
            if not isinstance(text, str):
                rule = f"hold texts only, number {number} is" if listed else "be text or a list of texts, got"
                raise RowError(f"{column} must {rule} {kind_of(text)}")
            if not text or text.isspace():
                raise RowError(
                    f"{column} must not be empty, got {kind_of(text)}{f' as text {number}' if listed else ''}"
                )
            found.append(text)
    return tuple(found)


def numbers_of(row: Row, column: str, count: int, what: str) -> tuple[float, ...]:
    """A list of `count` numbers, one for each of `what`, or a number where one is enough.

    Raises RowError when there are others, or one is not finite.
    """
    if column not in row:
        raise RowError(f"lacks column {column!r}, its columns are {_listed(row)}")
    value = row[column]
    if not isinstance(value, list | tuple):
        if count > 1:
            raise RowError(
                f"{column} must be a list of one number for each of the {count} {what}, got {kind_of(value)}"
            )
        value = (value,)
    if len(value) != count:
        raise RowError(f"{column} must have one number for each of the {count} {what}, got {len(value)}")
    return tuple(number_of(item, column) for item in value)


def number_of(value: object, column: str) -> float:
    """A finite number; a bool is 0 or 1. Raises RowError when it is none."""
    if not isinstance(value, Real):
        raise RowError(f"{column} must be a number, got {kind_of(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond any float
        number = math.inf
    if not math.isfinite(number):
        raise RowError(f"{column} must be a finite number, got {number}")
    return number


def _is_ranking(row: Row, data: DataConfig) -> bool:
    """Whether a graded row has positives and negatives; otherwise it has passages with labels or scores."""
    labelled = LABELS.found(row) or GRADES.found(row)
    positives, negatives, passages = (role.found(row) for role in (POSITIVES, NEGATIVES, PASSAGES))
    # A positive with a label but no negatives is a passage with a label, which need not be a positive.
    ranking = bool(positives and (negatives or not labelled))
    listed = bool(labelled and (passages or (positives and not negatives)))
    if ranking and listed:
        for_ranking, for_list = (_wanted(found, data) for found in (positives, passages))
        if bool(for_ranking) == bool(for_list):  # neither was named, or both
            column = positives[0][0]
            raise RowError(
                f"columns {_listed(row)} fit both positives with negatives and passages with labels; choose with "
                f"data.columns, for example {{{column}: {column}}}"
            )
        return bool(for_ranking)
    if not ranking and not listed:
        missing = (LABELS, GRADES) if passages else (POSITIVES,)
        wanted = f"{GRADED_QUERY} and either {POSITIVES} or {PASSAGES} with {LABELS} or {GRADES}"
        raise RowError(_unfit(row, wanted, missing, (GRADED_QUERY, PASSAGES, LABELS, GRADES, PROMPT)))
    return ranking


def _wanted(found: list[Columns], data: DataConfig) -> list[Columns]:
    """Those that data.columns names."""
    return [names for names in found if data.columns.keys() & set(names)]


def _columns(
    row: Row, data: DataConfig, needed: Iterable[ColumnRole], optional: Iterable[ColumnRole] = ()
) -> ChosenColumns:
    chosen: ChosenColumns = {}
    for role in (*needed, *optional):
        found = role.found(row)
        found = _wanted(found, data) or found
        if len(found) > 1:
            one, other = (" + ".join(names) for names in found[:2])
            raise RowError(
                f"columns {one} and {other} could both be the {role.what}; choose with data.columns, "
                f"for example {{{found[0][0]}: {found[0][0]}}}"
            )
        chosen[role] = found[0] if found else ()
    if missing := [role for role in needed if not chosen[role]]:
        raise RowError(_unfit(row, " and ".join(map(str, needed)), missing, chosen))
    return chosen


def _unfit(row: Row, wanted: str, missing: Iterable[ColumnRole], roles: Iterable[ColumnRole]) -> str:
    """Says what would fit, and which column nearly does; `roles`: what else the columns can be."""
    names = [name for role in missing for columns in role.names for name in columns]
    near = [(name, match[0]) for name in names if (match := difflib.get_close_matches(name, map(str, row), 1))]
    hint = f" (should {near[0][1]} be {near[0][0]}?)" if near else ""
    unknown = [str(column) for column in row if not any(role.found([column]) for role in roles)]
    name, given = near[0] if near else (names[0], [*unknown, "name"][0])
    return (
        f"has columns {_listed(row)}{hint}, needs {wanted}; rename with data.columns, for example {{{name}: {given}}}"
    )


def _listed(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
