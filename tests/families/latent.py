"""Decoders of multi-head latent attention, dense and with experts, and those that choose keys by an index."""

from typing import Any

from tests.families.experts import routed_experts
from tests.families.fields import Fields, decoder

LATENT: Fields = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}
GROUPS: Fields = {"n_group": 2, "topk_group": 1}
# Many heads: a key that none of them likes has a score of exactly 0, and of several such any may be taken.
INDEX: Fields = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 16}
DENSE_FIRST: Fields = {"mlp_layer_types": ["dense", "sparse"]}


def routed(model_type: str, architecture: str, **fields: Any) -> Fields:
    """Latent attention, and experts in two groups."""
    return routed_experts(model_type, architecture, **(LATENT | GROUPS | fields))


LATENTS: dict[str, Fields] = {
    "deepseek_v2": routed(
        "deepseek_v2", "DeepseekV2ForCausalLM", first_k_dense_replace=1, topk_method="group_limited_greedy", n_group=2
    ),
    "deepseek_v2 greedy": routed(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        q_lora_rank=None,
        topk_method="greedy",
        n_group=None,
        topk_group=None,
        n_shared_experts=2,
        norm_topk_prob=True,
    ),
    "deepseek_v3": routed("deepseek_v3", "DeepseekV3ForCausalLM", first_k_dense_replace=1),
    "deepseek_v3 yarn": routed(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        first_k_dense_replace=0,
        n_group=1,
        q_lora_rank=None,
        rope_interleave=False,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "deepseek_v32": routed("deepseek_v32", "DeepseekV32ForCausalLM", **INDEX, **DENSE_FIRST),
    "axk1": routed("axk1", "AXK1ForCausalLM", first_k_dense_replace=1),
    "axk2": routed("axk2", "AXK2ForCausalLM", gated_norm_rank=4, **INDEX, **DENSE_FIRST),
    "glm4_moe_lite": routed("glm4_moe_lite", "Glm4MoeLiteForCausalLM", **DENSE_FIRST),
    "glm_moe_dsa": routed(
        "glm_moe_dsa", "GlmMoeDsaForCausalLM", indexer_types=["full", "shared"], **INDEX, **DENSE_FIRST
    ),
    "hy_v4": routed(
        "hy_v4",
        "HYV4ForCausalLM",
        n_group=1,
        topk_group=1,
        indexer_types=["full", "shared"],
        hc_mult=2,
        **INDEX,
        **DENSE_FIRST,
    ),
    "longcat_flash": decoder(
        "longcat_flash",
        "LongcatFlashForCausalLM",
        **LATENT,
        head_dim=8,
        num_layers=2,
        ffn_hidden_size=64,
        moe_topk=2,
        n_routed_experts=4,
        zero_expert_num=2,
        expert_ffn_hidden_size=24,
        routed_scaling_factor=2.0,
    ),
    "minicpm3": decoder("minicpm3", "MiniCPM3ForCausalLM", **LATENT, dim_model_base=16),
    "youtu": decoder("youtu", "YoutuForCausalLM", **LATENT, embedding_initializer_range=0.2),
    "deepseek_v4": routed(
        "deepseek_v4",
        "DeepseekV4ForCausalLM",
        num_hidden_layers=3,
        num_key_value_heads=1,
        head_dim=16,
        qk_rope_head_dim=8,
        layer_types=["heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"],
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        hc_mult=2,
        hc_sinkhorn_iters=4,
        mlp_layer_types=["hash_moe", "moe", "moe"],
        sliding_window=8,
        o_groups=2,
        o_lora_rank=8,
        **INDEX | {"index_topk": 4},
    ),
}
