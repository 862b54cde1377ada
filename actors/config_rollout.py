"""Settings of the rollout engines: how they sample, and how weights reach them. Imports neither ray nor vllm."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from actors.config_base import Config, PlacedConfig, Seconds, changed, refuse_unused
from actors.config_numbers import Batch, Cores, Count, Cpus, Gib, Gpus, Mib, PositiveFactor, Processes, Steps, Tokens


class TransferConfig(Config):
    """How weights travel from the policy to the rollout engines, and how each transfer is verified."""

    backend: Literal["auto", "gloo", "nccl", "ipc"] = "auto"
    """vLLM weight-transfer backend; auto: nccl between GPUs, ipc where groups share them
    (cluster.placement shared), gloo on CPU."""
    store: Literal["broadcast", "holder"] = "broadcast"
    """broadcast: one transfer from the policy to all engines; holder: over gloo to a process that keeps the last
    version in its memory (twice the model's while one arrives), and from there to each engine, also to one that comes
    later, without the policy."""
    lora: Literal["adapter", "merged"] = "adapter"
    """With model.lora: send the adapters, with which vLLM computes as the trainer does, or whole weights with the
    adapters merged into them, rounded to model.dtype."""
    max_merge_error: float | None = Field(default=None, gt=0, le=1)
    """Needed to merge in bf16: the largest weights/merge_error that is allowed, the share of the adapters' change that
    rounding loses. Little is left of small changes: of adapters that change a weight by less than a 512th of it, as
    all do in the first steps, most."""
    bucket_mib: Mib = 256
    """Size of the packed buffers."""
    verify_every: Steps = 1
    """Compare checksums and a canary prompt's logprobs after every so many transfers."""
    canary_tolerance: PositiveFactor | None = None
    """Largest logprob difference allowed on the canary (default: 1e-3 in fp32, 0.15 in bf16)."""
    timeout_s: Seconds = 300
    """Deadline of one transfer, in seconds."""


RESHAPING = {
    "top_p": "a part of its distribution",
    "top_k": "a part of its distribution",
    "min_p": "a part of its distribution",
    "repetition_penalty": "its distribution under the penalty",
    "presence_penalty": "its distribution under the penalty",
}
"""Setting of RolloutConfig -> what responses are then sampled from, instead of the policy."""


OnUpdate = Literal["recompute", "keep_cache", "restart"]
"""What new weights do to responses that are being sampled, see `RolloutConfig.on_update`."""


class EnginesConfig(Config):
    """How many engines there may be: a run begins with as many as find room, gets more as more is free, and goes on
    with fewer when their nodes go."""

    min: Processes
    """Fewest: the run waits for so many when it begins, and replaces those that are lost."""
    max: Processes
    """Most, for whose bundles Ray is asked, one after the other."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "EnginesConfig":
        if self.min >= self.max:
            raise ValueError(f"min must be below max ({self.max}), or engines a number, got {self.min}")
        return self


def _form(value: object) -> str:
    return "range" if isinstance(value, Mapping | EnginesConfig) else "number"


Engines = Annotated[Annotated[Processes, Tag("number")] | Annotated[EnginesConfig, Tag("range")], Discriminator(_form)]
"""A number of engines, or a range; what is wrong with it is told of the form that it has."""


class RolloutConfig(PlacedConfig):
    """vLLM engines and how they sample."""

    engines: Engines = 1
    """Number of independent engines, or {min: 1, max: 8}: as many as there is room for, which may change while the run
    goes on."""
    engines_per_node: Processes | None = None
    """Engines on each node, on as many nodes as that takes (default: packed on as few nodes as have room). The
    processes of one engine are always on one node."""
    tensor_parallel: Gpus = 1
    """Processes that share one engine's model."""
    cpus_per_engine: Cpus = 0.5
    """Ray CPUs reserved per engine."""
    gpus_per_engine: float = Field(default=0, ge=0, le=10_000)
    """GPUs reserved per engine: 0 on CPU, else the tensor-parallel size."""
    threads_per_engine: Cores | None = None
    """Compute threads per engine process on CPU (default: the cores of the machine that starts the run, divided by
    the engines; half of them where engines generate beside training, with algorithm.max_staleness)."""
    temperature: PositiveFactor = 1.0
    """Sampling temperature; the trainer's logprobs use the same."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling threshold; 1 samples from the whole distribution."""
    top_k: Count = 0
    """Sample among the k likeliest tokens; 0 means all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Sample among tokens at least min_p times as likely as the likeliest one; 0 means all."""
    repetition_penalty: PositiveFactor = 1.0
    """Divides positive logits (and multiplies negative ones) of tokens that prompt or response contain; 1 is none.
    Like top_p, top_k, min_p and presence_penalty it also holds in evaluation, and makes the sampler's distribution
    another one than the policy's, whose logprobs the trainer computes with temperature alone: importance ratios and
    mismatch/* then contain this difference."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens that the response contains; 0 is none, below 0 favours repetition."""
    max_prompt_tokens: Tokens = 512
    """Longest prompt, in tokens; a longer one is an error."""
    max_response_tokens: Tokens = 512
    """Longest response, in tokens; a longer one is cut and counted as truncated."""
    stop: list[str] = []
    """Strings that end a response, beside the end-of-sequence token."""
    keep_stop_string: bool = False
    """Whether the string of `stop` that has ended a response is part of its text, which reward functions, endpoints and
    samples.jsonl see; what the same token says beyond it never is. Token ids and logprobs are whole either way: the
    tokens are trained on, and reward models read them."""
    stop_token_ids: list[Count] = []
    """Token ids that end a response like the end-of-sequence token: the token is kept and trained on, and is no part of
    the text that rewards see."""
    max_concurrent: Batch = 256
    """Sequences an engine decodes at one time."""
    memory_gib: Gib = 1
    """Key-value cache of an engine on CPU, in GiB."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of GPU memory an engine may use (default: 0.85, with cluster.placement shared 0.4)."""
    compile: bool | None = None
    """torch.compile and CUDA graphs (default: on GPU yes, on CPU no, where it costs more than it gives)."""
    vllm: dict[str, Any] = {}
    """Further arguments of vLLM's engine by its own names, for example {enable_prefix_caching: false}; those that other
    settings decide are refused."""
    max_step_tokens: Tokens | None = None
    """Partial rollouts, with algorithm.max_staleness: a response of which one version of the weights has sampled so
    many tokens is held with what it has, and goes on at the next version, before new prompts; only one that a step
    cannot be made without goes on at once (default: responses are not held). At least max_response_tokens divided by
    max_staleness + 1, the versions that it has to end in."""
    late: Literal["wait", "restart"] = "wait"
    """What is done about responses that would become older than algorithm.max_staleness allows. wait: a step waits for
    them, and takes them. restart: they are ended, and their prompts sampled again, which costs what they had, and
    leaves out those that are always long."""
    max_attempts: Batch = 3
    """With late restart, how often a prompt is sampled before it is left out: metrics.jsonl names it."""
    tail: Literal["none", "postpone"] = "none"
    """On-policy, what a step does about its longest responses. postpone: it starts some prompts more than it needs,
    takes those that end first, and leaves the others to steps of their own (RollPacker, arXiv 2509.21009)."""
    tail_share: float = Field(default=0.25, gt=0, le=4)
    """With tail postpone, prompts that a usual step starts beyond prompts_per_step, as a share of these."""
    transfer: TransferConfig = TransferConfig()
    """Weight transfer."""
    on_update: OnUpdate = "recompute"
    """What becomes of responses that are running when new weights come. recompute: they go on under the new weights,
    which compute the keys and values of all their tokens anew; keep_cache: they go on with the keys and values of the
    weights before, which costs nothing, and makes logprobs that no weights alone would give; restart: they begin anew
    from their prompts, so that every response is of one version, and what they had is thrown away. Prompts of which no
    token is sampled yet never use anything of the weights before."""
    update_order: Literal["together", "rolling"] = "together"
    """together: all engines get new weights at one time; rolling: with transfer.store holder, one after the other, so
    that the others go on sampling, with the weights that they have."""
    timeout_s: Seconds = 600
    """Longest silence of an engine: seconds in which it finishes the responses to none of the prompts that it has."""
    prompt_timeout_s: Seconds | None = None
    """Deadline of the responses to one prompt, in seconds since it was given to an engine, where it waits for those
    before it (default: none)."""
    restart_timeout_s: Seconds = 600
    """Longest time without any engine, while those that were lost are restarted, in seconds; see run.max_restarts."""
    start_timeout_s: Seconds = 600
    """Deadline of an engine's start, in seconds."""

    @model_validator(mode="after")
    def _stop_strings(self) -> "RolloutConfig":
        if not self.stop:
            refuse_unused(self, "keep_stop_string", why="without stop")
        return self

    @model_validator(mode="after")
    def _engines_take_turns(self) -> "RolloutConfig":
        if self.transfer.store != "holder":
            refuse_unused(
                self, "update_order", why=f"with transfer.store {self.transfer.store}, which serves all at once"
            )
        if self.most == 1:
            refuse_unused(self, "update_order", why="with one engine")
        return self

    @model_validator(mode="after")
    def _one_gpu_per_process(self) -> "RolloutConfig":
        if self.engines_per_node and self.grows:
            raise ValueError(
                f"engines_per_node must be left out where engines is a range, as each goes where there is room, "
                f"got {self.engines_per_node}"
            )
        if self.engines_per_node and self.most % self.engines_per_node:
            raise ValueError(f"engines_per_node must divide engines ({self.most}), got {self.engines_per_node}")
        # vLLM gives each of an engine's processes a GPU of its own.
        if self.gpus_per_engine not in (0, self.tensor_parallel):
            raise ValueError(
                f"gpus_per_engine must be 0 or tensor_parallel ({self.tensor_parallel}), got {self.gpus_per_engine:g}"
            )
        return self

    def gpu_share(self, *, shared: bool) -> float:
        """`gpu_memory_utilization`, or its default on a GPU that an engine has alone, or `shared` with other groups."""
        # Shared, the groups beside it need the rest.
        return self.gpu_memory_utilization or (0.4 if shared else 0.85)

    @property
    def most(self) -> int:
        """Most engines that there may be."""
        return self.engines if isinstance(self.engines, int) else self.engines.max

    @property
    def fewest(self) -> int:
        """Fewest engines that a run begins with."""
        return self.engines if isinstance(self.engines, int) else self.engines.min

    @property
    def grows(self) -> bool:
        """Whether the number of engines may change."""
        return self.fewest < self.most

    @property
    def reshaped_by(self) -> dict[str, float]:
        """Settings, with their values, that make another distribution of the policy's before a token is sampled."""
        return changed(self, *RESHAPING)

    @property
    def max_model_len(self) -> int:
        """Longest sequence, prompt and response, in tokens."""
        return self.max_prompt_tokens + self.max_response_tokens
