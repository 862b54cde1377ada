"""Held-out data of embedding models and rerankers: what the rows of data.eval and data.corpus ask of a model."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data.row_contents import Contents, content_of
from algorithms.data.sources import Row, read_rows
from algorithms.encoder.columns import FIRST, LABELS, NEGATIVES, PASSAGES, POSITIVES, QUERY, SCORE, SECOND, renamed_row
from algorithms.encoder.rows import Graded, Ranking, Scored, gradeds, load_named_rows, rankings, scored_pairs
from algorithms.words import kind_of, nearest

_IDS, _DOCUMENTS = "positive_ids", "documents"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilaritySet:
    """Pairs of texts with scores that the similarity of their embeddings shall follow.

    Example: SimilaritySet(name="sts", rows=[Scored(first="A cat sits.", second="A cat is sitting.", score=0.9), ...])
    """

    kind: ClassVar[Literal["similarity"]] = "similarity"
    name: str
    """Its key in data.eval; '' where that is a plain string."""
    rows: list[Scored]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedSet:
    """Queries, and passages among which the right ones are to be found.

    Example: RankedSet(kind="retrieval", name="", rows=[Ranking(query="capital of France", positives=("Paris",), ...)],
        documents=[], corpus=["Paris", "Rome", "Bonn"])
    """

    kind: Literal["retrieval", "reranking"]
    """Retrieval searches the corpus, reranking orders the candidates of each row."""
    name: str
    """Its key in data.eval; '' where that is a plain string."""
    rows: list[Ranking]
    documents: list[tuple[str, ...]]
    """What a first stage found for each row, best first, each once; [] where the rows do not say."""
    corpus: list[str]
    """Passages to search, each once; [] for reranking."""

    @property
    def candidates(self) -> list[tuple[str, ...]]:
        """What is reranked for each row, each once: the first stage's documents, else positives and negatives."""
        return self.documents or [tuple(dict.fromkeys(row.positives + row.negatives)) for row in self.rows]

    @property
    def can_rerank(self) -> bool:
        """Whether every row has passages to rank its positives among."""
        return bool(self.documents) or all(row.negatives for row in self.rows)


HeldOut = SimilaritySet | RankedSet


def held_out(data: DataConfig, *, reranker: bool, contents: Contents | None = None) -> list[HeldOut]:
    """The evaluation sets of `data`, read and checked; the columns of the first row decide what a set is. `contents`
    gets what they hold, and what the corpus does.

    - Two texts with a score (or label), and no positives: similarity; for embedding models only.
    - Query and positives, or query and passages with labels (right are those above 0; rows of a query are joined). For
      an embedding model this is retrieval, from all distinct passages of the set's rows and of data.corpus; for a
      reranker it is reranking of the positives among the row's negatives.
    - `documents` beside positives, in place of negatives: what a first stage found, best first. They are reranked, and
      the first stage's own order is measured too. A positive that is not among them stays lost: it counts as ranked
      behind them, before and after, and a query whose positives are all lost counts 0.
    - `positive_ids`, a list or one, in place of positives: ids of rows of data.corpus. These rows have text (or
      passage), after a title if there is one, and id (or _id) where it is asked for; data.columns is not for them.

    Raises:
        UserError: one line with field and row for data that cannot be read, or that such a model cannot be measured by.
    """
    sources = load_named_rows(data, "data.eval", contents=contents)
    passages, by_id = _read_corpus(data, contents) if data.corpus is not None else ([], {})
    found: list[HeldOut] = []
    for name, given in sources.items():
        field = f"data.eval.{name}" if name else "data.eval"
        rows = [renamed_row(row, data, number, field) for number, row in enumerate(given, start=1)]
        if not reranker and _is_similarity(rows[0]):
            found.append(SimilaritySet(name=name, rows=_similarity_rows(rows, data, field)))
            continue
        ranked, documents = _ranked_rows(rows, data, field, by_id, reranker=reranker)
        own = [text for row in ranked for text in row.positives + row.negatives]
        # Other rows' passages too: a query's own handful would be no search.
        corpus = (
            [] if reranker else list(dict.fromkeys([*own, *(text for row in documents for text in row), *passages]))
        )
        kind = "reranking" if reranker else "retrieval"
        found.append(RankedSet(kind=kind, name=name, rows=ranked, documents=documents, corpus=corpus))
    # A corpus that nothing reads is a slip: most likely the evaluation should have searched it.
    named = any(_IDS in rows[0] for rows in sources.values()) or _IDS in data.columns
    if data.corpus is not None and not named and not any(item.kind == "retrieval" for item in found):
        raise UserError(
            f"data.corpus: must only be given where data.eval searches it or names its ids, got {data.corpus}"
        )
    return found


