"""Sizes known before anything starts: parameters of a decoder, memory per process, batch arithmetic.

Pure functions of the configuration and a few numbers; no torch, no Ray. Bytes everywhere unless a name says otherwise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from actors.config import Dtype, GroupConfig, ModelConfig, OptimizerConfig, TrainerConfig
from actors.config_rollout import RolloutConfig
from algorithms.config_offline import OfflineConfig
from algorithms.config_rl import RLConfig
from launch.sizes.layers import expert_count, expert_size, has_windows, is_recurrent, size_of_heads

GIB = 2**30
FLOAT32 = 4
_BERT_FAMILIES = ("bert", "roberta", "xlm-roberta")
"""Names of architectures with the parameters of a BERT."""
_DENSE_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Names of those with the parameters of a decoder like ours."""
DTYPE_BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2}

TRAINER_BASE = 400 * 2**20
"""Resident memory of a process that imported torch, ray, transformers and deepspeed (0.38 GiB measured)."""
ENGINE_BASE = 550 * 2**20
"""Resident memory of a process that imported vLLM (0.52 GiB measured)."""
HOLDER_BASE = 300 * 2**20
"""Resident memory of a process that imported torch and ray (0.26 GiB measured)."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The numbers of a decoder that decide its size; all of it of the Llama, Mistral, Qwen2 and Qwen3 families."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    """0: keys or values are of several sizes, or kept as something smaller."""
    intermediate_size: int
    vocab_size: int
    tie_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    """Experts of a layer."""
    expert_size: int = 0
    """Numbers of a token in all experts that it goes through, at most; 0: not known."""
    windows: bool = False
    """Whether layers may see a part of the sequence alone."""
    recurrent: bool = False
    """Whether layers may be something else than attention."""

    @property
    def activations_known(self) -> bool:
        """Whether these numbers tell what a token leaves in a layer for the backward pass."""
        return bool(self.head_dim) and not self.recurrent and bool(self.expert_size or not self.experts)

    @property
    def keeps_all(self) -> bool:
        """Whether an engine keeps keys and values of every token in every layer."""
        return bool(self.head_dim) and not (self.recurrent or self.windows)


def decoder_shape(config: Mapping[str, object]) -> DecoderShape | None:
    """Shape from the fields of a Hugging Face config.json; None when it does not describe a decoder."""
    try:
        heads, hidden = size_in(config, "num_attention_heads"), size_in(config, "hidden_size")
        family = config["model_type"]
        attention_bias = bool(config.get("attention_bias", False))
        return DecoderShape(
            hidden_size=hidden,
            layers=size_in(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=size_in(config, "num_key_value_heads") if config.get("num_key_value_heads") else heads,
            head_dim=size_of_heads(config, hidden // heads),
            intermediate_size=size_in(config, "intermediate_size"),
            vocab_size=size_in(config, "vocab_size"),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            # Qwen2 and Mistral do not ask config.json; in the other families it decides.
            qkv_bias=family == "qwen2" or (family != "mistral" and attention_bias),
            output_bias=family not in ("qwen2", "mistral") and attention_bias,
            mlp_bias=family not in ("qwen2", "qwen3", "mistral") and bool(config.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
            experts=expert_count(config),
            expert_size=expert_size(config),
            windows=has_windows(config),
            recurrent=is_recurrent(config),
        )
    except (KeyError, TypeError, ZeroDivisionError):  # some families have a list, with a number for each layer
        return None


def size_in(config: Mapping[str, object], name: str) -> int:
    """A whole number of a config.json.

    Raises:
        KeyError, TypeError: it has none of this name, or it is something else.
    """
    value = config[name]
    if not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r:.80}")
    return value


def parameter_count(shape: DecoderShape) -> int:
    """Parameters of a decoder: embeddings, per layer attention + gated feed-forward + two norms, final norm, head.

    attention = h (q + 2k) + q h, where q = heads x head_dim and k = kv_heads x head_dim; feed-forward = 3 h i.
    """
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = hidden * (queries + 2 * keys) + queries * hidden
    biases = (queries + 2 * keys) * shape.qkv_bias + hidden * shape.output_bias + (2 * inner + hidden) * shape.mlp_bias
    norms = 2 * hidden + 2 * shape.head_dim * shape.qk_norm
    embeddings = shape.vocab_size * hidden * (1 if shape.tie_embeddings else 2)  # tied: the head is the embedding
    return embeddings + shape.layers * (attention + biases + 3 * hidden * inner + norms) + hidden


def encoder_parameters(config: Mapping[str, object]) -> int:
    """Parameters of a BERT from the fields of its config.json: embeddings with their norm, per layer 4 h^2 + 2 h i with
    biases and two norms, and the pooler."""
    hidden, inner = size_in(config, "hidden_size"), size_in(config, "intermediate_size")
    kinds = size_in({"type_vocab_size": 2, **config}, "type_vocab_size")
    embeddings = (size_in(config, "vocab_size") + size_in(config, "max_position_embeddings") + kinds) * hidden
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    return embeddings + 2 * hidden + size_in(config, "num_hidden_layers") * layer + hidden * hidden + hidden


def counted_parameters(config: Mapping[str, object]) -> int | None:
    """Parameters from the fields of a Hugging Face config.json; None when it describes neither a decoder like ours nor
    a BERT."""
    shape, family = decoder_shape(config), config.get("model_type")
    if shape is None or family not in (*_BERT_FAMILIES, *_DENSE_FAMILIES):
        return None
    return encoder_parameters(config) if family in _BERT_FAMILIES else parameter_count(shape)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process, by what they hold."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    optimizer_offloaded: int = 0
    """Part of the optimizer state that lives in host memory although the process has a GPU."""
    weights_offloaded: int = 0
    """Parameters in host memory although the process has a GPU."""
    logits: int = 0
    activations: int = 0
    kv_cache: int = 0
    base: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts, in bytes."""
        parts = (self.weights, self.gradients, self.optimizer, self.optimizer_offloaded, self.logits)
        return sum(parts) + self.weights_offloaded + self.activations + self.kv_cache + self.base


