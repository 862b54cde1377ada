"""The run's configuration: one YAML file plus dotted overrides, validated into a frozen RunConfig.

Every mistake is reported as one line: field, rule, value and, for a wrong name, the nearest valid one.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from actors.config import (
    Config,
    CriticConfig,
    ModelConfig,
    ReferenceConfig,
    Seconds,
    TrainerConfig,
    UserError,
    refuse_unused,
)
from actors.config_nodes import Environment, NodeLabels, is_secret
from actors.config_numbers import Cores, Count, Retries, Steps, WholeSeconds
from actors.config_rollout import RolloutConfig
from algorithms.config import AlgorithmConfig, DataConfig, RewardConfig
from launch.alerts.config import AlertsConfig
from launch.exports.hub import hub_id_problem
from launch.kube.config import KubernetesConfig
from launch.settings.file import apply_overrides, read_yaml
from launch.settings.literal_secrets import secret_problems
from launch.settings.values import odd_values
from launch.storage.address import storage_problem

MemoryEvery = Steps | Literal["auto"] | None
"""Of `checkpoint.memory_every`."""
_WANDB_LONGEST = {"entity": 128, "group": 128, "tags": 64}
"""Characters that Weights & Biases takes."""


class CheckpointConfig(Config):
    """What is saved, and when."""

    every: Steps | None = None
    """Steps between checkpoints (default: only at the end)."""
    beside: bool = True
    """Write checkpoints beside training: a step waits only until its state is copied, for which hosts need as much
    memory as a checkpoint has bytes. false: training waits until it is written, without a copy."""
    keep: Steps = 2
    """Checkpoints kept, the latest and those before it, each with all that resuming takes, and beside them the best one
    of `algorithm.best_by`; older ones are removed. `tandem export RUN --step N` makes a model of any that is kept."""
    keep_every: Steps | None = None
    """Beside these, keep the checkpoints of steps that are multiples of this for good (default: none); a multiple of
    `every`."""
    memory_every: MemoryEvery = "auto"
    """Steps between copies of the state of groups that learn, kept in the memory of other processes, on another node
    where there is one: what is gone back to when a rank is lost and no checkpoint is newer. auto: where learning again
    would take more than 10 s and 50 times as long as the last copy took; null: none."""
    max_age_s: Seconds = 3600.0
    """When a checkpoint cannot be written (a full disk, lost permission, storage that fails), the run goes on and tries
    again, until its last whole one is this many seconds old."""
    resume: bool = True
    """Continue from the run directory's latest checkpoint, if there is one; results without a checkpoint are kept
    aside, in `set-aside-N`. false removes what an earlier run of the same name left, its checkpoints too."""
    accept_new_data: bool = False
    """Continue although the rows of data.train, data.eval or data.corpus, or the files of the model's tokenizer or chat
    template, are others than those of the checkpoint; else that is refused. Training goes on at the same place of the
    pass where data.train has as many rows as then, else with a new pass."""

    @model_validator(mode="after")
    def _resumes(self) -> "CheckpointConfig":
        if not self.resume:
            refuse_unused(self, "accept_new_data", why="with resume false, which continues from no checkpoint")
        return self

    @model_validator(mode="after")
    def _keeps_what_is_saved(self) -> "CheckpointConfig":
        if self.every is None:
            refuse_unused(self, "keep_every", why="without every, as only the last step is saved")
        elif self.keep_every and self.keep_every % self.every:
            raise ValueError(f"keep_every must be a multiple of every ({self.every}), got {self.keep_every}")
        return self


class TrackingConfig(Config):
    """Where metrics and samples go, beside metrics.jsonl, samples.jsonl, tokens.jsonl and eval_samples.jsonl."""

    wandb: bool = True
    """Log to Weights & Biases; offline when no API key is set."""
    tensorboard: bool = False
    """Write TensorBoard event files."""
    project: str = "tandem"
    """Weights & Biases project."""
    entity: str | None = None
    """Weights & Biases team or user (default: the account's own)."""
    group: str | None = None
    """Weights & Biases group (default: the run's name)."""
    tags: list[str] = []
    """Weights & Biases tags."""
    samples_per_step: Count = 8
    """Completions a step writes to samples.jsonl, evenly spaced between its best and its worst one."""
    groups_per_step: Count = 1
    """Prompts of which a step writes all completions to samples.jsonl, those whose rewards differ most."""
    token_samples: Count = 1
    """Completions of a step, of those that are written, whose tokens and logprobs go to tokens.jsonl: first the best
    and the worst of each whole group."""
    eval_samples: Count | None = 64
    """Completions that an evaluation of ppo or grpo writes to eval_samples.jsonl, those of the first prompts; null: all
    of them."""
    alerts: AlertsConfig = AlertsConfig()
    """What is told of beside the metrics: on the screen, in alerts.jsonl, and where the next two say."""
    alert_webhook_env: str | None = None
    """Environment variable of the driver that holds the address of a webhook, which gets each alert in Slack's form; a
    name that tells of a secret, so that reward functions do not see it: SLACK_WEBHOOK_URL"""
    alert_command: list[str] = []
    """Program with its arguments that is run for each alert, and gets it as JSON on its standard input:
    [/usr/local/bin/page-me, --team, rl]"""

    @model_validator(mode="after")
    def _webhook_is_a_variable(self) -> "TrackingConfig":
        name = self.alert_webhook_env
        if name is not None and not (re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and is_secret(name)):
            # Without the value, which may be the address itself.
            raise ValueError(
                "alert_webhook_env must be the name of an environment variable that tells of a secret, such as "
                "SLACK_WEBHOOK_URL, got another text (not shown)"
            )
        return self

    @model_validator(mode="after")
    def _tokens_are_of_samples(self) -> "TrackingConfig":
        if not self.samples_per_step and not self.groups_per_step:
            why = "with samples_per_step 0 and groups_per_step 0, as it is of their completions"
            refuse_unused(self, "token_samples", why=why)
        return self

    @model_validator(mode="after")
    def _names_are_names(self) -> "TrackingConfig":
        if not self.wandb:
            refuse_unused(self, "entity", "group", "tags", why="with wandb false, as nothing else has them")
        # What wandb itself refuses, though only once the run logs to it.
        if len(self.project) > 128 or set(self.project) & set("/\\#?%:"):
            raise ValueError(f"project must be of 1 to 128 characters, without / \\ # ? % :, got {self.project[:80]!r}")
        for name, value in (("entity", self.entity), ("group", self.group), *(("tags", tag) for tag in self.tags)):
            longest = _WANDB_LONGEST[name]
            if value and not 0 < len(value.strip()) <= longest:
                raise ValueError(f"{name} must be of 1 to {longest} characters, got {value[:80]!r}")
        return self


class ClusterConfig(Config):
    """Where the run's processes live."""

    placement: Literal["split", "shared", "separate"] = "split"
    """split: every group has its own bundles; shared: rank i of all groups share bundle i and its GPU;
    separate: split, with the rollout engines on nodes that no other group uses."""
    cpus: Cores | None = None
    """CPUs of the local Ray cluster (default: the machine's cores)."""
    gpus: int | None = Field(default=None, ge=0, le=10**6)
    """GPUs of the local Ray cluster (default: the machine's); `check` warns of more than there are, `run` refuses."""
    object_store_mib: int = Field(default=256, ge=75, le=10**8)
    """Shared memory of the local Ray cluster, in MiB, of which Ray needs 75; on Kubernetes, of each pod, which gets
    1 GiB per GPU at least."""
    wait_s: Seconds = 300
    """Deadline of waiting for resources, in seconds."""
    env: Environment = {}
    """Environment variables of all processes: {HF_HOME: /shared/huggingface}"""
    driver_labels: NodeLabels = {}
    """Ray labels of the node that `tandem submit` places the driver on (default: the head)."""
    stop_wait_s: WholeSeconds = 300
    """Time that a job has, once it is told to stop, to finish its step, save a checkpoint and put it into
    `run.storage`, in seconds."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """How `tandem k8s` renders the run."""


class Run(Config):
    """Identity of the run."""

    name: str = Field(default="run", max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's directory."""
    output: str = "outputs"
    """Directory that holds run directories."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of data order, sampling and initialisation of everything but `model.init`."""
    storage: str | None = None
    """Where checkpoints and the exported model are put as well, beside training, below the run's name: a URL,
    s3://BUCKET/PATH (package s3fs), gs://BUCKET/PATH (gcsfs) or file:///PATH, without credentials. A run whose own
    directory has less goes on from there."""
    hub_model_id: str | None = None
    """Upload the exported model to this repository of the Hugging Face hub, OWNER/NAME, which is made when there is
    none; needs a token (HF_TOKEN, or `hf auth login`). What fails is a warning."""
    hub_private: bool = False
    """Make that repository a private one."""
    max_restarts: Retries = 3
    """Faults in a row, without a new step between them, after which the run ends with the cause. Until then an engine
    is restarted beside the run (in a row: before it has ended any request), and after any other fault the run is
    started again and resumes from its last checkpoint, which `checkpoint.resume` false rules out. 0: the first fault
    ends it."""
    heartbeat_s: float = Field(default=4.0, ge=2, le=1e9)
    """Longest silence of a process of the run before it is held for frozen, in seconds."""

    @model_validator(mode="after")
    def _output_is_a_path(self) -> "Run":
        if self.output.startswith("~") or "$" in self.output:
            raise ValueError(
                f"output must be a path as it is, without ~ and $, which a shell replaces only where they are not "
                f"quoted, got {self.output}"
            )
        return self

    @model_validator(mode="after")
    def _storage_is_a_url(self) -> "Run":
        if self.storage is not None and (problem := storage_problem(self.storage)):
            raise ValueError(f"storage {problem}")
        return self

    @model_validator(mode="after")
    def _uploads_have_a_place(self) -> "Run":
        if self.hub_model_id is None:
            refuse_unused(self, "hub_private", why="without hub_model_id")
        elif problem := hub_id_problem(self.hub_model_id):
            raise ValueError(f"hub_model_id {problem}, got {self.hub_model_id}")
        return self


class UnusedError(UserError):
    """Nothing is wrong with a configuration but settings without effect.

    Attributes:
        defaults: dotted name of each of them -> its default as plain values, which has none either.
    """

    def __init__(self, *problems: str, defaults: Mapping[str, object]) -> None:
        super().__init__(*problems)
        self.defaults = defaults


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
        return self.algorithm.best_by

    @property
    def reference_needed(self) -> bool:
        """Whether the algorithm compares with a reference."""
        return self.algorithm.needs_reference

    @property
    def reference_group(self) -> bool:
        """Whether the reference is a group of its own."""
        return self.reference_needed and not self.reference.from_policy

    @model_validator(mode="after")
    def _across_sections(self) -> "RunConfig":
        # The rules ask which kind of job this is, and kinds know this class.
        from launch.settings.rules import check_rules

        check_rules(self)
        return self


def load(path: str, overrides: list[str]) -> RunConfig:
    """Read a YAML file, apply `a.b=c` overrides (values are YAML) and validate.

    Raises:
        UserError: with one line per problem; secrets, which would be kept and shown, are some.
    """
    config = validate(apply_overrides(read_yaml(path), overrides))
    if problems := secret_problems(config):
        raise UserError(*problems)
    return config


def validate(values: Mapping[str, object]) -> RunConfig:
    """Validate plain values into a RunConfig.

    Raises:
        UserError: with one line per problem; UnusedError where that is all that is wrong.
    """
    odd, errors = odd_values(RunConfig, values), []
    try:
        config = RunConfig.model_validate(values)
        # pydantic takes true for 1 and '5' for 5: what it has taken is refused all the same.
        if not odd:
            return config
    except ValidationError as error:
        errors = error.errors(include_url=False)
    from launch.settings.errors import problems, unused_defaults  # with the tables of names: only a mistake needs them

    lines = problems(errors, odd, values)
    if not odd and (defaults := unused_defaults(errors)):
        raise UnusedError(*lines, defaults=defaults)
    raise UserError(*lines)


def machine_cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))  # not os.cpu_count(), which looks at no cpuset of a container


def threads_each(threads: int | None, processes: int, per_node: int | None) -> int:
    """Compute threads of each of a group's processes: those that are asked for, or its share of the cores."""
    # Groups take turns in a step, so each may use every core; ranks of one group run at the same time. The cores are
    # those of the machine that starts the run: on a cluster of other machines, set the threads in the configuration.
    return threads or max(1, machine_cpus() // (per_node or processes))
