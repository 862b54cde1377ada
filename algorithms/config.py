"""Settings of what is learned: data, rewards, and one section per algorithm, tagged by `algorithm.name`."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from actors.config import Config


class DataConfig(Config):
    """Where rows come from and how they are read."""

    train: str
    """JSONL or Parquet file, Hugging Face dataset id, or a Python generator `module:function`."""
    eval: str | None = None
    """Held-out rows, in the same forms."""
    arguments: dict[str, Any] = {}
    """Keyword arguments for generators given as `module:function`, beside `split`."""
    split: str = "train"
    """Split of a Hugging Face dataset used for training."""
    eval_split: str = "test"
    """Split of a Hugging Face dataset used for evaluation."""
    columns: dict[str, str] = {}
    """Renames: name the convention expects -> name in the data."""
    system_prompt: str | None = None
    """System message put before every conversational prompt."""
    max_length: PositiveInt = 1024
    """Longest training sequence of the SFT job, in tokens; a longer one is an error."""
    shuffle: bool = True
    """Visit rows in an order drawn anew each epoch from `run.seed`."""
    limit: PositiveInt | None = None
    """Use only the first so many training rows."""
    eval_limit: PositiveInt | None = None
    """Use only the first so many evaluation rows."""


class RewardFunction(Config):
    """One reward function and its weight in the sum."""

    name: str
    """Built-in name, `path.py:function` or `module:function`."""
    weight: float = 1.0
    """Factor in the sum over functions."""
    arguments: dict[str, Any] = {}
    """Keyword arguments passed to the function with every call."""


class RewardConfig(Config):
    """How responses are scored. Functions run in processes of their own, with a deadline."""

    functions: list[RewardFunction] = []
    """Functions whose weighted sum is the reward; a plain string stands for one with weight 1."""
    workers: PositiveInt = 1
    """Processes that run the functions."""
    deadline_s: PositiveFloat = 30
    """Longest time a call may take, in seconds; the process is then ended and replaced. Quick groups share a call."""
    max_failed_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of a step's samples that may fail (and be replaced) before the run stops with the cause."""

    @field_validator("functions", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        return [{"name": item} if isinstance(item, str) else item for item in value]


class StopWhen(Config):
    """Ends training early, once an evaluation metric is good enough."""

    metric: str
    """Name in metrics.jsonl, for example eval/sequence_probability."""
    at_least: float
    """Value from which training stops."""


class SFTConfig(Config):
    """Supervised fine-tuning: next-token cross-entropy on completions."""

    name: Literal["sft"]
    """Algorithm."""
    steps: PositiveInt | None = None
    """Optimizer updates; give this or `epochs`."""
    epochs: PositiveInt | None = None
    """Passes over the data; give this or `steps`."""
    samples_per_update: PositiveInt = 128
    """Sequences in one optimizer update."""
    train_on: Literal["completions", "all"] = "completions"
    """Tokens the loss counts: assistant turns and completions only, or every token."""
    eval_every: PositiveInt = 50
    """Updates between evaluations (when data.eval is given)."""
    stop_when: StopWhen | None = None
    """End training early, once an evaluation metric is good enough."""

    @model_validator(mode="after")
    def _one_length(self) -> "SFTConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("exactly one of steps and epochs must be given")
        return self

    def updates(self, sequences: int) -> int:
        """Optimizer updates of the run over data of `sequences` sequences: `steps`, or as many as `epochs` take.

        Updates go on across the border of two epochs, so only the last one visits sequences beyond `epochs`.
        """
        return self.steps or math.ceil((self.epochs or 1) * sequences / self.samples_per_update)


class GRPOConfig(Config):
    """Group Relative Policy Optimization (arXiv 2402.03300)."""

    name: Literal["grpo"]
    """Algorithm."""
    steps: PositiveInt = 100
    """Rollout-and-update rounds."""
    prompts_per_step: PositiveInt = 16
    """Prompts sampled in a step."""
    samples_per_prompt: PositiveInt = 8
    """Responses to each prompt; their rewards are compared within the group."""
    samples_per_update: PositiveInt | None = None
    """Samples in one optimizer update (default: all samples of the step, one update)."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """The importance ratio is clipped from below at 1 - clip_low."""
    clip_high: NonNegativeFloat = 0.2
    """The importance ratio is clipped from above at 1 + clip_high."""
    aggregation: Literal["token", "sequence"] = "token"
    """Mean over all tokens of the update, or over sequences of their token means."""
    normalize_std: bool = True
    """Divide centred rewards by their standard deviation within the group."""
    kl_coef: NonNegativeFloat = 0.0
    """Weight of the k3 KL penalty to the reference; 0 starts no reference group."""
    max_staleness: Literal[0] = 0
    """Versions by which a rollout may lag behind the policy; 0 is exactly on-policy."""
    eval_every: PositiveInt | None = None
    """Steps between evaluations on data.eval (also before the first and after the last step)."""
    eval_samples_per_prompt: PositiveInt = 1
    """Responses to each evaluation prompt."""
    eval_temperature: NonNegativeFloat | None = None
    """Sampling temperature of evaluation (default: rollout.temperature; 0 is greedy)."""
    stop_when: StopWhen | None = None
    """End training early, once an evaluation metric is good enough."""

    @property
    def samples_per_step(self) -> int:
        """Samples of one step: prompts_per_step x samples_per_prompt."""
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of one step."""
        return self.samples_per_step // (self.samples_per_update or self.samples_per_step)

    @model_validator(mode="after")
    def _arithmetic(self) -> "GRPOConfig":
        if self.samples_per_prompt < 2:
            raise ValueError(
                f"samples_per_prompt must be at least 2 for grpo, whose advantages compare the samples of a group, "
                f"got {self.samples_per_prompt}"
            )
        if self.samples_per_update and self.samples_per_step % self.samples_per_update:
            raise ValueError(
                f"samples_per_update must divide prompts_per_step x samples_per_prompt = {self.samples_per_step}, "
                f"got {self.samples_per_update}"
            )
        if self.eval_temperature == 0 and self.eval_samples_per_prompt > 1:
            raise ValueError(
                f"eval_samples_per_prompt must be 1 with eval_temperature 0, which gives the same response every time, "
                f"got {self.eval_samples_per_prompt}"
            )
        return self


AlgorithmConfig = Annotated[SFTConfig | GRPOConfig, Field(discriminator="name")]
