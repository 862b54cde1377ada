"""Rows of embedding and reranker data, read by column name, never by the order of columns.

The first row decides which of the known names are read; every other row must have the same ones, or is an error. Only
the prompt may come and go.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeVar

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data.messages import RowError
from algorithms.data.row_contents import Contents, content_of
from algorithms.data.sources import Row, check_source_settings, read_rows
from algorithms.encoder.columns import (
    FIRST,
    GRADED_QUERY,
    GRADES,
    LABELLED_PASSAGES,
    LABELS,
    NEGATIVES,
    PASSAGES,
    POSITIVES,
    PROMPT,
    QUERY,
    SCORE,
    SECOND,
    TEACHER_SCORES,
    ChosenColumns,
    Columns,
    RowUse,
    check_columns,
    choose_columns,
    number_of,
    numbers_of,
    renamed_row,
    text_of,
    texts_of,
)
from algorithms.words import kind_of

Made = TypeVar("Made", "Ranking", "Scored", "Graded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """A query, passages that answer it and passages that do not.

    Example: Ranking(query="capital of France", positives=("Paris",), negatives=("Rome", "Bonn"),
        positive_scores=(9.1,), negative_scores=(2.0, 0.3), prompt=None)
    """

    query: str
    positives: tuple[str, ...]
    """At least one."""
    negatives: tuple[str, ...]
    positive_scores: tuple[float, ...] | None
    """A teacher's, one for each positive; None where they are not read."""
    negative_scores: tuple[float, ...] | None
    """A teacher's, one for each negative."""
    prompt: str | None
    """The row's own instruction before its query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Two texts and how alike they are.

    Example: Scored(first="A cat sits.", second="A cat is sitting.", score=0.9)
    """

    first: str
    second: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A query and passages, each with a label or a teacher's score.

    Example: Graded(query="capital of France", passages=("Paris", "Rome"), labels=(1.0, 0.0), prompt=None)
    """

    query: str
    passages: tuple[str, ...]
    """At least one."""
    labels: tuple[float, ...]
    """One for each passage: the larger, the better."""
    prompt: str | None
    """The row's own instruction before its query."""


def load_named_rows(
    data: DataConfig,
    field: Literal["data.train", "data.eval"],
    *,
    at_most: int | None = None,
    contents: Contents | None = None,
) -> dict[str, list[Row]]:
    """The rows of each source that `data` names, as data.converter leaves them; a single source has the name ''.

    data.limit, data.eval_limit and `at_most` hold for each source. Without data.eval there are none.
    `contents` gets what each set holds.
    Raises UserError as read_rows does; the messages name `data.train.NAME` where there are several sources.
    """
    train = field == "data.train"
    given, limit = (data.train, data.limit) if train else (data.eval, data.eval_limit)
    if given == {}:
        raise UserError(f"{field}: must name at least one source, got {{}}")
    sources = {"": given} if isinstance(given, str) else given or {}
    check_source_settings(data)
    found = {
        name: read_rows(
            source,
            split=data.split if train else data.eval_split,
            arguments=data.arguments,
            limit=min((count for count in (limit, at_most) if count is not None), default=None),
            field=f"{field}.{name}" if name else field,
            converter=data.converter,
            columns=data.columns,
        )
        for name, source in sources.items()
    }
    if contents is not None:
        contents.update({f"{field}.{name}" if name else field: content_of(rows) for name, rows in found.items()})
    return found


def rankings(rows: list[Row], data: DataConfig, field: str, *, scores: bool = False) -> list[Ranking]:
    """Rows of a query, positives and, where they are, negatives; `scores`: with a teacher's scores of all passages.

    Raises:
        UserError: one line with `field`, row and column: missing or ambiguous columns, a row without a positive, an
            empty text or one that is no text, a negative that is also a positive, scores of wrong number or not finite.
    """
    return _read(rows, data, field, "ranking", _ranking, scores=scores)[1]


def scored_pairs(rows: list[Row], data: DataConfig, field: str) -> list[Scored]:
    """Rows of two texts with a score (or a label of 0 and 1). Raises UserError as `rankings` does."""
    return _read(rows, data, field, "pair", _scored)[1]


def gradeds(rows: list[Row], data: DataConfig, field: str, *, targets: Literal["labels", "scores"]) -> list[Graded]:
    """Rows of a query with one passage or several, each with what a reranker shall say of it.

    Positives and negatives become labels 1 and 0, or with targets `scores` a teacher's scores. Of other rows labels
    (targets `labels`) or scores (targets `scores`) are read, or the ones where the others are not there; positives
    without negatives but with labels or scores are such rows too.
    Raises UserError as `rankings` does.
    """
    return _read(rows, data, field, "graded", _graded, scores=targets == "scores")[1]


def describe(rows: list[Row], data: DataConfig, field: str, use: RowUse, *, scores: bool = False) -> str:
    """One line that says which columns are read as what, and how many texts a row has.

    `scores`: a teacher's scores are read, of a ranking beside its passages, of a graded row as what is learned.
    Raises UserError as the functions that read the rows do.

    Example: "query: query, positives: pos (1 a row), negatives: neg (7 to 15 a row), teacher scores: no"
    """
    make: dict[RowUse, Callable[..., Any]] = {"ranking": _ranking, "pair": _scored, "graded": _graded}
    chosen, found = _read(rows, data, field, use, make[use], scores=scores)
    parts = []
    for role, columns in chosen.items():
        names = _joined([data.columns.get(name, name) for name in columns])  # as the data calls them
        if names and use == "ranking" and role in (POSITIVES, NEGATIVES):
            names += f" ({_span([len(getattr(row, role.what)) for row in found])} a row)"
        if names or role is not PROMPT:
            parts.append(f"{role.what}: {names or 'none'}")
    if use == "graded":
        parts.append(f"passages a row: {_span([len(row.passages) for row in found])}")
    if use == "ranking" and not scores:
        parts.append("teacher scores: no")
    read = {data.columns.get(name, name) for columns in chosen.values() for name in columns}
    unread = [str(name) for name in rows[0] if name not in read]
    return ", ".join(parts + ([f"not read: {' '.join(unread)}"] if unread else []))