def trainer_memory(
    shape: DecoderShape, parameters: int, group: TrainerConfig, dtype: Dtype, *, gradient_checkpointing: bool
) -> Memory:
    """One rank of a group that learns (ZeRO: arXiv 1910.02054)."""
    ranks, stage = group.ranks, group.zero_stage
    optimizer = parameters * _optimizer_bytes(group, dtype) // (ranks if stage >= 1 else 1)
    offloaded = optimizer if group.offload_optimizer and group.gpus_per_rank else 0
    # Recomputed, only one layer is there at a time, beside what each of them has been given.
    kept_layers = 1 if gradient_checkpointing else shape.layers
    boundaries = shape.layers * shape.hidden_size if gradient_checkpointing else 0
    each = _layer_activations(shape)
    per_token = kept_layers * each + boundaries if each else 0
    return Memory(
        **_weights(shape, parameters, group, dtype),
        gradients=parameters * DTYPE_BYTES[dtype] // (ranks if stage >= 2 else 1),
        optimizer=optimizer - offloaded,
        optimizer_offloaded=offloaded,
        # The chunk's logits, their softmax and their gradient exist at one time.
        logits=3 * group.logprob_chunk_tokens * shape.vocab_size * FLOAT32,
        activations=group.micro_batch_tokens * per_token * DTYPE_BYTES[dtype],
        base=TRAINER_BASE,
    )


def reference_memory(shape: DecoderShape, parameters: int, group: GroupConfig, dtype: Dtype) -> Memory:
    """One rank of a group that only reads: no gradients, one layer's activations at a time."""
    return Memory(
        **_weights(shape, parameters, group, dtype),
        # The chunk's logits and their softmax: nothing has a gradient.
        logits=2 * group.logprob_chunk_tokens * shape.vocab_size * FLOAT32,
        activations=group.micro_batch_tokens * _layer_activations(shape) * DTYPE_BYTES[dtype],
        base=TRAINER_BASE,
    )


def _weights(shape: DecoderShape, parameters: int, group: GroupConfig, dtype: Dtype) -> dict[str, int]:
    """Bytes of a rank's share of the parameters; offloaded, its device holds one layer and the embeddings, whole."""
    # Stages 1 and 2 divide gradients and optimizer state alone.
    share = parameters * DTYPE_BYTES[dtype] // (group.ranks if group.zero_stage == 3 else 1)
    if not (group.offload_parameters and group.gpus_per_rank):
        return {"weights": share}
    embeddings = shape.vocab_size * shape.hidden_size
    layer = (parameters - embeddings * (1 if shape.tie_embeddings else 2)) // shape.layers
    return {"weights": (max(0, layer) + embeddings) * DTYPE_BYTES[dtype], "weights_offloaded": share}


