"""Settings of the groups that hold a model with DeepSpeed: those that learn, and those that only read."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from actors.config_base import Config, PlacedConfig, Seconds, changed, refuse_unused
from actors.config_deepspeed import check_deepspeed
from actors.config_numbers import (
    Cores,
    Cpus,
    Factor,
    PositiveFactor,
    PositiveThreshold,
    Processes,
    Rate,
    Steps,
    StepsOrNone,
    Tokens,
)

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """Optimizer and learning-rate schedule of one group."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """torch.optim class; sgd is plain: without momentum, its step is the gradient's."""
    lr: Rate = 1e-6
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of Adam's first and second moments."""
    eps: PositiveFactor = 1e-8
    """Adam's denominator constant."""
    weight_decay: Factor = 0.0
    """Decoupled weight decay of matrices (norms and biases are exempt); not for adam, which would not decouple it."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"] = (
        "constant_with_warmup"
    )
    """Schedule after warm-up, by the name transformers gives it; constant has no warm-up."""
    warmup_updates: StepsOrNone = 0
    """Optimizer updates n over which the rate grows to `lr`: the first has lr / n, the n-th `lr`."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """The same as a share of all updates of the run, rounded up; instead of `warmup_updates`."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Final rate over `lr`, for cosine_with_min_lr."""
    max_grad_norm: PositiveThreshold = 1.0
    """Global gradient norm above which gradients are scaled down."""

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> "OptimizerConfig":
        # transformers' schedule of this name has none, and would read neither.
        for name, value in changed(self, "warmup_updates", "warmup_ratio").items():
            if self.schedule == "constant":
                raise ValueError(
                    f"{name} must be 0 with schedule constant (constant_with_warmup warms up), got {value:g}"
                )
        if self.warmup_updates and self.warmup_ratio:
            raise ValueError(
                f"warmup_ratio must be 0 beside warmup_updates ({self.warmup_updates}), got {self.warmup_ratio:g}"
            )
        if self.name == "adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay must be 0 for adam, which would scale it like a gradient (adamw does not), "
                f"got {self.weight_decay:g}"
            )
        if self.schedule != "cosine_with_min_lr":
            refuse_unused(self, "min_lr_ratio", why=f"with schedule {self.schedule}, which does not read it")
        if self.name == "sgd":
            refuse_unused(self, "betas", "eps", why="for sgd, which has no moments")
        return self

    def warmup(self, updates: int) -> int:
        """Updates of warm-up in a run of so many (rounded up, as transformers does)."""
        return self.warmup_updates or math.ceil(self.warmup_ratio * updates)

    def rate(self, update: int, updates: int) -> float:
        """Learning rate over `lr` of one update, counted from 0, in a run of so many.

        The schedules are those of transformers (optimization.py, get_scheduler), but for the warm-up, which there
        begins with an update of rate 0: here the first of n has 1/n.
        """
        warmup = self.warmup(updates)
        if update < warmup:  # 1/n and not 0/n: an update of rate 0 would be wasted
            return (update + 1) / warmup
        if self.schedule.startswith("constant"):
            return 1.0
        # Beyond the last update, too, the rate is that of the end.
        done = min((update - warmup) / max(1, updates - warmup), 1.0)
        if self.schedule == "linear":
            return 1 - done
        lowest = self.min_lr_ratio if self.schedule == "cosine_with_min_lr" else 0.0
        return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * done))


