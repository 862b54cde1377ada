"""Recurrent decoders, and hybrids of recurrence (or convolution) and attention."""

from tests.families.experts import experts
from tests.families.fields import FULL, LINEAR, Fields, decoder, plain

GATED_DELTA: Fields = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA2: Fields = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}

HYBRIDS: dict[str, Fields] = {
    "mamba": plain("mamba", "MambaForCausalLM", hidden_size=32, state_size=8, num_hidden_layers=2, time_step_rank=4),
    "mamba2": plain(
        "mamba2",
        "Mamba2ForCausalLM",
        hidden_size=32,
        num_heads=8,
        head_dim=8,
        state_size=16,
        num_hidden_layers=2,
        n_groups=2,
        chunk_size=16,
        time_step_rank=4,
    ),
    "lfm2": decoder(
        "lfm2",
        "Lfm2ForCausalLM",
        num_hidden_layers=3,
        layer_types=["conv", FULL, "conv"],
        block_auto_adjust_ff_dim=False,
    ),
    "qwen3_next": experts(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        head_dim=16,
        shared_expert_intermediate_size=24,
        layer_types=[LINEAR, FULL],
        **GATED_DELTA,
    ),
    "qwen3_5 text": decoder(
        "qwen3_5_text", "Qwen3_5ForCausalLM", head_dim=16, layer_types=[LINEAR, FULL], **GATED_DELTA
    ),
    "granitemoehybrid": decoder(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        num_local_experts=4,
        shared_intermediate_size=32,
        layer_types=["mamba", "attention"],
        **MAMBA2,
    ),
    "falcon_h1": decoder("falcon_h1", "FalconH1ForCausalLM", head_dim=8, mamba_d_ssm=64, **MAMBA2),
    "bamba": decoder("bamba", "BambaForCausalLM", attn_layer_indices=[1], **MAMBA2),
    "zamba2": decoder(
        "zamba2",
        "Zamba2ForCausalLM",
        num_hidden_layers=3,
        num_key_value_heads=4,
        layers_block_type=["mamba", "hybrid", "mamba"],
        mamba_d_state=8,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_expand=2,
        chunk_size=16,
        use_mem_rope=True,
        adapter_rank=4,
    ),
    "jamba": experts(
        "jamba",
        "JambaForCausalLM",
        num_hidden_layers=3,
        attn_layer_period=3,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "recurrent_gemma": decoder(
        "recurrent_gemma",
        "RecurrentGemmaForCausalLM",
        num_hidden_layers=3,
        lru_width=32,
        attention_window_size=16,
        initializer_range=0.6,
        w_init_variance_scale=1.0,
    ),
    "rwkv": plain(
        "rwkv",
        "RwkvForCausalLM",
        hidden_size=32,
        attention_hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        context_length=256,
    ),
    "xlstm": plain(
        "xlstm",
        "xLSTMForCausalLM",
        hidden_size=64,
        embedding_dim=64,
        num_hidden_layers=2,
        num_blocks=2,
        num_heads=4,
        chunk_size=16,
    ),
    "minimax": experts(
        "minimax", "MiniMaxForCausalLM", num_local_experts=4, head_dim=8, layer_types=[LINEAR, FULL], block_size=16
    ),
}
