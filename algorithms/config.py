"""Settings of what is learned: data, rewards, and one section per algorithm, tagged by `algorithm.name`."""

import difflib
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from actors.config import Config, FrozenGroupConfig, Seconds, refuse_unused
from actors.config_nodes import VariableName
from actors.config_numbers import Mib, PositiveThreshold, Processes, Retries, Rows, Share, Tokens, Weight
from algorithms.config_encoder import EmbeddingConfig, RerankerConfig
from algorithms.config_offline import DPOConfig, RewardModelConfig, SFTConfig
from algorithms.config_rl import GRPOConfig, PPOConfig


class DataConfig(Config):
    """Where rows come from and how they are read."""

    train: str | dict[str, str]
    """JSONL, JSON, CSV or Parquet file, folder of such files, Hugging Face dataset id, or a Python generator
    `module:function`; or several of them by name: {math: math.jsonl, code: code.jsonl}. The row's set is then its
    column `source`, unless it has one."""
    weights: dict[str, Share] = {}
    """Share of each of several sets among the rows that are drawn, by their names: {math: 2, code: 1}. Without, each
    set is drawn in proportion to its rows. Not for embedding and reranker."""
    eval: str | dict[str, str] | None = None
    """Held-out rows, in the same forms; for embedding and reranker also several by name."""
    corpus: str | None = None
    """Passages that evaluation of an embedding model searches, beside those of data.eval: rows of text and id."""
    arguments: dict[str, Any] = {}
    """Keyword arguments for generators given as `module:function`, beside `split`."""
    split: str = "train"
    """Split of a Hugging Face dataset, or of a folder whose files are named by split, used for training."""
    eval_split: str = "test"
    """Split of a Hugging Face dataset, or of a folder whose files are named by split, used for evaluation."""
    columns: dict[str, str] = {}
    """Renames: name the convention expects -> name in the data."""
    system_prompt: str | None = None
    """System message put before every conversational prompt."""
    template_arguments: dict[str, Any] = {}
    """Variables that the chat template gets with every conversation, such as {enable_thinking: false}; a row's own
    column `chat_template_kwargs` comes after them."""
    converter: str | None = None
    """`module:function` or `file.py:function` that makes a row of a known convention of each raw row; None drops it."""
    max_length: Tokens = 1024
    """Longest sequence of the sft, reward and dpo jobs, in tokens; `overlong` says what becomes of a longer one."""
    overlong: Literal["error", "drop", "truncate"] = "error"
    """What a row is that is longer than `max_length`, in reinforcement learning than `rollout.max_prompt_tokens`: an
    error, left out, or cut at `truncation_side`. Rows that cannot be cut so are left out. Both are counted."""
    truncation_side: Literal["left", "right"] = "left"
    """Side at which `overlong: truncate` cuts. sft: the sequence, with its mask. reward and dpo, left: the prompt, and
    the responses stay whole; right: the responses, and the prompt stays whole. Reinforcement learning: the prompt, left
    only. A first BOS token stays."""
    max_bad_rows: int | float | None = Field(default=None, ge=0, le=10**12)
    """How many bad rows of a set are skipped, with a line that names them, before the first is an error: a number of
    rows, or a share of them below 1, such as 0.02. null: up to 1 % may be empty, which is usual in large files (a
    column that a row has not, an answer or turn without text, two responses that are the same), and none may have a
    wrong form (a value of another kind, a row that the chat template refuses or leaves something out of), which is a
    mistake. 0: none. `limit` counts rows before any is skipped. Not for embedding and reranker."""
    shuffle: bool = True
    """Visit rows in an order drawn anew each epoch from `run.seed`."""
    limit: Rows | None = None
    """Use only the first so many training rows that the converter keeps."""
    eval_limit: Rows | None = None
    """Use only the first so many evaluation rows."""
    eval_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Without `eval`: the share of the training rows that is held out for evaluation, at least one row. The draw is the
    same for every `run.seed`, so that runs compare. Not for embedding and reranker."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _sources(cls, value: object, info: ValidationInfo) -> object:
        # Checked by hand: of a union pydantic tells what is wrong with each member, several lines for one mistake.
        named = isinstance(value, dict) and all(isinstance(part, str) for item in value.items() for part in item)
        if isinstance(value, str) or named or (value is None and info.field_name == "eval"):
            return value
        got = "null" if value is None else repr(value)
        several = "several of them by name ({math: math.jsonl, code: code.jsonl})"
        rule = f"a file or folder, a hub id or module:function, or {several}"
        raise ValueError(f": must be {rule}, got {got}")

    @field_validator("max_bad_rows", mode="before")
    @classmethod
    def _how_many(cls, value: object) -> object:
        # By hand, for one line, as above.
        whole = isinstance(value, int) and 0 <= value <= 10**12
        if value is None or whole or (isinstance(value, float) and 0 <= value < 1):
            return value
        raise ValueError(f": must be a whole number of rows, or a share of them below 1, got {value}")

    @model_validator(mode="after")
    def _fits(self) -> "DataConfig":
        if self.eval_fraction is not None and self.eval is not None:
            raise ValueError(f"eval_fraction must be left out with data.eval, got {self.eval_fraction:g}")
        if self.system_prompt is not None and not self.system_prompt.strip():
            raise ValueError(f"system_prompt must not be empty (null for none), got {self.system_prompt!r}")
        if self.eval is None and self.eval_limit is not None:
            raise ValueError(f"eval_limit must be left out without data.eval, got {self.eval_limit}")
        if self.overlong != "truncate":  # nothing else cuts
            refuse_unused(self, "truncation_side", why=f"with overlong {self.overlong}, which cuts nothing")
        if self.weights:
            _check_weights(self.weights, self.train)
        return self

    @property
    def evaluates(self) -> bool:
        """Whether there are rows to evaluate on."""
        return self.eval is not None or self.eval_fraction is not None


