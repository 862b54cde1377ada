"""Settings of everything that lives inside a Ray worker: model and trainer groups.

Imports neither torch nor ray nor vllm, so that a configuration can be checked in a fraction of a second.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from actors.config_nodes import Environment, NodeLabels, NodeResources

Dtype = Literal["fp32", "bf16"]
Decay = Annotated[float, Field(ge=0, lt=1)]


class UserError(Exception):
    """A mistake of the user's: one line per problem. The command line prints the lines and exits with 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, ...]]:
        # Raised in an actor, it reaches the driver by pickle: one problem must not become all of them.
        return UserError, self.problems


class Config(BaseModel):
    """Base of every section: frozen, unknown keys refused, docstrings are the help texts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )


def changed(config: Config, *names: str) -> dict[str, Any]:
    """Those of the fields `names` (default: all) that differ from their defaults, with their values."""
    fields = type(config).model_fields
    defaults = {name: fields[name].get_default(call_default_factory=True) for name in names or fields}
    return {name: getattr(config, name) for name, default in defaults.items() if getattr(config, name) != default}


def refuse_unused(config: Config, *names: str, why: str, section: str = "") -> None:
    """Raise ValueError for the first of `names` (default: all) that differs from its default, where it has no effect.

    One that equals its default may be given: a run's config.json, which can be run again, gives every field.
    """
    for name, value in changed(config, *names).items():
        got = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else value
        raise ValueError(f"{section}{name} must be left out {why}, got {got}")


class PlacedConfig(Config):
    """Which nodes the processes of a group may live on, and with what environment."""

    node_labels: NodeLabels = {}
    """Ray labels that a node must have; values may be Ray's expressions: {ray.io/accelerator-type: in(H100, H200)}"""
    resources: NodeResources = {}
    """Custom Ray resources that each process reserves."""
    env: Environment = {}
    """Environment variables of the processes, beside `cluster.env`: {NCCL_SOCKET_IFNAME: eth0}"""


