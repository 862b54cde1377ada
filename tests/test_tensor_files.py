"""Exports that are written tensor by tensor are what transformers and safetensors write of the whole model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from actors.models.export import save_weights
from actors.models.tensor_files import read_tensor, unread_tensors, write_tensors
from tests.weights import weights_of

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "bf16": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)).bfloat16(),
    "conv": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)),
    "experts": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3)),
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("size", [10**9, 3000])
@pytest.mark.parametrize("name", MODELS)
def test_an_export_is_that_of_transformers(name: str, size: int, loaded: bool, tmp_path: Path) -> None:
    """Byte for byte, in one file or several with their index, of a new model and of one that was loaded.

    Experts, of which transformers keeps all that were one tensor in a file, may be divided over more files.
    """
    model: Any = MODELS[name]()
    if loaded:
        model.save_pretrained(tmp_path / "source")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    expected, found = tmp_path / "expected", tmp_path / "found"
    state = {each: tensor.clone() for each, tensor in weights_of(model)[1]}
    model.save_pretrained(expected, state_dict=state, max_shard_size=size)
    model.save_pretrained(found, state_dict={})  # what stands beside weights
    save_weights(model, *weights_of(model), found, size)
    names = {path.name for path in expected.iterdir()}
    if name == "experts" and size < 10**9:
        assert_same(found, expected)
        return
    assert {path.name for path in found.iterdir()} == names
    assert ("model.safetensors" in names) == (size == 10**9)
    for each in names:
        assert (found / each).read_bytes() == (expected / each).read_bytes(), each


def assert_same(found: Path, expected: Path) -> None:
    files = [sorted(directory.glob("*.safetensors")) for directory in (found, expected)]
    first, second = ({n: t for file in each for n, t in load_file(file).items()} for each in files)
    assert (
        first.keys()
        == second.keys()
        == json.loads((found / "model.safetensors.index.json").read_text())["weight_map"].keys()
    )
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_each_tensor_may_be_gone_when_the_next_comes(tmp_path: Path) -> None:
    """Nothing of an export waits for the end: one buffer serves all tensors."""
    model = MODELS["llama"]()
    metas, tensors = weights_of(model)
    expected = {name: tensor.clone() for name, tensor in weights_of(model)[1]}
    buffer = torch.empty(10_000)

    def reused() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            view = buffer[: tensor.numel()].view(tensor.shape)
            view.copy_(tensor)
            yield name, view

    save_weights(model, metas, reused(), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_an_earlier_export_left_is_not_loaded(tmp_path: Path) -> None:
    """Neither a single file beside new ones, nor an index that names others."""
    first, second = MODELS["llama"](), MODELS["llama"]()
    for size in (10**9, 3000, 2000, 10**9):
        for model in (first, second):
            model.save_pretrained(tmp_path, state_dict={})
            save_weights(model, *weights_of(model), tmp_path, size)
            again = AutoModelForCausalLM.from_pretrained(tmp_path)
            assert torch.equal(again.lm_head.weight, model.lm_head.weight)


TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor(3.5),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "whole": torch.arange(5),
    'name "ä"': torch.tensor([True, False]),
}


def test_a_file_is_that_of_safetensors(tmp_path: Path) -> None:
    metas = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]
    for metadata in (None, {"format": "pt"}):
        save_file(TENSORS, tmp_path / "expected", metadata=metadata)
        write_tensors({tmp_path / "found": metas}, reversed(TENSORS.items()), metadata)
        assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()
    for name, tensor in TENSORS.items():
        assert torch.equal(read_tensor(tmp_path / "found", name), tensor)


def test_a_tensor_that_never_came_is_noticed(tmp_path: Path) -> None:
    metas = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]
    with pytest.raises(ValueError, match=r"^nothing was given for a, b of 6 tensors$"):
        write_tensors({tmp_path / "found": metas}, list(TENSORS.items())[2:], None)


def test_only_the_rank_that_reads_reads(tmp_path: Path) -> None:
    """The others have room for what will be sent; after the headers, the files may be gone."""
    model = MODELS["llama"]()
    model.save_pretrained(tmp_path, max_shard_size=3000)
    found = {reads: unread_tensors(str(tmp_path), reads=reads) for reads in (True, False)}
    assert found[True] and found[False] and found[True].keys() == found[False].keys()
    state = dict(weights_of(model)[1])
    assert all(torch.equal(tensor[...], state[name]) for name, tensor in found[True].items())
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    for name, tensor in found[False].items():
        assert (tensor[...].shape, tensor[...].dtype) == (state[name].shape, state[name].dtype)
    with pytest.raises(FileNotFoundError):
        found[True]["lm_head.weight"][...]


def test_other_files_are_not_for_us(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert unread_tensors(str(tmp_path), reads=True) is None
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ValueError, match=r"gone\.safetensors is not there"):
        unread_tensors(str(tmp_path), reads=True)