def _check_weights(weights: dict[str, float], train: str | dict[str, str]) -> None:
    if isinstance(train, str):
        raise ValueError(f"weights needs several sets in data.train, {{name: source}}, got one, {train}")
    for name in weights:
        if name not in train:
            hint = difflib.get_close_matches(name, train, 1)
            near = f" (did you mean {hint[0]}?)" if hint else ""
            raise ValueError(f"weights.{name} must be the name of a set in data.train ({', '.join(train)}){near}")
    # All or none: a set that was forgotten would never be drawn, and nothing would show it.
    if missing := [name for name in train if name not in weights]:
        raise ValueError(f"weights must name every set in data.train, got none for {', '.join(missing)}")
    if not any(weights.values()):
        raise ValueError(f"weights must be above 0 for a set, got 0 for {', '.join(weights)}")


class RewardFunction(Config):
    """One reward function and its weight in the sum."""

    name: str
    """Built-in name, `path.py:function` or `module:function`."""
    weight: Weight = 1.0
    """Factor in the sum over all reward sources."""
    arguments: dict[str, Any] = {}
    """Keyword arguments passed to the function with every call."""


class RewardModelSource(Config):
    """A reward model, held by a group of its own, and its weight in the sum."""

    path: str
    """Directory of a sequence-classification model with one score, such as the export of the `reward` job."""
    weight: Weight = 1.0
    """Factor in the sum over all reward sources."""
    group: FrozenGroupConfig = FrozenGroupConfig()
    """Ranks and resources of the group that holds it."""


HEADER_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
"""How a header names a variable of the environment."""


class RewardEndpoint(Config):
    """An HTTP service that scores batches of responses, and its weight in the sum."""

    url: str = Field(pattern=r"^https?://")
    """Receives POST {"prompts": [...], "completions": [...], "rows": [...]}; answers {"rewards": [...]}."""
    weight: Weight = 1.0
    """Factor in the sum over all reward sources."""
    headers: dict[str, str] = {}
    """HTTP headers; `$NAME` in a value is read from the environment of the reward processes. Literal secrets are
    refused, as configurations are kept and shown."""
    retries: Retries = 3
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
    keep_special_tokens: bool = False
    """Functions read the text of a response with its special tokens, but for the token that ended it; endpoints and
    samples files have it without. One that takes `completion_ids` gets the sampled tokens, the last one included."""
    normalize: bool = False
    """Subtract the mean of all rewards so far and divide by their standard deviation, before baselines. Those of groups
    that dynamic_sampling drops are among them, those that mask_truncated leaves out are not, nor those of evaluations,
    which are reported as they are."""
    clip: PositiveThreshold | None = None
    """Largest absolute reward, after normalisation and before baselines; penalties for length come on top of it."""
    workers: Processes = 1
    """Processes that run functions and ask endpoints."""
    deadline_s: Seconds = 30
    """Longest time a call may take, in seconds; the process is then ended and replaced. Quick groups share a call."""
    memory_mib: Mib | None = None
    """Most that functions of one process may allocate, their imports included; a call beyond it has failed. null: no
    limit."""
    pass_env: list[VariableName] = []
    """Variables that functions may read although they look like secrets, such as OPENAI_API_KEY. All others that hold a
    key, token or password, by name, in a URL or as the tokens of known services look, are taken out of the environment
    of reward processes; those that `headers` of endpoints name, before a function is imported."""
    max_failed_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of a step's samples, of all rounds of dynamic_sampling, that may fail (and be replaced), in engines and
    rewards together, before the run stops with the cause."""

    @field_validator("functions", "models", "endpoints", mode="before")
    @classmethod
    def _names(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, list):
            return value
        key = {"functions": "name", "models": "path", "endpoints": "url"}[str(info.field_name)]
        return [{key: item} if isinstance(item, str) else item for item in value]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("functions", "models", "endpoints"):
            seen: list[dict[str, Any]] = []
            for index, source in enumerate(getattr(self, name)):
                # Without the weight: one source with two weights is the same mistake.
                values = source.model_dump(exclude={"weight"})
                if values in seen:
                    got = values.get("name") or values.get("path") or values.get("url")
                    raise ValueError(
                        f"{name}.{index} must differ from the others (to count one twice give it the weight 2), got "
                        f"{got} again"
                    )
                seen.append(values)
        return self

    @model_validator(mode="after")
    def _somebody_reads(self) -> Self:
        if not self.functions:
            refuse_unused(self, "keep_special_tokens", why="without functions, which alone read the text so")
        return self

    @property
    def sources(self) -> int:
        """Number of functions, models and endpoints."""
        return len(self.functions) + len(self.models) + len(self.endpoints)

    @property
    def kept_variables(self) -> set[str]:
        """Variables that reward processes start with, also when they look like secrets."""
        templates = [template for endpoint in self.endpoints for template in endpoint.headers.values()]
        return {*self.pass_env, *(name for template in templates for name in HEADER_VARIABLE.findall(template))}


_OnSequences = SFTConfig | RewardModelConfig | DPOConfig
_OnTexts = EmbeddingConfig | RerankerConfig
# Tagged, so that a mistake in a section is told of that section, not of every other in the union too.
AlgorithmConfig = Annotated[_OnSequences | PPOConfig | GRPOConfig | _OnTexts, Field(discriminator="name")]
