"""Settings of everything that lives inside a Ray worker: model and trainer groups.

Imports neither torch nor ray nor vllm, so that a configuration can be checked in a fraction of a second.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from actors.config_base import Config as Config
from actors.config_base import PlacedConfig as PlacedConfig
from actors.config_base import Seconds as Seconds
from actors.config_base import Unused as Unused
from actors.config_base import UserError as UserError
from actors.config_base import changed as changed
from actors.config_base import refuse_unused as refuse_unused
from actors.config_numbers import Factor, PositiveFactor, Rate, Tokens, Width
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
    hidden_size: Width = 192
    """Width of the residual stream."""
    layers: int = Field(default=4, gt=0, le=10_000)
    """Number of decoder layers."""
    heads: Width = 4
    """Number of attention heads; `hidden_size` is a multiple of it."""
    kv_heads: Width | None = None
    """Number of key-value heads (default: `heads`); `heads` is a multiple of it."""
    intermediate_size: Width | None = None
    """Width of the feed-forward layer (default: 4 x `hidden_size`)."""
    max_positions: Tokens = 1024
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
        # Encoders are not rolled out, so no kernel of vLLM's reads their heads.
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

    rank: int = Field(default=16, gt=0, le=16_384)
    """Rank of the adapters."""
    alpha: PositiveFactor = 32
    """The adapters' output is scaled by alpha / rank (rslora: alpha / sqrt(rank))."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters; not in reinforcement learning, where the sampler drops nothing, nor in DPO with a
    reference, which drops nothing either."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers, or tensors of experts, that get adapters, or all of them but the output embedding and
    routers."""
    rslora: bool = False
    """Rank-stabilised scaling (arXiv 2312.03732)."""
    dora: bool = False
    """Decompose weights into magnitude and direction (arXiv 2402.09353); vLLM does not serve such adapters unmerged."""

    @model_validator(mode="after")
    def _something_is_adapted(self) -> "LoraConfig":
        if not self.targets:
            raise ValueError("targets must name at least one linear layer, or be all-linear, got []")
        return self


class ModelConfig(Config):
    """The model that is trained: a Hugging Face directory or id, or a new one."""

    path: str | None = None
    """Hugging Face directory (or hub id) of the initial weights and tokenizer."""
    revision: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Branch, tag or commit of a model of the hub (default: main); the run keeps to the commit that it has found."""
    init: ModelInit | None = None
    """Build a new model from scratch instead of loading `path`."""
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    """File of a chat template (Jinja) in place of the tokenizer's own; exports have it."""
    dtype: Dtype = "fp32"
    """Precision of weights and activations (bf16 keeps fp32 master weights in the optimizer)."""
    attention: Literal["auto", "packed_sdpa", "flash_attention_2"] = "auto"
    """Attention over packed sequences; auto: flash attention on a GPU that has it, else packed SDPA."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    router_aux_loss: Factor | None = None
    """Coefficient of the loss that balances a mixture of experts, over all tokens of an update (default: as
    transformers does with the model's config.json, router_aux_loss_coef where output_router_logits is true; in
    reinforcement learning 0)."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the weights."""
    quantize: Literal["nf4"] | None = None
    """Hold the frozen weights below LoRA adapters in 4 bits (QLoRA, arXiv 2305.14314); needs a GPU."""
    freeze: list[str] = []
    """Patterns of names of parameters that are not trained; `*` stands for anything: model.embed_tokens.*"""

    @model_validator(mode="before")
    @classmethod
    def _no_code_of_others(cls, values: object) -> object:
        # Before pydantic says that it knows no such key: people look for this one.
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
        # Refused here, where it costs a second; the kernels would say so after the model is loaded.
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


class CriticOptimizerConfig(OptimizerConfig):
    """As the policy's, with a learning rate for values: it stays where another setting of the optimizer is given."""

    lr: Rate = 9e-6
    """Peak learning rate."""


class CriticConfig(TrainerConfig):
    """The group that learns values. Without `path`, it starts from the only reward model, else from the policy."""

    optimizer: CriticOptimizerConfig = CriticOptimizerConfig()
    """Optimizer, learning rate and schedule."""
    path: str | None = None
    """Directory of its initial weights: a sequence-classification model, or a causal one that gets a new head."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and the value head instead of all weights."""
