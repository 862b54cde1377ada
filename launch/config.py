"""The run's configuration: one YAML file plus dotted overrides, validated into a frozen RunConfig.

Every mistake is reported as one line: field, rule, value and, for a wrong name, the nearest valid one.
"""

import difflib
import os
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from actors.config import Config, ModelConfig, ReferenceConfig, RolloutConfig, TrainerConfig, UserError
from algorithms.config import AlgorithmConfig, DataConfig, GRPOConfig, RewardConfig
from launch.config_file import apply_overrides, read_yaml


class CheckpointConfig(Config):
    """What is saved, and when."""

    every: PositiveInt | None = None
    """Steps between checkpoints (default: only at the end)."""
    keep: PositiveInt = 2
    """Checkpoints kept, the latest and those before it; older ones are removed."""
    resume: bool = True
    """Continue from the run directory's latest checkpoint, if there is one; false removes what an earlier run of the
    same name left."""


class TrackingConfig(Config):
    """Where metrics and samples go, beside metrics.jsonl and samples.jsonl, which are always written."""

    wandb: bool = True
    """Log to Weights & Biases; offline when no API key is set."""
    tensorboard: bool = False
    """Write TensorBoard event files."""
    project: str = "tandem"
    """Weights & Biases project."""
    samples_per_step: int = Field(default=8, ge=0)
    """Completions a step writes to samples.jsonl."""


class ClusterConfig(Config):
    """Where the run's processes live."""

    placement: str = Field(default="split", pattern="^(split|shared)$")
    """split: every group has its own bundles; shared: rank i of all groups share bundle i and take turns on its GPU."""
    cpus: PositiveInt | None = None
    """CPUs of the local Ray cluster (default: the machine's cores)."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs of the local Ray cluster (default: the machine's)."""
    object_store_mib: PositiveInt = 256
    """Shared memory of the local Ray cluster, in MiB."""
    wait_s: PositiveFloat = 300
    """Deadline of waiting for resources, in seconds."""


class Run(Config):
    """Identity of the run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's directory."""
    output: str = "outputs"
    """Directory that holds run directories."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of data order, sampling and initialisation of everything but `model.init`."""


class RunConfig(Config):
    """Everything a run needs; `tandem check` prints it resolved."""

    algorithm: AlgorithmConfig
    """What is learned, tagged by `name`."""
    model: ModelConfig
    """The model that is trained."""
    data: DataConfig
    """Training and evaluation rows."""
    reward: RewardConfig = RewardConfig()
    """How responses are scored."""
    policy: TrainerConfig = TrainerConfig()
    """The group that learns."""
    reference: ReferenceConfig = ReferenceConfig()
    """The frozen initial policy, when the algorithm needs it."""
    rollout: RolloutConfig = RolloutConfig()
    """Generation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving and resuming."""
    tracking: TrackingConfig = TrackingConfig()
    """Metrics and samples."""
    cluster: ClusterConfig = ClusterConfig()
    """Resources."""
    run: Run = Run()
    """Name, output and seed."""

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.run.output) / self.run.name

    @property
    def reference_enabled(self) -> bool:
        """Whether the algorithm needs a reference group."""
        return isinstance(self.algorithm, GRPOConfig) and self.algorithm.kl_coef > 0

    @model_validator(mode="after")
    def _across_sections(self) -> "RunConfig":
        algorithm, rollout = self.algorithm, self.rollout
        positions = self.model.init.max_positions if self.model.init else None
        if isinstance(algorithm, GRPOConfig):
            if not self.reward.functions:
                raise ValueError("reward.functions must name at least one reward for grpo, got []")
            if algorithm.eval_every and self.data.eval is None:
                raise ValueError(f"algorithm.eval_every needs data.eval, got eval_every {algorithm.eval_every}")
            if positions and rollout.max_model_len > positions:
                raise ValueError(
                    f"rollout.max_prompt_tokens + rollout.max_response_tokens must not exceed "
                    f"model.init.max_positions ({positions}), got {rollout.max_model_len}"
                )
            self._transfer_fits_devices()
        elif positions and self.data.max_length > positions:
            raise ValueError(
                f"data.max_length must not exceed model.init.max_positions ({positions}), got {self.data.max_length}"
            )
        if algorithm.stop_when and self.data.eval is None:
            raise ValueError("algorithm.stop_when needs data.eval, got none")
        if algorithm.stop_when and isinstance(algorithm, GRPOConfig) and not algorithm.eval_every:
            raise ValueError("algorithm.stop_when needs algorithm.eval_every, got none")
        self._precision_is_kept()
        self._groups_can_share()
        if self.model.attention == "flash_attention_2" and not self.policy.gpus_per_rank:
            raise ValueError("model.attention flash_attention_2 needs policy.gpus_per_rank > 0, got 0")
        return self

    def _precision_is_kept(self) -> None:
        if self.model.dtype == "bf16" and self.policy.zero_stage == 0:
            raise ValueError(
                "policy.zero_stage must be 1, 2 or 3 with model.dtype bf16, "
                "as DeepSpeed accumulates the gradients of stage 0 in bf16, got 0"
            )

    def _groups_can_share(self) -> None:
        if self.cluster.placement != "shared":
            return
        asked = {"policy.gpus_per_rank": self.policy.gpus_per_rank}
        if isinstance(self.algorithm, GRPOConfig):
            asked["rollout.gpus_per_engine"] = self.rollout.gpus_per_engine
        if self.reference_enabled:
            asked["reference.gpus_per_rank"] = self.reference.gpus_per_rank
        used = {name: gpus for name, gpus in asked.items() if gpus}
        if len(set(used.values())) > 1 or max(used.values(), default=0) > 1:
            got = ", ".join(f"{name} {gpus:g}" for name, gpus in used.items())
            raise ValueError(f"cluster.placement shared needs groups that ask for the same, at most 1, GPU, got {got}")

    def _transfer_fits_devices(self) -> None:
        backend = self.rollout.transfer.backend
        if backend in ("nccl", "ipc") and not (self.rollout.gpus_per_engine and self.policy.gpus_per_rank):
            raise ValueError(
                f"rollout.transfer.backend {backend} needs GPUs on both sides, got policy.gpus_per_rank "
                f"{self.policy.gpus_per_rank:g} and rollout.gpus_per_engine {self.rollout.gpus_per_engine:g}"
            )
        if backend == "ipc" and self.cluster.placement != "shared":
            raise ValueError("rollout.transfer.backend ipc needs cluster.placement shared, got split")


