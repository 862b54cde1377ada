"""Exports: Hugging Face directories of trained models, written tensor by tensor."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from actors.files.readable import make_readable
from actors.models.as_source import copy_tokenizer, restore_settings
from actors.models.tensor_files import Meta, write_tensors

_INDEX = "model.safetensors.index.json"
SHARD_BYTES = 50 * 10**9
"""Of a file of weights, as transformers has it: larger models become several files and an index."""


def export_model(
    model: PreTrainedModel,
    metas: Sequence[Meta],
    tensors: Iterable[tuple[str, torch.Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a Hugging Face directory that `AutoModelForCausalLM.from_pretrained` loads: the new weights, with the
    settings of the directory that the model was loaded from.

    Args:
        model: of which class and settings are written, and no weights: those may be sharded.
        metas: of all its weights.
        tensors: the weights, one at a time; each may be gone when the next is asked for.
        tokenizer: see `copy_tokenizer`.
        directory: to be written to.
        shard_bytes: of a file of weights, at most, unless a single tensor has more.
    """
    scores = model.get_output_embeddings() is None
    if model.can_generate():
        # transformers refuses to write what many models come with, such as a temperature without sampling.
        model.generation_config = GenerationConfig()
    save_weights(model, metas, tensors, directory, shard_bytes)
    source = model.config.name_or_path or ""
    restore_settings(directory, source, scores=scores)
    copy_tokenizer(tokenizer, directory, source)
    make_readable(directory)


def save_weights(
    model: PreTrainedModel,
    metas: Sequence[Meta],
    tensors: Iterable[tuple[str, torch.Tensor]],
    directory: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """What `model.save_pretrained(directory, state_dict=...)` writes; see `export_model`."""
    model.save_pretrained(directory, state_dict={})  # the settings
    ignored: set[str] = set(model._keys_to_ignore_on_save or ())
    empty = {
        # Names and shapes alone: transformers says how the files would have them, before any weight is there.
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, dtype, shape in metas
        if name not in ignored
    }
    stored = revert_weight_conversion(model, empty)
    kept = ((name, tensor) for name, tensor in tensors if name not in ignored)
    split = split_torch_state_dict_into_shards(
        stored, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    files: dict[Path, Sequence[Meta]] = {
        directory / file: [(name, stored[name].dtype, tuple(stored[name].shape)) for name in names]
        for file, names in split.filename_to_tensors.items()
    }
    for name in ("model.safetensors", _INDEX):  # of an earlier export; transformers would read it first
        (directory / name).unlink(missing_ok=True)
    write_tensors(files, _as_stored(model, empty, stored, kept), {"format": "pt"})
    if split.is_sharded:
        parameters = sum(tensor.numel() for tensor in stored.values())
        index = {
            "metadata": {"total_parameters": parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (directory / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _as_stored(
    model: PreTrainedModel,
    empty: dict[str, torch.Tensor],
    stored: dict[str, torch.Tensor],
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as the files of this kind of model have them: some have other names there, or several for one."""
    found = [
        (new, tensor.shape)
        for name, each in empty.items()
        for new, tensor in revert_weight_conversion(model, {name: each}).items()
    ]
    if sorted(found) == sorted((name, tensor.shape) for name, tensor in stored.items()):
        for name, tensor in tensors:
            yield from revert_weight_conversion(model, {name: tensor}).items()
        return
    # Kinds of which several tensors are one in files: the whole model is needed at one time.
    # Copies: each of the tensors may be gone when the next is asked for.
    whole = {name: tensor.cpu().clone() for name, tensor in tensors}
    yield from revert_weight_conversion(model, whole).items()
