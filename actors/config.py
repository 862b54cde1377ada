"""Settings of everything that lives inside a Ray worker: model, trainer groups, rollout engines.

Imports neither torch nor ray nor vllm, so that a configuration can be checked in a fraction of a second.
"""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from actors.config_base import Config as Config
from actors.config_base import PlacedConfig as PlacedConfig
from actors.config_base import UserError as UserError
from actors.config_base import changed as changed
from actors.config_base import refuse_unused as refuse_unused
from actors.config_trainer import FrozenGroupConfig as FrozenGroupConfig
from actors.config_trainer import GroupConfig as GroupConfig
from actors.config_trainer import OptimizerConfig as OptimizerConfig
from actors.config_trainer import ReferenceConfig as ReferenceConfig
from actors.config_trainer import TrainerConfig as TrainerConfig

Dtype = Literal["fp32", "bf16"]


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

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if (self.path is None) == (self.init is None):
            got = "neither" if self.path is None else "both"
            raise ValueError(f"path must be given, or init, but not both, got {got}")
        return self

    @model_validator(mode="after")
    def _adapters(self) -> "ModelConfig":
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


class CriticConfig(TrainerConfig):
    """The group that learns values. Without `path`, it starts from the only reward model, else from the policy."""

    optimizer: OptimizerConfig = OptimizerConfig(lr=9e-6)
    """Optimizer, learning rate and schedule."""
    path: str | None = None
    """Directory of its initial weights: a sequence-classification model, or a causal one that gets a new head."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and the value head instead of all weights."""


class TransferConfig(Config):
    """How weights travel from the policy to the rollout engines, and how each transfer is verified."""

    backend: Literal["auto", "gloo", "nccl", "ipc"] = "auto"
    """vLLM weight-transfer backend; auto: nccl between GPUs, gloo on CPU."""
    lora: Literal["merged", "adapter"] = "merged"
    """With model.lora: send whole weights with the adapters merged into them, or the adapters alone."""
    bucket_mib: PositiveInt = 256
    """Size of the packed buffers."""
    verify_every: PositiveInt = 1
    """Compare checksums and a canary prompt's logprobs after every so many transfers."""
    canary_tolerance: PositiveFloat | None = None
    """Largest logprob difference allowed on the canary (default: 1e-3 in fp32, 0.15 in bf16)."""
    timeout_s: PositiveFloat = 300
    """Deadline of one transfer, in seconds."""


class RolloutConfig(PlacedConfig):
    """vLLM engines and how they sample."""

    engines: PositiveInt = 1
    """Number of independent engines."""
    engines_per_node: PositiveInt | None = None
    """Engines on each node, on as many nodes as that takes (default: packed on as few nodes as have room). The
    processes of one engine are always on one node."""
    tensor_parallel: PositiveInt = 1
    """Processes that share one engine's model."""
    cpus_per_engine: PositiveFloat = 0.5
    """Ray CPUs reserved per engine."""
    gpus_per_engine: float = Field(default=0, ge=0)
    """GPUs reserved per engine: 0 on CPU, else the tensor-parallel size."""
    threads_per_engine: PositiveInt | None = None
    """Compute threads per engine process on CPU (default: the cores of the machine that starts the run, divided by
    the engines)."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; the trainer's logprobs use the same."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling threshold; 1 samples from the whole distribution."""
    top_k: int = Field(default=0, ge=0)
    """Sample among the k likeliest tokens; 0 means all."""
    max_prompt_tokens: PositiveInt = 512
    """Longest prompt, in tokens; a longer one is an error."""
    max_response_tokens: PositiveInt = 512
    """Longest response, in tokens; a longer one is cut and counted as truncated."""
    stop: list[str] = []
    """Strings that end a response, beside the end-of-sequence token."""
    max_concurrent: PositiveInt = 256
    """Sequences an engine decodes at one time."""
    memory_gib: PositiveInt = 1
    """Key-value cache of an engine on CPU, in GiB."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of GPU memory an engine may use."""
    compile: bool | None = None
    """torch.compile and CUDA graphs (default: on GPU yes, on CPU no, where it costs more than it gives)."""
    transfer: TransferConfig = TransferConfig()
    """Weight transfer."""
    timeout_s: PositiveFloat = 600
    """Deadline of the responses to one prompt, in seconds."""
    start_timeout_s: PositiveFloat = 600
    """Deadline of an engine's start, in seconds."""

    @model_validator(mode="after")
    def _one_gpu_per_process(self) -> "RolloutConfig":
        if self.engines_per_node and self.engines % self.engines_per_node:
            raise ValueError(f"engines_per_node must divide engines ({self.engines}), got {self.engines_per_node}")
        if self.gpus_per_engine not in (0, self.tensor_parallel):
            raise ValueError(
                f"gpus_per_engine must be 0 or tensor_parallel ({self.tensor_parallel}), got {self.gpus_per_engine:g}"
            )
        return self

    @property
    def max_model_len(self) -> int:
        """Longest sequence, prompt and response, in tokens."""
        return self.max_prompt_tokens + self.max_response_tokens
