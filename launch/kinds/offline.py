"""The jobs that learn from given sequences as the launcher sees them: fine-tuning, reward models, preferences."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from actors.config import ReferenceConfig
from algorithms.config_offline import (
    DPOConfig,
    OfflineConfig,
    RewardModelConfig,
    SFTConfig,
    averaged_beta_warning,
)
from launch.kinds.kind import ON_SEQUENCES, JobKind, Loop
from launch.settings.metric_names import DPO, DPO_STEP, KTO, REWARD, REWARD_STEP, SFT, SFT_STEP
from launch.settings.rules_adapters import check_no_dropout
from launch.settings.rules_reference import check_reference_can_follow, check_reference_is_read
from launch.settings.rules_rows import check_nothing_is_sampled, check_nothing_is_searched, check_positions
from launch.sizes.estimate import Arithmetic, offline_arithmetic

if TYPE_CHECKING:
    from rich.console import Console

    from actors.train.trainer import TrainedWorker
    from algorithms.data.run_data import RunData
    from launch.checks.findings import Findings
    from launch.checks.known_rows import Field, Rows, Sets
    from launch.checks.reward_checks import RewardProbe
    from launch.run.reserved import Placement
    from launch.run.roster import Roster
    from launch.screen.reporter import RunReporter


class OfflineKind(JobKind):
    """What jobs that learn from given rows share."""

    reads = ON_SEQUENCES | {"data.max_length", "model.lora.dropout"}
    evaluated: ClassVar[tuple[str, ...]] = ()
    """Names of its evaluation metrics."""

    @property
    def algorithm(self) -> OfflineConfig:
        return self._section(OfflineConfig)

    def check_sections(self) -> None:
        check_positions(self.config, *self.longest())
        check_nothing_is_sampled(self.config)
        check_nothing_is_searched(self.config)

    def metric_names(self) -> list[str]:
        return [f"eval/{name}" for name in self.evaluated]

    def longest(self) -> tuple[str, int]:
        return "data.max_length", self.config.data.max_length

    def arithmetic(self, rows: int | None, mean_tokens: float | None) -> Arithmetic:
        mean = self.longest()[1] if mean_tokens is None else mean_tokens
        # Of unknown rows: those of one update.
        return offline_arithmetic(
            self.algorithm, self.config.policy, mean, rows or self.algorithm.samples_per_update, self.rows
        )

    def check_data(
        self, findings: "Findings", rewards: "RewardProbe", sets: "dict[Field, Sets]", *, tokenise: bool
    ) -> None:
        from launch.checks.data_checks import check_sets

        train, held_out = check_sets(findings, sets, tokenise)
        if train is not None:
            with findings.collecting():
                self.check_rows(train, held_out)

    def check_rows(self, train: "Rows", held_out: "Rows | None") -> None:
        """What an update needs of its rows beyond their form, as far as a check has read them; raises UserError."""

    def require_rows(self, found: "RunData") -> None:
        """The same of all rows, in the run."""

    def policy_worker(self) -> "tuple[type[TrainedWorker], tuple[object, ...]]":
        from actors.train.policy import PolicyWorker

        return PolicyWorker, ()

    @abstractmethod
    def loop_class(self) -> Callable[..., Loop]:
        """What makes the loop: a subclass of `algorithms.offline.loop.Offline`, by its fields."""

    def loop_arguments(self, directory: str, placement: "Placement", roster: "Roster") -> Mapping[str, object]:
        """Start what the loop reads beside the policy, and return what it takes beside the arguments of every loop."""
        return {}

    def build(self, placement: "Placement", reporter: "RunReporter", roster: "Roster") -> Loop:
        from launch.run.build_offline import build_offline

        return build_offline(self, placement, reporter, roster)


class SFTKind(OfflineKind):
    """Supervised fine-tuning."""

    title = "SFT"
    evaluated = SFT
    reported = SFT_STEP

    @property
    def algorithm(self) -> SFTConfig:
        return self._section(SFTConfig)

    def preview(self, rows: int, console: "Console") -> None:
        from launch.verbs.preview import preview_sequences, preview_sets

        preview_sets(self.config, rows, console, preview_sequences)

    def loop_class(self) -> Callable[..., Loop]:
        from algorithms.offline.sft import SFT

        return SFT


class PairKind(OfflineKind):
    """What jobs that learn from a chosen and a rejected response share."""

    rows = "pairs"

    def preview(self, rows: int, console: "Console") -> None:
        from launch.verbs.preview import preview_pairs, preview_sets

        preview_sets(self.config, rows, console, preview_pairs)


class RewardModelKind(PairKind):
    """Reward models, which score whole responses."""

    title = "reward model"
    role = "scores"
    evaluated = REWARD
    reported = REWARD_STEP

    @property
    def algorithm(self) -> RewardModelConfig:
        return self._section(RewardModelConfig)

    def policy_worker(self) -> "tuple[type[TrainedWorker], tuple[object, ...]]":
        from actors.train.critic import RewardModelWorker

        return RewardModelWorker, ()

    def loop_class(self) -> Callable[..., Loop]:
        from algorithms.offline.reward_model import RewardModel

        return RewardModel

    def next_command(self, run: str, export: Path) -> str:
        return f"reward.models=[{export}] in a ppo or grpo run  # reward with it"


class DPOKind(PairKind):
    """DPO and its family, most of which compare with a reference; KTO's rows are single responses."""

    title = "DPO"
    reported = DPO_STEP
    reads = OfflineKind.reads | {"reference"}

    @property
    def algorithm(self) -> DPOConfig:
        return self._section(DPOConfig)

    @property
    def unpaired(self) -> bool:
        return self.algorithm.unpaired

    def check_reference(self) -> None:
        algorithm, reference = self.algorithm, self.config.reference
        if not algorithm.needs_reference and reference != ReferenceConfig():
            raise ValueError(
                f"reference must be left out for loss {', '.join(algorithm.losses)}, which compares with none, "
                f"got settings"
            )
        check_reference_is_read(self.config)
        if reference.sync_every and algorithm.reference == "precomputed":
            raise ValueError(
                f"reference.sync_every must be left out with algorithm.reference precomputed, whose logprobs are "
                f"those of the initial policy, got {reference.sync_every}"
            )
        check_reference_can_follow(self.config)

    def check_dropout(self) -> None:
        if self.config.reference_needed:
            check_no_dropout(self.config, "dpo, which compares with a reference that drops nothing")

    def metric_names(self) -> list[str]:
        return [f"eval/{name}" for name in (KTO if self.unpaired else DPO)]

    def check_rows(self, train: "Rows", held_out: "Rows | None") -> None:
        from launch.checks.row_checks import check_unpaired

        if self.unpaired:
            check_unpaired(self.config, self.algorithm, train, held_out)

    def require_rows(self, found: "RunData") -> None:
        from algorithms.offline.comparable import require_comparable

        if self.unpaired:
            require_comparable(found, self.algorithm, self.config.data, seed=self.config.run.seed)

    def warnings(self) -> list[str]:
        warning = averaged_beta_warning(self.algorithm)
        return [warning] if warning else []

    def preview(self, rows: int, console: "Console") -> None:
        from launch.verbs.preview import preview_judged, preview_sets

        if self.unpaired:
            preview_sets(self.config, rows, console, preview_judged)
        else:
            super().preview(rows, console)

    def loop_class(self) -> Callable[..., Loop]:
        from algorithms.offline.dpo import DPO

        return DPO

    def loop_arguments(self, directory: str, placement: "Placement", roster: "Roster") -> Mapping[str, object]:
        from launch.run.build_offline import preference_arguments

        return preference_arguments(self, directory, placement, roster)
