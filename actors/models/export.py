"""Exports: Hugging Face directories of trained models, written tensor by tensor."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from actors.files.readable import make_readable
from actors.models.as_source import restore_settings
from actors.models.as_stored import as_stored, metas_as_stored
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
) -> tuple[list[Meta], StateDictSplit]:
    """How files would have a model's weights, which need not be there: the tensors by their names in files, and what is
    to be in each file."""
    stored = metas_as_stored(model, metas, sort=True)
    empty = {name: torch.empty(shape, dtype=dtype, device="meta") for name, dtype, shape in stored}
    split = split_torch_state_dict_into_shards(
        empty, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    return stored, split


def save_weights(
    model: PreTrainedModel,
    metas: Sequence[Meta],
    tensors: Iterable[tuple[str, torch.Tensor]],
    directory: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """The weights that `model.save_pretrained(directory, state_dict=...)` writes; see `export_model`."""
    stored, split = planned_files(model, metas, shard_bytes)
    by_name = {meta[0]: meta for meta in stored}
    files: dict[Path, Sequence[Meta]] = {
        directory / file: [by_name[name] for name in names] for file, names in split.filename_to_tensors.items()
    }
    for name in ("model.safetensors", _INDEX):  # of an earlier export; transformers would read it first
        (directory / name).unlink(missing_ok=True)
    write_tensors(files, as_stored(model, [name for name, _, _ in metas], tensors), {"format": "pt"})
    if split.is_sharded:
        parameters = sum(math.prod(shape) for _, _, shape in stored)
        index = {
            "metadata": {"total_parameters": parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (directory / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
