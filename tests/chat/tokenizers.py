"""Small tokenizers of the kinds that models with chat templates have: a few merges, and a style's special tokens.

A merge may join what a template writes with what is said (a line break with the next one, a space with a word), as the
merges of large vocabularies do: that is what makes borders of turns hard to find.
"""

import functools
import itertools
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from tests.chat.style import ChatStyle

_SPACE, _BREAK, _PIECE = "Ġ", "Ċ", "▁"
_WORDS = ("the", "is", "user", "assistant", "answer", "sun", "yes", "no")
_SPLIT = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""Words with the sign before them, and line breaks with the signs or spaces before them, in one piece each."""


def _merges(space: str) -> list[tuple[str, str]]:
    """For each word, letter by letter from its beginning, and the space before it."""
    found: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        for end in range(1, len(word)):
            found[word[:end], word[end]] = None
        found[space, word] = None
    return list(found)


def _of_bytes(*, ignore_merges: bool = False) -> Tokenizer:
    """Byte-level BPE; line breaks merge with each other, and with a sign before them."""
    merges = [*_merges(_SPACE), (_BREAK, _BREAK), (".", _BREAK), (">", _BREAK), (_SPACE, _SPACE), (":", _BREAK)]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    if ignore_merges:
        # A word that no merge builds: it is one token only where it stands as a whole.
        pieces.append(_SPACE + "moon")
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    backend.pre_tokenizer = _any(
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    )
    backend.decoder = _any(decoders.ByteLevel())
    return backend


def _of_pieces(more: Sequence[tuple[str, str]] = ()) -> Tokenizer:
    """BPE over characters with bytes for all others, as SentencePiece makes it; without what treats spaces."""
    merges, letters = [*_merges(_PIECE), (_PIECE, _PIECE), *more], string.ascii_letters
    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        _PIECE,
        "\n",
        *letters,
        *"[]{}():,.\"'/<>?!",
    ]
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def _bytes(_: ChatStyle) -> Tokenizer:
    """As of GPT-2 and Qwen: no first token, texts in their composed form."""
    backend = _of_bytes()
    backend.normalizer = _any(normalizers.NFC())
    backend.post_processor = _any(processors.ByteLevel(trim_offsets=False))
    return backend


def _llama3(_: ChatStyle) -> Tokenizer:
    """As of Llama 3: whole words before merges."""
    return _of_bytes(ignore_merges=True)


def _llama2(_: ChatStyle) -> Tokenizer:
    """As of Llama 2: a space of its own before the text, which decoding takes away again."""
    backend = _of_pieces()
    backend.pre_tokenizer = _any(pre_tokenizers.Metaspace(replacement=_PIECE, prepend_scheme="first", split=False))
    backend.decoder = _any(
        decoders.Sequence(
            [decoders.Replace(_PIECE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    )
    return backend


def _gemma(_: ChatStyle) -> Tokenizer:
    """As of Gemma: spaces as pieces, and none that the text has not."""
    backend = _of_pieces([("\n", "\n"), ("\n", "\n\n")])
    backend.normalizer = _any(normalizers.Replace(" ", _PIECE))
    backend.decoder = _any(decoders.Sequence([decoders.Replace(_PIECE, " "), decoders.ByteFallback(), decoders.Fuse()]))
    return backend


def _collapsing(_: ChatStyle) -> Tokenizer:
    """White space at both ends of what stands between special tokens is dropped, and a run of it within is a space."""
    backend = _of_bytes()
    backend.normalizer = _any(
        normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.NFC()])
    )
    return backend


KINDS: dict[str, Callable[[ChatStyle], Tokenizer]] = {
    "bytes": _bytes,
    "llama2": _llama2,
    "llama3": _llama3,
    "gemma": _gemma,
    "collapsing": _collapsing,
}
"""Name -> what builds the tokenizer without special tokens."""
ADDS_FIRST = ("llama2", "llama3", "gemma")
"""Kinds whose tokenizers write the style's first token before a plain text."""


@functools.cache
def tokenizer_of(style: ChatStyle, kind: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a style, with its template: of its own kind, or of another one.

    The same object each time within a process: change none.
    """
    chosen = kind or style.kind
    backend = KINDS[chosen](style)
    special = [token for token in dict.fromkeys((style.bos, style.eos, *style.special, "<|pad|>")) if token]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    if style.bos and chosen in ADDS_FIRST:
        first = backend.token_to_id(style.bos)
        processor = processors.TemplateProcessing(
            single=f"{style.bos} $A", pair=f"{style.bos} $A {style.bos}:1 $B:1", special_tokens=[(style.bos, first)]
        )
        backend.post_processor = _any(processor)
    named = {"bos_token": style.bos} if style.bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=style.eos,
        pad_token="<|pad|>",
        chat_template=style.template,
        clean_up_tokenization_spaces=False,
        **named,
    )


def comparable(kind: str, text: str) -> str:
    """A text without what the tokens of a kind do not keep: accents apart from their letters, white space, or the low
    blocks that some have for spaces, as also marks of some styles do."""
    if kind == "collapsing":
        text = "".join(text.split())
    if kind in ("llama2", "gemma"):
        text = text.replace(_PIECE, " ")
    return unicodedata.normalize("NFC", text) if kind in ("bytes", "collapsing") else text


def text_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """What tokens say wherever they stand: `decode` takes the first space away from some.

    Example: of the Llama 2 kind, the tokens of " yes</s>" within a conversation are " yes</s>", and not "yes</s>"
    """
    # Behind a special token, which no decoder of these kinds changes, no token is the first.
    mark = tokenizer.pad_token_id
    assert isinstance(mark, int) and isinstance(tokenizer.pad_token, str)
    return str(tokenizer.decode([mark, *ids])).removeprefix(tokenizer.pad_token)


def _any(part: object) -> Any:
    """The library's stubs say None of settable parts."""
    return cast(Any, part)


def runs(ids: list[int], mask: list[bool]) -> list[list[int]]:
    """The trained tokens, one list for each run of them."""
    grouped = itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    return [[token for token, _ in group] for trained, group in grouped if trained]
