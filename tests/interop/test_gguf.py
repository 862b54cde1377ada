"""The gguf package, by which converters to llama.cpp's files read a model's directory, finds in an export what it finds
in its source; written as such a file, the export computes the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.interop.agreement import read
from tests.interop.test_transformers_4 import FAST, WAYS

gguf = pytest.importorskip("gguf", reason="needs the package gguf, of requirements/interop.txt")

NAMES = [kind + way for kind in FAST for way in WAYS]
every = pytest.mark.parametrize("name", NAMES)


def vocabulary(directory: Path) -> list[tuple[bytes, float, Any]]:
    """Tokens, scores and types; as bytes, or with a space of their own as SentencePiece has them."""
    try:
        return list(gguf.BpeVocab(directory).all_tokens())
    except FileNotFoundError:  # what it says of another kind of tokenizer
        return list(gguf.LlamaHfVocab(directory).all_tokens())


def specials(directory: Path) -> dict[str, Any]:
    """Merges, tokens that begin and end texts, whether they are added, and the chat template."""
    return vars(gguf.SpecialVocab(directory, load_merges=True))


@every
def test_a_converter_reads_of_an_export_what_it_reads_of_its_source(name: str, exports: Path) -> None:
    source = Path(read(exports / name, "expected")["source"])
    found = vocabulary(exports / name)
    assert found == vocabulary(source)
    assert len(found) == AutoConfig.from_pretrained(exports / name).vocab_size
    assert {kind.name for _, _, kind in found} >= {"NORMAL"}
    given = specials(exports / name)
    assert given == specials(source)
    assert given["merges"] and "eos" in given["special_token_ids"]
    assert (given["chat_template"] is None) == (name.partition("-")[0] == "gpt2")


@pytest.mark.parametrize("kind", ["llama", "plain"])
def test_a_converter_adds_a_first_token_where_training_does(kind: str, exports: Path) -> None:
    """By tokenizer.json, or by add_bos_token: both say the same of an export."""
    first = next(iter(read(exports / kind, "expected")["ids"].values()))[0]
    given = specials(exports / kind)
    assert given["add_special_token"]["bos"] is True
    assert given["special_token_ids"]["bos"] == first


@pytest.mark.parametrize("name", ["llama", "llama-merged", "plain", "qwen2", "qwen2-merged"])
def test_an_export_as_a_file_of_llama_cpp_computes_the_same(name: str, exports: Path, tmp_path: Path) -> None:
    expected = read(exports / name, "expected")
    _write(exports / name, tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = next(iter(expected["ids"].values()))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), atol=1e-5, rtol=1e-5)
    if name.startswith("qwen2"):  # of other files transformers makes a tokenizer by the scores of their pieces
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
        assert {text: tokenizer(text).input_ids for text in expected["ids"]} == expected["ids"]


def _write(export: Path, file: Path) -> None:
    """As a converter does it: tensors by their names there, settings by its keys, and the tokenizer."""
    config = AutoConfig.from_pretrained(export)
    architecture = gguf.MODEL_ARCH[config.model_type.upper()]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    tokens, scores, types = zip(*vocabulary(export), strict=True)
    writer.add_tokenizer_model("llama" if gguf.TokenType.BYTE in types else "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    gguf.SpecialVocab(export, load_merges=True).add_to_gguf(writer, quiet=True)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in load_file(export / "model.safetensors").items():
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # There, the two halves that are rotated with one another alternate.
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1)
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
