"""Decoders with a mixture of experts: four experts, two of them a token."""

from typing import Any

from tests.families.fields import FULL, SLIDING, Fields, decoder, plain, rope


def experts(model_type: str, architecture: str, **fields: Any) -> Fields:
    """Experts in the names of Qwen."""
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return decoder(model_type, architecture, **(mixture | fields))


def local_experts(model_type: str, architecture: str, **fields: Any) -> Fields:
    """Experts in the names of Mixtral."""
    mixture = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24}
    return decoder(model_type, architecture, **(mixture | fields))


def routed_experts(model_type: str, architecture: str, **fields: Any) -> Fields:
    """Experts in the names of DeepSeek: one more is for all tokens."""
    mixture = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return decoder(model_type, architecture, **(mixture | fields))


EXPERTS: dict[str, Fields] = {
    "qwen2_moe": experts("qwen2_moe", "Qwen2MoeForCausalLM", shared_expert_intermediate_size=32),
    "qwen3_moe": experts("qwen3_moe", "Qwen3MoeForCausalLM", head_dim=16, norm_topk_prob=True),
    "mixtral": local_experts("mixtral", "MixtralForCausalLM"),
    "gpt_oss": local_experts(
        "gpt_oss",
        "GptOssForCausalLM",
        head_dim=16,
        sliding_window=16,
        layer_types=[SLIDING, FULL],
    ),
    "llama4 text": local_experts(
        "llama4_text",
        "Llama4ForCausalLM",
        num_experts_per_tok=1,
        intermediate_size_mlp=64,
        head_dim=16,
        attention_chunk_size=16,
        no_rope_layers=[1, 0],
        moe_layers=[1],
        floor_scale=16,
    ),
    "afmoe": experts(
        "afmoe",
        "AfmoeForCausalLM",
        head_dim=16,
        num_shared_experts=1,
        num_dense_layers=1,
        sliding_window=16,
        layer_types=[SLIDING, FULL],
        mup_enabled=True,
        route_scale=2.0,
    ),
    "aria_text": decoder(
        "aria_text",
        "AriaTextForCausalLM",
        head_dim=8,
        intermediate_size=24,
        moe_num_experts=4,
        moe_topk=2,
        moe_num_shared_experts=1,
    ),
    "cohere2_moe": decoder(
        "cohere2_moe",
        "Cohere2MoeForCausalLM",
        num_experts=4,
        num_experts_per_tok=2,
        intermediate_size=24,
        head_dim=8,
        sliding_window=16,
        layer_types=[SLIDING, FULL],
        num_shared_experts=1,
        mlp_layer_types=["dense", "sparse"],
        prefix_dense_intermediate_size=48,
        initializer_range=0.5,
        logit_scale=0.25,
    ),
    "dbrx": plain(
        "dbrx",
        "DbrxForCausalLM",
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=256,
        attn_config={"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    ),
    "dots1": routed_experts(
        "dots1",
        "Dots1ForCausalLM",
        head_dim=8,
        first_k_dense_replace=1,
        n_group=2,
        norm_topk_prob=True,
        sliding_window=16,
        max_window_layers=1,
        layer_types=[FULL, SLIDING],
    ),
    "ernie4_5_moe": decoder(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        moe_intermediate_size=24,
        moe_k=2,
        moe_num_experts=4,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
        moe_layer_end_index=1,
    ),
    "exaone_moe": experts(
        "exaone_moe",
        "ExaoneMoeForCausalLM",
        head_dim=8,
        sliding_window=16,
        layer_types=[SLIDING, FULL],
        first_k_dense_replace=1,
        num_shared_experts=1,
        mlp_layer_types=["dense", "sparse"],
    ),
    "flex_olmo": decoder(
        "flex_olmo", "FlexOlmoForCausalLM", num_experts=4, num_experts_per_tok=2, intermediate_size=24
    ),
    "glm4_moe": routed_experts(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        head_dim=8,
        first_k_dense_replace=1,
        use_qk_norm=True,
        attention_bias=True,
        routed_scaling_factor=2.0,
    ),
    "granitemoe": local_experts(
        "granitemoe",
        "GraniteMoeForCausalLM",
        logits_scaling=2.0,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
    ),
    "granitemoe_swa": local_experts(
        "granitemoe_swa",
        "GraniteMoeSWAForCausalLM",
        shared_intermediate_size=16,
        sliding_window=16,
        layer_types=[FULL, SLIDING],
        logits_scaling=2.0,
    ),
    "granitemoeshared": local_experts(
        "granitemoeshared",
        "GraniteMoeSharedForCausalLM",
        shared_intermediate_size=16,
        logits_scaling=2.0,
    ),
    "hunyuan_moe": decoder(
        "hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", num_experts=4, head_dim=16, intermediate_size=24, moe_topk=2
    ),
    "hy_v3": experts(
        "hy_v3",
        "HYV3ForCausalLM",
        head_dim=16,
        num_shared_experts=1,
        mlp_layer_types=["dense", "sparse"],
        router_scaling_factor=2.0,
    ),
    "jetmoe": local_experts("jetmoe", "JetMoeForCausalLM", kv_channels=8),
    "laguna": experts(
        "laguna",
        "LagunaForCausalLM",
        head_dim=8,
        shared_expert_intermediate_size=24,
        sliding_window=16,
        layer_types=[FULL, SLIDING],
        mlp_layer_types=["dense", "sparse"],
        num_attention_heads_per_layer=[4, 2],
        moe_router_logit_softcapping=5.0,
        moe_routed_scaling_factor=2.0,
    ),
    "mellum": experts(
        "mellum",
        "MellumForCausalLM",
        head_dim=8,
        sliding_window=16,
        layer_types=[FULL, SLIDING],
        mlp_layer_types=["dense", "sparse"],
    ),
    "mimo_v2_flash": routed_experts(
        "mimo_v2_flash",
        "MiMoV2FlashForCausalLM",
        head_dim=12,
        v_head_dim=8,
        sliding_window=16,
        layer_types=[FULL, SLIDING],
        mlp_layer_types=["dense", "sparse"],
    ),
    "minimax_m2": local_experts("minimax_m2", "MiniMaxM2ForCausalLM", head_dim=16),
    "minimax_m3 text": local_experts(
        "minimax_m3_vl_text",
        "MiniMaxM3VLForCausalLM",
        head_dim=16,
        rotary_dim=8,
        rope_parameters=rope(partial_rotary_factor=0.5),
        dense_intermediate_size=48,
        shared_intermediate_size=24,
        mlp_layer_types=["dense", "sparse"],
        index_n_heads=2,
        index_head_dim=16,
        index_block_size=8,
        index_topk_blocks=2,
        index_local_blocks=1,
        layer_types=[FULL, "minimax_m3_sparse"],
    ),
    "olmoe": decoder(
        "olmoe", "OlmoeForCausalLM", num_experts=4, num_experts_per_tok=2, intermediate_size=24, clip_qkv=2.0
    ),
    "phimoe": local_experts(
        "phimoe",
        "PhimoeForCausalLM",
        attention_bias=True,
        lm_head_bias=True,
        sliding_window=None,
    ),
    "solar_open": routed_experts("solar_open", "SolarOpenForCausalLM", head_dim=8),
    "gemma4 experts": experts(
        "gemma4_text",
        "Gemma4ForCausalLM",
        head_dim=16,
        global_head_dim=24,
        sliding_window=16,
        layer_types=[SLIDING, FULL],
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        top_k_experts=2,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        final_logit_softcapping=5.0,
    ),
}
