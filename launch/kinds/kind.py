"""A kind of job as the launcher sees it: what it asks of settings, machines and models, and how it is done.

`launch.kinds.table.job_kind` makes the kind of a configuration, which it holds. Each question is a method that answers
for most jobs here, and otherwise in the kinds that differ. Whatever takes work is done by the module that the method
imports when it is called: to load and check a configuration stays quick.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from actors.config import Config, GroupConfig, Unused
from actors.config_rollout import RolloutConfig
from algorithms.config_offline import OfflineConfig
from algorithms.config_rl import RLConfig
from launch.config import RunConfig
from launch.settings.metric_names import of_steps
from launch.settings.rules_evaluation import check_asked_metrics, check_held_out_is_given
from launch.settings.rules_reference import check_reference_can_follow, check_reference_is_read
from launch.sizes.estimate import Arithmetic, DecoderShape, Memory, reference_memory, trainer_memory

if TYPE_CHECKING:
    from rich.console import Console

    from actors.files.parts import SavedPart
    from actors.models.chat_settings import ChatSettings
    from actors.train.trainer import TrainedWorker
    from algorithms.loop import Checkpointer
    from launch.checks.findings import Findings
    from launch.checks.known_rows import Field, Sets
    from launch.checks.reward_checks import RewardProbe
    from launch.models.values import Role
    from launch.run.reserved import Placement
    from launch.run.roster import Roster
    from launch.screen.reporter import RunReporter

S = TypeVar("S", bound=Config)

ON_SEQUENCES = frozenset(
    (
        *(
            "model.chat_template",
            "model.router_aux_loss",
            "data.template_arguments",
            "data.system_prompt",
            "data.overlong",
            "data.max_bad_rows",
            "data.truncation_side",
            "data.eval_fraction",
            "data.weights",
        ),
        *("policy.logprob_chunk_tokens", "model.quantize"),
    )
)
"""Settings that all jobs read but those that compare texts."""


class Loop(Protocol):
    """What a run asks of the loop that a kind builds."""

    @property
    def step(self) -> int:
        """Steps done."""
        ...

    @property
    def parts(self) -> "Mapping[str, SavedPart]":
        """What has state beside the groups."""
        ...

    @property
    def checkpoint(self) -> "Checkpointer":
        """Who saves it."""
        ...

    def train(self) -> None:
        """Run all steps."""
        ...


class JobKind(ABC):
    """One kind of job, with the configuration of a run of it."""

    title: ClassVar[str]
    """What a person calls it."""
    reads: ClassVar[frozenset[str]]
    """Those of the settings that not every kind reads; a section stands for all that is below it."""
    rows: ClassVar[str] = "sequences"
    """What an update is made of."""
    samples_responses: ClassVar[bool] = False
    """Whether engines generate, and rewards score what they have generated."""
    role: ClassVar["Role"] = "causal"
    """What it makes of the policy's model."""
    reranks: ClassVar[bool] = False
    """Whether its model scores a query together with a passage."""
    reported: ClassVar[tuple[str, ...]] = ()
    """Metrics of a training step that only such jobs write."""
    held_out: ClassVar[str] = "data.eval or data.eval_fraction"
    """The settings that give it rows to evaluate on."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @property
    def unpaired(self) -> bool:
        """Whether rows are single responses with a label."""
        return False

    @property
    @abstractmethod
    def algorithm(self) -> OfflineConfig | RLConfig:
        """The section `algorithm`, as the class that it has in this kind."""

    def _section(self, section: type[S]) -> S:
        found = self.config.algorithm
        # Typed by the kind, so that nobody else asks which class it is.
        assert isinstance(found, section), f"the table of kinds gives {type(self).__name__} for {found.name}"
        return found

    # Rules across sections: each raises ValueError, in the order of `launch.settings.rules.check_rules`.

    @abstractmethod
    def check_sections(self) -> None:
        """Lengths, rows, and the sections that only some jobs have."""

    def check_evaluation(self) -> None:
        """That there is what evaluation reads and decides."""
        check_held_out_is_given(self.config, self.held_out)
        check_asked_metrics(self.config, self.metric_names())

    def check_critic(self) -> None:
        """A critic, where there is to be one."""
        if self.config.critic is not None:
            name = self.config.algorithm.name
            raise Unused(f"critic must be left out for {name}, which learns no values, got one", "critic", None)

    def check_reference(self) -> None:
        """The frozen reference."""
        check_reference_is_read(self.config)
        check_reference_can_follow(self.config)

    def check_dropout(self) -> None:
        """Dropout of the policy's adapters; most jobs compare with nothing that drops less."""

    @abstractmethod
    def metric_names(self) -> list[str]:
        """Every metric that an evaluation may write; whether all are there depends on the rows. Empty: not known."""

    def step_metrics(self) -> list[str]:
        """Every metric that a training step may write; empty: not known."""
        return of_steps(self.reported)

    # Groups and sizes.

    def groups(self) -> dict[str, GroupConfig | RolloutConfig]:
        """Name -> section of every group of ranks or engines, in the order in which they are placed."""
        return {"policy": self.config.policy} | self._reference_group()

    def _reference_group(self) -> dict[str, GroupConfig | RolloutConfig]:
        return {"reference": self.config.reference} if self.config.reference_group else {}

    @abstractmethod
    def longest(self) -> tuple[str, int]:
        """The setting that says how many tokens the model must read at one time, and that number; 0: as many as it
        can."""

    @property
    def known_steps(self) -> int | None:
        """Steps of the run, unless they follow from the number of rows."""
        return self.algorithm.steps

    @property
    def update_samples(self) -> int:
        """Rows or samples of one update of the policy."""
        return self.algorithm.samples_per_update or 0

    @abstractmethod
    def arithmetic(self, rows: int | None, mean_tokens: float | None) -> Arithmetic:
        """Batch arithmetic over so many rows of this mean length; what is not known counts as the longest."""

    def tokens_per_update(self, mean_tokens: float | None) -> float:
        """Tokens of an update, at most; `mean_tokens`: those of a prompt, sequence or pair."""
        # Unknown: micro-batches count as full.
        return math.inf if mean_tokens is None else self.update_samples * mean_tokens

    def memory(self, shape: DecoderShape, parameters: int) -> dict[str, Memory]:
        """Group -> bytes of one of its processes."""
        return {"policy": self._policy_memory(shape, parameters)} | self._reference_memory(shape, parameters)

    def _policy_memory(self, shape: DecoderShape, parameters: int) -> Memory:
        model = self.config.model
        checkpointing = model.gradient_checkpointing
        return trainer_memory(shape, parameters, self.config.policy, model.dtype, gradient_checkpointing=checkpointing)

    def _reference_memory(self, shape: DecoderShape, parameters: int) -> dict[str, Memory]:
        if not self.config.reference_group:
            return {}
        return {"reference": reference_memory(shape, parameters, self.config.reference, self.config.model.dtype)}

    # Checks before a run: each raises UserError, or adds to the findings.

    def check_packages(self) -> None:
        """Packages beyond those that every job needs."""

    def check_model(self, values: Mapping[str, object], directory: Path | None) -> None:
        """The policy's model beyond its architecture: the fields of its config.json, and where it is, if it is a
        directory."""

    def check_shape(self, shape: DecoderShape) -> None:
        """That engines can serve a model of this shape."""

    def steps_problem(self, rows: int) -> str | None:
        """What is wrong with the number of steps over this many training rows."""
        return None

    def read_sets(self, findings: "Findings") -> "dict[Field, Sets]":
        """The first rows of the data sets, where they can be read without a tokenizer."""
        from launch.checks.data_checks import read_data

        return read_data(findings)

    @abstractmethod
    def check_data(
        self, findings: "Findings", rewards: "RewardProbe", sets: "dict[Field, Sets]", *, tokenise: bool
    ) -> None:
        """Rows, and what reads them beside the policy. `sets`: as `read_sets` has found them; `tokenise`: the policy's
        tokenizer can be read."""

    def warnings(self) -> list[str]:
        """What is allowed, and seldom meant."""
        return []

    def notes(self) -> list[str]:
        """What is decided where the settings leave it open."""
        return []

    @abstractmethod
    def preview(self, rows: int, console: "Console") -> None:
        """Print rows as the job sees them, and how long they are; raises UserError where they cannot be read."""

    # The run itself.

    @abstractmethod
    def policy_worker(self) -> "tuple[type[TrainedWorker], tuple[object, ...]]":
        """Class of the policy's ranks, and what they are made with beside model, settings and seed, where they only
        read and write their model."""

    @abstractmethod
    def build(self, placement: "Placement", reporter: "RunReporter", roster: "Roster") -> Loop:
        """Start all groups in their places, and return the loop."""

    def chat_settings(self) -> "ChatSettings | None":
        """What the export says of conversations: how rows were rendered, and what ends the answers of its model."""
        from launch.run.chat_settings import chat_settings

        return chat_settings(self.config, answers=self.role == "causal")

    def finish_export(self, step: int) -> None:
        """Complete the exported model, which was saved after this step."""

    @property
    def benchmarks(self) -> list[str]:
        """Tasks of MTEB that the exported model is measured with."""
        return []

    # What the screens say.

    def step_lines(self, steps: int | None, rows: int | None) -> list[str]:
        """How often the rows are visited, where steps do not say it."""
        return []

    def length_line(self, mean_tokens: float) -> str:
        """The mean length of what was tokenised."""
        return f"{self.rows} have {mean_tokens:.0f} tokens on average"

    @property
    def samples_held_out(self) -> bool:
        """Whether evaluations write completions."""
        return False

    def next_command(self, run: str, export: Path) -> str:
        """What to do with the trained model; `run` is quoted for a shell."""
        return f"tandem chat {run}  # talk to it"