def engine_memory(parameters: int, rollout: RolloutConfig, dtype: Dtype) -> Memory:
    """One process of a rollout engine; on a GPU its cache is what `gpu_memory_utilization` leaves, not counted here."""
    return Memory(
        weights=parameters * DTYPE_BYTES[dtype] // rollout.tensor_parallel,
        kv_cache=0 if rollout.gpus_per_engine else int(rollout.memory_gib * GIB),
        base=ENGINE_BASE,
    )


def rollout_memory(parameters: int, rollout: RolloutConfig, model: ModelConfig) -> dict[str, Memory]:
    """One process of a rollout engine, and the one that holds published weights, where there is one."""
    found = {"rollout": engine_memory(parameters, rollout, model.dtype)}
    if rollout.transfer.store == "holder":
        # Others arrive while it has these, unless they are those below adapters, which never change.
        copies = 1 if model.lora and rollout.transfer.lora == "adapter" else 2
        found["holder"] = Memory(weights=copies * parameters * DTYPE_BYTES[model.dtype], base=HOLDER_BASE)
    return found


def kv_bytes_per_token(shape: DecoderShape, dtype: Dtype) -> int:
    """Bytes of keys and values that one token keeps in all layers of an engine, where it `keeps_all`."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * DTYPE_BYTES[dtype]


def _optimizer_bytes(group: TrainerConfig, dtype: Dtype) -> int:
    """Per parameter: Adam's two float32 moments, the float32 master copy that bf16, ZeRO 1 and 2 and offloading keep,
    and the average of the weights."""
    master = dtype == "bf16" or group.zero_stage in (1, 2) or group.offload_optimizer or group.offload_parameters
    copies = master + (group.ema_decay is not None)
    return (_moments(group.optimizer) + copies) * FLOAT32


def _moments(optimizer: OptimizerConfig) -> int:
    return 0 if optimizer.name == "sgd" else 2


def _layer_activations(shape: DecoderShape) -> int:
    """Numbers per token that a layer keeps for its backward pass, a rough upper bound.

    Two norms (input, float32 copy counted twice, output: 8 h), two residual sums (2 h), queries and attention output
    before and after rotation (3 q), keys and values (3 k), gate, its activation, up and their product (4 i). 0 where
    the shape does not tell.
    """
    if not shape.activations_known:
        return 0
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inner = max(shape.intermediate_size, shape.expert_size)
    return 10 * shape.hidden_size + 3 * queries + 3 * keys + 4 * inner


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What one step or update processes."""

    equation: str
    """The batch sizes as one line a person can check."""
    micro_batches: int
    """Micro-batches per rank and update, an upper estimate."""
    steps: int | None
    """Steps (on given data: updates) of the whole run; None where only the rows, which are unknown, tell."""


def rl_arithmetic(algorithm: RLConfig, policy: TrainerConfig, mean_tokens: float, prompts: int | None) -> Arithmetic:
    """Batch sizes of a reinforcement step over data of `prompts` rows, if their number is known; `mean_tokens` is the
    length of a sample, prompt and response."""
    per_update = algorithm.samples_per_update or algorithm.samples_per_step
    equation = (
        f"{algorithm.prompts_per_step} prompts x {algorithm.samples_per_prompt} samples = "
        f"{algorithm.samples_per_step} samples a step = {algorithm.updates_per_step} "
        f"update{'s' * (algorithm.updates_per_step != 1)} x {per_update} samples"
        + f" in {algorithm.epochs_per_step} epochs"
        * (algorithm.epochs_per_step > 1)
    )
    return Arithmetic(equation, _micro_batches(per_update, mean_tokens, policy), algorithm.total_steps(prompts))


def offline_arithmetic(
    algorithm: OfflineConfig, policy: TrainerConfig, mean_tokens: float, sequences: int, rows: str = "sequences"
) -> Arithmetic:
    """Batch sizes of an update over data of so many sequences, or `rows`, of `mean_tokens` tokens."""
    per_update = algorithm.samples_per_update
    steps = algorithm.updates(sequences)
    epochs = steps * per_update / sequences
    equation = f"{steps} updates x {per_update} {rows} = {epochs:.3g} epochs of {sequences} {rows}"
    return Arithmetic(equation, _micro_batches(per_update, mean_tokens, policy), steps)


def _micro_batches(samples: int, mean_tokens: float, policy: TrainerConfig) -> int:
    """Packing cannot split a sequence, so a micro-batch holds a whole number of them, at least one."""
    held = max(1, math.floor(policy.micro_batch_tokens / mean_tokens)) if mean_tokens else samples
    return math.ceil(math.ceil(samples / policy.ranks) / held)
