"""Embedding models (bi-encoders): vectors of texts whose similarity is learned from pairs, rankings or scores.

    rows of one task -> vectors of all texts -> update (see actors.train.encoder) -> evaluate

The losses are those of sentence-transformers, over the texts of all ranks: with infonce (arXiv 1807.03748) a query's
positive is told from its negatives and from the passages of all other queries of the update.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from actors.models.hub_cache import located
from actors.train.encoder import EncoderText, OutputLoss
from algorithms.config_encoder import EmbeddingConfig, EmbeddingTask, Prompts
from algorithms.encoder.batches import Example
from algorithms.encoder.evaluation import measure_embeddings
from algorithms.encoder.held_out import HeldOut
from algorithms.encoder.loop import EncoderLoop
from algorithms.loop import Metrics


def embedding_output_loss(
    vectors: torch.Tensor, guide: torch.Tensor | None, *, task: EmbeddingTask, width: int, targets: NDArray[np.float32]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and metrics of an update; vectors [rows x width, D], row by row; targets [rows, ...] or of size 0."""
    # Here, on the ranks: the driver, which only sends this function, needs no sentence-transformers.
    from algorithms.encoder.losses import embedding_loss

    columns = list(vectors.reshape(-1, width, vectors.shape[-1]).unbind(1))
    # Column by column, as sentence-transformers has its texts: all queries, all positives, all first negatives.
    guided = None if guide is None else list(guide.reshape(-1, width, guide.shape[-1]).unbind(1))
    wanted = torch.from_numpy(targets).to(vectors.device) if targets.size else None
    loss = embedding_loss(task, columns, guided, wanted)
    if task.rows == "pair":
        return loss, {}
    return loss, {"embedding/accuracy": _accuracy([column.detach() for column in columns], in_batch=task.in_batch)}


def _accuracy(columns: list[torch.Tensor], *, in_batch: bool) -> torch.Tensor:
    """Share of queries that are closer to their positive than to any other passage they are compared with."""
    query, *passages = (normalize(column.float(), dim=-1) for column in columns)
    positive = (query * passages[0]).sum(1)
    if in_batch:
        scores = query @ torch.cat(passages).T
        scores.fill_diagonal_(-torch.inf)  # the first passages are the positives, in the order of the queries
        return (positive > scores.max(1).values).float().mean()
    return torch.stack([positive > (query * other).sum(1) for other in passages[1:]]).all(0).float().mean()


@dataclass(kw_only=True)
class Embedding(EncoderLoop):
    """The loop of an embedding model."""

    title = "embedding"
    loss_name = "loss/embedding"
    config: EmbeddingConfig

    @property
    def guide(self) -> str | None:
        path = self.config.by_name[self.task].guide
        return None if path is None else located(path)

    def texts(self, row: Example) -> list[EncoderText]:
        task = self.config.by_name[self.task]
        query, *passages = row.texts
        before = task.prompts.query if row.prompt is None else row.prompt
        # Two texts with a score are alike in kind: both are read as queries are.
        kind, prompt = ("query", before) if task.rows == "pair" else ("passage", task.prompts.passage)
        return [
            EncoderText(kind="query", text=query, prompt=before),
            *(EncoderText(kind=kind, text=passage, prompt=prompt) for passage in passages),
        ]

    def loss(self, rows: list[Example]) -> OutputLoss:
        task = self.config.by_name[self.task]
        targets = np.array([row.targets for row in rows], dtype=np.float32)
        if task.rows == "pair":
            targets = targets[:, 0]  # one score of two texts
        return partial(embedding_output_loss, task=task, width=len(rows[0].texts), targets=targets)

    def measure(self, rows: list[HeldOut]) -> Metrics:
        sizes = [size for task in self.config.by_name.values() for size in task.matryoshka]
        found: Metrics = {}
        # One by one, as each may have the instructions of its own task.
        for held_out in rows:
            encode = partial(self._encode, prompts=self._prompts(held_out.name))
            found |= measure_embeddings([held_out], encode, truncate=sorted(set(sizes)))
        return found

    def _prompts(self, name: str) -> Prompts:
        """Instructions of the task with the name of the evaluation set, else of the first one."""
        tasks = self.config.by_name
        return tasks.get(name, next(iter(tasks.values()))).prompts

    def _encode(
        self, texts: list[str], kind: str, own: list[str | None] | None, *, prompts: Prompts
    ) -> NDArray[np.float32]:
        common = prompts.query if kind == "query" else prompts.passage
        before = [common if prompt is None else prompt for prompt in own or [None] * len(texts)]
        read = "query" if kind == "query" else "passage"
        return self.outputs(
            [EncoderText(kind=read, text=text, prompt=prompt) for text, prompt in zip(texts, before, strict=True)]
        )
