"""Sizes of launch/sizes/estimate.py against models that transformers builds, and against hand-worked arithmetic."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from actors.config import FrozenGroupConfig, ModelConfig, ModelInit, OptimizerConfig, TrainerConfig
from actors.config_rollout import RolloutConfig
from actors.models.safetensors_header import stored_tensors
from actors.models.skeleton import hf_config
from algorithms.config_offline import DPOConfig, OfflineConfig, SFTConfig
from algorithms.config_rl import GRPOConfig
from launch.config import load
from launch.kinds.table import KINDS, job_kind
from launch.models.files import stored_parameters
from launch.sizes.estimate import (
    ENGINE_BASE,
    FLOAT32,
    GIB,
    HOLDER_BASE,
    TRAINER_BASE,
    DecoderShape,
    Memory,
    decoder_shape,
    engine_memory,
    kv_bytes_per_token,
    offline_arithmetic,
    parameter_count,
    reference_memory,
    rl_arithmetic,
    rollout_memory,
    trainer_memory,
)
from launch.sizes.placement import demands

ROOT = Path(__file__).resolve().parent.parent

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

    config = getattr(transformers, f"{family}Config")(**(NUMBERS | extra))
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


EXPERTS = {"num_experts": 16, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
ROUTED = {"n_routed_experts": 16, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_shared_experts": 2}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12, "num_key_value_heads": 6}


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("Mixtral", {"num_local_experts": 8}),
        ("Qwen3Moe", EXPERTS | {"head_dim": 16, "mlp_only_layers": [1]}),
        ("Qwen3Moe", EXPERTS | {"head_dim": 16, "decoder_sparse_step": 2}),
        ("Qwen2Moe", EXPERTS | {"shared_expert_intermediate_size": 40}),
        ("Olmoe", {"num_experts": 16, "num_experts_per_tok": 3}),
        ("GptOss", {"num_local_experts": 8, "head_dim": 8}),
        ("Glm4Moe", ROUTED | {"first_k_dense_replace": 1, "head_dim": 8}),
        ("DeepseekV3", ROUTED | LATENT | {"first_k_dense_replace": 2, "q_lora_rank": 24}),
        ("DeepseekV2", ROUTED | LATENT | {"first_k_dense_replace": 1, "q_lora_rank": None}),
        ("GraniteMoe", {"num_local_experts": 8}),
    ],
)
def test_experts_are_counted(family: str, extra: dict) -> None:
    """All of them, while a token goes through some; whatever a family has beside is less than a hundredth."""
    model = built(family, tie_word_embeddings=False, **extra)
    shape = decoder_shape(model.config.to_dict())
    assert shape is not None
    real = sum(parameter.numel() for parameter in model.parameters())
    assert parameter_count(shape) == pytest.approx(real, rel=0.02)
    assert parameter_count(replace(shape, further=0)) < 0.8 * real


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


@pytest.mark.parametrize(("lora", "sent", "copies"), [(None, "adapter", 2), ({}, "merged", 2), ({}, "adapter", 1)])
def test_a_holder_has_a_version_and_the_one_that_arrives(lora: dict | None, sent: str, copies: int) -> None:
    """What is below adapters comes once; without a holder there is none."""
    model = ModelConfig.model_validate({"path": "a", "dtype": "bf16", "lora": lora})
    rollout = RolloutConfig.model_validate({"transfer": {"store": "holder", "lora": sent}})
    found = rollout_memory(1000, rollout, model)
    assert found["rollout"] == engine_memory(1000, rollout, "bf16")
    assert (found["holder"].weights, found["holder"].base) == (copies * 2000, HOLDER_BASE)
    assert rollout_memory(1000, RolloutConfig(), model).keys() == {"rollout"}


@pytest.mark.parametrize("store", ["broadcast", "holder"])
@pytest.mark.parametrize("name", ["grpo", "ppo", "ppo-lora", "sft", "dpo", "reward", "embedding", "reranker"])
def test_the_memory_of_every_group_that_is_placed_is_known(name: str, store: str) -> None:
    """What is placed and not counted would be missing from `check`, and from the pods of a cluster."""
    sampled = name in ("grpo", "ppo", "ppo-lora")
    config = load(
        str(ROOT / f"configs/{name}.yaml"),
        [f"rollout.transfer.store={store}", "rollout.transfer.backend=gloo"] if sampled else [],
    )
    placed = {demand.group for demand in demands(config)} - {"reward"}
    assert job_kind(config).memory(SHAPE, 1000).keys() == placed
    assert ("holder" in placed) == (store == "holder" and sampled)


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


def test_memory_of_a_trainer_worked_by_hand() -> None:
    """Per token, a layer keeps 10 x 64 + 3 x 64 queries + 3 x 32 keys + 4 x 128 = 1440 numbers."""
    group = TrainerConfig(ranks=3, micro_batch_tokens=10, logprob_chunk_tokens=7)
    whole = trainer_memory(SHAPE, 1001, group, "bf16", gradient_checkpointing=False)
    assert whole == Memory(
        weights=2002,
        gradients=2002,
        optimizer=12 * 1001,
        logits=3 * 7 * 100 * 4,
        activations=10 * 2 * 1440 * 2,
        base=TRAINER_BASE,
    )
    recomputed = trainer_memory(SHAPE, 1001, group, "bf16", gradient_checkpointing=True)
    assert recomputed.activations == 10 * (1440 + 2 * 64) * 2, "one layer, and what goes into each"
    assert replace(recomputed, activations=whole.activations) == whole


def test_memory_of_a_reference_worked_by_hand() -> None:
    """Logits and their softmax, without a gradient; one layer's activations at a time."""
    group = FrozenGroupConfig(ranks=2, zero_stage=3, micro_batch_tokens=10, logprob_chunk_tokens=7)
    assert reference_memory(SHAPE, 1000, group, "fp32") == Memory(
        weights=2000, logits=2 * 7 * 100 * 4, activations=10 * 1440 * 4, base=TRAINER_BASE
    )


