"""Models in which a later token changes earlier logits, and families that cannot be built tiny or run on a CPU."""

from tests.families.experts import experts
from tests.families.fields import FULL, SLIDING, Fields, decoder, plain
from tests.families.older import OLDER

NOT_CAUSAL: dict[str, Fields] = {
    "bert encoder": OLDER["bert"] | {"is_decoder": False},
    "roberta encoder": OLDER["roberta"] | {"is_decoder": False},
    "electra encoder": OLDER["electra"] | {"is_decoder": False},
    "megatron-bert encoder": OLDER["megatron-bert"] | {"is_decoder": False},
    # Only by sdpa attention: eager is causal still. So with gemma2.
    "gemma bidirectional": decoder("gemma", "GemmaForCausalLM", head_dim=16, use_bidirectional_attention=True),
    "gemma3 bidirectional": decoder(
        "gemma3_text",
        "Gemma3ForCausalLM",
        head_dim=16,
        sliding_window=8,
        layer_types=[SLIDING, FULL],
        use_bidirectional_attention=True,
    ),
    "gemma4 bidirectional": decoder(
        "gemma4_text",
        "Gemma4ForCausalLM",
        head_dim=16,
        global_head_dim=24,
        sliding_window=16,
        layer_types=[SLIDING, FULL],
        hidden_size_per_layer_input=0,
        use_bidirectional_attention="all",
    ),
    "llama is_causal false": decoder("llama", "LlamaForCausalLM", is_causal=False),
    "xlm encoder": OLDER["xlm"] | {"causal": False},
    "xlnet both ways": OLDER["xlnet"] | {"attn_type": "bi"},
    # A prompt is read as a whole: only what a generation adds looks back.
    "cpmant": plain(
        "cpmant",
        "CpmAntForCausalLM",
        hidden_size=32,
        num_attention_heads=4,
        dim_head=8,
        dim_ff=64,
        num_hidden_layers=2,
        prompt_length=4,
        prompt_types=4,
        segment_types=4,
        position_bias_num_buckets=32,
        init_std=0.2,
    ),
    # The router's two halves are cut from the tokens instead of the features: half a token's choice is another token's.
    "doge experts": experts("doge", "DogeForCausalLM", is_moe=True, num_experts=16, keep_window_size=64),
    # Its table of relative positions is cut from the tokens instead of the heads: as above.
    "prophetnet": plain(
        "prophetnet",
        "ProphetNetForCausalLM",
        hidden_size=32,
        encoder_ffn_dim=64,
        num_encoder_layers=1,
        decoder_ffn_dim=64,
        num_encoder_attention_heads=4,
        num_decoder_layers=2,
        num_decoder_attention_heads=4,
        max_position_embeddings=256,
        init_std=0.2,
        is_decoder=True,
        is_encoder_decoder=False,
        add_cross_attention=False,
    ),
    # Tokens are sorted by hash into chunks: who shares a chunk depends on all of them.
    "reformer": OLDER["reformer local"]
    | {"attn_layers": ["local", "lsh"], "lsh_attn_chunk_length": 8, "num_buckets": 4, "hash_seed": 7},
}

CANNOT: dict[str, str] = {
    "emu3": "keys of Emu3ForConditionalGeneration match none of Emu3ForCausalLM: all weights of a checkpoint stay new",
    "gemma3n": "TimmWrapperModel requires the timm library: its vision tower; the text model is gemma3n_text",
    "gemma4_assistant": "inputs_embeds and shared_kv_states cannot be None: it reads another model's keys",
    "gemma4_unified_assistant": "inputs_embeds and shared_kv_states cannot be None: as gemma4_assistant",
    "musicgen": "'MusicgenConfig' object has no attribute 'dropout': tokens are codes of audio",
    "musicgen_melody": "'MusicgenMelodyConfig' object has no attribute 'dropout': as musicgen",
}
"""model_type that AutoModelForCausalLM lists -> what transformers says when it is built, or run on tokens alone."""
