"""What the loops of PPO and the GRPO family are made with, beside their settings."""

from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict

from actors.episodes import Prompt
from actors.files.parts import SavedPart
from actors.group import ActorGroup
from actors.rollout.types import Sampling
from algorithms.division.deals import Split
from algorithms.loop import Checkpointer, Metrics, Reporter
from algorithms.rl.overlapped_gradients import OverlappedGradients
from algorithms.rl.overlapped_reads import OverlappedReads
from algorithms.rl.recovery import LearnedSteps, Mender
from algorithms.rl.reward_models import RewardModelGroup
from algorithms.rl.sample_report import SampleReport
from algorithms.rl.shaper import RewardShaper
from algorithms.rollouts.rollouts import Rollouts


class ReadArguments(TypedDict):
    """Who reads the episodes of a step beside policy and critic."""

    reference: str | None
    read_reference: Callable[..., object] | None
    models: list[RewardModelGroup]
    sync_reference: NotRequired[Callable[[int], None]]


class SettingsArguments(TypedDict):
    """What follows from the configuration alone."""

    shaper: RewardShaper
    sampling: Sampling
    micro_batch_tokens: dict[str, int]
    keeps_cache: bool
    seed: int
    eval_samples: int | None


class LoopArguments(ReadArguments, SettingsArguments):
    """The fields of `algorithms.rl.steps.Steps`, which says what each of them is."""

    roster: Mapping[str, ActorGroup[Any]]
    rollouts: Rollouts
    split: Split
    reads: OverlappedReads
    gradients: OverlappedGradients | None
    mender: Mender | None
    learned: LearnedSteps
    batches: SavedPart
    evaluation: list[Prompt]
    sample_report: SampleReport
    publish: Callable[[int], Metrics]
    checkpoint: Checkpointer
    reporter: Reporter
    total_steps: int
