"""config.json of the tiny models that are built from numbers; needs no torch, so the driver can write it at once."""

import json
from pathlib import Path

from actors.config import ModelConfig, ModelInit
from actors.models.hub_cache import located
from actors.models.tokenizer import tokenizer_for
from actors.models.tokenizer_files import save_tokenizer

_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM", "bert": "BertModel"}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def write_skeleton(model: ModelConfig, directory: Path) -> str:
    """Where trainer and engine find config.json and tokenizer: `model.path`, or `directory`, written for `model.init`.

    See `located` for the names of models of the hub.
    """
    if model.init is None:
        assert model.path is not None
        return located(model.path, model.revision)
    tokenizer = tokenizer_for(model)
    directory.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, directory)
    end, padding = (int(tokenizer.convert_tokens_to_ids(str(t))) for t in (tokenizer.eos_token, tokenizer.pad_token))  # type: ignore[arg-type]
    config = hf_config(model.init, model.dtype, len(tokenizer), end, padding)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return str(directory.absolute())


def vocabulary_size(init: ModelInit) -> int:
    """Tokens of the character tokenizer, which need not be built for it: the bytes of all characters, their beginnings,
    and the special ones."""
    encoded = [character.encode("utf-8", "surrogatepass") for character in init.alphabet]
    pieces = {byte.to_bytes() for each in encoded for byte in each}
    pieces |= {each[:end] for each in encoded for end in range(2, len(each) + 1)}
    # Padding, unknown, end and four roles; an encoder has a first token and a separator beside these.
    return len(pieces) + (9 if init.family == "bert" else 7)


def hf_config(init: ModelInit, dtype: str, vocabulary: int, eos: int, pad: int) -> dict[str, object]:
    """The Hugging Face configuration of a `model.init` model."""
    if init.family == "bert":
        return _bert_config(init, dtype, vocabulary, pad)
    return {
        "architectures": [_ARCHITECTURES[init.family]],
        "model_type": init.family,
        "hidden_size": init.hidden_size,
        "num_hidden_layers": init.layers,
        "num_attention_heads": init.heads,
        "num_key_value_heads": init.kv_heads or init.heads,
        "intermediate_size": init.intermediate_size or 4 * init.hidden_size,
        "max_position_embeddings": init.max_positions,
        # Not a token more: one without a text would be sampled, and nobody who reads the text could tell.
        "vocab_size": vocabulary,
        "tie_word_embeddings": init.tie_embeddings,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "bos_token_id": None,
        "rms_norm_eps": 1e-6,
        "dtype": _DTYPES[dtype],
    }


def _bert_config(init: ModelInit, dtype: str, vocabulary: int, pad: int) -> dict[str, object]:
    return {
        "architectures": [_ARCHITECTURES[init.family]],
        "model_type": init.family,
        "hidden_size": init.hidden_size,
        "num_hidden_layers": init.layers,
        "num_attention_heads": init.heads,
        "intermediate_size": init.intermediate_size or 4 * init.hidden_size,
        "max_position_embeddings": init.max_positions,
        "vocab_size": vocabulary,
        "pad_token_id": pad,
        # Models of this size have nothing to spare.
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": _DTYPES[dtype],
    }
