"""What an export says of conversations: its chat template, and the tokens that end an answer. No torch."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from actors.models.as_source import CONFIG, GENERATION, read_settings

_TOKENIZER = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_OTHER_TEMPLATES = ("chat_template.json", "additional_chat_templates")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """What training has taught about conversations, and the files of its source may not say.

    Example: ChatSettings(ends=[151645, 151643])
    """

    template: str | None = None
    """The chat template that rows were rendered with, where it is not that of the tokenizer."""
    ends: list[int] = field(default_factory=list)
    """Tokens that end an answer, the one that was learned first; none for a model that gives no answers."""


def write_chat_settings(directory: Path, chat: ChatSettings) -> None:
    """Write them into a model's directory; what says so already stays as it is, byte for byte."""
    if chat.template is not None:
        for name in _OTHER_TEMPLATES:
            _remove(directory / name)
        settings = read_settings(directory / _TOKENIZER)
        if settings.pop("chat_template", None) is not None:
            _write(directory / _TOKENIZER, settings)
        (directory / _TEMPLATE).write_text(chat.template, encoding="utf-8")
    if chat.ends:
        _write_ends(directory, chat.ends)


def _write_ends(directory: Path, ends: list[int]) -> None:
    config, file = read_settings(directory / CONFIG), directory / GENERATION
    settings = read_settings(file)
    if file.is_file() and not settings:  # what nobody can read is kept as it is, and told of
        return
    # transformers takes those of config.json where there is no generation_config.json.
    known = settings if "eos_token_id" in settings or file.is_file() else config
    given = known.get("eos_token_id")
    before = given if isinstance(given, list) else [given] if isinstance(given, int) else []
    if set(ends) <= set(before):
        return
    if not settings:
        settings = {name: config[name] for name in _TOKENS if config.get(name) is not None}
    _write(file, settings | {"eos_token_id": list(dict.fromkeys([*ends, *before]))})


def _remove(path: Path) -> None:
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    path.unlink(missing_ok=True)


def _write(file: Path, settings: dict[str, object]) -> None:
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
