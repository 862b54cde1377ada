"""A tokenizer's files beside an exported model: those that it was loaded from, byte by byte. No torch.

Written anew they would differ: transformers 5 calls most tokenizers TokenizersBackend, a class that transformers 4 and
what is built on it do not have, and leaves out what it does not need itself, such as add_bos_token and the vocabularies
of other libraries. What is changed all the same:

    tokenizer.json           of a reranker whose tokenizer had no border between two texts
    model_max_length         of an embedding model or reranker that reads fewer tokens than before
    padding_side             of one whose tokenizer padded on the left: it is trained with padding on the right
    auto_map                 is left out: a source's own code is not copied
    files that are links     are written anew where they lead out of the source
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from actors.models.as_source import is_own, read_settings
from actors.models.hub_cache import FURTHER_VOCABULARIES, TOKENIZER_FILES, has_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONFIG = "tokenizer_config.json"
_FILES = (
    *TOKENIZER_FILES,
    *("merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
    *FURTHER_VOCABULARIES,
    "additional_chat_templates/*.jinja",
)
READ_BY_ALL = "PreTrainedTokenizerFast"
"""The class of both versions of transformers that reads tokenizer.json as it is."""


def copy_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: Path, source: str) -> None:
    """Put a tokenizer beside a model: the files that it was loaded from, where that was `source`."""
    files = files_of(Path(source)) if source and Path(tokenizer.name_or_path or "/") == Path(source) else []
    if not files or not all(is_own(file, Path(source), _FILES) for file in files):
        save_tokenizer(tokenizer, directory)
        _keep_class(directory, Path(source) if files else None)
    for file in files:
        if is_own(file, Path(source), _FILES):
            _copy(file, directory / file.relative_to(source))


def restore_tokenizer(directory: Path, source: str, *, changed: bool, turned: bool = False) -> None:
    """Give a tokenizer that transformers has just written to `directory` the files of `source` again.

    Args:
        directory: of the tokenizer alone, or of a model with it.
        source: that it was loaded from; empty, or gone: there was none.
        changed: whether it encodes otherwise than its source: it stays as it was written.
        turned: whether it pads on the other side than its source.
    """
    files = files_of(Path(source)) if source and has_vocabulary(Path(source)) else []
    if changed or not files or not all(is_own(file, Path(source), _FILES) for file in files):
        _in_words_of_all(directory)
        return
    written = read_settings(directory / _CONFIG)
    kept = {name: written[name] for name in ("model_max_length", *["padding_side"] * turned) if written.get(name)}
    for file in files_of(directory):
        file.unlink()
    for file in files:
        _copy(file, directory / file.relative_to(source))
    given = read_settings(directory / _CONFIG)
    if any(given.get(name) != value for name, value in kept.items()):
        _write(directory / _CONFIG, given | kept)


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """`tokenizer.save_pretrained(directory)`, with names that transformers 4 knows, too."""
    tokenizer.save_pretrained(directory)
    _in_words_of_all(directory)


def files_of(directory: Path) -> list[Path]:
    """The files of a tokenizer and its chat templates that are in a directory."""
    return sorted({file for pattern in _FILES for file in directory.glob(pattern) if file.is_file()})


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, target)
    settings = read_settings(target) if target.name == _CONFIG else {}
    if "auto_map" in settings:
        del settings["auto_map"]
        # Of its own code, the class is not there; what was trained with is tokenizer.json as it is.
        known = {"tokenizer_class": READ_BY_ALL} if (file.parent / "tokenizer.json").is_file() else {}
        _write(target, settings | known)


def _in_words_of_all(directory: Path) -> None:
    """Say what transformers 5 writes so that 4 reads it: a class, its inputs, and a list where 4 has a dictionary."""
    settings = read_settings(directory / _CONFIG)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        # The class of 4 has token_type_ids, too, which models that generate refuse.
        settings = {"model_input_names": ["input_ids", "attention_mask"]} | settings
        settings["tokenizer_class"] = READ_BY_ALL
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if settings:
        _write(directory / _CONFIG, settings)


def _keep_class(directory: Path, source: Path | None) -> None:
    """Add to a tokenizer written anew what only its source says, and transformers 4 asks for."""
    given = read_settings(source / _CONFIG) if source else {}
    names = () if "auto_map" in given else ("tokenizer_class", "add_bos_token", "add_eos_token")
    kept = {name: given[name] for name in names if name in given}
    if kept:
        _write(directory / _CONFIG, read_settings(directory / _CONFIG) | kept)


def _write(file: Path, settings: dict[str, object]) -> None:
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
