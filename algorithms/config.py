"""Settings of what is learned: data, rewards, and one section per algorithm, tagged by `algorithm.name`."""

from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from actors.config import Config, FrozenGroupConfig
from algorithms.config_encoder import EmbeddingConfig, RerankerConfig
from algorithms.config_offline import DPOConfig, RewardModelConfig, SFTConfig
from algorithms.config_rl import GRPOConfig, PPOConfig


class DataConfig(Config):
    """Where rows come from and how they are read."""

    train: str | dict[str, str]
    """JSONL or Parquet file, Hugging Face dataset id, or a Python generator `module:function`; for embedding also
    several of them by name."""
    eval: str | dict[str, str] | None = None
    """Held-out rows, in the same forms; for embedding and reranker also several by name."""
    corpus: str | None = None
    """Passages that evaluation of an embedding model searches, beside those of data.eval: rows of text and id."""
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
    converter: str | None = None
    """`module:function` or `file.py:function` that makes a row of a known convention of each raw row; None drops it."""
    max_length: PositiveInt = 1024
    """Longest sequence of the sft, reward and dpo jobs, in tokens; a longer one is an error."""
    shuffle: bool = True
    """Visit rows in an order drawn anew each epoch from `run.seed`."""
    limit: PositiveInt | None = None
    """Use only the first so many training rows that the converter keeps."""
    eval_limit: PositiveInt | None = None
    """Use only the first so many evaluation rows."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _sources(cls, value: object, info: ValidationInfo) -> object:
        named = isinstance(value, dict) and all(isinstance(part, str) for item in value.items() for part in item)
        if isinstance(value, str) or named or (value is None and info.field_name == "eval"):
            return value
        raise ValueError(f": must be a source, or sources by name, got {value!r}")


class RewardFunction(Config):
    """One reward function and its weight in the sum."""

    name: str
    """Built-in name, `path.py:function` or `module:function`."""
    weight: float = 1.0
    """Factor in the sum over all reward sources."""
    arguments: dict[str, Any] = {}
    """Keyword arguments passed to the function with every call."""


class RewardModelSource(Config):
    """A reward model, held by a group of its own, and its weight in the sum."""

    path: str
    """Directory of a sequence-classification model with one score, such as the export of the `reward` job."""
    weight: float = 1.0
    """Factor in the sum over all reward sources."""
    group: FrozenGroupConfig = FrozenGroupConfig()
    """Ranks and resources of the group that holds it."""


class RewardEndpoint(Config):
    """An HTTP service that scores batches of responses, and its weight in the sum."""

    url: str = Field(pattern=r"^https?://")
    """Receives POST {"prompts": [...], "completions": [...], "rows": [...]}; answers {"rewards": [...]}."""
    weight: float = 1.0
    """Factor in the sum over all reward sources."""
    headers: dict[str, str] = {}
    """HTTP headers; `$NAME` in a value is read from the environment of the reward processes: no secrets in a file."""
    retries: int = Field(default=3, ge=0)
    """Attempts after the first one, within `reward.deadline_s`, when the service is not there, is late, or answers 429
    or 5xx."""


class RewardConfig(Config):
    """How responses are scored: a weighted sum of functions, reward models and HTTP endpoints."""

    functions: list[RewardFunction] = []
    """Functions, run in processes of their own with a deadline; a plain string stands for one with weight 1."""
    models: list[RewardModelSource] = []
    """Reward models; a plain string stands for the directory of one with weight 1."""
    endpoints: list[RewardEndpoint] = []
    """HTTP services; a plain string stands for the address of one with weight 1."""
    normalize: bool = False
    """Subtract the mean of all rewards so far and divide by their standard deviation, before baselines."""
    clip: PositiveFloat | None = None
    """Largest absolute reward, after normalisation and before baselines."""
    workers: PositiveInt = 1
    """Processes that run functions and ask endpoints."""
    deadline_s: PositiveFloat = 30
    """Longest time a call may take, in seconds; the process is then ended and replaced. Quick groups share a call."""
    max_failed_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of a step's samples that may fail (and be replaced) before the run stops with the cause."""

    @field_validator("functions", "models", "endpoints", mode="before")
    @classmethod
    def _names(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, list):
            return value
        key = {"functions": "name", "models": "path", "endpoints": "url"}[str(info.field_name)]
        return [{key: item} if isinstance(item, str) else item for item in value]

    @property
    def sources(self) -> int:
        """Number of functions, models and endpoints."""
        return len(self.functions) + len(self.models) + len(self.endpoints)


_OnSequences = SFTConfig | RewardModelConfig | DPOConfig
_OnTexts = EmbeddingConfig | RerankerConfig
AlgorithmConfig = Annotated[_OnSequences | PPOConfig | GRPOConfig | _OnTexts, Field(discriminator="name")]
