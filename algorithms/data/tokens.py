"""Rows to token ids: prompts for reinforcement learning, masked sequences for SFT."""

import functools
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from actors.episodes import Prompt, Sequence
from algorithms.config import DataConfig
from algorithms.data.bad_rows import BadRows
from algorithms.data.chat_format import ChatFormat
from algorithms.data.conventions import read_examples
from algorithms.data.encoded import Encoder, Masked
from algorithms.data.messages import EmptyRow, Message, RowError
from algorithms.data.overlong import cut_sequence, shortened
from algorithms.data.readers import Asked, Completion, Dialogue, Example, Text
from algorithms.data.reading import Reading
from algorithms.data.rendering import bos_of, bounds, check_some_tokens, encode_texts, of_letters
from algorithms.data.sources import Row
from algorithms.data.unread import unread
from algorithms.data.written import Script, TrainOn, asked, with_system_prompt, written

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast


def prompts(
    rows: list[Row],
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_prompt_tokens: int,
    field: str = "data.train",
) -> list[Prompt]:
    """Render every row up to where the model's answer begins.

    A string becomes a user turn where the tokenizer has a chat template, and plain text where it has none. A prompt of
    more than `max_prompt_tokens` is an error, left out, or without its beginning, as data.overlong says.

    Raises:
        UserError: a row that fits no convention, cannot be rendered, is empty or too long.
    """
    return prompt_reading(rows, data, tokenizer, max_prompt_tokens=max_prompt_tokens, field=field).items()


def prompt_reading(
    rows: list[Row], data: DataConfig, tokenizer: "PreTrainedTokenizerFast", *, max_prompt_tokens: int, field: str
) -> Reading[Prompt]:
    """Rows read as prompts, not yet rendered; raises UserError for a row that fits no convention or is empty."""
    convention, rows, values, bad = read_examples(rows, data, "rl", field)
    chat = ChatFormat(tokenizer, data.template_arguments)

    def prompt(made: tuple[int, list[int]]) -> Prompt:
        index, ids = made
        check_some_tokens(ids, "prompt")
        return Prompt(index=index, token_ids=ids, text=prompt_text(values[index]), row=rows[index])

    def encode(indices: Items[int]) -> dict[int, Prompt]:
        given = ((index, values[index]) for index in indices)
        texts = bad.kept(given, lambda value: _render_prompt(value, data, chat))
        token_ids = encode_texts([*texts.values()], tokenizer, plain=not chat.template)
        return bad.kept(((made[0], made) for made in zip(texts, token_ids, strict=True)), prompt)

    def cut(prompt: Prompt) -> Prompt:
        return replace(prompt, token_ids=shortened(prompt.token_ids, max_prompt_tokens, bos_of(tokenizer)))

    return Reading(
        convention=convention,
        rows=rows,
        examples=values,
        bad=bad,
        data=data,
        field=field,
        limit=max_prompt_tokens,
        rule="rollout.max_prompt_tokens",
        encode=encode,
        length=lambda prompt: len(prompt.token_ids),
        cut=cut,
        notes=unread(rows, values.values(), convention, chat, "rl", data, field),
        **bounds(tokenizer, data),
    )


def sequences(
    rows: list[Row],
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    train_on: TrainOn,
    field: str = "data.train",
) -> list[Sequence]:
    """Render every row whole, and mark the tokens that SFT imitates.

    `completions` marks assistant turns and completions, each with its end-of-turn token (of a prompt-completion row
    only the completion's), and all of a plain text; `all` marks every token. The first token is never marked. A
    sequence longer than data.max_length is an error, left out, or cut with its mask, as data.overlong says.

    Raises:
        UserError: a row that fits no convention, cannot be rendered, is too long or has no token to train on.
    """
    return sequence_reading(rows, data, tokenizer, train_on=train_on, field=field).items()


def sequence_reading(
    rows: list[Row], data: DataConfig, tokenizer: "PreTrainedTokenizerFast", *, train_on: TrainOn, field: str
) -> Reading[Sequence]:
    """Rows read as examples for SFT, not yet rendered; raises UserError for a row that fits no convention."""
    convention, rows, examples, bad = read_examples(rows, data, "sft", field)
    limit, made = data.max_length, _Sequences(data, tokenizer, train_on)

    return Reading(
        convention=convention,
        rows=rows,
        examples=examples,
        bad=bad,
        data=data,
        field=field,
        limit=limit,
        rule="data.max_length",
        encode=lambda indices: made.of({index: examples[index] for index in indices}, bad),
        length=len,
        cut=lambda sequence: cut_sequence(sequence, limit, data.truncation_side, bos_of(tokenizer)),
        notes=unread(rows, examples.values(), convention, made.chat, "sft", data, field),
        **bounds(tokenizer, data),
    )


