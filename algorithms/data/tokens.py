"""Rows to token ids: prompts for reinforcement learning, masked sequences for SFT."""

import re
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from actors.episodes import Prompt, Sequence
from algorithms.config import DataConfig
from algorithms.data.conventions import read_examples
from algorithms.data.overlong import cut_sequence, shortened
from algorithms.data.readers import Completion, Dialogue, Example, Message, RowError, Text, at_row
from algorithms.data.reading import Reading
from algorithms.data.rendering import (
    bos_of,
    bounds,
    check_some_tokens,
    encode_texts,
    render_messages,
    template_of,
    tokenise_messages,
    with_system_prompt,
)
from algorithms.data.sources import Row

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

TrainOn = Literal["completions", "all"]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


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
    convention, rows, values = read_examples(rows, data, "rl", field)

    def encode(indices: Items[int]) -> list[Prompt]:
        texts = [at_row(index, field, _render_prompt, values[index], data, tokenizer) for index in indices]
        token_ids = encode_texts(texts, tokenizer, plain=tokenizer.chat_template is None)
        check_some_tokens(token_ids, indices, "prompt", field)
        return [
            Prompt(index=index, token_ids=ids, text=prompt_text(values[index]), row=rows[index])
            for index, ids in zip(indices, token_ids, strict=True)
        ]

    def cut(prompt: Prompt) -> Prompt:
        return replace(prompt, token_ids=shortened(prompt.token_ids, max_prompt_tokens, bos_of(tokenizer)))

    return Reading(
        convention=convention,
        rows=rows,
        examples=values,
        data=data,
        field=field,
        limit=max_prompt_tokens,
        rule="rollout.max_prompt_tokens",
        encode=encode,
        length=lambda prompt: len(prompt.token_ids),
        cut=cut,
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
    convention, rows, examples = read_examples(rows, data, "sft", field)
    limit = data.max_length

    def encode(indices: Items[int]) -> list[Sequence]:
        found = [at_row(index, field, _sequence, examples[index], data, tokenizer, train_on) for index in indices]
        check_some_tokens(found, indices, "sequence", field)
        return found

    return Reading(
        convention=convention,
        rows=rows,
        examples=examples,
        data=data,
        field=field,
        limit=limit,
        rule="data.max_length",
        encode=encode,
        length=len,
        cut=lambda sequence: cut_sequence(sequence, limit, data.truncation_side, bos_of(tokenizer)),
        **bounds(tokenizer, data),
    )


def prompt_text(value: str | list[Message]) -> str:
    """A prompt as reward functions and people see it: of messages, the last user turn."""
    if isinstance(value, str):
        return value
    # Rewards and people look at the question, not at what was said before it.
    users = [message["content"] for message in value if message["role"] == "user"]
    return users[-1] if users else value[-1]["content"]


def _render_prompt(value: str | list[Message], data: DataConfig, tokenizer: "PreTrainedTokenizerFast") -> str:
    if isinstance(value, str) and tokenizer.chat_template is None:
        if data.system_prompt is not None:
            raise RowError("data.system_prompt needs a tokenizer with a chat template, got one without")
        return value
    messages: list[Message] = [{"role": "user", "content": value}] if isinstance(value, str) else value
    return render_messages(with_system_prompt(messages, data), tokenizer, add_generation_prompt=True)


def _sequence(example: Example, data: DataConfig, tokenizer: "PreTrainedTokenizerFast", train_on: TrainOn) -> Sequence:
    if isinstance(example, Completion) and tokenizer.chat_template is not None:
        asked: Message = {"role": "user", "content": example.prompt}
        example = Dialogue(messages=[asked, {"role": "assistant", "content": example.completion}], given=1)
    if isinstance(example, Dialogue):
        messages = with_system_prompt(example.messages, data)
        given = len(messages) - len(example.messages) + example.given  # a system prompt is given, too
        token_ids, mask = _dialogue(messages, given, tokenizer, train_on)
    elif data.system_prompt is not None:
        raise RowError("data.system_prompt applies to conversations only, and this row is plain text")
    else:
        token_ids, mask = _plain(example, tokenizer)
    if train_on == "all":
        mask = np.ones(len(token_ids), dtype=np.bool_)
    mask[:1] = False  # nothing comes before it that would predict it
    if not mask.any():
        raise RowError(f"has no token to train on (train_on {train_on}, {len(token_ids)} tokens)")
    return Sequence(token_ids=np.array(token_ids, dtype=np.int64), action_mask=mask)


def _plain(example: Completion | Text, tokenizer: "PreTrainedTokenizerFast") -> tuple[list[int], NDArray[np.bool_]]:
    eos = tokenizer.eos_token_id
    if eos is None:
        raise RowError("plain text needs a tokenizer with an end-of-sequence token, got one without")
    if isinstance(example, Text):
        prompt, [target] = [], encode_texts([example.text], tokenizer, plain=True)
    else:
        [prompt] = encode_texts([example.prompt], tokenizer, plain=True)
        [target] = encode_texts([example.completion], tokenizer, plain=False)
    # The end is learned with the rest: a model that never saw it would not stop.
    token_ids = [*prompt, *target] if target[-1:] == [eos] else [*prompt, *target, eos]
    mask = np.arange(len(token_ids)) >= len(prompt)
    return token_ids, mask


def _dialogue(
    messages: list[Message], given: int, tokenizer: "PreTrainedTokenizerFast", train_on: TrainOn
) -> tuple[list[int], NDArray[np.bool_]]:
    """Token ids, and the mask of assistant turns after the first `given` messages (or of every token)."""
    if train_on == "all":
        token_ids = encode_texts([render_messages(messages, tokenizer)], tokenizer, plain=False)[0]
        return token_ids, np.ones(len(token_ids), dtype=np.bool_)
    template = template_of(tokenizer)
    # Without markers transformers gives a mask of zeros, and no more than a warning.
    if not _GENERATION.search(template):
        return _mask_by_prefixes(messages, given, tokenizer)
    rendered = tokenise_messages(messages, tokenizer)
    token_ids, mask = rendered["input_ids"], np.array(rendered["assistant_masks"], dtype=np.bool_)
    # The markers are around all turns of the assistant, also around those that are only context.
    if any(message["role"] == "assistant" for message in messages[:given]):
        mask[: len(_prefix(messages[:given], token_ids, tokenizer, add_generation_prompt=True))] = False
    # Templates that leave the end-of-turn token outside the markers would teach a model that never stops.
    ends = np.array(token_ids) == tokenizer.eos_token_id
    mask[1:] |= mask[:-1] & ends[1:]
    return token_ids, mask


def _mask_by_prefixes(
    messages: list[Message], given: int, tokenizer: "PreTrainedTokenizerFast"
) -> tuple[list[int], NDArray[np.bool_]]:
    """For templates without {% generation %}: a turn begins where the rendering of what precedes it ends."""
    token_ids = encode_texts([render_messages(messages, tokenizer)], tokenizer, plain=False)[0]
    mask = np.zeros(len(token_ids), dtype=np.bool_)
    closes = _closes_with_eos(tokenizer)
    for index in range(given, len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        start = len(_prefix(messages[:index], token_ids, tokenizer, add_generation_prompt=True))
        # Up to this token: what a template writes behind it, such as a line break, no sampler has sampled.
        if closes and tokenizer.eos_token_id in token_ids[start:]:
            end = token_ids.index(tokenizer.eos_token_id, start) + 1
        else:
            end = len(_prefix(messages[: index + 1], token_ids, tokenizer, add_generation_prompt=False))
        mask[start:end] = True
    return token_ids, mask


def _closes_with_eos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the template writes the end-of-sequence token right after the content of every assistant turn."""
    exchange: list[Message] = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    # Twice, as a template may close the last turn otherwise than those before it.
    tails = render_messages(exchange * 2, tokenizer).split("answer")[1:]
    eos = tokenizer.eos_token
    return isinstance(eos, str) and len(tails) == 2 and all(tail.lstrip().startswith(eos) for tail in tails)


def _prefix(
    messages: list[Message], whole: list[int], tokenizer: "PreTrainedTokenizerFast", *, add_generation_prompt: bool
) -> list[int]:
    """Token ids of the first messages, which must begin `whole`: otherwise no token border separates the turns."""
    text = render_messages(messages, tokenizer, add_generation_prompt=add_generation_prompt) if messages else ""
    [token_ids] = encode_texts([text], tokenizer, plain=False)
    if whole[: len(token_ids)] != token_ids:
        raise RowError(
            f"its first {len(messages)} messages render differently within the whole conversation, so completions "
            f"cannot be masked; use a chat template with {{% generation %}} markers or algorithm.train_on all"
        )
    return token_ids
