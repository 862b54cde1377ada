"""From texts with places to token ids with masks: a token border stands where a model begins to sample."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from algorithms.data.chat_format import any_of, squeezed
from algorithms.data.messages import RowError
from algorithms.data.rendering import encode_texts
from algorithms.data.written import Script

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

Masked = tuple[list[int], NDArray[np.bool_]]
"""Token ids and which of them are trained, both [L]."""
_ANCHORS = ("", "\n", "a", ".", ":")
"""What a continuation is encoded behind, so that it gets no space of its own."""
_AT_ONCE = 256
"""Conversations that are encoded together: each costs memory a few times its text's."""
_BEFORE = 16
"""Tokens that are decoded before a continuation, to see that it continues them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A conversation's fixed tokens in order, and for each turn the last one before it and the text from that on."""

    fixed: list[int]
    last: list[int]
    """Index in `fixed`, -1 for none."""
    pieces: list[str]


class Encoder:
    """A tokenizer, with what it does to a text known."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.tokenizer = tokenizer
        backend = tokenizer.backend_tokenizer
        self._decode_batch = backend.decode_batch
        self._normalizer = backend.normalizer
        unknown = tokenizer.unk_token
        # A text is cut at these before anything else is done to it: what precedes one changes no token behind it.
        self._fixed = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            if not (token.normalized or token.single_word or token.lstrip or token.content == unknown)
        }
        self._fixed_ids, self._find_fixed = frozenset(self._fixed.values()), any_of(set(self._fixed)).finditer
        # One that is also the end stands behind every turn, and tells nothing of unknown text.
        self._unknown = unknown if isinstance(unknown, str) and unknown != tokenizer.eos_token else ""

    def conversations(self, found: Sequence[Script]) -> list[Masked | RowError]:
        """Ids of each conversation, and the mask of its trained turns with their ends; or what is wrong with it."""
        made: list[Masked | RowError] = []
        for first in range(0, len(found), _AT_ONCE):
            made += self._some(found[first : first + _AT_ONCE])
        return made

    def _some(self, found: Sequence[Script]) -> list[Masked | RowError]:
        cuts = [self._cut(item) for item in found]
        texts = dict.fromkeys(text for item, cut in zip(found, cuts, strict=True) for text in (item.text, *cut.pieces))
        encoded = dict(zip(texts, encode_texts([*texts], self.tokenizer, plain=False), strict=True))
        made: list[Masked | RowError] = []
        for item, cut in zip(found, cuts, strict=True):
            try:
                made.append(self._masked(item, self._starts(item, cut, encoded), encoded[item.text]))
            except RowError as error:
                made.append(error)
        return self._checked(found, made)

    def _cut(self, item: Script) -> _Cut:
        """Where fixed tokens stand: to encode all that precedes each turn would take a long text many times."""
        matches = [*self._find_fixed(item.text)]
        ends = [match.end() for match in matches]
        last = [bisect.bisect(ends, turn.start) - 1 for turn in item.turns]
        pieces = [
            item.text[matches[at].start() if at >= 0 else 0 : turn.start]
            for at, turn in zip(last, item.turns, strict=True)
        ]
        return _Cut(fixed=[self._fixed[match.group()] for match in matches], last=last, pieces=pieces)

    def _starts(self, item: Script, cut: _Cut, encoded: dict[str, list[int]]) -> list[tuple[int, list[int]]]:
        """For each turn, ids that have to precede it in those of the whole text, and from which place on."""
        places = [place for place, token in enumerate(encoded[item.text]) if token in self._fixed_ids]
        if [encoded[item.text][place] for place in places] == cut.fixed:
            pieces = zip(cut.last, cut.pieces, strict=True)
            return [(places[at] if at >= 0 else 0, encoded[piece]) for at, piece in pieces]
        # Another token has one of them in it.
        whole = [item.text[: turn.start] for turn in item.turns]
        return [(0, ids) for ids in encode_texts(whole, self.tokenizer, plain=False)]

    def completion(self, prompt: list[int], whole: list[int], completion: str) -> list[int]:
        """Ids of a text that continues a prompt: those behind it in the whole, or, where tokens would join across the
        border, those that a model would sample."""
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        return self._continued(prompt, completion)

    def id_of(self, stop: str) -> int:
        """The token that ends a turn."""
        found = self.tokenizer.convert_tokens_to_ids(stop)
        assert isinstance(found, int), stop
        return found

    def _masked(self, item: Script, starts: list[tuple[int, list[int]]], ids: list[int]) -> Masked:
        places = [place + len(piece) for place, piece in starts]
        if places[:1] == [0] and not item.appended:
            raise RowError("its first token is the assistant's, and nothing precedes it from which it could be learned")
        if any(ids[place : place + len(piece)] != piece for place, piece in starts):
            first, piece = starts[0]
            ids, places = self._joined(item, [*ids[:first], *piece])
        if item.appended:
            ids = [*ids, self.id_of(item.turns[-1].stop)]
        mask = np.zeros(len(ids), dtype=np.bool_)
        for place, turn in zip(places, item.turns, strict=True):
            try:
                end = ids.index(self.id_of(turn.stop), place)
            except ValueError:
                raise RowError(f"no token of its text is the end of a turn {turn.stop}") from None
            mask[place : end + 1] = True
        return ids, mask

    def _joined(self, item: Script, ids: list[int]) -> tuple[list[int], list[int]]:
        """Ids of a text in which a token would reach across the beginning of a turn: piece by piece."""
        ids, places = [*ids], []
        ends = [*(turn.start for turn in item.turns[1:]), len(item.text)]
        for turn, end in zip(item.turns, ends, strict=True):
            places.append(len(ids))
            ids += self._continued(ids, item.text[turn.start : end])
        return ids, places

    def _continued(self, before: list[int], text: str) -> list[int]:
        last = before[-_BEFORE:]
        for anchor in _ANCHORS:
            begun, both = encode_texts([anchor, anchor + text], self.tokenizer, plain=False)
            if both[: len(begun)] != begun:
                continue
            found = both[len(begun) :]
            alone, joined = self._decode_batch([last, [*last, *found]], skip_special_tokens=False)
            if joined[len(alone) :] == text and joined.startswith(alone):
                return found
        raise RowError(f"no tokens of this tokenizer continue its prompt with {text[:40]!r}")

    def _checked(self, found: Sequence[Script], made: list[Masked | RowError]) -> list[Masked | RowError]:
        """The same, with an error for each conversation whose trained tokens say anything else than its turns."""
        wanted: list[tuple[int, str, list[int]]] = []
        for number, (item, masked) in enumerate(zip(found, made, strict=True)):
            if isinstance(masked, RowError) or not item.turns:
                continue
            text = "".join(item.text[turn.start : turn.end] + turn.stop for turn in item.turns)
            wanted.append((number, text, np.array(masked[0])[masked[1]].tolist()))
        decoded = self._decode_batch([ids for _, _, ids in wanted], skip_special_tokens=False) if wanted else []
        for (number, text, _), tokens in zip(wanted, decoded, strict=True):
            if not self._same(text, tokens):
                made[number] = RowError(
                    f"its trained tokens read {_short(tokens)} and should read {_short(text)}, as this tokenizer has "
                    f"other tokens for it or for what stands around it"
                )
        return made

    def _same(self, text: str, tokens: str) -> bool:
        """Whether tokens say what a text says, as far as the tokenizer can express it."""
        if text == tokens:
            return True
        if self._unknown and self._unknown in tokens:
            return _matches(squeezed(self._normal(text)), [squeezed(part) for part in tokens.split(self._unknown)])
        return squeezed(self._normal(text)) == squeezed(self._normal(tokens))

    def _normal(self, text: str) -> str:
        """A text as the tokenizer sees it, which may be in small letters, or without accents."""
        text = self._normalizer.normalize_str(text) if self._normalizer else text
        return text.replace("▁", " ")


def _matches(text: str, parts: list[str]) -> bool:
    """Whether a text has these parts in order, with anything between them."""
    at = 0
    for part in parts:
        place = text.find(part, at)
        if place < 0:
            return False
        at = place + len(part)
    return text.startswith(parts[0]) and text.endswith(parts[-1])


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}")
