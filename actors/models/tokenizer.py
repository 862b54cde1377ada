"""Tokenizers: a character tokenizer built from an alphabet, or one loaded from a Hugging Face directory. No torch."""

import difflib
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import ModelConfig, UserError
from actors.failure import reason_of
from actors.models.hub_cache import (
    TOKENIZER_FILES,
    VOCABULARIES,
    has_tokenizer,
    has_vocabulary,
    is_hub_id,
    located,
    small_files,
    split_commit,
)
from actors.models.safetensors_header import not_a_file, what_instead
from actors.quick_import import quick_package_list

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

PAD, UNKNOWN, END = "<pad>", "<unk>", "<|end|>"
FIRST, SEPARATOR = "<|cls|>", "<|sep|>"
ROLES = ("system", "user", "assistant", "tool")

# One token opens a turn and one closes it, so that short tasks stay short; {% generation %} marks what the model says.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "{{ '<|' + message.role + '|>' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_char_tokenizer(alphabet: str) -> "PreTrainedTokenizerFast":
    """One token per character of `alphabet`, and special tokens for padding, unknown, end of turn and the roles.

    A turn costs two tokens beside its text: `<|user|>sort: dab<|end|>`. Decoding gives the encoded text back exactly.
    It is a byte-level BPE whose merges only join the bytes of one character: AutoTokenizer rebuilds the tokenizer of
    some families (qwen2 among them) as their own byte-level class whatever tokenizer.json says, and this form survives
    that with the same ids.

    Raises:
        UserError: when the alphabet is empty or holds a character twice.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if not alphabet:
        raise UserError("model.init.alphabet: must hold at least one character, got ''")
    twice = [character for character, count in Counter(alphabet).items() if count > 1]
    if twice:
        raise UserError(f"model.init.alphabet: must hold each character once, got {twice[0]!r} twice")
    pieces, merges = _byte_pieces(alphabet)
    roles = [f"<|{role}|>" for role in ROLES]
    vocabulary = {token: index for index, token in enumerate([PAD, UNKNOWN, END, *roles, *pieces])}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=True))
    # Split first, so that the fused unknown token stands for one character.
    split = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return fast_tokenizer()(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        extra_special_tokens=roles,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_pair_tokenizer(alphabet: str) -> "PreTrainedTokenizerFast":
    """The character tokenizer as encoders read it: `<|cls|>text<|sep|>`, and `<|cls|>query<|sep|>passage<|sep|>`.

    Raises UserError as build_char_tokenizer does.
    """
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_char_tokenizer(alphabet)
    tokenizer.add_special_tokens({"cls_token": FIRST, "sep_token": SEPARATOR})
    tokenizer.chat_template = None
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # otherwise it is not saved
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single=f"{FIRST} $A {SEPARATOR}",
        pair=f"{FIRST} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in (FIRST, SEPARATOR)],
    )
    return tokenizer


def load_tokenizer(path: str) -> "PreTrainedTokenizerFast":
    """The tokenizer of a Hugging Face directory or hub id; reads tokenizer.json as it is, without importing torch.

    Only a directory without tokenizer.json goes through AutoTokenizer, which converts it (and imports torch).

    Raises:
        UserError: when `path` is neither a directory with tokenizer files nor a hub id that can be read.
    """
    directory = Path(path)
    if not directory.is_dir():
        directory = _in_the_cache(path)
    if not has_tokenizer(directory):
        raise UserError(f"model.path: directory holds no tokenizer ({', '.join(TOKENIZER_FILES)}), got {path}")
    if fault := _damaged(directory):
        raise UserError(f"model.path: {fault}, got {path}")
    try:
        if (directory / "tokenizer.json").is_file():
            return fast_tokenizer().from_pretrained(str(directory), trust_remote_code=False)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain exceptions, and each file has its own way to be damaged
        raise UserError(f"model.path: tokenizer cannot be read ({reason_of(error)}), got {path}") from error


def _damaged(directory: Path) -> str | None:
    """What is wrong with a tokenizer's files, as far as their beginnings show; AutoTokenizer would take seconds."""
    whole = (directory / "tokenizer.json").is_file()  # other vocabularies are not read then
    for name in ("tokenizer_config.json", "tokenizer.json", *(() if whole else VOCABULARIES[1:])):
        file = directory / name
        if what := not_a_file(file):
            return f"{name} must be a file of the tokenizer, is {what}"
        if not file.is_file():
            continue
        with file.open("rb") as stream:
            begins = stream.read(200)
        if fault := _beginning_fault(name, begins, file.stat().st_size):
            return fault
    if whole or _of_bytes(directory):
        return None
    if not has_vocabulary(directory):
        there = "tokenizer_config.json alone holds no tokens"
        return f"directory must hold a tokenizer's vocabulary ({', '.join(VOCABULARIES)}), {there}"
    held = [name for name in VOCABULARIES if (directory / name).is_file()]
    others = any(next(directory.glob(pattern), None) for pattern in ("*merges*", "*.spm", "*.model"))
    if held == ["vocab.json"] and not others:
        return "directory must hold a whole tokenizer, vocab.json needs merges.txt beside it, which is not there"
    return None


