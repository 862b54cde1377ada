"""What an update of an embedding model or reranker sees: which rows, and which of their passages."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.config import UserError
from actors.files.parts import Entry, read_arrays, write_arrays
from algorithms.encoder.rows import Graded, Ranking

_WAITING = "waiting.safetensors"
_TURN, _ORDER, _DRAW = 0, 1, 2
"""What a random stream is for: the number after run.seed in its seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row as an update sees it.

    Example: Example(texts=("capital of France", "Paris", "Rome"), targets=(9.1, 2.0), prompt=None)
    """

    texts: tuple[str, ...]
    """A query, a positive and negatives; or two texts; of a reranker a query and passages."""
    targets: tuple[float, ...]
    """A teacher's scores of the positive and the negatives, the two texts' score, or the passages' labels; () where
    the loss reads none."""
    prompt: str | None
    """The row's own instruction before its query."""


def draw_ranking(row: Ranking, negatives: int, *, scored: bool, generator: np.random.Generator) -> Example:
    """The query, one of the row's positives and `negatives` of its negatives in their order; `scored`: with scores.

    Raises ValueError when the row has fewer negatives, or no scores.
    """
    positive = int(generator.integers(len(row.positives)))
    taken = _some(range(len(row.negatives)), negatives, generator)
    targets: tuple[float, ...] = ()
    if scored:
        if row.positive_scores is None or row.negative_scores is None:
            raise ValueError("the row has no teacher's scores")
        targets = (row.positive_scores[positive], *(row.negative_scores[index] for index in taken))
    texts = (row.query, row.positives[positive], *(row.negatives[index] for index in taken))
    return Example(texts=texts, targets=targets, prompt=row.prompt)


def draw_graded(row: Graded, negatives: int | None, *, binary: bool, generator: np.random.Generator) -> Example:
    """The query and some of its passages with their labels: one first, and `negatives` others (None: all) in order.

    binary: a label above 0 says that a passage is a positive. The first passage is one of them at random, the others
    are no positives; with negatives None they are all others. A row without a positive begins with its first passage.
    Otherwise the labels are a teacher's scores: the first passage stays the first one, the others are any.
    Raises ValueError when the row has fewer of them.
    """
    first = 0
    positives = [index for index, label in enumerate(row.labels) if label > 0] if binary else []
    if positives:
        first = positives[int(generator.integers(len(positives)))]
    others = [index for index in range(len(row.passages)) if index != first]
    if negatives is not None:
        # A second positive among the negatives would be pushed away.
        others = _some([index for index in others if index not in positives], negatives, generator)
    taken = [first, *others]
    return Example(
        texts=(row.query, *(row.passages[index] for index in taken)),
        targets=tuple(row.labels[index] for index in taken),
        prompt=row.prompt,
    )


def _some(indices: Sequence[int], count: int, generator: np.random.Generator) -> list[int]:
    """`count` of the indices, in their order."""
    if count > len(indices):
        raise ValueError(f"count must not exceed the {len(indices)} passages there are, got {count}")
    if count == len(indices):
        return list(indices)
    return [indices[i] for i in np.sort(generator.choice(len(indices), count, replace=False)).tolist()]


def _count_negatives(row: Ranking | Graded, *, binary: bool = True) -> int:
    """How many negatives can be drawn of a row; `binary` is draw_graded's."""
    if isinstance(row, Ranking):
        return len(row.negatives)
    if binary and any(label > 0 for label in row.labels):
        return sum(label <= 0 for label in row.labels)
    return len(row.passages) - 1


