"""What an adapter's directory holds beside its weights: the tokenizer with its chat template, and what ends answers."""

import shutil
from pathlib import Path

from actors.models.as_source import GENERATION, is_own, restore_settings
from actors.models.hub_cache import has_vocabulary
from actors.models.tokenizer import load_tokenizer
from actors.models.tokenizer_files import copy_tokenizer, files_of


def write_adapter_settings(directory: Path, export: Path) -> None:
    """Give an adapter's directory those files of the export that its base may have otherwise: whoever loads base and
    adapter takes the tokenizer of the latter, as TRL writes it, and may take its generation_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in [*files_of(export), export / GENERATION]:
        if file.is_file():
            target = directory / file.relative_to(export)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def settings_of_merged(directory: Path, base: str, output: Path, *, scores: bool) -> None:
    """Write beside a merged model in `output` what its base has; the tokenizer and generation_config.json are those of
    the adapter's `directory` where it has them. `scores`: see `restore_settings`."""
    restore_settings(output, base, scores=scores)
    if is_own(directory / GENERATION, directory, [GENERATION]):
        shutil.copyfile(directory / GENERATION, output / GENERATION)
    tokenizer = str(directory) if has_vocabulary(directory) else base
    copy_tokenizer(load_tokenizer(tokenizer), output, tokenizer)
