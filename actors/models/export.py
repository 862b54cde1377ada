"""Exports: Hugging Face directories of trained models, written tensor by tensor."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from actors.files.readable import make_readable
from actors.models.as_source import restore_settings
from actors.models.chat_settings import ChatSettings, write_chat_settings
from actors.models.tensor_files import Meta, write_tensors
from actors.models.tokenizer_files import copy_tokenizer
from actors.models.tokenizer_readers import agree_with_readers

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
    export_settings(model, metas, tokenizer, directory)
    export_weights(model, metas, tensors, directory, shard_bytes)


def export_weights(
    model: PreTrainedModel,
    metas: Sequence[Meta],
    tensors: Iterable[tuple[str, torch.Tensor]],
    directory: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Add to what `export_settings` has written what is left of `export_model`."""
    save_weights(model, metas, tensors, directory, shard_bytes)
    make_readable(directory)


def export_settings(
    model: PreTrainedModel,
    metas: Sequence[Meta],
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    chat: ChatSettings | None = None,
) -> str | None:
    """All of `export_model` but the weights, of which it is only found out how files would have them.

    Returns what `agree_with_readers` has to tell.
    """
    save_settings(model, directory)
    source = model.config.name_or_path or ""
    restore_settings(directory, source, scores=model.get_output_embeddings() is None)
    copy_tokenizer(tokenizer, directory, source)
    if chat:
        write_chat_settings(directory, chat)
    note = agree_with_readers(directory, tokenizer)
    planned_files(model, metas)
    make_readable(directory)
    return note


def save_settings(model: PreTrainedModel, directory: Path) -> None:
    """What `model.save_pretrained` writes beside weights."""
    if model.can_generate():
        # transformers refuses to write what many models come with, such as a temperature without sampling.
        model.generation_config = GenerationConfig()
    model.save_pretrained(directory, state_dict={})


def planned_files(
    model: PreTrainedModel, metas: Sequence[Meta], shard_bytes: int = SHARD_BYTES
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], StateDictSplit]:
    """How files would have a model's weights, which need not be there: the weights by their names in the model and by
    those in files, both without values, and what is to be in each file."""
    ignored: set[str] = set(model._keys_to_ignore_on_save or ())
    empty = {
        # Names and shapes alone: transformers says how the files would have them, before any weight is there.
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, dtype, shape in metas
        if name not in ignored
    }
    stored = revert_weight_conversion(model, empty)
    split = split_torch_state_dict_into_shards(
        stored, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    return empty, stored, split


def save_weights(
    model: PreTrainedModel,
    metas: Sequence[Meta],
    tensors: Iterable[tuple[str, torch.Tensor]],
    directory: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """The weights that `model.save_pretrained(directory, state_dict=...)` writes; see `export_model`."""
    empty, stored, split = planned_files(model, metas, shard_bytes)
    kept = ((name, tensor) for name, tensor in tensors if name in empty)
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
