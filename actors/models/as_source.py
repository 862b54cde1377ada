"""The configuration of an export: that of its source, but for what training has changed. No torch."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from actors.models.hub_cache import TOKENIZER_FILES, has_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG, GENERATION = "config.json", "generation_config.json"
TEXT_FILES = (
    *TOKENIZER_FILES,
    *("merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
)
"""Of a tokenizer and its chat template."""
_LABELS = ("num_labels", "id2label", "label2id", "problem_type")
_DTYPES = ("dtype", "torch_dtype")


def restore_settings(directory: Path, source: str, *, scores: bool) -> None:
    """Give the model in `directory`, as transformers has just written it, the settings of `source`, field by field.

    Training runs without dropout and without a cache, and transformers renames settings; neither belongs to what was
    trained. Of the written config.json stay class, dtype and quantisation, and with `scores` (a model with a score
    head) the labels and the padding token. generation_config.json is the source's file, or none. Without a `source`
    (empty, or gone), all stays as it was written.
    """
    origin = Path(source)
    given, written = _read(origin / CONFIG) if source else {}, _read(directory / CONFIG)
    if not given or not written:
        return
    if given.get("model_type") == written.get("model_type"):
        settings = _merged(given, written, scores=scores)
    else:  # the text part of a larger model: the names are others
        changed = [name for name in written if name in given and (_is_dropout(name) or name == "use_cache")]
        settings = written | {name: given[name] for name in changed}
    (directory / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if (directory / GENERATION).is_file():
        (directory / GENERATION).unlink()
        if _is_part(origin / GENERATION):
            shutil.copyfile(origin / GENERATION, directory / GENERATION)
        elif found := _read(origin / GENERATION):
            from transformers import GenerationConfig

            known = GenerationConfig().to_dict()
            settings = {name: value for name, value in found.items() if name in known}
            (directory / GENERATION).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: Path, source: str) -> None:
    """Put a tokenizer beside a model: the files that it was loaded from, where that was `source`.

    Written anew they would differ: transformers names another class, and leaves out what it does not need itself.
    """
    files = [file for name in TEXT_FILES if (file := Path(source, name)).is_file()]
    known = source and Path(tokenizer.name_or_path or "/") == Path(source) and has_tokenizer(Path(source))
    if not known or not all(map(_is_part, files)):
        tokenizer.save_pretrained(directory)
        return
    for file in files:
        shutil.copyfile(file, directory / file.name)


def without_dropout(settings: dict[str, object]) -> list[str]:
    """Names of the settings that must be 0 for a model without dropout."""
    # Rates are floats; other settings may have the word in their names.
    return [name for name, value in settings.items() if _is_dropout(name) and isinstance(value, float)]


def _is_dropout(name: str) -> bool:
    return "dropout" in name or "pdrop" in name


def _is_part(file: Path) -> bool:
    """Whether a file may be copied as it is: an export can be uploaded, and a link could lead to anything. In the hub's
    cache, files are links to blobs beside the snapshot."""
    if not file.is_file():
        return False
    root, target = file.parent.resolve(), file.resolve()
    if root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs":
        return True
    return target.parent == root and target.name in (*TEXT_FILES, GENERATION)


def _merged(given: dict[str, object], written: dict[str, object], *, scores: bool) -> dict[str, object]:
    # A source's own code is not copied with it, nor is its quantisation where the weights are whole.
    ours = ["architectures", "transformers_version", "quantization_config", "auto_map"]
    ours += [*_LABELS, "pad_token_id"] if scores else []
    settings = {name: value for name, value in given.items() if name not in ours}
    settings |= {name: written[name] for name in ours if name in written}
    dtype = next((written[name] for name in _DTYPES if name in written), None)
    named = [name for name in _DTYPES if name in given] or _DTYPES[:1]
    return settings | (dict.fromkeys(named, dtype) if dtype else {})


def _read(file: Path) -> dict[str, object]:
    try:
        # Editors on Windows put a byte order mark first, which JSON does not allow.
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):  # it was there when the model was loaded
        return {}
    return found if isinstance(found, dict) else {}
