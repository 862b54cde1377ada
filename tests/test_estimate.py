"""Sizes of launch/estimate.py against models that transformers builds, and against hand-worked arithmetic."""

from pathlib import Path
from typing import Any

import pytest

from actors.config import FrozenGroupConfig, ModelInit, OptimizerConfig, TrainerConfig
from actors.config_rollout import RolloutConfig
from actors.safetensors_header import stored_tensors
from actors.skeleton import hf_config
from algorithms.config_offline import SFTConfig
from algorithms.config_rl import GRPOConfig
from launch.estimate import (
    FLOAT32,
    GIB,
    DecoderShape,
    Memory,
    decoder_shape,
    engine_memory,
    kv_bytes_per_token,
    offline_arithmetic,
    parameter_count,
    reference_memory,
    rl_arithmetic,
    trainer_memory,
)
from launch.model_files import stored_parameters

NUMBERS = {
    "vocab_size": 101,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHAPE = DecoderShape(
    hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=128, vocab_size=100,
    tie_embeddings=True,
)  # fmt: skip


def built(family: str, **extra: object):
    import transformers

    config = getattr(transformers, f"{family}Config")(**NUMBERS, **extra)
    return getattr(transformers, f"{family}ForCausalLM")(config)


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen2", {"tie_word_embeddings": False}),
        ("Llama", {"tie_word_embeddings": False}),
        ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("Qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
        ("Mistral", {"tie_word_embeddings": False, "head_dim": 24}),
    ],
)
def test_parameter_count_equals_the_real_model(family: str, extra: dict) -> None:
    model = built(family, **extra)
    shape = decoder_shape(model.config.to_dict())
    assert shape is not None
    assert parameter_count(shape) == sum(parameter.numel() for parameter in model.parameters())


def test_stored_parameters_reads_safetensors_headers(tmp_path: Path) -> None:
    model = built("Llama", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    assert stored_parameters(stored_tensors(tmp_path)) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_parameter_count_of_our_own_tiny_model(family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    init = ModelInit.model_validate({"family": family, "hidden_size": 48, "heads": 6, "kv_heads": 2, "layers": 3})
    values = hf_config(init, "fp32", 101, 2, 0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    shape = decoder_shape(values)
    assert shape is not None
    assert parameter_count(shape) == sum(parameter.numel() for parameter in model.parameters())


def test_an_unknown_architecture_has_no_shape() -> None:
    assert decoder_shape({"model_type": "mamba", "hidden_size": 8}) is None


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"), [(0, 1, 1, 1), (1, 1, 1, 4), (2, 1, 4, 4), (3, 4, 4, 4)]
)
def test_zero_stages_divide_what_they_shard(stage: int, weights: int, gradients: int, optimizer: int) -> None:
    group = TrainerConfig.model_validate({"ranks": 4, "zero_stage": stage})
    memory = trainer_memory(SHAPE, 1_000_000, group, "bf16", gradient_checkpointing=False)
    assert memory.weights == 2_000_000 // weights
    assert memory.gradients == 2_000_000 // gradients
    assert memory.optimizer == 12_000_000 // optimizer  # two moments and the master copy, float32


def test_optimizer_state_depends_on_the_optimizer_and_offload() -> None:
    sgd = TrainerConfig(optimizer=OptimizerConfig(name="sgd"))
    assert trainer_memory(SHAPE, 1000, sgd, "fp32", gradient_checkpointing=False).optimizer == 0
    offloading = TrainerConfig(zero_stage=1, offload_optimizer=True, gpus_per_rank=1)
    memory = trainer_memory(SHAPE, 1000, offloading, "fp32", gradient_checkpointing=False)
    assert (memory.optimizer, memory.optimizer_offloaded) == (0, 3 * FLOAT32 * 1000)
    assert memory.total >= memory.optimizer_offloaded + memory.weights


def test_an_average_is_one_more_copy() -> None:
    group = TrainerConfig(zero_stage=1, ema_decay=0.99, ranks=2)
    memory = trainer_memory(SHAPE, 1000, group, "bf16", gradient_checkpointing=False)
    assert memory.optimizer == 4 * FLOAT32 * 1000 // 2


@pytest.mark.parametrize("frozen", [False, True])
def test_offloaded_parameters_are_in_host_memory(frozen: bool) -> None:
    parameters = parameter_count(SHAPE)
    settings = {"zero_stage": 3, "ranks": 2, "gpus_per_rank": 1}

    def memory(**more: Any) -> Memory:
        if frozen:
            return reference_memory(SHAPE, parameters, FrozenGroupConfig(**settings, **more), "bf16")
        return trainer_memory(
            SHAPE, parameters, TrainerConfig(**settings, **more), "bf16", gradient_checkpointing=False
        )

    found, plain = memory(offload_parameters=True), memory()
    assert (found.weights_offloaded, plain.weights_offloaded) == (plain.weights, 0)
    layer = (parameters - SHAPE.vocab_size * SHAPE.hidden_size) // SHAPE.layers
    assert found.weights == 2 * (layer + SHAPE.vocab_size * SHAPE.hidden_size)
    assert found.total == plain.total + found.weights


def test_gradient_checkpointing_needs_less() -> None:
    group = TrainerConfig()
    with_it = trainer_memory(SHAPE, 1000, group, "fp32", gradient_checkpointing=True).activations
    assert with_it < trainer_memory(SHAPE, 1000, group, "fp32", gradient_checkpointing=False).activations


def test_engine_memory_and_key_value_cache() -> None:
    memory = engine_memory(1000, RolloutConfig(memory_gib=2, tensor_parallel=2), "fp32")
    assert (memory.weights, memory.kv_cache) == (2000, 2 * GIB)
    assert kv_bytes_per_token(SHAPE, "bf16") == 2 * 2 * 2 * 16 * 2


def test_rl_arithmetic_is_an_equation() -> None:
    algorithm = GRPOConfig(name="grpo", prompts_per_step=16, samples_per_prompt=8, samples_per_update=64)
    policy = TrainerConfig(ranks=2, micro_batch_tokens=1000)
    found = rl_arithmetic(algorithm, policy, 300, None)
    assert found.equation == "16 prompts x 8 samples = 128 samples a step = 2 updates x 64 samples"
    assert found.micro_batches == 11  # 32 samples on a rank, 3 in a micro-batch
    assert found.steps == 100
    epochs = algorithm.model_copy(update={"epochs": 3})
    assert [rl_arithmetic(epochs, policy, 300, prompts).steps for prompts in (64, 65, None)] == [12, 13, None]


def test_offline_arithmetic_counts_updates_of_epochs() -> None:
    found = offline_arithmetic(
        SFTConfig(name="sft", epochs=2, samples_per_update=30), TrainerConfig(), 100, sequences=100
    )
    assert found.steps == 7
    assert found.equation == "7 updates x 30 sequences = 2.1 epochs of 100 sequences"
    assert found.micro_batches == 1
