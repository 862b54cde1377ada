"""The run's configuration: one YAML file plus dotted overrides, validated into a frozen RunConfig.

Every mistake is reported as one line: field, rule, value and, for a wrong name, the nearest valid one.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from actors.config import (
    Config,
    CriticConfig,
    ModelConfig,
    ReferenceConfig,
    RolloutConfig,
    TrainerConfig,
    UserError,
)
from actors.config_nodes import Environment, NodeLabels, is_secret
from algorithms.config import AlgorithmConfig, DataConfig, RewardConfig
from algorithms.config_offline import DPOConfig, OfflineConfig
from algorithms.config_rl import RLConfig
from launch.config_file import apply_overrides, read_yaml
from launch.kube.config import KubernetesConfig
from launch.rules import check_rules


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
    """Completions a step writes to samples.jsonl, evenly spaced between its best and its worst one."""


class ClusterConfig(Config):
    """Where the run's processes live."""

    placement: Literal["split", "shared", "separate"] = "split"
    """split: every group has its own bundles; shared: rank i of all groups share bundle i and take turns on its GPU;
    separate: split, with the rollout engines on nodes that no other group uses."""
    cpus: PositiveInt | None = None
    """CPUs of the local Ray cluster (default: the machine's cores)."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs of the local Ray cluster (default: the machine's)."""
    object_store_mib: PositiveInt = 256
    """Shared memory of the local Ray cluster, in MiB; on Kubernetes, of each pod, which gets 1 GiB per GPU at least."""
    wait_s: PositiveFloat = 300
    """Deadline of waiting for resources, in seconds."""
    env: Environment = {}
    """Environment variables of all processes: {HF_HOME: /shared/huggingface}"""
    driver_labels: NodeLabels = {}
    """Ray labels of the node that `tandem submit` places the driver on (default: the head)."""
    stop_wait_s: PositiveInt = 300
    """Time that a job has, once it is told to stop, to finish its step and save a checkpoint, in seconds."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """How `tandem k8s` renders the run."""


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
    critic: CriticConfig | None = None
    """The group that learns values; ppo needs it, `{}` takes the defaults."""
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
    def best_by(self) -> str | None:
        """Evaluation metric whose best checkpoint is exported."""
        return self.algorithm.best_by if isinstance(self.algorithm, OfflineConfig) else None

    @property
    def reference_needed(self) -> bool:
        """Whether the algorithm compares with a reference."""
        algorithm = self.algorithm
        if isinstance(algorithm, DPOConfig):
            return algorithm.needs_reference
        return isinstance(algorithm, RLConfig) and algorithm.kl_coef > 0

    @property
    def reference_group(self) -> bool:
        """Whether the reference is a group of its own."""
        return self.reference_needed and not self.reference.from_policy

    @model_validator(mode="after")
    def _across_sections(self) -> "RunConfig":
        check_rules(self)
        return self


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
    location = [str(part) for part in error["loc"]]
    if location[:1] == ["algorithm"]:
        del location[1:2]  # The algorithm's name, which is no field.
    field = ".".join(location)
    value = error.get("input")
    got = "a value (not shown)" if any(is_secret(part) for part in location) else _short(value)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _fields_of(location[:-1], error["loc"]), 1)
        return f"{field}: unknown field{_nearest(near)}, got {got}"
    if error["type"] == "missing":
        return f"{field}: required, got nothing"
    if error["type"].startswith("union_tag"):
        near = difflib.get_close_matches(str(_name(value)), tags, 1)
        return f"{field}.name: must be one of {', '.join(sorted(tags))}, got {_short(_name(value))}{_nearest(near)}"
    if error["type"] == "literal_error":
        names = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        near = difflib.get_close_matches(str(value), names, 1)
        return f"{field}: must be one of {error['ctx']['expected']}, got {got}{_nearest(near)}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        if message.startswith(":"):  # about the field itself, not one below it
            return f"{field}{message}"
        return f"{field}.{message}" if field else message
    return f"{field}: {error['msg'][0].lower()}{error['msg'][1:]}, got {got}"


def _name(value: Any) -> Any:
    return value.get("name") if isinstance(value, dict) else value


def _fields_of(path: list[str], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the section at `path`, for the nearest-name hint."""
    model: Any = RunConfig
    for part in path:
        if part.isdigit() or part not in model.model_fields:  # an item of a list or of a section with free names
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