def _beginning_fault(name: str, begins: bytes, size: int) -> str | None:
    """What is wrong with a file that begins so."""
    if what := what_instead(begins, size):
        return f"{name} must hold the tokenizer, {what}"
    # Behind a byte order mark, which some editors put first.
    start = begins.lstrip(b"\xef\xbb\xbf \t\r\n")
    if name.endswith(".json") and not start.startswith(b"{"):
        return f"{name} must hold a JSON object, {'is empty' if not start else 'holds something else'}"
    if name in VOCABULARIES and start.rstrip() == b"{}":
        return f"{name} must hold a tokenizer, holds {{}}"
    if name == "vocab.txt" and not start:
        return "vocab.txt must hold a token on each line, holds none"
    # A model of SentencePiece begins with the field of its pieces, one of tiktoken is lines of base64.
    if name == "tokenizer.model" and not begins.startswith(b"\x0a") and not begins.isascii():
        return "tokenizer.model must be of SentencePiece or tiktoken, holds something else"
    return None


def _of_bytes(directory: Path) -> bool:
    """Whether the tokenizer is of a kind that reads bytes or characters, which needs no vocabulary."""
    try:
        named = (directory / "tokenizer_config.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return bool(re.search(r'"tokenizer_class":\s*"(ByT5|Canine|Perceiver|Wav2Vec2\w*)Tokenizer', named))


def tokenizer_for(model: ModelConfig) -> "PreTrainedTokenizerFast":
    """The tokenizer of `model`: built from `init.alphabet`, or loaded from `path`.

    Raises:
        UserError: as build_char_tokenizer, load_tokenizer and with_chat_template do.
    """
    if model.init is not None:
        build = build_pair_tokenizer if model.init.family == "bert" else build_char_tokenizer
        return with_chat_template(build(model.init.alphabet), model)
    assert model.path is not None, "ModelConfig guarantees exactly one of path and init"
    path = located(model.path, model.revision) if is_hub_id(model.path) else model.path
    return with_chat_template(load_tokenizer(path), model)


def with_chat_template(tokenizer: "PreTrainedTokenizerFast", model: ModelConfig) -> "PreTrainedTokenizerFast":
    """The tokenizer with `model.chat_template`, where that is given; raises UserError as `chat_template_of` does."""
    if (template := chat_template_of(model)) is not None:
        tokenizer.chat_template = template
    return tokenizer


def chat_template_of(model: ModelConfig) -> str | None:
    """The text of the file `model.chat_template`, None where none is given.

    Raises:
        UserError: there is no such file, it is no text, or empty.
    """
    if model.chat_template is None:
        return None
    path = Path(model.chat_template)
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, 1)
        hint = f" (did you mean {path.parent / near[0]}?)" if near else ""
        raise UserError(f"model.chat_template: must be a file with a Jinja template, no such file{hint}, got {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"model.chat_template: must be a file of text, {reason}, got {path}") from None
    if not text.strip():
        raise UserError(f"model.chat_template: must hold a template, got an empty file {path}")
    return text


def fast_tokenizer() -> "type[PreTrainedTokenizerFast]":
    """The library's class, whose import takes most of a second."""
    with quick_package_list():
        from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast


def _byte_pieces(alphabet: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-level spellings of the characters and their byte prefixes, and the merges that build them."""
    from tokenizers.pre_tokenizers import ByteLevel

    spell = ByteLevel(add_prefix_space=False, use_regex=False)
    pieces: dict[str, None] = {}
    merges: dict[tuple[str, str], None] = {}
    for character in alphabet:
        spelling = spell.pre_tokenize_str(character)[0][0]
        pieces.update(dict.fromkeys(spelling))
        for end in range(2, len(spelling) + 1):
            pieces[spelling[:end]] = None
            merges[spelling[: end - 1], spelling[end - 1]] = None
    return list(pieces), list(merges)


def _in_the_cache(path: str) -> Path:
    """Directory with the tokenizer of a model of the hub, given by its id or as `located` names it."""
    name, commit = split_commit(path)
    if commit is None and not is_hub_id(path):
        raise UserError(f"model.path: no Hugging Face model directory{_nearest(Path(path))}, got {path}")
    return small_files(name, commit, "model.path")


def _nearest(directory: Path) -> str:
    if not directory.parent.is_dir():
        return ""
    siblings = [entry.name for entry in directory.parent.iterdir() if entry.is_dir()]
    near = difflib.get_close_matches(directory.name, siblings, 1)
    return f" (did you mean {directory.parent / near[0]}?)" if near else ""
