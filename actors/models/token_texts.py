"""The text of each token by itself, as a person reads it within a longer text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast


class TokenTexts:
    """Texts of token ids; each id is decoded once.

    A token is decoded behind another one, so that a space that begins it stays: many a tokenizer leaves out the first
    one of a text. Bytes that are no UTF-8 by themselves, as those of a character that several tokens make, become
    U+FFFD. Special tokens have their names, ids that the tokenizer does not know no text.

    Example: TokenTexts(tokenizer)([9906, 1917, 128009]) == ["Hello", " world", "<|eot_id|>"]
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._tokenizer = tokenizer
        before = tokenizer.encode("a", add_special_tokens=False)
        self._before = before[-1:]
        self._length = len(self._decoded(self._before))
        self._known: dict[int, str] = {}

    def __call__(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each of them."""
        for token in set(token_ids).difference(self._known):
            self._known[token] = self._text(token)
        return [self._known[token] for token in token_ids]

    def _text(self, token: int) -> str:
        behind = self._decoded([*self._before, token])
        return behind[self._length :]

    def _decoded(self, token_ids: list[int]) -> str:
        # As they are: what is tidied up was not sampled so.
        text = self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "of one list of ids"
        return text