def require_negatives(
    rows: Sequence[Ranking] | Sequence[Graded], wanted: int, field: str, option: str, *, binary: bool = True
) -> None:
    """Raises UserError, naming `option` and the first row of `field` with fewer negatives than `wanted`."""
    for number, row in enumerate(rows, start=1):
        if (count := _count_negatives(row, binary=binary)) < wanted:
            raise UserError(
                f"{option}: must not exceed the negatives of every row ({field} row {number} has {count}), got {wanted}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRows:
    """One data set, how a row of it becomes an example, and how often it has its turn.

    Example: TaskRows(name="faq", rows=rankings, draw=lambda row, generator: draw_ranking(row, 7, scored=False,
        generator=generator), distinct=True, share=2.0, field="data.train.faq")
    """

    name: str
    rows: Sequence[Any]
    """At least one."""
    draw: Callable[[Any, np.random.Generator], Example]
    """Called with a row and a generator of this row and epoch only."""
    distinct: bool
    """Whether no text may be in two rows of a batch: for losses that take the texts of other rows as negatives."""
    share: float | None = None
    """Share of the updates, relative to the other tasks' (default: the number of rows)."""
    field: str = "data.train"
    """For messages."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows must hold at least one row, got none")
        if self.share is not None and not self.share > 0:  # nor NaN
            raise ValueError(f"share must be above 0, got {self.share}")


@dataclass(slots=True, kw_only=True)
class _Visits:
    """The order in which one task's rows come, and the rows that wait."""

    task: TaskRows
    number: int
    """Of the task, for its seeds."""
    seed: int
    shuffle: bool
    epoch: int = 0
    position: int = 0
    waiting: dict[int, tuple[int, Example]] = field(default_factory=dict)
    """Index of each row that waits -> the epoch in which its turn was, and its example; in the order of waiting."""
    order: Sequence[int] = field(init=False)

    def __post_init__(self) -> None:
        self.order = self._draw_order()

    def next(self, count: int) -> list[Example]:
        """The next `count` examples; goes on into the next epoch where this one ends."""
        if self.task.distinct:
            return self._next_distinct(count)
        return [self._draw(self._advance(), self.epoch) for _ in range(count)]

    def _next_distinct(self, count: int) -> list[Example]:
        batch: list[Example] = []
        texts: set[str] = set()
        for index, epoch, example in self._candidates():
            if texts.isdisjoint(example.texts):
                batch.append(example)
                texts.update(example.texts)
                self.waiting.pop(index, None)
            else:
                # It keeps its place in the line, and the example that was drawn when its turn was.
                self.waiting.setdefault(index, (epoch, example))
            if len(batch) == count:
                return batch
        raise UserError(
            f"algorithm.samples_per_update: must not exceed the rows of {self.task.field} with different texts "
            f"({len(batch)}), got {count}"
        )

    def _candidates(self) -> Iterator[tuple[int, int, Example]]:
        """Index, epoch and example of the rows that wait, then of those to come until every row was there once."""
        for index, (epoch, example) in list(self.waiting.items()):  # a copy, as rows leave meanwhile
            yield index, epoch, example
        # The rest of this pass and a whole one: a row that did not fit in by then has its texts in the batch.
        for _ in range(2 * len(self.order) - self.position):
            index = self._advance()
            if index not in self.waiting:
                yield index, self.epoch, self._draw(index, self.epoch)

    def _advance(self) -> int:
        """Index of the next row in the order of visiting."""
        if self.position == len(self.order):
            self.epoch, self.position = self.epoch + 1, 0
            self.order = self._draw_order()
        self.position += 1
        return self.order[self.position - 1]

    def _draw(self, index: int, epoch: int) -> Example:
        # A stream for each row and epoch: what is drawn does not depend on which rows have waited.
        generator = np.random.default_rng([self.seed, _DRAW, self.number, epoch, index])
        return self.task.draw(self.task.rows[index], generator)

    def _draw_order(self) -> Sequence[int]:
        rows = len(self.task.rows)
        if not self.shuffle:
            return range(rows)
        return np.random.default_rng([self.seed, _ORDER, self.number, self.epoch]).permutation(rows).tolist()

    def state(self) -> Entry:
        return {"rows": len(self.task.rows), "epoch": self.epoch, "position": self.position}

    def waits(self) -> NDArray[np.int64]:
        """Epoch and index of the rows that wait, in the order of waiting, int64 [W, 2]."""
        return np.array([(epoch, index) for index, (epoch, _) in self.waiting.items()], dtype=np.int64).reshape(-1, 2)

    def restore(self, state: Entry, waits: Sequence[Sequence[int]], *, new_rows: bool = False) -> None:
        """Continue from what `state` and `waits` gave; with `new_rows` with a new pass, where their number is another
        one."""
        if new_rows and state.get("rows") != len(self.task.rows):
            self.epoch, self.position, self.waiting = int(state.get("epoch", 0)), 0, {}
            self.order = self._draw_order()
            return
        if state["rows"] != len(self.task.rows):
            raise UserError(
                f"{self.task.field}: must hold the checkpoint's {state['rows']} rows to resume, "
                f"got {len(self.task.rows)}"
            )
        self.epoch, self.position = state["epoch"], state["position"]
        self.order = self._draw_order()
        # Who waits is enough to save: the streams give the same examples again.
        self.waiting = {index: (epoch, self._draw(index, epoch)) for epoch, index in waits}


class TaskBatches:
    """The examples of each update: all from one task, whose turn is drawn with a probability of its share.

    A task's rows are visited once an epoch, in an order drawn from (seed, task, epoch); which passages of a row are
    taken is drawn from (seed, task, epoch, row), so that a resumed run sees the same. In a `distinct` task no text is
    in two rows of a batch: such a row waits, first in line for the next batch, and a row that still waits when its turn
    comes again misses that turn. The texts of one row may be alike.

    Example: TaskBatches([TaskRows(name="faq", rows=rows, draw=draw, distinct=True)], seed=0, shuffle=True).next(2)
        gives ("faq", [Example(...), Example(...)]).
    """

    def __init__(self, tasks: Sequence[TaskRows], *, seed: int, shuffle: bool) -> None:
        if not tasks or len({task.name for task in tasks}) < len(tasks):
            raise ValueError(f"tasks must have at least one item, each with its own name, got {len(tasks)}")
        # Seed sequences take no negative numbers; a negative run.seed is its two's complement.
        self._seed = seed % 2**64
        # By name, so that their order in a file says nothing.
        ordered = sorted(tasks, key=lambda task: task.name)
        self._visits = [
            _Visits(task=task, number=number, seed=self._seed, shuffle=shuffle) for number, task in enumerate(ordered)
        ]
        # Without shares, every row comes as often as any other, whichever task it is of.
        self._shares = np.cumsum([len(task.rows) if task.share is None else task.share for task in ordered])
        self.updates = 0

    def next(self, count: int) -> tuple[str, list[Example]]:
        """Name and examples of the next update.

        Raises UserError when a whole pass over a distinct task's rows does not give `count` rows of different texts.
        """
        # A stream for each update: a resumed run has the same turns without a generator's state.
        point = np.random.default_rng([self._seed, _TURN, self.updates]).random() * self._shares[-1]
        visits = self._visits[int(np.searchsorted(self._shares[:-1], point, side="right"))]
        self.updates += 1
        return visits.task.name, visits.next(count)

    def save(self, directory: Path) -> Entry:
        """Number of updates, and of each task epoch, position and the number of rows; those that wait are as many as
        the data has alike, and go into a file, by the number of their task."""
        write_arrays({f"{visits.number}": visits.waits() for visits in self._visits}, directory / _WAITING)
        return {"updates": self.updates, "tasks": {visits.task.name: visits.state() for visits in self._visits}}

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from `entry`. Raises UserError when the tasks or their numbers of rows are others than then, unless
        the entry says that rows may be (`new_rows`)."""
        names, tasks = [visits.task.name for visits in self._visits], entry["tasks"]
        new_rows, same = bool(entry.get("new_rows")), set(names) == set(tasks)
        if not same and not new_rows:
            raise UserError(
                f"data.train: must name the checkpoint's sources {', '.join(tasks)} to resume, got {', '.join(names)}"
            )
        listed = all("waiting" in task for task in tasks.values())  # older checkpoints: in the manifest
        waits = {} if listed else read_arrays(directory / _WAITING)
        self.updates = entry["updates"]
        for visits in self._visits:
            task, waiting = tasks.get(visits.task.name, {}), []
            if same:  # else tasks have other numbers than then
                waiting = task["waiting"] if listed else waits[f"{visits.number}"].tolist()
            visits.restore(task, waiting, new_rows=new_rows)