class GroupConfig(PlacedConfig):
    """A group of ranks that hold one model with DeepSpeed."""

    ranks: Processes = 1
    """Processes (data-parallel ranks) in the group."""
    ranks_per_node: Processes | None = None
    """Ranks on each node, on as many nodes as that takes (default: packed on as few nodes as have room)."""
    cpus_per_rank: Cpus = 0.25
    """Ray CPUs reserved per rank; a fraction lets several groups share a small machine."""
    gpus_per_rank: float = Field(default=0, ge=0, le=1)
    """GPUs reserved per rank, which uses one; a fraction leaves room for another group on it."""
    threads_per_rank: Cores | None = None
    """Compute threads per rank (default: the cores of the machine that starts the run, divided by the ranks, or by
    those on each node)."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is sharded over ranks (1 optimizer, 2 + gradients, 3 + parameters, of which no rank
    then holds all at any time)."""
    offload_optimizer: bool = False
    """Keep optimizer state in host memory (ZeRO 1 to 3)."""
    offload_parameters: bool = False
    """Keep parameters in host memory, and on the device only those of the layers at work (ZeRO 3)."""
    deepspeed: dict[str, Any] = {}
    """More settings of DeepSpeed, by its own names: {zero_optimization: {reduce_bucket_size: 50000000}}. Those that
    other settings decide are refused."""
    micro_batch_tokens: Tokens = 8192
    """Most tokens packed into one forward pass; a single longer sequence still goes alone."""
    logprob_chunk_tokens: Tokens = 1024
    """Tokens whose float32 logits exist at one time."""
    timeout_s: Seconds = 600
    """Deadline of one call to the group, and of its collectives, in seconds."""

    @model_validator(mode="after")
    def _nodes_are_full(self) -> "GroupConfig":
        if self.ranks_per_node and self.ranks % self.ranks_per_node:
            raise ValueError(f"ranks_per_node must divide ranks ({self.ranks}), got {self.ranks_per_node}")
        gpus = self.gpus_per_rank * (self.ranks_per_node or 1)
        # Ray gives fractions of one GPU, but not one and a half.
        if gpus > 1 and gpus % 1:
            raise ValueError(f"ranks_per_node x gpus_per_rank must be whole GPUs, or a part of one, got {gpus:g}")
        return self

    @model_validator(mode="after")
    def _offload_needs_sharding(self) -> "GroupConfig":
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, got zero_stage 0")
        if self.offload_parameters and self.zero_stage < 3:
            raise ValueError(f"offload_parameters needs zero_stage 3, got zero_stage {self.zero_stage}")
        return self

    @model_validator(mode="after")
    def _deepspeed_knows_its_settings(self) -> "GroupConfig":
        check_deepspeed(self.deepspeed, self.zero_stage, gpu=self.gpus_per_rank > 0)
        return self


class TrainerConfig(GroupConfig):
    """A group that learns."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer, learning rate and schedule."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential moving average of the trained weights, average <- decay x average + (1 - decay) x weights
    after each update, which starts from the initial weights, and export it; rollouts and evaluation go on with the
    weights themselves."""


class FrozenGroupConfig(GroupConfig):
    """A group that only reads: it has parameters to shard, but neither gradients nor optimizer state."""

    @model_validator(mode="after")
    def _only_parameters(self) -> "FrozenGroupConfig":
        if self.zero_stage in (1, 2):  # these shard nothing but gradients and optimizer state
            raise ValueError(
                f"zero_stage must be 0 or 3 for a group without optimizer and gradients, got {self.zero_stage}"
            )
        if self.offload_optimizer:
            raise ValueError("offload_optimizer must be false for a group without optimizer, got true")
        if self.zero_stage == 0:
            refuse_unused(self, "deepspeed", why="for a group without optimizer at zero_stage 0, which uses none of it")
        return self


class ReferenceConfig(FrozenGroupConfig):
    """The frozen initial policy."""

    from_policy: bool = False
    """With model.lora: no group of its own, but the policy with its adapters disabled."""
    sync_every: Steps | None = None
    """Steps after which the reference follows the policy (arXiv 2404.09656): reference <- mix x policy + (1 - mix) x
    reference (default: never)."""
    sync_mix: float = Field(default=1.0, gt=0, le=1)
    """The mix: 1 replaces the reference."""

    @model_validator(mode="after")
    def _can_follow(self) -> "ReferenceConfig":
        if self.sync_every is None:
            refuse_unused(self, "sync_mix", why="without sync_every")
        elif self.from_policy:
            raise ValueError(
                f"sync_every must be left out with from_policy, whose weights are the policy's own, "
                f"got {self.sync_every}"
            )
        return self
