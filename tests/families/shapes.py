"""Other shapes of families that many people train."""

from tests.families.experts import experts, local_experts
from tests.families.fields import FULL, SLIDING, Fields, decoder, plain, rope

SHAPES: dict[str, Fields] = {
    "qwen2 untied": decoder("qwen2", "Qwen2ForCausalLM"),
    "qwen2 one kv head": decoder("qwen2", "Qwen2ForCausalLM", num_key_value_heads=1),
    "qwen2 all kv heads": decoder("qwen2", "Qwen2ForCausalLM", num_key_value_heads=4),
    "qwen2 layer types": decoder(
        "qwen2", "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=7, layer_types=[SLIDING, FULL]
    ),
    "qwen2 window off": decoder("qwen2", "Qwen2ForCausalLM", use_sliding_window=False, sliding_window=8),
    "qwen3 tied": decoder("qwen3", "Qwen3ForCausalLM", head_dim=16, tie_word_embeddings=True),
    "qwen3 bias": decoder("qwen3", "Qwen3ForCausalLM", head_dim=4, attention_bias=True, num_key_value_heads=1),
    "qwen3 sliding": decoder(
        "qwen3", "Qwen3ForCausalLM", head_dim=8, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "llama tied": decoder("llama", "LlamaForCausalLM", tie_word_embeddings=True),
    "llama biases": decoder("llama", "LlamaForCausalLM", attention_bias=True, mlp_bias=True),
    "llama head_dim": decoder("llama", "LlamaForCausalLM", head_dim=24, num_key_value_heads=1),
    "llama three heads": decoder(
        "llama", "LlamaForCausalLM", hidden_size=36, num_attention_heads=3, num_key_value_heads=3, head_dim=12
    ),
    "llama gelu": decoder("llama", "LlamaForCausalLM", hidden_act="gelu"),
    "mistral": decoder("mistral", "MistralForCausalLM", head_dim=16, sliding_window=None),
    "mistral odd window": decoder("mistral", "MistralForCausalLM", head_dim=8, sliding_window=5),
    "mistral window of one": decoder("mistral", "MistralForCausalLM", head_dim=8, sliding_window=1),
    "mistral wide window": decoder("mistral", "MistralForCausalLM", head_dim=8, sliding_window=64),
    "gemma one kv head": decoder("gemma", "GemmaForCausalLM", head_dim=16, num_key_value_heads=1),
    "gemma2 sharp caps": decoder(
        "gemma2",
        "Gemma2ForCausalLM",
        head_dim=16,
        sliding_window=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=1.5,
        query_pre_attn_scalar=4,
        num_hidden_layers=3,
    ),
    "gemma2 no caps": decoder(
        "gemma2",
        "Gemma2ForCausalLM",
        head_dim=16,
        sliding_window=16,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
    "gemma3 pattern": decoder(
        "gemma3_text",
        "Gemma3ForCausalLM",
        head_dim=16,
        sliding_window=8,
        sliding_window_pattern=3,
        num_hidden_layers=3,
        rope_theta=1e6,
        rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "gemma3 capped": decoder(
        "gemma3_text",
        "Gemma3ForCausalLM",
        head_dim=16,
        sliding_window=8,
        layer_types=[SLIDING, FULL],
        final_logit_softcapping=2.0,
        attn_logit_softcapping=5.0,
    ),
    "phi3 sliding": decoder("phi3", "Phi3ForCausalLM", sliding_window=11),
    "phi3 partial rotary": decoder("phi3", "Phi3ForCausalLM", rope_parameters=rope(partial_rotary_factor=0.5)),
    "phi qk norm": decoder("phi", "PhiForCausalLM", qk_layernorm=True, num_key_value_heads=4),
    "granite tied": decoder(
        "granite",
        "GraniteForCausalLM",
        tie_word_embeddings=True,
        logits_scaling=0.5,
        embedding_multiplier=0.5,
        attention_bias=True,
        mlp_bias=True,
    ),
    "cohere qk norm": decoder("cohere", "CohereForCausalLM", initializer_range=0.5, logit_scale=0.25, use_qk_norm=True),
    "cohere2 pattern": decoder(
        "cohere2",
        "Cohere2ForCausalLM",
        initializer_range=0.5,
        logit_scale=2.0,
        head_dim=8,
        sliding_window=8,
        sliding_window_pattern=2,
        attention_bias=True,
    ),
    "smollm3 sliding": decoder(
        "smollm3",
        "SmolLM3ForCausalLM",
        num_hidden_layers=4,
        no_rope_layer_interval=2,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        tie_word_embeddings=False,
    ),
    "olmo2 all kv heads": decoder("olmo2", "Olmo2ForCausalLM", num_key_value_heads=4, tie_word_embeddings=True),
    "exaone4 global": decoder(
        "exaone4", "Exaone4ForCausalLM", head_dim=8, sliding_window=None, layer_types=[FULL, FULL]
    ),
    "gpt2 scaled by layer": plain(
        "gpt2",
        "GPT2LMHeadModel",
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        scale_attn_by_inverse_layer_idx=True,
        reorder_and_upcast_attn=True,
        n_inner=48,
    ),
    "gpt2 untied": plain(
        "gpt2", "GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, n_positions=256, tie_word_embeddings=False
    ),
    "gpt_neox sequential": decoder(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        use_parallel_residual=False,
        attention_bias=False,
        hidden_act="gelu_new",
        rope_parameters=rope(partial_rotary_factor=1.0),
    ),
    "opt post norm": decoder(
        "opt", "OPTForCausalLM", ffn_dim=64, word_embed_proj_dim=16, init_std=0.2, do_layer_norm_before=False
    ),
    "falcon": decoder("falcon", "FalconForCausalLM", ffn_hidden_size=64),
    "falcon new decoder": decoder(
        "falcon", "FalconForCausalLM", new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=64, bias=True
    ),
    "falcon sequential": decoder(
        "falcon", "FalconForCausalLM", multi_query=False, parallel_attn=False, alibi=True, bias=True, ffn_hidden_size=64
    ),
    "mpt no alibi": plain(
        "mpt",
        "MptForCausalLM",
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=256,
        attn_config={"alibi": False, "qk_ln": False, "clip_qkv": 2.0, "softmax_scale": 0.5},
    ),
    "bloom post residual": plain(
        "bloom", "BloomForCausalLM", hidden_size=36, n_layer=2, n_head=6, apply_residual_connection_post_layernorm=True
    ),
    "starcoder2 no bias": decoder(
        "starcoder2", "Starcoder2ForCausalLM", use_bias=False, tie_word_embeddings=False, sliding_window=None
    ),
    "stablelm parallel": decoder(
        "stablelm", "StableLmForCausalLM", use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True
    ),
    "nemotron head_dim": decoder("nemotron", "NemotronForCausalLM", head_dim=16, attention_bias=True, mlp_bias=True),
    "persimmon no qk norm": decoder("persimmon", "PersimmonForCausalLM", qk_layernorm=False),
    "seed_oss biases": decoder("seed_oss", "SeedOssForCausalLM", head_dim=16, attention_out_bias=True, mlp_bias=True),
    "ernie4_5 biases": decoder(
        "ernie4_5", "Ernie4_5ForCausalLM", head_dim=16, use_bias=True, tie_word_embeddings=False
    ),
    "olmo clipped": decoder("olmo", "OlmoForCausalLM", clip_qkv=0.5),
    "nanochat all kv heads": decoder(
        "nanochat", "NanoChatForCausalLM", num_key_value_heads=4, final_logit_softcapping=1.0
    ),
    "qwen2_moe mixed": experts(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        shared_expert_intermediate_size=16,
        num_hidden_layers=4,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
        norm_topk_prob=True,
        qkv_bias=False,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=2,
    ),
    "qwen3_moe mixed": experts(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        head_dim=8,
        num_hidden_layers=3,
        mlp_only_layers=[1],
        norm_topk_prob=False,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=8,
        attention_bias=True,
    ),
    "qwen3_moe one expert": experts("qwen3_moe", "Qwen3MoeForCausalLM", head_dim=16, num_experts_per_tok=1),
    "qwen3_moe all experts": experts("qwen3_moe", "Qwen3MoeForCausalLM", head_dim=16, num_experts_per_tok=4),
    "mixtral sliding": local_experts("mixtral", "MixtralForCausalLM", sliding_window=8, head_dim=16),
    "gpt_oss full": local_experts(
        "gpt_oss",
        "GptOssForCausalLM",
        head_dim=8,
        sliding_window=8,
        layer_types=[FULL, FULL],
        rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16, truncate=False),
    ),
}