def prompt_text(value: Asked) -> str:
    """A prompt as reward functions and people see it: of messages, the last user turn."""
    if isinstance(value, str):
        return value
    # Rewards and people look at the question, not at what was said before it.
    users = [message["content"] for message in value.messages if message["role"] == "user"]
    return users[-1] if users else value.messages[-1]["content"]


def _render_prompt(value: Asked, data: DataConfig, chat: ChatFormat) -> str:
    if isinstance(value, str) and not chat.template:
        if data.system_prompt is not None:
            raise RowError("data.system_prompt needs a tokenizer with a chat template, got one without")
        return of_letters(value)
    dialogue = value if isinstance(value, Dialogue) else Dialogue(messages=[_question(value)], given=1)
    return asked(chat, with_system_prompt(dialogue, data))


def _question(text: str) -> Message:
    return {"role": "user", "content": text}


class _Sequences:
    """Makes masked sequences of examples, many at a time."""

    def __init__(self, data: DataConfig, tokenizer: "PreTrainedTokenizerFast", train_on: TrainOn) -> None:
        self.data, self.tokenizer = data, tokenizer
        self.train_on: TrainOn = train_on
        self.chat = ChatFormat(tokenizer, data.template_arguments)

    @functools.cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer)

    def of(self, examples: Mapping[int, Example], bad: BadRows) -> dict[int, Sequence]:
        """A sequence of each example, by index and in their order, but of those of which none can be made."""
        made = bad.kept(examples.items(), self._one)
        conversations = {index: item for index, item in made.items() if isinstance(item, Script)}
        encoded = self.encoder.conversations([*conversations.values()]) if conversations else []
        masked: dict[int, Masked | RowError] = dict(zip(conversations, encoded, strict=True))
        masked |= {index: item for index, item in made.items() if not isinstance(item, Script)}
        return bad.kept(((index, masked[index]) for index in made), self._sequence)

    def _one(self, example: Example) -> Script | Masked:
        if isinstance(example, Completion) and self.chat.template:
            answer: Message = {"role": "assistant", "content": example.completion}
            example = Dialogue(messages=[_question(example.prompt), answer], given=1)
        if isinstance(example, Dialogue):
            return written(self.chat, with_system_prompt(example, self.data), self.train_on)
        if self.data.system_prompt is not None:
            raise RowError("data.system_prompt applies to conversations only, and this row is plain text")
        return _plain(example, self.tokenizer, self.encoder)

    def _sequence(self, made: Masked | RowError) -> Sequence:
        if isinstance(made, RowError):
            raise made
        token_ids, mask = made
        if self.train_on == "all":
            mask = np.ones(len(token_ids), dtype=np.bool_)
        mask[:1] = False  # nothing comes before it that would predict it
        if not mask.any():
            raise EmptyRow(f"has no token to train on (train_on {self.train_on}, {len(token_ids)} tokens)")
        return Sequence(token_ids=np.array(token_ids, dtype=np.int64), action_mask=mask)


def _plain(example: Completion | Text, tokenizer: "PreTrainedTokenizerFast", encoder: Encoder) -> Masked:
    eos = tokenizer.eos_token_id
    if eos is None:
        raise RowError("plain text needs a tokenizer with an end-of-sequence token, got one without")
    if isinstance(example, Text):
        prompt, [target] = [], encode_texts([example.text], tokenizer, plain=True)
    else:
        prompt, target = continuation(example, tokenizer, encoder)
    # The end is learned with the rest: a model that never saw it would not stop.
    token_ids = [*prompt, *target] if target[-1:] == [eos] else [*prompt, *target, eos]
    return token_ids, np.arange(len(token_ids)) >= len(prompt)


def continuation(
    example: Completion, tokenizer: "PreTrainedTokenizerFast", encoder: Encoder
) -> tuple[list[int], list[int]]:
    """Ids of a prompt without a chat template, and of what continues it; raises RowError where nothing can.

    Both are encoded together and cut: alone, many a tokenizer would give the second one a space that it has not.
    """
    whole = example.prompt + example.completion
    prompt, both = encode_texts([example.prompt, whole], tokenizer, plain=True)
    return prompt, encoder.completion(prompt, both, example.completion)
