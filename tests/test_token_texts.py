"""The text of each token, of the kinds of tokenizers that models have."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from actors.models.token_texts import TokenTexts
from actors.models.tokenizer import build_char_tokenizer, fast_tokenizer


def _wrapped(backend: Tokenizer, **special: str) -> Any:
    return fast_tokenizer()(tokenizer_object=backend, **special)


def of_bytes() -> Any:
    """Byte-level BPE, as GPT-2 and Qwen have it: the character 答 is three tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate([*alphabet, "Ġa"])}, [("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend, eos_token="<|end|>")


def of_words() -> Any:
    """Spaces as parts of tokens, the first one left out, and bytes for what it lacks: as Llama 2 and Gemma have it."""
    pieces = ["<unk>", "<s>", "▁", "a", "▁a", "b", "▁b", "<0x0A>", "<0xE7>", "<0xAD>", "<0x94>"]
    vocabulary = {token: number for number, token in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return _wrapped(backend, bos_token="<s>", unk_token="<unk>")


def of_word_parts() -> Any:
    """As BERT has it."""
    vocabulary = {token: number for number, token in enumerate(["[UNK]", "[SEP]", "a", "##b", "b"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return _wrapped(backend, unk_token="[UNK]", sep_token="[SEP]")


@pytest.mark.parametrize(
    ("made", "text", "pieces"),
    [
        (of_bytes, "b a答a<|end|>", ["b", " a", "�", "�", "�", "a", "<|end|>"]),
        (of_words, "a ba\n答", [" a", " b", "a", "\n", "�", "�", "�"]),
        (of_word_parts, "ab b", [" a", "b", " b"]),
        (lambda: build_char_tokenizer("ab 答"), "a b答<|end|>x", ["a", " ", "b", "答", "<|end|>", "<unk>"]),
    ],
)
def test_each_token_has_its_text(made: Any, text: str, pieces: list[str]) -> None:
    tokenizer = made()
    ids = tokenizer.encode(text, add_special_tokens=False)
    told = TokenTexts(tokenizer)
    assert told(ids) == told(ids) == pieces
    assert told([]) == []
    assert told([10**6, ids[0]]) == ["", pieces[0]], "an id beyond the vocabulary, as padded ones have, has no text"


def test_each_id_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_char_tokenizer("ab")
    told = TokenTexts(tokenizer)
    decode, decoded = tokenizer.decode, list[list[int]]()
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **options: decoded.append(ids) or decode(ids, **options), raising=True
    )
    first, second = tokenizer.encode("ab")
    assert told([first, second, first]) == ["a", "b", "a"] and told([second]) == ["b"]
    assert len(decoded) == 2
