"""Decoders with a mixture of experts: four experts, two of them a token."""

from typing import Any

from tests.families.fields import FULL, SLIDING, Fields, decoder


def experts(model_type: str, architecture: str, **fields: Any) -> Fields:
    """Experts in the names of Qwen; `num_local_experts` is another name for their number."""
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return decoder(model_type, architecture, **(mixture | fields))


EXPERTS: dict[str, Fields] = {
    "deepseek_v3": experts(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        n_routed_experts=4,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "minicpm3": decoder(
        "minicpm3",
        "MiniCPM3ForCausalLM",
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        dim_model_base=16,
    ),
    "qwen2_moe": experts("qwen2_moe", "Qwen2MoeForCausalLM", shared_expert_intermediate_size=32),
    "qwen3_moe": experts("qwen3_moe", "Qwen3MoeForCausalLM", head_dim=16, norm_topk_prob=True),
    "mixtral": experts("mixtral", "MixtralForCausalLM", num_local_experts=4),
    "gpt_oss": experts(
        "gpt_oss",
        "GptOssForCausalLM",
        num_local_experts=4,
        head_dim=16,
        sliding_window=16,
        layer_types=[SLIDING, FULL],
    ),
    "llama4 text": experts(
        "llama4_text",
        "Llama4ForCausalLM",
        num_local_experts=4,
        num_experts_per_tok=1,
        intermediate_size_mlp=64,
        head_dim=16,
        attention_chunk_size=16,
        no_rope_layers=[1, 0],
        moe_layers=[1],
        floor_scale=16,
    ),
}