def test_the_cache_of_an_engine_on_a_gpu_is_not_in_host_memory() -> None:
    rollout = RolloutConfig(tensor_parallel=2, gpus_per_engine=2, memory_gib=5)
    assert engine_memory(1000, rollout, "bf16") == Memory(weights=1000, base=ENGINE_BASE)
    assert engine_memory(1000, RolloutConfig(memory_gib=5), "bf16") == Memory(
        weights=2000, kv_cache=5 * GIB, base=ENGINE_BASE
    )


@pytest.mark.parametrize(
    ("name", "dtype", "stage", "average", "copies"),
    [
        ("adamw", "fp32", 0, None, 2),
        ("adam", "fp32", 1, None, 3),
        ("adamw", "fp32", 3, None, 2),
        ("adamw", "bf16", 0, None, 3),
        ("adamw", "bf16", 2, None, 3),
        ("adamw", "bf16", 3, None, 3),
        ("sgd", "fp32", 0, None, 0),
        ("sgd", "bf16", 1, None, 1),
        ("sgd", "fp32", 0, 0.9, 1),
    ],
)
def test_copies_that_an_optimizer_keeps(name: Any, dtype: Any, stage: Any, average: float | None, copies: int) -> None:
    group = TrainerConfig(optimizer=OptimizerConfig(name=name), zero_stage=stage, ema_decay=average)
    memory = trainer_memory(SHAPE, 1000, group, dtype, gradient_checkpointing=False)
    assert (memory.optimizer, memory.optimizer_offloaded) == (copies * 4000, 0)


def test_a_total_has_every_part() -> None:
    parts = {field.name: 2**place for place, field in enumerate(fields(Memory))}
    assert Memory(**parts).total == 2 ** len(parts) - 1


def test_what_a_configuration_leaves_out_is_what_transformers_takes() -> None:
    config = {name: value for name, value in NUMBERS.items() if not name.endswith("_token_id")}
    shape = decoder_shape(config | {"model_type": "llama", "num_key_value_heads": None})
    assert shape is not None
    assert (shape.kv_heads, shape.head_dim, shape.tie_embeddings) == (6, 8, False)
    assert not (shape.qkv_bias or shape.output_bias or shape.mlp_bias or shape.qk_norm)


@pytest.mark.parametrize(
    ("samples", "tokens", "expected"),
    [(33, 250, 5), (32, 250, 4), (34, 250, 5), (16, 251, 3), (2, 3000, 1), (9, 3000, 5), (9, 0, 1)],
)
def test_micro_batches_of_the_fullest_rank(samples: int, tokens: float, expected: int) -> None:
    """Of two ranks, with whole sequences in at most 1000 tokens; one longer than that is alone."""
    algorithm = GRPOConfig(name="grpo", prompts_per_step=1, samples_per_prompt=samples)
    policy = TrainerConfig(ranks=2, micro_batch_tokens=1000)
    assert rl_arithmetic(algorithm, policy, tokens, None).micro_batches == expected


def test_an_equation_of_one_update_or_of_several_epochs() -> None:
    algorithm = GRPOConfig(name="grpo", prompts_per_step=4, samples_per_prompt=8)
    one = rl_arithmetic(algorithm, TrainerConfig(), 10, None).equation
    assert one == "4 prompts x 8 samples = 32 samples a step = 1 update x 32 samples"
    twice = algorithm.model_copy(update={"epochs_per_step": 2, "samples_per_update": 16})
    several = rl_arithmetic(twice, TrainerConfig(), 10, None).equation
    assert several == "4 prompts x 8 samples = 32 samples a step = 4 updates x 16 samples in 2 epochs"


def test_pairs_are_called_pairs() -> None:
    dpo = DPOConfig(name="dpo", steps=3, samples_per_update=20)
    policy = TrainerConfig(ranks=2, micro_batch_tokens=1000)
    found = offline_arithmetic(dpo, policy, 300, sequences=40, rows=KINDS["dpo"].rows)
    assert found.equation == "3 updates x 20 pairs = 1.5 epochs of 40 pairs"
    assert (found.steps, found.micro_batches) == (3, 4)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("sft", "sequences"), ("reward", "pairs"), ("dpo", "pairs"), ("embedding", "rows"), ("reranker", "rows")],
)
def test_what_an_update_is_made_of(name: str, rows: str) -> None:
    algorithm = OfflineConfig(name=name, steps=2, samples_per_update=5)
    found = offline_arithmetic(algorithm, TrainerConfig(), 9, 10, KINDS[name].rows)
    assert found.equation == f"2 updates x 5 {rows} = 1 epochs of 10 {rows}"


def test_processes_take_what_was_measured_before_they_hold_anything() -> None:
    assert pytest.approx(0.38, abs=0.02) == TRAINER_BASE / GIB
    assert pytest.approx(0.52, abs=0.02) == ENGINE_BASE / GIB