class ModelInit(Config):
    """A tiny model and a character tokenizer built from these numbers, so that a run needs no hub."""

    family: Literal["qwen2", "llama", "bert"] = "qwen2"
    """Architecture of the new model; bert, which reads in both directions, for embedding and reranker."""
    hidden_size: PositiveInt = 192
    """Width of the residual stream."""
    layers: PositiveInt = 4
    """Number of decoder layers."""
    heads: PositiveInt = 4
    """Number of attention heads; `hidden_size` is a multiple of it."""
    kv_heads: PositiveInt | None = None
    """Number of key-value heads (default: `heads`); `heads` is a multiple of it."""
    intermediate_size: PositiveInt | None = None
    """Width of the feed-forward layer (default: 4 x `hidden_size`)."""
    max_positions: PositiveInt = 1024
    """Longest sequence, in tokens, that the model can read."""
    tie_embeddings: bool = True
    """Whether input and output embeddings are one tensor."""
    alphabet: str = "".join(chr(code) for code in range(32, 127)) + "\n"
    """Characters of the tokenizer; any other character becomes the unknown token."""
    seed: int = 0
    """Seed of the initial weights."""

    @model_validator(mode="after")
    def _divisible(self) -> "ModelInit":
        kv_heads = self.kv_heads or self.heads
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size must be a multiple of heads ({self.heads}), got {self.hidden_size}")
        if self.family != "bert" and (self.hidden_size // self.heads) % 8:
            raise ValueError(
                f"hidden_size / heads must be a multiple of 8 (rollout kernels need it), "
                f"got {self.hidden_size // self.heads}"
            )
        if self.family == "bert":
            refuse_unused(self, "kv_heads", "tie_embeddings", why="for bert, which has neither")
        if self.heads % kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads ({kv_heads}), got {self.heads}")
        return self


class LoraConfig(Config):
    """Low-rank adapters (arXiv 2106.09685) by PEFT: the model is frozen, and adapters are trained instead."""

    rank: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveFloat = 32
    """The adapters' output is scaled by alpha / rank (rslora: alpha / sqrt(rank))."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters; not in reinforcement learning, where the sampler drops nothing."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get adapters, or all of them but the output embedding."""
    rslora: bool = False
    """Rank-stabilised scaling (arXiv 2312.03732)."""
    dora: bool = False
    """Decompose weights into magnitude and direction (arXiv 2402.09353); vLLM does not serve such adapters unmerged."""


class ModelConfig(Config):
    """The model that is trained: a Hugging Face directory or id, or a new one."""

    path: str | None = None
    """Hugging Face directory (or hub id) of the initial weights and tokenizer."""
    revision: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Branch, tag or commit of a model of the hub (default: main); the run keeps to the commit that it has found."""
    init: ModelInit | None = None
    """Build a new model from scratch instead of loading `path`."""
    dtype: Dtype = "fp32"
    """Precision of weights and activations (bf16 keeps fp32 master weights in the optimizer)."""
    attention: Literal["auto", "packed_sdpa", "flash_attention_2"] = "auto"
    """Attention over packed sequences; auto: flash attention on a GPU that has it, else packed SDPA."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the weights."""
    quantize: Literal["nf4"] | None = None
    """Hold the frozen weights below LoRA adapters in 4 bits (QLoRA, arXiv 2305.14314); needs a GPU."""
    freeze: list[str] = []
    """Patterns of names of parameters that are not trained; `*` stands for anything: model.embed_tokens.*"""

    @model_validator(mode="before")
    @classmethod
    def _no_code_of_others(cls, values: Any) -> Any:
        if isinstance(values, dict) and "trust_remote_code" in values:
            raise ValueError(
                "trust_remote_code must be left out, as Tandem never runs code of a model's repository (transformers "
                f"has the architectures that can be trained), got {str(values['trust_remote_code'])[:40].lower()}"
            )
        return values

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if (self.path is None) == (self.init is None):
            got = "neither" if self.path is None else "both (model.init=null drops the new model)"
            raise ValueError(f"path must be given, or init, but not both, got {got}")
        return self

    @model_validator(mode="after")
    def _adapters(self) -> "ModelConfig":
        if self.init:
            refuse_unused(self, "revision", why="with init, which builds a new model")
        if self.quantize and self.lora is None:
            raise ValueError(f"quantize needs lora, as quantised weights cannot be trained, got {self.quantize}")
        if self.lora and self.freeze:
            raise ValueError(f"freeze must be left out with lora, which freezes all weights, got {self.freeze}")
        return self

    @model_validator(mode="after")
    def _flash_attention_is_half_precision(self) -> "ModelConfig":
        if self.attention == "flash_attention_2" and self.dtype != "bf16":
            raise ValueError(f"attention flash_attention_2 needs dtype bf16, got {self.dtype}")
        return self


class EncoderHead(Config):
    """What makes an embedding model or a reranker of a transformer."""

    kind: Literal["embedding", "reranker"]
    """A vector of each text, or one score of two texts."""
    pooling: Literal["cls", "mean", "last", "max"] | None = None
    """How token vectors become one (None: as the model's directory says)."""
    normalize: bool | None = None
    """Whether vectors have length 1 (None: as the model's directory says, true where it says nothing)."""
    max_tokens: int | None = None
    """Tokens that are read (None: the model's own limit)."""
    prompts: dict[str, str] = {}
    """Instructions by the names under which the model keeps them: query, document."""


class OptimizerConfig(Config):
    """Optimizer and learning-rate schedule of one group."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """torch.optim class; sgd is plain: without momentum, its step is the gradient's."""
    lr: float = Field(default=1e-6, ge=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of Adam's first and second moments."""
    eps: PositiveFloat = 1e-8
    """Adam's denominator constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices (norms and biases are exempt); not for adam, which would not decouple it."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"] = (
        "constant_with_warmup"
    )
    """Schedule after warm-up, by the name transformers gives it; constant has no warm-up."""
    warmup_updates: int = Field(default=0, ge=0)
    """Optimizer updates over which the rate grows from 0 to `lr`."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Final rate over `lr`, for cosine_with_min_lr."""
    max_grad_norm: PositiveFloat = 1.0
    """Global gradient norm above which gradients are scaled down."""

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> "OptimizerConfig":
        if self.schedule == "constant" and self.warmup_updates:
            raise ValueError(
                f"warmup_updates must be 0 with schedule constant (constant_with_warmup warms up), "
                f"got {self.warmup_updates}"
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


class GroupConfig(PlacedConfig):
    """A group of ranks that hold one model with DeepSpeed."""

    ranks: PositiveInt = 1
    """Processes (data-parallel ranks) in the group."""
    ranks_per_node: PositiveInt | None = None
    """Ranks on each node, on as many nodes as that takes (default: packed on as few nodes as have room)."""
    cpus_per_rank: PositiveFloat = 0.25
    """Ray CPUs reserved per rank; a fraction lets several groups share a small machine."""
    gpus_per_rank: float = Field(default=0, ge=0, le=1)
    """GPUs reserved per rank, which uses one; a fraction leaves room for another group on it."""
    threads_per_rank: PositiveInt | None = None
    """Compute threads per rank (default: the cores of the machine that starts the run, divided by the ranks, or by
    those on each node)."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is sharded over ranks (1 optimizer, 2 + gradients, 3 + parameters)."""
    offload_optimizer: bool = False
    """Keep optimizer state in host memory (ZeRO 1 to 3)."""
    micro_batch_tokens: PositiveInt = 8192
    """Most tokens packed into one forward pass; a single longer sequence still goes alone."""
    logprob_chunk_tokens: PositiveInt = 1024
    """Tokens whose float32 logits exist at one time."""
    timeout_s: PositiveFloat = 600
    """Deadline of one call to the group, and of its collectives, in seconds."""

    @model_validator(mode="after")
    def _nodes_are_full(self) -> "GroupConfig":
        if self.ranks_per_node and self.ranks % self.ranks_per_node:
            raise ValueError(f"ranks_per_node must divide ranks ({self.ranks}), got {self.ranks_per_node}")
        gpus = self.gpus_per_rank * (self.ranks_per_node or 1)
        if gpus > 1 and gpus % 1:
            raise ValueError(f"ranks_per_node x gpus_per_rank must be whole GPUs, or a part of one, got {gpus:g}")
        return self

    @model_validator(mode="after")
    def _offload_needs_sharding(self) -> "GroupConfig":
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, got zero_stage 0")
        return self


class TrainerConfig(GroupConfig):
    """A group that learns."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer, learning rate and schedule."""


class CriticConfig(TrainerConfig):
    """The group that learns values. Without `path`, it starts from the only reward model, else from the policy."""

    optimizer: OptimizerConfig = OptimizerConfig(lr=9e-6)
    """Optimizer, learning rate and schedule."""
    path: str | None = None
    """Directory of its initial weights: a sequence-classification model, or a causal one that gets a new head."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and the value head instead of all weights."""


class FrozenGroupConfig(GroupConfig):
    """A group that only reads: it has parameters to shard, but neither gradients nor optimizer state."""

    @model_validator(mode="after")
    def _only_parameters(self) -> "FrozenGroupConfig":
        if self.zero_stage in (1, 2):
            raise ValueError(
                f"zero_stage must be 0 or 3 for a group without optimizer and gradients, got {self.zero_stage}"
            )
        if self.offload_optimizer:
            raise ValueError("offload_optimizer must be false for a group without optimizer, got true")
        return self


class ReferenceConfig(FrozenGroupConfig):
    """The frozen initial policy."""

    from_policy: bool = False
    """With model.lora: no group of its own, but the policy with its adapters disabled."""
