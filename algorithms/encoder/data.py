"""Data sets of embedding models and rerankers as their jobs read them, checked against the losses that learn them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.config_encoder import NEGATIVE_LOSSES, EmbeddingConfig, EmbeddingTask, RerankerConfig
from algorithms.data.row_contents import Contents
from algorithms.data.sources import Row
from algorithms.encoder.batches import (
    Example,
    TaskRows,
    draw_graded,
    draw_ranking,
    require_negatives,
)
from algorithms.encoder.rows import Graded, Ranking, Scored, gradeds, load_named_rows, rankings, scored_pairs

Draw = Callable[[Any, np.random.Generator], Example]
_BINARY = ("contrastive", "online_contrastive")


def training_tasks(
    algorithm: EmbeddingConfig | RerankerConfig,
    data: DataConfig,
    *,
    at_most: int | None = None,
    contents: Contents | None = None,
) -> list[TaskRows]:
    """The training rows of every task, and how an update draws from them; `at_most` so many rows of each. `contents`
    gets what they hold.

    Raises:
        UserError: names of data and tasks that differ, rows that cannot be read, or that a loss cannot learn from.
    """
    # Before any row is read, which may take minutes.
    if isinstance(algorithm, EmbeddingConfig):
        _require_same_names(algorithm, data)
    sources = load_named_rows(data, "data.train", at_most=at_most, contents=contents)
    if isinstance(algorithm, EmbeddingConfig):
        return [_embedding_task(task, data, name, sources[name]) for name, task in algorithm.by_name.items()]
    tasks = [_reranker_task(algorithm, data, name, rows) for name, rows in sources.items()]
    for task in tasks:
        if len(task.rows) != at_most:  # rows beyond may differ
            _require_differences(task.rows, algorithm, task.field)
    return tasks


def _require_same_names(algorithm: EmbeddingConfig, data: DataConfig) -> None:
    tasks = ", ".join(algorithm.tasks)
    if tasks and isinstance(data.train, str):
        raise UserError(f"data.train: must name a source for each of algorithm.tasks ({tasks}), got {data.train}")
    if isinstance(data.train, dict) and data.train.keys() != algorithm.tasks.keys():
        names = ", ".join(data.train)
        raise UserError(f"algorithm.tasks: must have the names of data.train ({names}), got {tasks or 'none'}")


def _embedding_task(task: EmbeddingTask, data: DataConfig, name: str, rows: list[Row]) -> TaskRows:
    field, option = _field(name), f"algorithm.tasks.{name}." if name else "algorithm."
    # Only a MixedTask has one. Without, every row comes as often as any other.
    share = getattr(task, "weight", None) or float(len(rows))
    if task.rows == "pair":
        pairs = scored_pairs(rows, data, field)
        _check_scores(pairs, task, field)
        # Texts may be in several pairs of a batch: each pair has a score of its own, and none makes negatives.
        return TaskRows(name=name, rows=pairs, draw=_draw_pair, distinct=False, share=share, field=field)
    found = rankings(rows, data, field, scores=task.scored)
    negatives = _negatives(task, found, field, f"{option}negatives")
    draw: Draw = partial(_draw_ranking, negatives=negatives, scored=task.scored)
    return TaskRows(name=name, rows=found, draw=draw, distinct=task.in_batch, share=share, field=field)


def _reranker_task(algorithm: RerankerConfig, data: DataConfig, name: str, rows: list[Row]) -> TaskRows:
    field = _field(name)
    found = gradeds(rows, data, field, targets=algorithm.targets)
    binary = algorithm.targets == "labels"
    _check_lists(found, algorithm, field)
    if algorithm.negatives is not None:
        require_negatives(found, algorithm.negatives, field, "algorithm.negatives", binary=binary)
    draw: Draw = partial(_draw_graded, negatives=algorithm.negatives, binary=binary)
    return TaskRows(name=name, rows=found, draw=draw, distinct=False, share=float(len(rows)), field=field)


def _draw_pair(row: Scored, _: np.random.Generator) -> Example:
    return Example(texts=(row.first, row.second), targets=(row.score,), prompt=None)


def _draw_ranking(row: Ranking, generator: np.random.Generator, *, negatives: int, scored: bool) -> Example:
    return draw_ranking(row, negatives, scored=scored, generator=generator)


def _draw_graded(row: Graded, generator: np.random.Generator, *, negatives: int | None, binary: bool) -> Example:
    return draw_graded(row, negatives, generator=generator, binary=binary)


def _negatives(task: EmbeddingTask, rows: list[Ranking], field: str, option: str) -> int:
    """How many an update draws for a query."""
    if task.negatives is not None:
        require_negatives(rows, task.negatives, field, option)
        return task.negatives
    needing = ", ".join(name for name in task.losses if name in NEGATIVE_LOSSES)
    for number, row in enumerate(rows, start=1):
        if needing and not row.negatives:
            raise UserError(f"{field}: row {number}: must have a negative for loss {needing}, got none")
    if task.losses == ["triplet"]:
        return 1  # it reads only one
    # Losses read negatives column by column: all rows of an update must have as many.
    counts = [len(row.negatives) for row in rows]
    if min(counts) < max(counts):
        few, many = counts.index(min(counts)) + 1, counts.index(max(counts)) + 1
        raise UserError(
            f"{option}: must be given where rows of {field} have different numbers of negatives (row {few} has "
            f"{min(counts)}, row {many} has {max(counts)}), got nothing"
        )
    return counts[0]


def _check_scores(pairs: list[Scored], task: EmbeddingTask, field: str) -> None:
    for number, pair in enumerate(pairs, start=1):
        if set(task.losses) & set(_BINARY) and pair.score not in (0, 1):
            raise UserError(
                f"{field}: row {number}: score must be 0 or 1 for loss {', '.join(task.losses)}, got {pair.score:g}"
            )
        if "cosine" in task.losses and not -1 <= pair.score <= 1:
            raise UserError(f"{field}: row {number}: score must be from -1 to 1 for loss cosine, got {pair.score:g}")


def _check_lists(rows: list[Graded], algorithm: RerankerConfig, field: str) -> None:
    names = ", ".join(algorithm.losses)
    listwise = set(algorithm.losses) - {"bce", "mse"}
    for number, row in enumerate(rows, start=1):
        where = f"{field}: row {number}"
        if "bce" in algorithm.losses and not all(0 <= label <= 1 for label in row.labels):
            raise UserError(
                f"{where}: {algorithm.targets} must be from 0 to 1 for loss bce (mse takes any), "
                f"got {next(label for label in row.labels if not 0 <= label <= 1):g}"
            )
        if listwise and len(row.passages) < 2:
            raise UserError(f"{where}: must have at least 2 passages for loss {names}, got {len(row.passages)}")
        if algorithm.targets == "labels" and listwise and max(row.labels) <= 0:
            raise UserError(f"{where}: must have a passage with a label above 0 for loss {names}, got none")
        positives = sum(label > 0 for label in row.labels) if algorithm.targets == "labels" else 1
        if "cross_entropy" in algorithm.losses and algorithm.negatives is None and positives > 1:
            raise UserError(
                f"algorithm.negatives: must be given for loss cross_entropy, which tells one positive from negatives, "
                f"where a row has several positives ({where} has {positives}), got nothing"
            )
        # MarginMSE reads passages column by column, for all queries of an update.
        uneven = len(row.passages) != len(rows[0].passages)
        if "margin_mse" in algorithm.losses and algorithm.negatives is None and uneven:
            raise UserError(
                f"algorithm.negatives: must be given for loss margin_mse where rows have different numbers of "
                f"passages ({where} has {len(row.passages)}, row 1 {len(rows[0].passages)}), got nothing"
            )


def _require_differences(rows: Sequence[Graded], algorithm: RerankerConfig, field: str) -> None:
    labels = {label for row in rows for label in row.labels}
    if len(labels) < 2:
        raise UserError(
            f"{field}: {algorithm.targets} must differ for a reranker, got {labels.pop():g} for all passages (of rows "
            f"with positives alone, `tandem mine` finds negatives)"
        )


def _field(name: str) -> str:
    return f"data.train.{name}" if name else "data.train"
