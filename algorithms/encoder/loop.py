"""What the loops of embedding models and rerankers share: rows dealt to ranks, and evaluation by all of them.

rows -> texts of each rank -> update (see actors.train.encoder) -> evaluate -> checkpoint
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from actors.train.encoder import EncoderText, EncoderWorker, OutputLoss
from algorithms.config_encoder import EncoderConfig
from algorithms.encoder.batches import Example, TaskBatches
from algorithms.encoder.held_out import HeldOut
from algorithms.loop import Metrics, evaluated
from algorithms.offline.loop import Offline

_CHUNK, _CHUNK_CHARACTERS = 2048, 400_000
"""Texts, and their characters, that a rank encodes in one call of an evaluation, which has a deadline."""


@dataclass(kw_only=True)
class EncoderLoop(Offline[Example]):
    """The loop, over rows of one task at a time."""

    loss_name: ClassVar[str]
    config: EncoderConfig
    batches: TaskBatches
    evaluation: list[HeldOut]
    task: str = ""
    """Name of the task that the update's rows belong to."""

    def prepare(self) -> None:
        """Measure the model that training starts from."""
        if self.step == 0 and self.evaluation and self.config.eval_at_start:
            self.last_evaluation = {f"eval/{name}": value for name, value in self.measure(self.evaluation).items()}
            for field, name in self._named_metrics():
                evaluated(self.last_evaluation, name, field)  # a wrong name shall not be found after hours
            self.reporter.step(0, self.last_evaluation)

    def _named_metrics(self) -> list[tuple[str, str]]:
        """(field, evaluation metric) that the configuration names."""
        config = self.config
        named = [("algorithm.best_by", config.best_by)]
        named += [("algorithm.stop_when.metric", config.stop_when.metric)] if config.stop_when else []
        return [(field, name) for field, name in named if name is not None]

    def draw(self) -> list[Example]:
        self.task, examples = self.batches.next(self.config.samples_per_update)
        return examples

    def update(self, rows: list[Example]) -> Metrics:
        dealt = deal([sum(map(len, row.texts)) for row in rows], len(self.policy))
        texts = [[text for row in rank for text in self.texts(rows[row])] for rank in dealt]
        # In the order of the ranks: so do the outputs of all come to the loss.
        loss = self.loss([rows[row] for rank in dealt for row in rank])
        counts = [len(rank) for rank in texts]
        calls = [(rank, counts, loss, self.guide) for rank in texts]
        metrics = self.policy.scatter(EncoderWorker.learn_texts, calls)[0]
        return {self.loss_name if name == "loss" else name: value for name, value in metrics.items()}

    @property
    def guide(self) -> str | None:
        """Directory of the model whose vectors the loss reads beside the model's."""
        return None

    @abstractmethod
    def texts(self, row: Example) -> list[EncoderText]:
        """What the model reads of a row, in the order in which `loss` takes the outputs."""

    @abstractmethod
    def loss(self, rows: list[Example]) -> OutputLoss:
        """The loss of an update with these rows."""

    def outputs(self, texts: Sequence[EncoderText]) -> NDArray[np.float32]:
        """Outputs of texts in their order, [texts, D] or [texts]; all ranks share the work."""
        ranks = len(self.policy)
        found: list[NDArray[np.float32]] = []
        # In characters: tokens are counted where the tokenizer is, on the ranks.
        sizes = [len(text.text) + len(text.passage or "") for text in texts]
        for part in _chunks(sizes, ranks):
            self.reporter.progress(part.start, len(texts), "texts")
            chunk = [texts[place] for place in part]
            dealt = deal([sizes[place] for place in part], ranks)
            calls = [([chunk[place] for place in rank],) for rank in dealt]
            answers = self.policy.scatter(EncoderWorker.encode, calls)
            places = [place for rank in dealt for place in rank]
            found.append(np.concatenate(answers)[np.argsort(places)])  # back in the order of the texts
        return np.concatenate(found)


def _chunks(sizes: list[int], ranks: int) -> Iterator[range]:
    """Ranges of texts that the ranks encode in one call each."""
    start = characters = 0
    for place, size in enumerate(sizes):
        full = place - start == _CHUNK * ranks or characters + size > _CHUNK_CHARACTERS * ranks
        if full and place > start:  # a text that is too long alone is a part of its own
            yield range(start, place)
            start, characters = place, 0
        characters += size
    yield range(start, len(sizes))


def deal(sizes: list[int], ranks: int) -> list[list[int]]:
    """Places of items for each rank: as many items for each as can be, of about the same size.

    Example: deal([9, 1, 5, 4], 2) gives [[0, 1], [2, 3]].
    """
    order = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for turn, place in enumerate(order):
        lap, rank = divmod(turn, ranks)
        # Forth and back, so that no rank always gets the largest of a lap.
        dealt[rank if lap % 2 == 0 else ranks - 1 - rank].append(place)
    return [sorted(rank) for rank in dealt]  # rows in their order, as far as one rank has them
