"""Tokenizers as transformers 4 writes them, in their four usual kinds, each beside a tiny model with weights.

What is trained from them must be read by transformers 4 again: its classes have other names than those of 5, and its
slow tokenizers other files.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "n")]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ("the one", " the moon", "a\nb  c", "x<|im_end|>y", "\u00fcber")
Files = dict[str, str]


def llama(directory: Path) -> dict[str, Any]:
    """LlamaTokenizerFast: pieces with a space of their own, a first token that add_bos_token asks for, chat template
    in tokenizer_config.json, SentencePiece's file beside; returns fields of config.json."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"thenoma", "th", "the"]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "\u2581the"])}
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
    )
    special = ("<unk>", "<s>", "</s>")
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "sp_model_kwargs": {},
        "use_default_system_prompt": False,
        "tokenizer_class": "LlamaTokenizer",
        "chat_template": TEMPLATE,
    }
    _write(directory, backend, special, settings | _named("<s>", "</s>", "<unk>"))
    (directory / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    _special_map(directory, {"bos_token": _token("<s>"), "eos_token": _token("</s>"), "unk_token": _token("<unk>")})
    return {"model_type": "llama", "vocab_size": len(vocabulary), "bos_token_id": 1, "eos_token_id": 2}


def qwen2(directory: Path) -> dict[str, Any]:
    """Qwen2Tokenizer: bytes, vocab.json and merges.txt, two more special tokens, no first token."""
    backend, vocabulary = _of_bytes(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.normalizer = normalizers.NFC()
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": TEMPLATE,
        "errors": "replace",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    named = _named(None, "<|im_end|>", None) | {"pad_token": "<|endoftext|>"}
    _write(directory, backend, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), settings | named)
    _slow(directory, vocabulary, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    end = len(vocabulary) + 2
    return {"model_type": "qwen2", "vocab_size": len(vocabulary) + 3, "bos_token_id": None, "eos_token_id": end}


def plain(directory: Path) -> dict[str, Any]:
    """PreTrainedTokenizerFast, as of Llama 3: tokenizer.json says all, a first token included."""
    backend, vocabulary = _of_bytes(["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"])
    first = len(vocabulary)
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair=None, special_tokens=[("<|begin_of_text|>", first)]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    settings = {"model_input_names": ["input_ids", "attention_mask"], "tokenizer_class": "PreTrainedTokenizerFast"}
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")
    _write(directory, backend, special, settings | _named("<|begin_of_text|>", "<|im_end|>", None))
    # Where transformers 4 puts it from 4.52 on.
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    _special_map(directory, {"bos_token": _token("<|begin_of_text|>"), "eos_token": _token("<|im_end|>")})
    size = {"vocab_size": first + 4, "bos_token_id": first, "eos_token_id": first + 3}
    return {"model_type": "llama", **size}


def gpt2(directory: Path) -> dict[str, Any]:
    """GPT2Tokenizer: one special token for all, a model of another family."""
    backend, vocabulary = _of_bytes(["<|endoftext|>"])
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "errors": "replace",
        "model_max_length": 64,
        "tokenizer_class": "GPT2Tokenizer",
    }
    end = "<|endoftext|>"
    _write(directory, backend, (end,), settings | _named(end, end, end))
    _slow(directory, vocabulary, [end])
    _special_map(directory, {"bos_token": end, "eos_token": end, "unk_token": end})
    size = len(vocabulary) + 1
    return {"model_type": "gpt2", "vocab_size": size, "bos_token_id": size - 1, "eos_token_id": size - 1}


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {"llama": llama, "qwen2": qwen2, "plain": plain, "gpt2": gpt2}
"""Name -> what writes a tokenizer's files into a directory."""


def _of_bytes(special: list[str]) -> tuple[Tokenizer, dict[str, int]]:
    vocabulary = {piece: index for index, piece in enumerate([*BYTES, *(a + b for a, b in MERGES)])}
    backend = Tokenizer(models.BPE(vocabulary, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return backend, vocabulary


def _named(first: str | None, end: str, unknown: str | None) -> dict[str, object]:
    return {"bos_token": first, "eos_token": end, "unk_token": unknown, "clean_up_tokenization_spaces": False}


def _token(text: str) -> dict[str, object]:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def _write(directory: Path, backend: Tokenizer, special: tuple[str, ...], settings: dict[str, object]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.save(str(directory / "tokenizer.json"))
    known = {str(backend.token_to_id(token)): _token(token) | {"special": True} for token in special}
    # Without its closing newline, and in another order than transformers 5 would have it.
    text = json.dumps({"added_tokens_decoder": known, "model_max_length": 1024} | settings, indent=4)
    (directory / "tokenizer_config.json").write_text(text)


def _special_map(directory: Path, tokens: dict[str, object]) -> None:
    (directory / "special_tokens_map.json").write_text(json.dumps(tokens, indent=2))


def _slow(directory: Path, vocabulary: dict[str, int], special: list[str]) -> None:
    added = {token: len(vocabulary) + index for index, token in enumerate(special)}
    (directory / "added_tokens.json").write_text(json.dumps(added))
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))


def with_model(kind: str, directory: Path, **wanted: int) -> Path:
    """A directory with such a tokenizer, weights, and a generation_config.json that transformers 5 does not write.
    Sizes of Llama's names may be other ones."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    fields = KINDS[kind](directory)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 5000.0}
    sizes |= wanted
    if fields["model_type"] == "gpt2":
        sizes = {"n_embd": sizes["hidden_size"], "n_layer": 1, "n_head": 2, "n_positions": 64}
    (directory / "config.json").write_text(json.dumps(fields | sizes | {"torch_dtype": "float32"}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    model.generation_config = GenerationConfig()
    model.save_pretrained(directory)
    named = {"architectures": [type(model).__name__], "transformers_version": "4.46.0"}
    (directory / "config.json").write_text(json.dumps(fields | sizes | named | {"torch_dtype": "float32"}))
    values = {"eos_token_id": fields["eos_token_id"], "temperature": 0.6, "top_p": 0.9, "do_sample": False}
    (directory / "generation_config.json").write_text(json.dumps(values))
    return directory