def _is_similarity(row: Row) -> bool:
    pair = FIRST.found(row) and SECOND.found(row) and SCORE.found(row)
    return bool(pair) and not POSITIVES.found(row) and _IDS not in row


def _similarity_rows(rows: list[Row], data: DataConfig, field: str) -> list[Scored]:
    pairs = scored_pairs(rows, data, field)
    if len({pair.score for pair in pairs}) < 2:
        raise UserError(f"{field}: scores must differ for a rank correlation, got {pairs[0].score:g} in all rows")
    return pairs


def _ranked_rows(
    rows: list[Row], data: DataConfig, field: str, by_id: dict[str, str], *, reranker: bool
) -> tuple[list[Ranking], list[tuple[str, ...]]]:
    """Queries with their passages, and what a first stage found for each (or [])."""
    first = rows[0]
    if _IDS in first:
        rows = _with_texts(rows, data, field, by_id)
    if _IDS not in first and LABELS.found(first) and not NEGATIVES.found(first):
        return _joined_rows(gradeds(rows, data, field, targets="labels"), field, reranker=reranker), []
    if not (QUERY.found(first) and POSITIVES.found(rows[0])):
        raise UserError(_unknown(first, field, reranker=reranker))
    ranked = rankings(rows, data, field)
    documents = _documents(rows, field) if _DOCUMENTS in first else []
    for number, row in enumerate(ranked, start=1):
        # What a first stage found says already which passages are wrong.
        if row.negatives and documents:
            raise UserError(f"{field}: row {number}: must have negatives or documents, got both")
        if reranker and not (row.negatives or documents):
            raise UserError(f"{field}: row {number}: must have negatives or documents for a reranker, got none")
    return ranked, documents


def _joined_rows(rows: list[Graded], field: str, *, reranker: bool) -> list[Ranking]:
    """One row for each query (with its own prompt): the passages of all its rows."""
    queries: dict[tuple[str, str | None], dict[str, bool]] = {}
    for number, row in enumerate(rows, start=1):
        passages = queries.setdefault((row.query, row.prompt), {})
        for text, label in zip(row.passages, row.labels, strict=True):
            if passages.setdefault(text, label > 0) != (label > 0):
                raise UserError(f"{field}: row {number}: labels must agree, got {kind_of(text)} as right and as wrong")
    found = []
    for (query, prompt), passages in queries.items():
        right = tuple(text for text, relevant in passages.items() if relevant)
        wrong = tuple(text for text, relevant in passages.items() if not relevant)
        if not right or (reranker and not wrong):
            missing = "above 0" if not right else "of 0 or less"
            raise UserError(f"{field}: query must have a passage with a label {missing}, got none for {kind_of(query)}")
        found.append(
            Ranking(
                query=query, positives=right, negatives=wrong, positive_scores=None, negative_scores=None, prompt=prompt
            )
        )
    return found


def _with_texts(rows: list[Row], data: DataConfig, field: str, by_id: dict[str, str]) -> list[Row]:
    """The rows with positives, the texts of their positive_ids."""
    if data.corpus is None:
        raise UserError(f"{field}: {_IDS} are ids of data.corpus, which must be given, got none")
    if columns := POSITIVES.found(rows[0]):
        raise UserError(f"{field}: row 1: must have positives or {_IDS}, got both {_IDS} and {columns[0][0]}")
    found = []
    for number, row in enumerate(rows, start=1):
        ids = row.get(_IDS)
        keys = [_id(item) for item in (ids if isinstance(ids, list | tuple) else [ids])]
        if not keys or None in keys:
            raise UserError(
                f"{field}: row {number}: {_IDS} must be an id (text or integer) or several, got {kind_of(ids)}"
            )
        unknown = [key for key in keys if key not in by_id]
        if unknown:
            raise UserError(f"{field}: row {number}: {_IDS} must be ids of rows of data.corpus, got {unknown[0]!r}")
        found.append(row | {"positives": [by_id[str(key)] for key in keys]})
    return found


