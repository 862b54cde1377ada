"""What the jobs that compare texts, embedding models and rerankers, share as the launcher sees them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import EncoderHead, OptimizerConfig
from algorithms.config_encoder import EmbeddingConfig, EmbeddingLoss, RerankerConfig, RerankerLoss
from launch.kinds.kind import Loop
from launch.kinds.offline import OfflineKind
from launch.settings.rules_encoder import check_searched_sets, check_texts
from launch.settings.rules_rows import check_nothing_is_sampled, check_positions
from launch.sizes.estimate import DecoderShape, Memory

if TYPE_CHECKING:
    from rich.console import Console

    from actors.train.trainer import TrainedWorker
    from algorithms.data.sources import Row
    from launch.checks.findings import Findings
    from launch.checks.known_rows import Field, Sets
    from launch.checks.reward_checks import RewardProbe
    from launch.run.reserved import Placement
    from launch.run.roster import Roster
    from launch.screen.reporter import RunReporter

Texts = list[str] | list[tuple[str, str]]
"""What a tokenizer is given: texts, or a query together with a passage."""


class EncoderKind(OfflineKind):
    """What embedding models and rerankers share."""

    rows = "rows"
    role = "encoder"
    held_out = "data.eval"
    reads = frozenset(("data.corpus", "model.lora.dropout"))

    @property
    @abstractmethod
    def algorithm(self) -> EmbeddingConfig | RerankerConfig: ...

    def check_sections(self) -> None:
        check_nothing_is_sampled(self.config)
        check_texts(self.config)
        self._check_training_sets()
        check_searched_sets(self.config)
        self._check_pooling()
        check_positions(self.config, *self.longest())

    @abstractmethod
    def _check_training_sets(self) -> None:
        """Raise ValueError for more sets than the job reads."""

    def _check_pooling(self) -> None:
        """Raise ValueError when nobody says how tokens become one vector."""

    def metric_names(self) -> list[str]:
        given = self.config.data.eval
        sets = [f"{name}/" for name in given] if isinstance(given, dict) else [""]
        return [f"eval/{name}{metric}" for name in sets for metric in self.metrics_of_set()]

    @abstractmethod
    def metrics_of_set(self) -> list[str]:
        """Metrics of one evaluation set."""

    def longest(self) -> tuple[str, int]:
        return "algorithm.max_tokens", self.algorithm.max_tokens or 0

    def memory(self, shape: DecoderShape, parameters: int) -> dict[str, Memory]:
        # Vectors or scores are all that comes out: there are no logits over a vocabulary.
        return {group: replace(parts, logits=0) for group, parts in super().memory(shape, parameters).items()}

    def check_packages(self) -> None:
        from launch.checks.encoder_packages import check_encoder_packages

        check_encoder_packages(self.algorithm)

    def read_sets(self, findings: "Findings") -> "dict[Field, Sets]":
        return {}  # they are read as their losses want them, with numpy: later, and aside

    def check_data(
        self, findings: "Findings", rewards: "RewardProbe", sets: "dict[Field, Sets]", *, tokenise: bool
    ) -> None:
        from launch.checks.encoder_data import check_encoder_data

        check_encoder_data(self, findings, tokenise=tokenise)

    def warnings(self) -> list[str]:
        rate = self.config.policy.optimizer.lr
        if rate != OptimizerConfig().lr:
            return []
        return [
            f"policy.optimizer.lr: {rate:g}, the default, is that of reinforcement learning; usual values for "
            f"{self.algorithm.name} are 1e-5 to 1e-4"
        ]

    def preview(self, rows: int, console: "Console") -> None:
        from launch.verbs.encoder_preview import preview_encoder_rows

        preview_encoder_rows(self, rows, console)

    @abstractmethod
    def describe_rows(self, rows: "list[Row]", field: str, task: str) -> str:
        """Which columns of a task's rows are read as what."""

    @abstractmethod
    def instructions(self, task: str, count: int) -> list[str]:
        """What the configuration puts before each of a row's `count` texts; a model may have its own."""

    @abstractmethod
    def read_texts(self, texts: Sequence[str]) -> Texts:
        """A row's texts, the query first, as the model reads them."""

    def chat_settings(self) -> None:
        """Texts are no conversations."""

    def policy_worker(self) -> "tuple[type[TrainedWorker], tuple[object, ...]]":
        from actors.train.encoder import EncoderWorker

        return EncoderWorker, (self.head(), [])  # no guides: only losses read them

    @abstractmethod
    def head(self) -> EncoderHead:
        """What the workers must know of the algorithm to make its model."""

    def build(self, placement: "Placement", reporter: "RunReporter", roster: "Roster") -> Loop:
        from launch.run.build_encoder import build_encoder

        return build_encoder(self, placement, reporter, roster)

    def finish_export(self, step: int) -> None:
        from launch.exports.model_card import write_model_card

        write_model_card(self, step)

    @abstractmethod
    def card_facts(self) -> dict[str, str]:
        """What the model card says of data, losses and prompts."""

    @abstractmethod
    def check_size(self, size: int) -> None:
        """What the size of the model's vectors, if it gives any, must hold; raises UserError."""

    @property
    def benchmarks(self) -> list[str]:
        return self.algorithm.mteb

    def next_command(self, run: str, export: Path) -> str:
        return f"tandem search {run}  # search with it"


def told_prompt(given: str | None) -> str:
    """An instruction as the model card shows it."""
    return "as the base model has it" if given is None else f"`{given}`"


def told_losses(losses: Sequence[EmbeddingLoss] | Sequence[RerankerLoss]) -> str:
    """A weighted sum of losses as the model card shows it. Example: infonce + 0.5 cosent"""
    return " + ".join(item.name if item.weight == 1 else f"{item.weight:g} {item.name}" for item in losses)
