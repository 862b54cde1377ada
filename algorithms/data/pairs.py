"""Rows to responses that are compared: pairs of chosen and rejected, or single ones with a label.

A response ends as a rollout ends, with the end-of-sequence token; what a chat template writes after it is left out.
The prompt is what a rollout would start from, so that both responses of a pair begin with the same token ids.
"""

import functools
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from actors.episodes import Sequence
from algorithms.config import DataConfig
from algorithms.data.bad_rows import BadRows
from algorithms.data.chat_format import ChatFormat
from algorithms.data.conventions import read_examples
from algorithms.data.encoded import Encoder, Masked
from algorithms.data.messages import EmptyRow, Message, RowError
from algorithms.data.overlong import cut_responses
from algorithms.data.readers import Answer, Completion, Dialogue
from algorithms.data.reading import Reading
from algorithms.data.rendering import bos_of, bounds
from algorithms.data.sources import Row
from algorithms.data.tokens import continuation
from algorithms.data.unread import unread
from algorithms.data.written import Script, answered, with_system_prompt

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two responses to one prompt: both sequences begin with the same prompt tokens.

    Example: Pair(chosen=Sequence([5, 9, 8, 1], [F, F, T, T]), rejected=Sequence([5, 9, 1], [F, F, T]), margin=0.0)
    """

    chosen: Sequence
    """The better response; action_mask is True at its tokens, the end-of-sequence token included."""
    rejected: Sequence
    """The worse response."""
    margin: float
    """By how much the chosen response's score should exceed the other's; 0 where the data does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A response that somebody has called good or bad.

    Example: Judged(sequence=Sequence([5, 9, 8, 1], [F, F, T, T]), desirable=True)
    """

    sequence: Sequence
    """Prompt and response; action_mask is True at the response's tokens, the end-of-sequence token included."""
    desirable: bool
    """Whether the policy should become likelier to answer so."""


def pairs(
    rows: list[Row], data: DataConfig, tokenizer: "PreTrainedTokenizerFast", *, field: str = "data.train"
) -> list[Pair]:
    """Render both responses of every row.

    A sequence longer than data.max_length is an error, or its pair is left out or cut, as data.overlong says: at the
    left the prompt of both, so that the responses stay whole; at the right the responses, which then lack their end.

    Raises:
        UserError: a row that fits no convention of pairs, cannot be rendered, has an empty response, two responses
            of the same tokens or one that makes the sequence too long.
    """
    return pair_reading(rows, data, tokenizer, field=field).items()


def pair_reading(
    rows: list[Row], data: DataConfig, tokenizer: "PreTrainedTokenizerFast", *, field: str
) -> Reading[Pair]:
    """Rows read as preferences, not yet rendered; raises UserError for a row that is none."""
    convention, rows, examples, bad = read_examples(rows, data, "pairs", field)
    limit, side, answers = data.max_length, data.truncation_side, _Answers(data, tokenizer)

    def encode(indices: Items[int]) -> dict[int, Pair]:
        found = answers.of({index: (examples[index].chosen, examples[index].rejected) for index in indices}, bad)
        given = ((index, (better, worse, examples[index].margin)) for index, (better, worse) in found.items())
        return bad.kept(given, lambda pair: _pair(*pair))

    def cut(pair: Pair) -> Pair | None:
        made = cut_responses([pair.chosen, pair.rejected], limit, side, bos_of(tokenizer))
        return replace(pair, chosen=made[0], rejected=made[1]) if made else None

    return Reading(
        convention=convention,
        rows=rows,
        examples=examples,
        bad=bad,
        data=data,
        field=field,
        limit=limit,
        rule="data.max_length",
        encode=encode,
        length=lambda pair: max(len(pair.chosen), len(pair.rejected)),
        cut=cut,
        notes=unread(rows, examples.values(), convention, answers.chat, "pairs", data, field),
        **bounds(tokenizer, data),
    )


def _pair(better: Sequence, worse: Sequence, margin: float) -> Pair:
    _check_prompt(better)  # both have the same one
    start = prompt_length(better)
    if start != prompt_length(worse) or not np.array_equal(better.token_ids[:start], worse.token_ids[:start]):
        raise RowError("chosen and rejected must have one prompt, theirs are other tokens")
    if np.array_equal(better.token_ids, worse.token_ids):
        raise EmptyRow("chosen and rejected must differ, both became the same tokens")
    return Pair(chosen=better, rejected=worse, margin=margin)


def judged(
    rows: list[Row], data: DataConfig, tokenizer: "PreTrainedTokenizerFast", *, field: str = "data.train"
) -> list[Judged]:
    """Render every row's prompt and completion, long ones as `pairs` does.

    Raises UserError as pairs does, and for labels of another kind.
    """
    return judged_reading(rows, data, tokenizer, field=field).items()


