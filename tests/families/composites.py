"""Models of several parts, of which the causal one is trained on text: their config.json holds one for each part."""

from typing import Any

from tests.families.dense import DENSE
from tests.families.experts import EXPERTS
from tests.families.fields import TOKENS, Fields, decoder
from tests.families.hybrids import HYBRIDS

VISION: Fields = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


def of_parts(model_type: str, architecture: str, text: Fields, **fields: Any) -> Fields:
    """A composite with this text model."""
    part = {name: value for name, value in text.items() if name != "architectures"}
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "text_config": part,
        "initializer_range": 0.2,
    } | fields


QWEN_VISION: Fields = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "depth": 1,
    "num_heads": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "patch_size": 4,
}
GEMMA4_VISION: Fields = VISION | {"num_key_value_heads": 4, "head_dim": 8, "position_embedding_size": 16}

SIZES: Fields = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
BYTES: Fields = SIZES | {"vocab_size": 128}

COMPOSITES: dict[str, Fields] = {
    "gemma3 with vision": of_parts(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        DENSE["gemma3"],
        vision_config=VISION | {"image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=125,
        boi_token_index=126,
        eoi_token_index=127,
    ),
    "gemma4 with vision": of_parts(
        "gemma4",
        "Gemma4ForConditionalGeneration",
        DENSE["gemma4 text"],
        vision_config=GEMMA4_VISION,
        audio_config=None,
        image_token_id=125,
        boi_token_id=126,
        eoi_token_id=127,
        video_token_id=124,
        audio_token_id=123,
        boa_token_id=122,
        eoa_token_index=121,
    ),
    "llama4 with vision": of_parts(
        "llama4",
        "Llama4ForConditionalGeneration",
        EXPERTS["llama4 text"],
        vision_config=VISION | {"image_size": 56, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32},
    ),
    "qwen3_5 with vision": of_parts(
        "qwen3_5", "Qwen3_5ForConditionalGeneration", HYBRIDS["qwen3_5 text"], vision_config=QWEN_VISION
    ),
    "qwen3_5_moe with vision": of_parts(
        "qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", HYBRIDS["qwen3_5_moe text"], vision_config=QWEN_VISION
    ),
    "qwen4_exp with vision": of_parts(
        "qwen4_exp", "Qwen4ExpForConditionalGeneration", HYBRIDS["qwen4_exp text"], vision_config=QWEN_VISION
    ),
    "mllama": of_parts(
        "mllama",
        "MllamaForConditionalGeneration",
        decoder(
            "mllama_text_model",
            "MllamaForCausalLM",
            num_hidden_layers=3,
            cross_attention_layers=[1],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 28,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [0],
        },
    ),
    "fuyu": decoder(
        "fuyu",
        "FuyuForCausalLM",
        image_size=16,
        patch_size=4,
        image_token_id=125,
        text_config={name: value for name, value in DENSE["persimmon"].items() if name != "architectures"},
    ),
    "got_ocr2": of_parts(
        "got_ocr2",
        "GotOcr2ForConditionalGeneration",
        DENSE["qwen2"],
        image_token_index=125,
        vision_config={
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 64,
            "mlp_dim": 48,
            "global_attn_indexes": [0],
        },
    ),
    "phi4_multimodal": decoder(
        "phi4_multimodal",
        "Phi4MultimodalForCausalLM",
        image_token_id=125,
        vision_config=VISION | {"image_size": 28, "crop_size": 28, "image_token_id": 125},
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_blocks": 1,
            "num_attention_heads": 4,
            "audio_token_id": 124,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 16,
        },
    ),
    "moshi": decoder("moshi", "MoshiForCausalLM", head_dim=8, ffn_dim=64, sliding_window=16),
    "gemma4_unified with vision": of_parts(
        "gemma4_unified",
        "Gemma4UnifiedForConditionalGeneration",
        DENSE["gemma4_unified text"],
        vision_config={
            "patch_size": 4,
            "pooling_kernel_size": 1,
            "mm_embed_dim": 32,
            "mm_posemb_size": 16,
            "output_proj_dims": 32,
        },
        audio_config=None,
        image_token_id=125,
        boi_token_id=126,
        eoi_token_id=127,
        video_token_id=124,
        audio_token_id=123,
        boa_token_id=122,
        eoa_token_index=121,
    ),
    "blt": {
        "model_type": "blt",
        "architectures": ["BltForCausalLM"],
        **TOKENS,
        "initializer_range": 0.2,
        "max_position_embeddings": 256,
        "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_size": [3, 4],
        "patching_threshold": 4.4,
        "patcher_config": BYTES,
        "encoder_config": BYTES | {"hidden_size_global": 64},
        "decoder_config": BYTES | {"hidden_size_global": 64},
        "global_config": SIZES | {"hidden_size": 64},
    },
}
