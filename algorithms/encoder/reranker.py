"""Rerankers (cross-encoders): one score of a query together with a passage.

    rows -> scores of all passages -> update (see actors.train.encoder) -> evaluate

The losses are those of sentence-transformers, over the rows of all ranks; cross_entropy is the negative log-probability
of the first passage, the positive, under the softmax of the scores of a query's passages (arXiv 2101.08751).
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from actors.train.encoder import EncoderText, OutputLoss
from algorithms.config_encoder import RerankerConfig
from algorithms.encoder.batches import Example
from algorithms.encoder.evaluation import measure_scores
from algorithms.encoder.held_out import HeldOut
from algorithms.encoder.loop import EncoderLoop
from algorithms.loop import Metrics


def reranker_output_loss(
    scores: torch.Tensor,
    _: torch.Tensor | None,
    *,
    config: RerankerConfig,
    sizes: list[int],
    labels: NDArray[np.float32],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and metrics of an update; scores and labels [N], query by query; `sizes`: passages of each query."""
    # Here, on the ranks: the driver, which only sends this function, needs no sentence-transformers.
    from algorithms.encoder.losses import reranker_loss

    wanted = torch.from_numpy(labels).to(scores.device)
    loss = reranker_loss(config, scores, sizes, wanted)
    lists = [
        (mine, theirs)
        for mine, theirs in zip(scores.detach().split(sizes), wanted.split(sizes), strict=True)
        if theirs.max() > theirs.min()  # where all are alike, none is the best
    ]
    if not lists:
        return loss, {}
    # By label, not by place: of several best passages, any may come first.
    first = [theirs[mine.argmax()] == theirs.max() for mine, theirs in lists]
    return loss, {"reranker/accuracy": torch.stack(first).float().mean()}


@dataclass(kw_only=True)
class Reranker(EncoderLoop):
    """The loop of a reranker."""

    title = "reranker"
    loss_name = "loss/reranker"
    config: RerankerConfig

    def texts(self, row: Example) -> list[EncoderText]:
        query, *passages = row.texts
        prompt = self.config.prompt if row.prompt is None else row.prompt
        return [EncoderText(kind="query", text=query, prompt=prompt, passage=passage) for passage in passages]

    def loss(self, rows: list[Example]) -> OutputLoss:
        sizes = [len(row.texts) - 1 for row in rows]  # without the query
        labels = np.array([label for row in rows for label in row.targets], dtype=np.float32)
        return partial(reranker_output_loss, config=self.config, sizes=sizes, labels=labels)

    def measure(self, rows: list[HeldOut]) -> Metrics:
        return measure_scores(rows, self._score)

    def _score(self, pairs: list[tuple[str, str]], prompts: list[str | None] | None = None) -> NDArray[np.float32]:
        own = prompts or [None] * len(pairs)
        before = [self.config.prompt if prompt is None else prompt for prompt in own]
        return self.outputs(
            [
                EncoderText(kind="query", text=query, prompt=prompt, passage=passage)
                for (query, passage), prompt in zip(pairs, before, strict=True)
            ]
        )