def judged_reading(
    rows: list[Row], data: DataConfig, tokenizer: "PreTrainedTokenizerFast", *, field: str
) -> Reading[Judged]:
    """Rows read as judgements, not yet rendered; raises UserError for a row that is none."""
    convention, rows, examples, bad = read_examples(rows, data, "unpaired", field)
    limit, side, answers = data.max_length, data.truncation_side, _Answers(data, tokenizer)

    def encode(indices: Items[int]) -> dict[int, Judged]:
        found = answers.of({index: (examples[index].answer,) for index in indices}, bad)
        given = ((index, (sequence, examples[index].desirable)) for index, (sequence,) in found.items())
        return bad.kept(given, lambda answer: _judged(*answer))

    def cut(item: Judged) -> Judged | None:
        made = cut_responses([item.sequence], limit, side, bos_of(tokenizer))
        return replace(item, sequence=made[0]) if made else None

    return Reading(
        convention=convention,
        rows=rows,
        examples=examples,
        bad=bad,
        data=data,
        field=field,
        limit=limit,
        rule="data.max_length",
        encode=encode,
        length=lambda item: len(item.sequence),
        cut=cut,
        notes=unread(rows, examples.values(), convention, answers.chat, "unpaired", data, field),
        **bounds(tokenizer, data),
    )


def prompt_length(sequence: Sequence) -> int:
    """Number of prompt tokens of a sequence whose actions are its last tokens."""
    return int(sequence.action_mask.argmax())


def _judged(sequence: Sequence, desirable: bool) -> Judged:
    _check_prompt(sequence)
    return Judged(sequence=sequence, desirable=desirable)


def _check_prompt(sequence: Sequence) -> None:
    if not len(sequence) or sequence.action_mask[0]:  # the mask begins where the prompt ends
        raise EmptyRow("prompt has no tokens")


class _Answers:
    """Makes sequences of prompts with their responses, many at a time.

    With a chat template, a response's tokens are those that SFT learns of the last turn, up to its end, unless prompt
    and response would merge at their border: then, and in plain text, they are those that a rollout would sample.
    """

    def __init__(self, data: DataConfig, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.data, self.tokenizer = data, tokenizer
        self.chat = ChatFormat(tokenizer, data.template_arguments)

    @functools.cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer)

    def of(self, rows: Mapping[int, Items[Answer]], bad: BadRows) -> dict[int, list[Sequence]]:
        """A sequence of each of a row's answers, by index, but of rows of which one cannot be made."""
        if not self.chat.template:
            return bad.kept(rows.items(), lambda answers: [self._plain(answer) for answer in answers])
        found = bad.kept(rows.items(), lambda answers: [self._written(answer) for answer in answers])
        # All at one time, as many begin alike.
        encoded = iter(self.encoder.conversations([item for each in found.values() for item in each]))
        made = {index: [next(encoded) for _ in each] for index, each in found.items()}
        return bad.kept(made.items(), lambda each: [_up_to_its_end(item) for item in each])

    def _written(self, answer: Answer) -> Script:
        if isinstance(answer, Completion):
            # Two texts are a conversation of two turns to a model that has a chat template.
            turns: list[Message] = [
                {"role": "user", "content": answer.prompt},
                {"role": "assistant", "content": answer.completion},
            ]
            answer = Dialogue(messages=turns, given=1)
        return answered(self.chat, with_system_prompt(answer, self.data))

    def _plain(self, answer: Answer) -> Sequence:
        eos = self.tokenizer.eos_token
        if not isinstance(eos, str):
            raise RowError("responses need a tokenizer with an end-of-sequence token, got one without")
        if not isinstance(answer, Completion):
            raise RowError("messages need a tokenizer with a chat template, got one without")
        # It may be written out at the end; further on, it would teach to go on talking after it.
        completion = answer.completion.removesuffix(eos)
        if eos in completion:
            raise RowError(f"a response must not go on after the end-of-sequence token {eos}")
        if self.data.system_prompt is not None:
            raise RowError("data.system_prompt needs a tokenizer with a chat template, got one without")
        prompt, response = continuation(replace(answer, completion=completion), self.tokenizer, self.encoder)
        return _sequence_of(prompt, [*response, self.encoder.id_of(eos)])


def _up_to_its_end(made: Masked | RowError) -> Sequence:
    if isinstance(made, RowError):
        raise made
    token_ids, mask = made
    trained = np.flatnonzero(mask)
    return _sequence_of(token_ids[: trained[0]], token_ids[trained[0] : trained[-1] + 1])


def _sequence_of(prompt: list[int], response: list[int]) -> Sequence:
    mask = np.arange(len(prompt) + len(response)) >= len(prompt)
    return Sequence(token_ids=np.array([*prompt, *response], dtype=np.int64), action_mask=mask)
