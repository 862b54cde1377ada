"""Embedding models (bi-encoders) as the launcher sees them: several tasks, instructions and prompts, vectors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import EncoderHead, UserError
from algorithms.config_encoder import EmbeddingConfig, Prompts
from launch.kinds.encoder import EncoderKind, Texts, told_losses, told_prompt
from launch.kinds.kind import Loop
from launch.settings.metric_names import ENCODER_STEP, of_embeddings
from launch.settings.rules_encoder import check_one_source, check_pooling_is_given

if TYPE_CHECKING:
    from algorithms.data.sources import Row


class EmbeddingKind(EncoderKind):
    """Embedding models: a vector of each text."""

    title = "embedding"
    reported = ("loss/embedding", "embedding/accuracy", *ENCODER_STEP)

    @property
    def algorithm(self) -> EmbeddingConfig:
        return self._section(EmbeddingConfig)

    def _check_training_sets(self) -> None:
        if not self.algorithm.tasks:
            check_one_source(self.config, "without algorithm.tasks")

    def _check_pooling(self) -> None:
        check_pooling_is_given(self.config, self.algorithm)

    def metrics_of_set(self) -> list[str]:
        return of_embeddings(self.algorithm)

    def check_model(self, values: Mapping[str, object], directory: Path | None) -> None:
        from launch.models.encoders import check_embedding_policy

        check_embedding_policy(self, values, directory)

    def check_size(self, size: int) -> None:
        for name, task in self.algorithm.by_name.items():
            if task.matryoshka and max(task.matryoshka) > size:
                field = f"algorithm.tasks.{name}.matryoshka" if name else "algorithm.matryoshka"
                raise UserError(f"{field}: must not exceed the embedding's size ({size}), got {max(task.matryoshka)}")

    def describe_rows(self, rows: "list[Row]", field: str, task: str) -> str:
        from algorithms.encoder.rows import describe

        how = self.algorithm.by_name[task]
        return describe(rows, self.config.data, field, how.rows, scores=how.scored)

    def instructions(self, task: str, count: int) -> list[str]:
        how = self.algorithm.by_name[task]
        query, passage = how.prompts.query or "", how.prompts.passage or ""
        # The texts of a pair have one role: neither of them is a passage.
        return [query, *[query if how.rows == "pair" else passage] * (count - 1)]

    def read_texts(self, texts: Sequence[str]) -> Texts:
        return [*texts]

    def head(self) -> EncoderHead:
        return EncoderHead(
            kind="embedding",
            pooling=self.algorithm.pooling,
            normalize=self.algorithm.normalize,
            max_tokens=self.algorithm.max_tokens,
            prompts=_kept_prompts(self.algorithm),
        )

    def loop_class(self) -> Callable[..., Loop]:
        from algorithms.encoder.embedding import Embedding

        return Embedding

    def card_facts(self) -> dict[str, str]:
        train, found = self.config.data.train, {}
        for name, task in self.algorithm.by_name.items():
            data = train[name] if isinstance(train, dict) else train
            prompts = f"query {told_prompt(task.prompts.query)}, passage {told_prompt(task.prompts.passage)}"
            facts = f"{data}, {told_losses(task.loss)}, temperature {task.temperature:g}, prompts: {prompts}"
            found[f"Task {name}".strip()] = facts
        return found


def _kept_prompts(algorithm: EmbeddingConfig) -> dict[str, str]:
    """Instructions that the model keeps: those that all tasks share as its defaults, and each task's under its name.

    Only tasks that read queries and passages have a say in the defaults: the texts of a pair are no passages.
    """
    tasks = algorithm.by_name
    kept = {f"{name}_{kind}": text for name, task in tasks.items() if name for kind, text in _given(task.prompts)}
    # All are pairs: then these decide.
    deciding = [task for task in tasks.values() if task.rows == "ranking"] or list(tasks.values())
    for kind in ("query", "document"):
        texts = {dict(_given(task.prompts)).get(kind) for task in deciding}
        if len(texts) == 1 and (text := texts.pop()) is not None:
            kept[kind] = text
    return kept


def _given(prompts: Prompts) -> list[tuple[str, str]]:
    """(name in sentence-transformers, instruction) of those that are given."""
    named = (("query", prompts.query), ("document", prompts.passage))
    return [(name, text) for name, text in named if text is not None]
