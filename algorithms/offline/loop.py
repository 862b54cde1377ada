"""The loop of the jobs that learn from given rows: update by update over the data, evaluated on held-out rows.

    rows -> update (DeepSpeed) -> evaluate -> checkpoint

A job says what an update and an evaluation of some rows are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from actors.episodes import Sequence
from actors.files.parts import Entry, SavedPart
from actors.group import ActorGroup
from actors.train.trainer import TrainedWorker
from algorithms.config_offline import OfflineConfig
from algorithms.division.packing import plan_micro_batches
from algorithms.loop import Best, Checkpointer, Clock, Metrics, Reporter, good_enough, tokens_per_second

Row = TypeVar("Row")
Plans = list[list[list[Sequence]]]
"""Per rank, per micro-batch: sequences."""


@dataclass(kw_only=True)
class Offline(ABC, Generic[Row]):
    """The loop, and what it holds between updates."""

    title: ClassVar[str]
    config: OfflineConfig
    roster: Mapping[str, ActorGroup[Any]]
    """The run's groups by name, looked up at every use."""
    rows: list[Row]
    batches: Any
    """Says which rows come next: `Batches`, or of embedding models and rerankers `TaskBatches`."""
    evaluation: list[Any]
    """Held-out rows, or whatever `measure` takes."""
    checkpoint: Checkpointer
    reporter: Reporter
    micro_batch_tokens: int
    total_updates: int
    step: int = 0
    last_evaluation: Metrics = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.best = Best(self.config.best_by)

    @property
    def policy(self) -> ActorGroup[TrainedWorker]:
        """The group that learns, whatever its model is."""
        return self.roster["policy"]

    def train(self) -> None:
        """Run all updates."""
        clock = Clock(self.reporter)
        self.reporter.start(self.title, self.total_updates, self.step)
        with clock("prepare"):
            self.prepare()
        clock.lap()  # preparing is no part of the first step
        while not self.done:
            with clock("data"):
                batch = self.draw()
            with clock("update"):
                metrics = self.update(batch)
            self.step += 1
            self.after_update(clock)
            evaluation = self._evaluate(clock)
            metrics |= evaluation
            # Before saving: a best checkpoint is kept longer than others.
            best = self.best.improved_by(evaluation)
            with clock("checkpoint"):
                self.checkpoint.save(self.step, self.done, best)
            seconds = clock.lap()
            metrics["tokens_per_second"] = tokens_per_second(metrics["tokens/trained"], seconds)
            try:
                # Before `keep`: a run that is killed in between makes this update again, and reports it once more.
                self.reporter.step(self.step, metrics | seconds)
            finally:
                self.checkpoint.keep()  # also when only the report has failed: the update is made
            self.checkpoint.end_if_asked()

    def prepare(self) -> None:
        """What the job does once, before its first update."""

    def draw(self) -> list[Row]:
        """The rows of the next update."""
        return [self.rows[i] for i in self.batches.next(self.config.samples_per_update)]

    @abstractmethod
    def update(self, rows: list[Row]) -> Metrics:
        """One optimizer update; its metrics have tokens/trained."""

    @abstractmethod
    def measure(self, rows: list[Any]) -> Metrics:
        """Metrics of held-out rows."""

    def after_update(self, clock: Clock) -> None:
        """What the job does between an update and its evaluation."""

    @property
    def done(self) -> bool:
        """Whether all updates are done, or the last evaluation was good enough to stop."""
        return self.step >= self.total_updates or good_enough(self.config.stop_when, self.last_evaluation)

    @property
    def parts(self) -> dict[str, SavedPart]:
        """What has state beside the groups, by its name in checkpoints."""
        return {"loop": self, "batches": self.batches, "best": self.best}

    def save(self, directory: Path) -> Entry:
        """How far the loop is."""
        return {"step": self.step, "last_evaluation": self.last_evaluation}

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from `entry`."""
        self.step = entry["step"]
        self.last_evaluation = entry["last_evaluation"]

    def _evaluate(self, clock: Clock) -> Metrics:
        # Also after the last update, whatever its number: that is the model which is exported.
        due = self.step % self.config.eval_every == 0 or self.step == self.total_updates
        if not self.evaluation or not due:
            return {}
        with clock("evaluate"):
            metrics = self.measure(self.evaluation)
        self.last_evaluation = {f"eval/{name}": value for name, value in metrics.items()}
        return self.last_evaluation

    def plans(self, rows: list[list[Sequence]], ranks: int) -> Plans:
        """Micro-batches of each rank; the sequences of a row stay together, in their order."""
        plan = plan_micro_batches([sum(map(len, row)) for row in rows], ranks, self.micro_batch_tokens)
        return [[[sequence for i in batch for sequence in rows[i]] for batch in rank] for rank in plan]

    def read(
        self,
        group: ActorGroup[Any],
        method: Callable[..., list[list[float]]],
        rows: list[list[Sequence]],
        budget: int | None = None,
    ) -> np.ndarray:
        """What `method` says of every sequence, row by row, float64 [rows x sequences of a row].

        `budget` is the group's tokens of a micro-batch (default: those of the group that learns).
        """
        tokens = budget or self.micro_batch_tokens
        plan = plan_micro_batches([sum(map(len, row)) for row in rows], len(group), tokens)
        # Rows of two sequences are pairs, which share their prompt.
        calls = [([[s for i in batch for s in rows[i]] for batch in rank], len(rows[0]) > 1) for rank in plan]
        values = np.empty((len(rows), len(rows[0])))
        for rank, answers in zip(plan, group.scatter(method, calls), strict=True):
            for batch, answer in zip(rank, answers, strict=True):
                if batch:  # a rank without work still answers, of nothing
                    values[batch] = np.array(answer).reshape(len(batch), -1)
        return values.reshape(-1)


def with_token_counts(metrics: Metrics, plans: Plans, loss: str) -> Metrics:
    """Metrics of an update: its loss by the job's name for it, and the tokens it trained on."""
    # An empty micro-batch is one token that nobody needs; packed sequences have no padding.
    empty = sum(not batch for rank in plans for batch in rank)
    tokens = sum(len(sequence) for rank in plans for batch in rank for sequence in batch)
    return {loss if name == "loss" else name: value for name, value in metrics.items()} | {
        "tokens/trained": float(tokens),
        "tokens/padding_fraction": empty / (empty + tokens),
    }
