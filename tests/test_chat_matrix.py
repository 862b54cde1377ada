"""Every style of chat template with every shape of conversation, in every job: what is trained is what the row says the
assistant said, with one end to each turn; or the row is refused by its number. Nothing else ever happens."""

from collections.abc import Iterator
from typing import Any

import pytest

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data.pairs import judged, pairs
from algorithms.data.tokens import prompts, sequences
from tests.chat.oracle import Refused, expected
from tests.chat.shapes import JOBS, SHAPES, Job, Shape
from tests.chat.style import ChatStyle
from tests.chat.templates import STYLES
from tests.chat.tokenizers import runs, text_of, tokenizer_of

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
        tokenizer = tokenizer_of(style, kind)
        said = "".join(text_of(tokenizer, run) for run in runs(ids, mask))
        if isinstance(each, Refused):
            yield f"must be refused ({each.kind}), trains {said!r}"
        elif fault := each.fault(said, text_of(tokenizer, ids), kind or style.kind):
            yield fault


@pytest.mark.parametrize("name", STYLES)
def test_what_is_trained_is_what_the_row_says_or_the_row_is_refused(name: str) -> None:
    style = STYLES[name]
    shapes = [shape.ended_by(style.ends[0]) for shape in SHAPES.values()]
    found = [f"{shape.name}, {job}: {fault}" for shape in shapes for job in JOBS for fault in faults(style, shape, job)]
    assert not found, "\n".join(found)
