"""Every style of chat template with every shape of conversation, in every job: what is trained is what the row says the
assistant said, with one end to each turn; or the row is refused by its number. Nothing else ever happens."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data.pairs import judged, pairs
from algorithms.data.tokens import prompts, sequences
from tests.chat.oracle import Refused, Trained, expected
from tests.chat.shapes import JOBS, SHAPES, Job, Shape
from tests.chat.style import ChatStyle
from tests.chat.templates import STYLES
from tests.chat.tokenizers import in_words_of, runs, text_of, tokenizer_of

DATA = DataConfig(train="rows.jsonl", max_length=100_000)


def made(style: ChatStyle, shape: Shape, job: Job, kind: str | None) -> list[tuple[list[int], list[bool]]]:
    """Ids and masks of what the job makes of the shape's row: of a pair two. Raises UserError."""
    row, tokenizer = shape.row(job), tokenizer_of(style, kind)
    if job == "grpo":
        [prompt] = prompts([row], DATA, tokenizer, max_prompt_tokens=100_000)
        return [(prompt.token_ids, [False] * len(prompt.token_ids))]
    found: list[Any]
    if job == "sft":
        found = sequences([row], DATA, tokenizer, train_on="completions")
    elif job == "kto":
        found = [item.sequence for item in judged([row], DATA, tokenizer)]
    else:
        found = [sequence for pair in pairs([row], DATA, tokenizer) for sequence in (pair.chosen, pair.rejected)]
    return [(item.token_ids.tolist(), item.action_mask.tolist()) for item in found]


def faults(style: ChatStyle, shape: Shape, job: Job, kind: str | None = None) -> Iterator[str]:
    """What is wrong with what becomes of a row."""
    wanted = [expected(style, shape, job, worse=worse) for worse in (False, True)[: 1 + (job in ("dpo", "reward"))]]
    try:
        found = made(style, shape, job, kind)
    except UserError as error:
        if not str(error).startswith("data.train: row 1: ") or "\n" in str(error):
            yield f"is refused without its number or in several lines: {error}"
        if not any(isinstance(each, Refused) or each.or_refused for each in wanted):
            yield f"is refused: {error}"
        return
    for each, (ids, mask) in zip(wanted, found, strict=True):
        if isinstance(each, Refused):
            yield f"must be refused ({each.kind}), trains {told(style, kind, ids, mask)!r}"
        else:
            yield from _differences(style, each, ids, mask, kind or style.kind)


def told(style: ChatStyle, kind: str | None, ids: list[int], mask: list[bool]) -> str:
    return "".join(text_of(tokenizer_of(style, kind), run) for run in runs(ids, mask))


def _differences(style: ChatStyle, wanted: Trained, ids: list[int], mask: list[bool], kind: str) -> Iterator[str]:
    said, whole = told(style, kind, ids, mask), text_of(tokenizer_of(style, kind), ids)
    wanted = replace(wanted, turns=tuple(replace(turn, text=in_words_of(kind, turn.text)) for turn in wanted.turns))
    if not wanted.agrees(said):
        yield f"trains {said!r}, not {wanted.texts}"
    for text in wanted.context:
        if in_words_of(kind, text) not in whole:
            yield f"lacks {text!r} in {whole!r}"
    for text in wanted.absent:
        if text in whole:
            yield f"says {text!r} in {whole!r}"
    if wanted.prompt_ends and not whole.endswith(tuple(in_words_of(kind, end) for end in wanted.prompt_ends)):
        yield f"ends with {whole[-30:]!r}, not with {wanted.prompt_ends}"


@pytest.mark.parametrize("name", STYLES)
def test_what_is_trained_is_what_the_row_says_or_the_row_is_refused(name: str) -> None:
    style = STYLES[name]
    found = [
        f"{shape.name}, {job}: {fault}"
        for shape in SHAPES.values()
        for job in JOBS
        for fault in faults(style, shape, job)
    ]
    assert not found, "\n".join(found)
