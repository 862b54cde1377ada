"""Rotary embeddings: the kinds of scaling, with an original length of 16 that sequences of 40 tokens exceed."""

from typing import Any

from tests.families.fields import FULL, SLIDING, Fields, decoder, rope

LONG: Fields = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 4.0, 6.0, 8.0]}
ORIGINAL: Fields = {"original_max_position_embeddings": 16}


def llama(kind: str, **fields: Any) -> Fields:
    """Llama with this scaling."""
    return decoder("llama", "LlamaForCausalLM", rope_parameters=rope(kind, **fields))


ROPES: dict[str, Fields] = {
    "llama3 rope": llama("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **ORIGINAL),
    "llama linear": llama("linear", factor=4.0),
    "llama yarn": llama("yarn", factor=4.0, **ORIGINAL),
    "llama yarn attention": llama("yarn", factor=4.0, attention_factor=1.5, beta_fast=16.0, beta_slow=2.0, **ORIGINAL),
    "llama yarn mscale": llama("yarn", factor=8.0, mscale=1.0, mscale_all_dim=0.5, truncate=False, **ORIGINAL),
    "llama dynamic ntk": llama("dynamic", factor=4.0) | {"max_position_embeddings": 16},
    "llama longrope": llama("longrope", factor=16.0, **LONG, **ORIGINAL),
    "llama old fields": decoder(
        "llama", "LlamaForCausalLM", rope_theta=5000.0, rope_scaling={"type": "linear", "factor": 2.0}
    ),
    "longrope phi3": decoder(
        "phi3", "Phi3ForCausalLM", **ORIGINAL, rope_parameters=rope("longrope", **LONG, **ORIGINAL)
    ),
    "longrope phi3 old fields": decoder(
        "phi3", "Phi3ForCausalLM", **ORIGINAL, rope_theta=10000.0, rope_scaling={"type": "longrope", **LONG}
    ),
    "qwen2 yarn": decoder("qwen2", "Qwen2ForCausalLM", rope_parameters=rope("yarn", factor=4.0, **ORIGINAL)),
    "qwen3 yarn": decoder(
        "qwen3", "Qwen3ForCausalLM", head_dim=16, rope_parameters=rope("yarn", factor=4.0, **ORIGINAL)
    ),
    "qwen3 dynamic": decoder(
        "qwen3",
        "Qwen3ForCausalLM",
        head_dim=16,
        max_position_embeddings=16,
        rope_parameters=rope("dynamic", factor=2.0),
    ),
    "gemma2 dynamic": decoder(
        "gemma2",
        "Gemma2ForCausalLM",
        head_dim=16,
        sliding_window=8,
        max_position_embeddings=16,
        attn_logit_softcapping=1.0,
        query_pre_attn_scalar=4,
        rope_parameters=rope("dynamic", factor=2.0),
    ),
    "hunyuan dynamic": decoder(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        head_dim=16,
        rope_parameters=rope("dynamic", factor=1.0, alpha=1000.0),
    ),
    "olmo3 yarn": decoder(
        "olmo3",
        "Olmo3ForCausalLM",
        sliding_window=8,
        layer_types=[SLIDING, FULL],
        rope_parameters={SLIDING: rope(), FULL: rope("yarn", factor=4.0, **ORIGINAL)},
    ),
    "smollm3 yarn": decoder(
        "smollm3", "SmolLM3ForCausalLM", no_rope_layers=[1, 0], rope_parameters=rope("yarn", factor=4.0, **ORIGINAL)
    ),
    "gpt_neox linear": decoder(
        "gpt_neox", "GPTNeoXForCausalLM", rope_parameters=rope("linear", factor=4.0, partial_rotary_factor=0.5)
    ),
}