def _read(
    rows: Iterable[Row],
    data: DataConfig,
    field: str,
    use: RowUse,
    make: Callable[[Row, ChosenColumns], Made],
    *,
    scores: bool = False,
) -> tuple[ChosenColumns, list[Made]]:
    """How the first row is read, and what becomes of each."""
    chosen: ChosenColumns = {}
    known: set[Columns] = set()
    found: list[Made] = []
    for number, given in enumerate(rows, start=1):
        row = renamed_row(given, data, number, field)
        try:
            if number == 1:
                chosen = choose_columns(row, data, use, scores=scores)
            # Once for each set of names: millions of rows have one or two.
            elif tuple(row) not in known:
                check_columns(row, data, chosen)
                if chosen.get(PROMPT) == ():
                    chosen[PROMPT] = next(iter(PROMPT.found(row)), ())
            known.add(tuple(row))
            found.append(make(row, chosen))
        except RowError as error:
            raise UserError(f"{field}: row {number}: {error}") from error
    return chosen, found


def _joined(columns: Sequence[str]) -> str:
    return " + ".join(columns) if len(columns) < 3 else f"{columns[0]} to {columns[-1]}"


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _ranking(row: Row, chosen: ChosenColumns) -> Ranking:
    positives, negatives = texts_of(row, chosen[POSITIVES]), texts_of(row, chosen[NEGATIVES])
    if not positives:
        raise RowError(f"{_joined(chosen[POSITIVES])} must hold a positive, got an empty list")
    # One update would pull and push the same text.
    for text in set(positives).intersection(negatives):
        raise RowError(f"a negative must not be one of the positives, got {kind_of(text)} as both")
    scores = _teacher_scores(row, chosen, len(positives), len(negatives)) if chosen.get(TEACHER_SCORES) else None
    # With negatives or a teacher, the row's labels are about other things than its positive.
    if scores is None and not chosen[NEGATIVES]:
        _refuse_label_0(row)
    return Ranking(
        query=text_of(row, chosen[QUERY][0]),
        positives=positives,
        negatives=negatives,
        positive_scores=None if scores is None else scores[: len(positives)],
        negative_scores=None if scores is None else scores[len(positives) :],
        prompt=_prompt(row, chosen),
    )


def _scored(row: Row, chosen: ChosenColumns) -> Scored:
    first, second, [score] = (chosen[role] for role in (FIRST, SECOND, SCORE))
    return Scored(first=text_of(row, first[0]), second=text_of(row, second[0]), score=number_of(row[score], score))


def _graded(row: Row, chosen: ChosenColumns) -> Graded:
    if POSITIVES in chosen:
        ranking = _ranking(row, chosen)
        labels = (1.0,) * len(ranking.positives) + (0.0,) * len(ranking.negatives)  # unless a teacher has said more
        if ranking.positive_scores is not None and ranking.negative_scores is not None:
            labels = ranking.positive_scores + ranking.negative_scores
        passages = ranking.positives + ranking.negatives
        return Graded(query=ranking.query, passages=passages, labels=labels, prompt=ranking.prompt)
    [column] = next(chosen[role] for role in (LABELS, GRADES) if role in chosen)
    columns = chosen[PASSAGES] if PASSAGES in chosen else chosen[LABELLED_PASSAGES]
    passages = texts_of(row, columns)
    if not passages:
        raise RowError(f"{_joined(columns)} must hold at least one passage, got an empty list")
    labels = numbers_of(row, column, len(passages), "passages")
    return Graded(
        query=text_of(row, chosen[GRADED_QUERY][0]), passages=passages, labels=labels, prompt=_prompt(row, chosen)
    )


def _teacher_scores(row: Row, chosen: ChosenColumns, positives: int, negatives: int) -> tuple[float, ...]:
    """Of all positives, then of all negatives."""
    columns = chosen[TEACHER_SCORES]
    if columns[0] not in ("pos_scores", "neg_scores"):
        return numbers_of(row, columns[0], positives + negatives, f"texts ({positives} positives, then the negatives)")
    scores = numbers_of(row, "pos_scores", positives, "positives")
    if chosen[NEGATIVES] or "neg_scores" in row:
        scores += numbers_of(row, "neg_scores", negatives, "negatives")
    return scores


def _refuse_label_0(row: Row) -> None:
    """Where a label says that the passage is no positive, it must not be learned as one."""
    for column in ("label", "labels"):
        labels = row.get(column)
        for label in labels if isinstance(labels, list | tuple) else (labels,):
            if isinstance(label, Real) and label <= 0:
                raise RowError(f"{column} must be above 0 for a positive, got {label}: this row's text is a negative")


def _prompt(row: Row, chosen: ChosenColumns) -> str | None:
    [column] = chosen[PROMPT] or (None,)
    prompt = None if column is None else row.get(column)
    if prompt is not None and not isinstance(prompt, str):
        raise RowError(f"{column} must be text (or null for none), got {kind_of(prompt)}")
    return prompt
