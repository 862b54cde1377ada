"""Rows to responses that are compared: pairs of chosen and rejected, or single ones with a label.

A response ends as a rollout ends, with the end-of-sequence token; what a chat template writes after it is left out.
The prompt is what a rollout would start from, so that both responses of a pair begin with the same token ids.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from actors.config import UserError
from actors.episodes import Sequence
from algorithms.config import DataConfig
from algorithms.data.conventions import read_examples
from algorithms.data.overlong import cut_responses
from algorithms.data.readers import Answer, Completion, Message, RowError, at_row
from algorithms.data.reading import Reading
from algorithms.data.rendering import bos_of, bounds, encode_texts, render_messages, with_system_prompt
from algorithms.data.sources import Row

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
    convention, rows, examples = read_examples(rows, data, "pairs", field)
    limit, side = data.max_length, data.truncation_side

    def encode(indices: Items[int]) -> list[Pair]:
        # Chosen and rejected side by side: [::2] and [1::2] take them apart again.
        texts: list[tuple[str, str]] = []
        for index in indices:
            for answer in (examples[index].chosen, examples[index].rejected):
                texts.append(at_row(index, field, _split_text, answer, data, tokenizer))
        found = _encoded(texts, tokenizer)
        _check_prompts(found[::2], indices, field)  # both of a pair have the same one
        return [
            _pair(better, worse, examples[index].margin, index, field)
            for better, worse, index in zip(found[::2], found[1::2], indices, strict=True)
        ]

    def cut(pair: Pair) -> Pair | None:
        made = cut_responses([pair.chosen, pair.rejected], limit, side, bos_of(tokenizer))
        return replace(pair, chosen=made[0], rejected=made[1]) if made else None

    return Reading(
        convention=convention,
        rows=rows,
        examples=examples,
        data=data,
        field=field,
        limit=limit,
        rule="data.max_length",
        encode=encode,
        length=lambda pair: max(len(pair.chosen), len(pair.rejected)),
        cut=cut,
        **bounds(tokenizer, data),
    )


def _pair(better: Sequence, worse: Sequence, margin: float, index: int, field: str) -> Pair:
    if np.array_equal(better.token_ids, worse.token_ids):
        raise UserError(f"{field}: row {index + 1}: chosen and rejected must differ, both became the same tokens")
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
    convention, rows, examples = read_examples(rows, data, "unpaired", field)
    limit, side = data.max_length, data.truncation_side

    def encode(indices: Items[int]) -> list[Judged]:
        texts = [at_row(index, field, _split_text, examples[index].answer, data, tokenizer) for index in indices]
        found = _encoded(texts, tokenizer)
        _check_prompts(found, indices, field)
        return [
            Judged(sequence=sequence, desirable=examples[index].desirable)
            for sequence, index in zip(found, indices, strict=True)
        ]

    def cut(item: Judged) -> Judged | None:
        made = cut_responses([item.sequence], limit, side, bos_of(tokenizer))
        return replace(item, sequence=made[0]) if made else None

    return Reading(
        convention=convention,
        rows=rows,
        examples=examples,
        data=data,
        field=field,
        limit=limit,
        rule="data.max_length",
        encode=encode,
        length=lambda item: len(item.sequence),
        cut=cut,
        **bounds(tokenizer, data),
    )


def prompt_length(sequence: Sequence) -> int:
    """Number of prompt tokens of a sequence whose actions are its last tokens."""
    return int(sequence.action_mask.argmax())


def _check_prompts(answered: list[Sequence], indices: Items[int], field: str) -> None:
    for sequence, index in zip(answered, indices, strict=True):
        if not len(sequence) or sequence.action_mask[0]:  # the mask begins where the prompt ends
            raise UserError(f"{field}: row {index + 1}: prompt has no tokens")


def _split_text(answer: Answer, data: DataConfig, tokenizer: "PreTrainedTokenizerFast") -> tuple[str, str]:
    """Text of the prompt, up to where a rollout would begin, and of the rest."""
    eos = tokenizer.eos_token
    if not isinstance(eos, str):
        raise RowError("responses need a tokenizer with an end-of-sequence token, got one without")
    content = answer.completion if isinstance(answer, Completion) else answer.messages[-1]["content"]
    # It may be written out at the end; further on, it would teach to go on talking after it.
    if eos in content.removesuffix(eos):
        raise RowError(f"a response must not go on after the end-of-sequence token {eos}")
    if isinstance(answer, Completion) and tokenizer.chat_template is None:
        if data.system_prompt is not None:
            raise RowError("data.system_prompt needs a tokenizer with a chat template, got one without")
        return answer.prompt, answer.completion
    messages = with_system_prompt(_messages(answer), data)
    # Told apart as text: which tokens stand at the border depends on what follows it.
    prompt = render_messages(messages[:-1], tokenizer, add_generation_prompt=True)
    whole = render_messages(messages, tokenizer)
    if not whole.startswith(prompt):
        raise RowError(
            "the chat template renders the prompt of a whole conversation differently from one that is to be answered, "
            "so the response cannot be told from it; use another chat template"
        )
    return prompt, whole[len(prompt) :]


def _messages(answer: Answer) -> list[Message]:
    if isinstance(answer, Completion):
        # Two texts are a conversation of two turns to a model that has a chat template.
        return [{"role": "user", "content": answer.prompt}, {"role": "assistant", "content": answer.completion}]
    return answer.messages


def _encoded(texts: list[tuple[str, str]], tokenizer: "PreTrainedTokenizerFast") -> list[Sequence]:
    """One sequence of each (prompt, response): the tokens of the prompt alone, then the response's up to its end.

    With a chat template, the response's tokens are those that SFT learns, unless prompt and response would merge at
    their border: then, and in plain text, the response is encoded by itself, as a rollout samples it.
    """
    plain = tokenizer.chat_template is None
    distinct = list(dict.fromkeys(prompt for prompt, _ in texts))  # the two responses of a pair share theirs
    by_text = dict(zip(distinct, encode_texts(distinct, tokenizer, plain=plain), strict=True))
    prompts = [by_text[prompt] for prompt, _ in texts]
    if plain:
        # Without a BOS: they go on.
        responses = encode_texts([response for _, response in texts], tokenizer, plain=False)
    else:
        wholes = encode_texts([prompt + response for prompt, response in texts], tokenizer, plain=False)
        responses = [
            whole[len(prompt) :]
            if whole[: len(prompt)] == prompt
            else encode_texts([response], tokenizer, plain=False)[0]
            for whole, prompt, (_, response) in zip(wholes, prompts, texts, strict=True)
        ]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ended = [_ended(response, tokenizer.eos_token_id, special, plain=plain) for response in responses]  # type: ignore[arg-type]
    return [_sequence_of(prompt, response) for prompt, response in zip(prompts, ended, strict=True)]


def _ended(response: list[int], eos: int, special: set[int], *, plain: bool) -> list[int]:
    """A response up to its end-of-sequence token, which plain text gets here.

    Where a template closes turns with another special token than the tokenizer's end of sequence, that one ends it.
    """
    if eos in response:
        return response[: response.index(eos) + 1]
    if plain:
        return [*response, eos]
    # Without any special token, all of it is the response.
    last = max((place for place, token in enumerate(response) if token in special), default=len(response) - 1)
    return response[: last + 1]


def _sequence_of(prompt: list[int], response: list[int]) -> Sequence:
    mask = np.arange(len(prompt) + len(response)) >= len(prompt)
    return Sequence(token_ids=np.array([*prompt, *response], dtype=np.int64), action_mask=mask)
