"""Rerankers (cross-encoders) as the launcher sees them: one source, one prompt, a score for a query with a passage."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import EncoderHead
from algorithms.config_encoder import RerankerConfig
from launch.kinds.encoder import EncoderKind, Texts, told_losses, told_prompt
from launch.kinds.kind import Loop
from launch.settings.metric_names import ENCODER_STEP, RERANKING
from launch.settings.rules_encoder import check_one_source

if TYPE_CHECKING:
    from algorithms.data.sources import Row


class RerankerKind(EncoderKind):
    """Rerankers: a score for a query together with a passage."""

    title = "reranker"
    reported = ("loss/reranker", "reranker/accuracy", *ENCODER_STEP)
    reranks = True

    @property
    def algorithm(self) -> RerankerConfig:
        return self._section(RerankerConfig)

    def _check_training_sets(self) -> None:
        check_one_source(self.config, f"for {self.algorithm.name}")

    def metrics_of_set(self) -> list[str]:
        return [*RERANKING, *(f"base_{name}" for name in RERANKING)]

    def check_model(self, values: Mapping[str, object], directory: Path | None) -> None:
        from launch.models.encoders import check_reranker_policy

        check_reranker_policy(values, directory)

    def check_size(self, size: int) -> None:
        """Nothing: scores have no size."""

    def describe_rows(self, rows: "list[Row]", field: str, task: str) -> str:
        from algorithms.encoder.rows import describe

        return describe(rows, self.config.data, field, "graded", scores=self.algorithm.targets == "scores")

    def instructions(self, task: str, count: int) -> list[str]:
        # It stands before the query; passages are read as they are.
        return [self.algorithm.prompt or "", *[""] * (count - 1)]

    def read_texts(self, texts: Sequence[str]) -> Texts:
        query, *passages = texts
        return [(query, passage) for passage in passages]

    def head(self) -> EncoderHead:
        prompt = self.algorithm.prompt
        # None leaves the base model's own; "" takes it away.
        kept = {} if prompt is None else {"query": prompt}
        return EncoderHead(kind="reranker", max_tokens=self.algorithm.max_tokens, prompts=kept)

    def loop_class(self) -> Callable[..., Loop]:
        from algorithms.encoder.reranker import Reranker

        return Reranker

    def card_facts(self) -> dict[str, str]:
        return {
            "Data": str(self.config.data.train),
            "Losses": told_losses(self.algorithm.loss),
            "Prompt": told_prompt(self.algorithm.prompt),
        }
