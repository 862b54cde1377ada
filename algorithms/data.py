"""Rows to token ids: prompts for reinforcement learning, masked sequences for SFT, and the order of visiting them."""

import re
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from actors.batch import Prompt, Sequence
from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.conventions import detect
from algorithms.readers import Completion, Dialogue, Example, Message, RowError, Text
from algorithms.rendering import check_token_lengths, encode_texts, render_messages, with_system_prompt
from algorithms.sources import Row, read_rows

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

TrainOn = Literal["completions", "all"]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def load_rows(data: DataConfig, field: Literal["data.train", "data.eval"], *, at_most: int | None = None) -> list[Row]:
    """The training or evaluation rows that `data` names, as data.converter leaves them; `at_most` so many.

    data.limit and data.eval_limit count the rows that the converter keeps, and so do the numbers in later messages.
    Raises UserError as read_rows does.
    """
    train = field == "data.train"
    source, limit = (data.train, data.limit) if train else (data.eval, data.eval_limit)
    if source is None:
        raise UserError(f"{field}: required, got nothing")
    assert isinstance(source, str), "only embedding models and rerankers have several sources, and read them otherwise"
    return read_rows(
        source,
        split=data.split if train else data.eval_split,
        arguments=data.arguments,
        limit=min((count for count in (limit, at_most) if count is not None), default=None),
        field=field,
        converter=data.converter,
    )


def prompts(
    rows: list[Row],
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_prompt_tokens: int,
    field: str = "data.train",
) -> list[Prompt]:
    """Render every row up to where the model's answer begins.

    A string becomes a user turn where the tokenizer has a chat template, and plain text where it has none.

    Raises:
        UserError: a row that fits no convention, cannot be rendered, is empty or is longer than `max_prompt_tokens`.
    """
    convention, rows = detect(rows, data, "rl", field)
    texts, contents = [], []
    for number, row in enumerate(rows, start=1):
        try:
            value = convention.read(row)
            texts.append(_render_prompt(value, data, tokenizer))
        except RowError as error:
            raise UserError(f"{field}: row {number}: {error}") from error
        contents.append(value if isinstance(value, str) else _last_user_content(value))
    token_ids = encode_texts(texts, tokenizer, plain=tokenizer.chat_template is None)
    check_token_lengths(
        [len(ids) for ids in token_ids], max_prompt_tokens, "prompt", "rollout.max_prompt_tokens", field
    )
    return [
        Prompt(index=index, token_ids=ids, text=text, row=row)
        for index, (ids, text, row) in enumerate(zip(token_ids, contents, rows, strict=True))
    ]


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
    only the completion's), and all of a plain text; `all` marks every token. The first token is never marked.

    Raises:
        UserError: a row that fits no convention, cannot be rendered, is longer than `data.max_length` or has no
            token to train on.
    """
    convention, rows = detect(rows, data, "sft", field)
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(_sequence(convention.read(row), data, tokenizer, train_on))
        except RowError as error:
            raise UserError(f"{field}: row {number}: {error}") from error
    check_token_lengths([len(sequence) for sequence in found], data.max_length, "sequence", "data.max_length", field)
    return found


def _render_prompt(value: str | list[Message], data: DataConfig, tokenizer: "PreTrainedTokenizerFast") -> str:
    if isinstance(value, str) and tokenizer.chat_template is None:
        if data.system_prompt is not None:
            raise RowError("data.system_prompt needs a tokenizer with a chat template, got one without")
        return value
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    return render_messages(with_system_prompt(messages, data), tokenizer, add_generation_prompt=True)


def _last_user_content(messages: list[Message]) -> str:
    users = [message["content"] for message in messages if message["role"] == "user"]
    return users[-1] if users else messages[-1]["content"]


def _sequence(example: Example, data: DataConfig, tokenizer: "PreTrainedTokenizerFast", train_on: TrainOn) -> Sequence:
    if isinstance(example, Completion) and tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
        example = Dialogue(messages=turns, given=1)
    if isinstance(example, Dialogue):
        messages = with_system_prompt(example.messages, data)
        given = len(messages) - len(example.messages) + example.given
        token_ids, mask = _dialogue(messages, given, tokenizer, train_on)
    elif data.system_prompt is not None:
        raise RowError("data.system_prompt applies to conversations only, and this row is plain text")
    else:
        token_ids, mask = _plain(example, tokenizer)
    if train_on == "all":
        mask = np.ones(len(token_ids), dtype=np.bool_)
    mask[:1] = False
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
    template = tokenizer.get_chat_template() if tokenizer.chat_template is not None else ""
    if not _GENERATION.search(template):
        return _mask_by_prefixes(messages, given, tokenizer)
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    rendered = render_messages(messages, tokenizer, **options)
    token_ids, mask = rendered["input_ids"], np.array(rendered["assistant_masks"], dtype=np.bool_)
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
        if closes and tokenizer.eos_token_id in token_ids[start:]:
            end = token_ids.index(tokenizer.eos_token_id, start) + 1
        else:
            end = len(_prefix(messages[: index + 1], token_ids, tokenizer, add_generation_prompt=False))
        mask[start:end] = True
    return token_ids, mask


def _closes_with_eos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the template writes the end-of-sequence token right after the content of every assistant turn."""
    exchange = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    tails = render_messages(exchange * 2, tokenizer).split("answer")[1:]
    eos = tokenizer.eos_token
    return eos is not None and len(tails) == 2 and all(tail.lstrip().startswith(eos) for tail in tails)


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


class Batches:
    """The order in which rows are visited: every row once an epoch, in an order drawn from (seed, epoch).

    The state is two numbers, so that a resumed run continues with the very next row.

    Example: Batches(3, seed=0, shuffle=False).next(4) gives [0, 1, 2, 0].
    """

    def __init__(self, rows: int, *, seed: int, shuffle: bool) -> None:
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        self._rows, self._seed, self._shuffle = rows, seed, shuffle
        self.epoch = 0
        self.position = 0
        self._order = self._draw()

    def next(self, count: int) -> list[int]:
        """The next `count` row indices; goes on into the next epoch where this one ends."""
        taken: list[int] = []
        while len(taken) < count:
            if self.position == self._rows:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._draw()
            part = self._order[self.position : self.position + count - len(taken)]
            taken.extend(part)
            self.position += len(part)
        return taken

    def state_dict(self) -> dict[str, int]:
        """Epoch and position, and the number of rows they belong to."""
        return {"epoch": self.epoch, "position": self.position, "rows": self._rows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state`. Raises UserError when the data has another number of rows than then."""
        if state["rows"] != self._rows:
            raise UserError(f"data.train: must hold the checkpoint's {state['rows']} rows to resume, got {self._rows}")
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._draw()

    def _draw(self) -> Items[int]:
        if not self._shuffle:
            return range(self._rows)
        # Seed sequences take no negative numbers; a negative run.seed is its two's complement.
        entropy = [self._seed % 2**64, self.epoch]
        return np.random.default_rng(entropy).permutation(self._rows).tolist()