def load(path: str, overrides: list[str]) -> RunConfig:
    """Read a YAML file, apply `a.b=c` overrides (values are YAML) and validate.

    Raises:
        UserError: with one line per problem.
    """
    return validate(apply_overrides(read_yaml(path), overrides))


def validate(values: dict[str, Any]) -> RunConfig:
    """Validate plain values into a RunConfig; raises UserError with one line per problem."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(*dict.fromkeys(_problem(item) for item in error.errors())) from None


def _problem(error: Any) -> str:
    tags = {_tag(item) or "" for item in _members(AlgorithmConfig) if _is_config(item)}
    location = [str(part) for part in error["loc"] if str(part) not in tags]
    field = ".".join(location)
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _fields_of(location[:-1], error["loc"]), 1)
        return f"{field}: unknown field{_nearest(near)}, got {_short(value)}"
    if error["type"] == "missing":
        return f"{field}: required, got nothing"
    if error["type"].startswith("union_tag"):
        near = difflib.get_close_matches(str(_name(value)), tags, 1)
        return f"{field}.name: must be one of {', '.join(sorted(tags))}, got {_short(_name(value))}{_nearest(near)}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{field}.{message}" if field else message
    return f"{field}: {error['msg'][0].lower()}{error['msg'][1:]}, got {_short(value)}"


def _name(value: Any) -> Any:
    return value.get("name") if isinstance(value, dict) else value


def _fields_of(path: list[str], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the section at `path`, for the nearest-name hint."""
    model: Any = RunConfig
    for part in path:
        if part.isdigit():
            continue
        candidates = [item for item in _members(model.model_fields[part].annotation) if _is_config(item)]
        named = [item for item in candidates if _tag(item) in loc]
        model = (named or candidates or [model])[0]
    return list(model.model_fields)


def _members(annotation: Any) -> list[Any]:
    annotation = getattr(annotation, "__value__", annotation)
    found = [member for item in get_args(annotation) for member in _members(item)]
    return [annotation, *found]


def _is_config(item: Any) -> bool:
    return isinstance(item, type) and issubclass(item, BaseModel)


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("name")
    values = get_args(field.annotation) if field else ()
    return values[0] if values else None


def _nearest(near: list[str]) -> str:
    return f" (did you mean {near[0]}?)" if near else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def machine_cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