def _documents(rows: list[Row], field: str) -> list[tuple[str, ...]]:
    found = []
    for number, row in enumerate(rows, start=1):
        texts = row.get(_DOCUMENTS)
        distinct: tuple[str, ...] = ()
        if isinstance(texts, list | tuple) and all(isinstance(text, str) and text.strip() for text in texts):
            distinct = tuple(dict.fromkeys(texts))
        if len(distinct) < 2:
            raise UserError(
                f"{field}: row {number}: {_DOCUMENTS} must be a list of at least 2 texts, got {kind_of(texts)}"
            )
        found.append(distinct)
    return found


def _read_corpus(data: DataConfig, contents: Contents | None) -> tuple[list[str], dict[str, str]]:
    """Passages, and passages by id (as text: 7 and "7" are one id)."""
    assert data.corpus is not None
    rows = read_rows(data.corpus, split=data.eval_split, arguments=data.arguments, limit=None, field="data.corpus")
    if contents is not None:
        contents["data.corpus"] = content_of(rows)
    passages, by_id, numbers = [], {}, {}
    for number, row in enumerate(rows, start=1):
        text = passage_of_row(row, number, "data.corpus")
        passages.append(text)
        given = row.get("id", row.get("_id"))  # BEIR calls it _id
        key = _id(given)
        if key is None and given is not None:
            raise UserError(f"data.corpus: row {number}: id must be text or an integer, got {kind_of(given)}")
        if key is not None and by_id.setdefault(key, text) != text:
            raise UserError(
                f"data.corpus: row {number}: id must be of one text, got {key!r} again, that of row {numbers[key]}"
            )
        numbers.setdefault(key, number)
    return passages, by_id


def passage_of_row(row: Row, number: int, field: str) -> str:
    """A corpus row's passage: its text, after its title if it has one.

    Raises:
        UserError: one line with `field` and `number`: no text column, no text, or an empty one.
    """
    column = "text" if "text" in row else "passage"
    if column not in row:
        raise UserError(
            f"{field}: row {number}: must have column text or passage{nearest('text', map(str, row))}, "
            f"got {_listed(row)}"
        )
    title, text = row.get("title"), row[column]
    if not isinstance(text, str) or not isinstance(title, str | None):
        wrong = (column, text) if not isinstance(text, str) else ("title", title)
        raise UserError(f"{field}: row {number}: {wrong[0]} must be text, got {kind_of(wrong[1])}")
    # In one text, as BEIR gives them to models.
    passage = f"{title or ''} {text}".strip()
    if not passage:
        raise UserError(f"{field}: row {number}: {column} must not be empty, got {kind_of(text)}")
    return passage


def _id(value: object) -> str | None:
    # True is an int, too, for Python.
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _unknown(row: Row, field: str, *, reranker: bool) -> str:
    """Says what would fit, and which column nearly does."""
    roles = (QUERY, POSITIVES, NEGATIVES, PASSAGES, LABELS)
    if reranker and _is_similarity(row):
        return (
            f"{field}: must have query and positives with negatives or documents, or passages with labels, for a "
            f"reranker, got two texts with a score (columns {_listed(row)})"
        )
    known = [name for role in roles for columns in role.names for name in columns] + [_IDS]
    # Closer than usual, as the known names are many and short.
    near = [(match[0], name) for name in map(str, row) if (match := difflib.get_close_matches(name, known, 1, 0.75))]
    hint = next((f" (should {given} be {name}?)" for name, given in near if name != given), "")
    similarity = "" if reranker else ", or sentence1, sentence2 and score"
    return (
        f"{field}: row 1 has columns {_listed(row)}{hint}, needs query with positives or {_IDS}, "
        f"or query with passages and labels{similarity}; rename with data.columns"
    )


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "none"
