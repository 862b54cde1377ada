"""Whether those who load an export's tokenizer read texts as the model was trained to: told, and mended if possible.

Training reads tokenizer.json as it is, as transformers 4 does. AutoTokenizer of transformers 5, and with it vLLM, takes
only the tokens and merges from there where the tokenizer's class has a constructor of its own, and splits texts as that
class does: LlamaTokenizer puts no space before what follows a special token, and none before one that is there.
tokenizer_config.json names the class, unless the kind of model decides, as qwen2 does.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.failure import reason_of
from actors.models.as_source import read_settings
from actors.models.tokenizer import fast_tokenizer
from actors.models.tokenizer_files import READ_BY_ALL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONFIG, _WHOLE = "tokenizer_config.json", "tokenizer.json"
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_INPUTS = ["input_ids", "attention_mask"]
"""transformers 4 would add token_type_ids, which models that generate refuse."""
_TEXTS = (
    *("the moon", " the moon", "  the", "the ", " ", "\nthe\n\n the\r\n\tthe", "the's IT'S 1234 12345", "a-b,c.(d) ~!"),
    *(
        "e\u0301\u00e9\ufb01\uff21",
        "\u6708\u4eae \u0939\u093f\u0928\u094d\u0926\u0940 \U0001f319",
        "TheMoon x_y a.b/c?d=1",
    ),
)
_MOST_SPECIAL = 16
"""Special tokens that are tried; some tokenizers have hundreds, all alike."""


def agree_with_readers(directory: Path, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Let AutoTokenizer of this transformers encode as `tokenizer` does, of which the files are in the export
    `directory`: by another class in tokenizer_config.json, only where it would not.

    Returns what has been changed, or cannot be, for whoever uses the export.
    """
    file, whole = directory / _CONFIG, directory / _WHOLE
    if not whole.is_file():  # then training has used AutoTokenizer, too
        return None
    reader = _reader(directory)
    difference = _difference(reader, tokenizer)
    if difference is None:
        return None
    before = file.read_bytes() if file.is_file() else None
    settings = read_settings(file)
    settings = _implied(reader, settings, tokenizer) | _of_pieces(settings, read_settings(whole))
    settings["tokenizer_class"] = READ_BY_ALL
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if _difference(_reader(directory), tokenizer) is None:
        return f"tokenizer_class of the export is {READ_BY_ALL}, as otherwise {difference}"
    file.unlink()
    if before is not None:
        file.write_bytes(before)
    return f"texts for the export must be encoded as its tokenizer.json says, but {difference}"


def _reader(directory: Path) -> Any:
    """The tokenizer that AutoTokenizer makes of a directory, or the reason why it cannot."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # each class has its own way not to be made
        return reason_of(error)


def _difference(reader: Any, tokenizer: Any) -> str | None:
    """How what `_reader` gives reads texts otherwise than `tokenizer` does; None: it does not."""
    from transformers import __version__

    if isinstance(reader, str):
        return f"transformers {__version__} cannot read it ({reader})"
    if type(reader) is fast_tokenizer():
        return None
    kind = f"{type(reader).__name__} of transformers {__version__}"
    for text in _texts(tokenizer):
        trained = tokenizer(text)["input_ids"]
        try:
            read = reader(text)["input_ids"]
        except Exception as error:  # the tokenizers' library has no other class for what it cannot encode
            return f"{kind} cannot read {text!r} ({reason_of(error)})"
        if read != trained or reader.decode(trained) != tokenizer.decode(trained):
            return f"{kind} reads {text!r} as {read}, and training as {trained}"
    return None


def _texts(tokenizer: Any) -> Iterator[str]:
    """Texts in which tokenizers differ: those without a token for what the model does not know."""
    special, unknown = tokenizer.all_special_tokens[:_MOST_SPECIAL], tokenizer.unk_token_id
    for text in (*_TEXTS, *(f"the{token}the{token} the{token}\nthe" for token in special)):
        if unknown is None or unknown not in tokenizer(text)["input_ids"]:
            yield text


def _implied(reader: Any, settings: dict[str, object], tokenizer: Any) -> dict[str, object]:
    """What a class says where tokenizer_config.json does not, as that must do without the class; of its tokens those
    that there are, as it would add others."""
    if isinstance(reader, str):
        return {"model_input_names": _INPUTS}
    tokens = {name: getattr(reader, name) for name in _TOKENS if name not in settings}
    vocabulary = tokenizer.get_vocab()
    kept = {name: token for name, token in tokens.items() if token in vocabulary}
    return {"model_input_names": reader.model_input_names, "padding_side": reader.padding_side} | kept


def _of_pieces(settings: dict[str, object], whole: dict[str, Any]) -> dict[str, object]:
    """Settings of a class that splits texts as tokenizer.json, whose content is `whole`, says."""
    pieces = whole.get("pre_tokenizer") or {}
    kept = {name: value for name, value in settings.items() if name != "add_prefix_space"}
    if pieces.get("type") != "ByteLevel":
        return kept
    # transformers 4 would make of it what this setting says, and without it False.
    return kept | {"add_prefix_space": pieces.get("add_prefix_space", True)}
