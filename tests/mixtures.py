"""Tiny mixtures of experts: a configuration of every kind of router and of experts, and directories of such models."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from actors.models.tokenizer import build_char_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
FEW = {"num_local_experts": 4, "num_experts_per_tok": 2}
MANY = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
GROUPED = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_shared_experts": 1}
BIASED = GROUPED | {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 2, "mamba_expand": 1}
DBRX: dict[str, Any] = {
    **{name: SIZES[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
    **{"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "initializer_range": 0.2},
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
    "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": SIZES | FEW,
    "qwen3_moe": SIZES | MANY | {"norm_topk_prob": True, "head_dim": 8},
    "qwen2_moe": SIZES | MANY | {"shared_expert_intermediate_size": 40},
    "olmoe": SIZES | MANY,
    "phimoe": SIZES | FEW | {"sliding_window": None},
    "granitemoe": SIZES | FEW,
    "jetmoe": SIZES | FEW | {"kv_channels": 8},
    "dbrx": DBRX,
    "ernie4_5_moe": SIZES | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 0},
    "minimax_m2": SIZES | FEW | {"head_dim": 8},
    "gpt_oss": SIZES | FEW | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "glm4_moe": SIZES | BIASED | {"head_dim": 8},
    "deepseek_v3": SIZES | BIASED | LATENT | {"num_key_value_heads": 4},
    "llama4_text": SIZES | FEW | {"num_experts_per_tok": 1, "intermediate_size_mlp": 24, "head_dim": 8},
    "jamba": SIZES
    | {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
    | MAMBA,
}
"""model_type -> fields of its config.json."""
BALANCED = tuple(name for name in MIXTURES if name not in ("glm4_moe", "deepseek_v3", "llama4_text"))
"""Those for which transformers has a load-balancing loss."""


def config_of(model_type: str, **fields: Any) -> PretrainedConfig:
    """The configuration of a mixture with some other fields."""
    return AutoConfig.for_model(model_type, **MIXTURES[model_type] | fields)


def saved_mixture(directory: Path, model_type: str, **fields: Any) -> Path:
    """A model directory of random weights, routers' biases included, and a tokenizer."""
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(config_of(model_type, **fields))
    for name, tensor in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor.uniform_(-0.1, 0.1)
    model.save_pretrained(directory)
    build_char_tokenizer("abcdefgh").save_pretrained(directory)
    return directory
