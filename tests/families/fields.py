"""Fields that tiny configurations share: what a config.json says of sizes, under the names that most families use."""

from typing import Any

Fields = dict[str, Any]
TOKENS: Fields = {"vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
LENGTHS: Fields = {"max_position_embeddings": 256}


def plain(model_type: str, architecture: str, **fields: Any) -> Fields:
    """A family with its own names for sizes: only tokens are given, and an initialisation with which logits differ."""
    first = {"model_type": model_type, "architectures": [architecture], "initializer_range": 0.2}
    return first | TOKENS | fields


def decoder(model_type: str, architecture: str, **fields: Any) -> Fields:
    """A decoder in the names of Llama: two layers, four heads, two heads of keys and values."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return plain(model_type, architecture, **(sizes | heads | LENGTHS | fields))


def rope(kind: str = "default", theta: float = 10000.0, **fields: Any) -> Fields:
    """Value of `rope_parameters`."""
    return {"rope_type": kind, "rope_theta": theta, **fields}
