"""The verb `data` for embedding models and rerankers: what an update sees of a row, and how long the texts are."""

from itertools import chain
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from actors.models.tokenizer import tokenizer_for
from algorithms.encoder.batches import Example, TaskRows
from algorithms.encoder.data import training_tasks
from algorithms.encoder.held_out import SimilaritySet, held_out
from algorithms.encoder.rows import load_named_rows
from launch.kinds.encoder import EncoderKind
from launch.screen.shown import visible
from launch.verbs.preview import print_lengths

_MEASURED = 10_000
"""Rows of a task whose texts are tokenised."""


def preview_encoder_rows(kind: EncoderKind, rows: int, console: Console) -> None:
    """Print `rows` rows of every task as an update draws them, statistics of lengths, and the evaluation sets.

    Raises:
        UserError: when data or tokenizer cannot be read.
    """
    config = kind.config
    sources = load_named_rows(config.data, "data.train")
    for task in training_tasks(kind.algorithm, config.data):
        generator = np.random.default_rng(config.run.seed)
        drawn = [task.draw(row, generator) for row in task.rows[:_MEASURED]]
        found = f"{task.field}: {len(task.rows)} rows; {kind.describe_rows(sources[task.name], task.field, task.name)}"
        console.print(found, highlight=False, markup=False, style="bold")
        for number, example in enumerate(drawn[:rows], start=1):
            console.print(_panel(kind, task, number, example))
        _print_texts(kind, task, drawn, console)
    for held in held_out(config.data, reranker=kind.reranks):
        name = f"data.eval.{held.name}" if held.name else "data.eval"
        pairs = isinstance(held, SimilaritySet)
        found = f"{len(held.rows)} pairs with scores" if pairs else f"{len(held.rows)} queries"
        console.print(f"{name}: {found}", highlight=False, markup=False, style="bold")


def _panel(kind: EncoderKind, task: TaskRows, number: int, example: Example) -> Panel:
    first, *others = _instructed(kind, task, example)
    lines = Text(visible(first, lines=True), style="bold")
    # Not every loss has a target for each of the texts.
    targets = example.targets[-len(others) :] if len(example.targets) >= len(others) else ("",) * len(others)
    for place, (text, target) in enumerate(zip(others, targets, strict=True)):
        mark = f"{target:g}" if isinstance(target, float) else "+" if place == 0 else "-"
        lines.append(f"\n{mark:>6} {visible(text, lines=True)}", style="green" if place == 0 else "dim")
    return Panel(lines, title=f"{task.field} row {number}", title_align="left")


def _instructed(kind: EncoderKind, task: TaskRows, example: Example) -> list[str]:
    """The row's texts with the instructions that the configuration puts before them; a model may have its own."""
    before = kind.instructions(task.name, len(example.texts))
    if example.prompt is not None:
        before[0] = example.prompt  # a row's own goes before that of its task
    return [prompt + text for prompt, text in zip(before, example.texts, strict=True)]


def _print_texts(kind: EncoderKind, task: TaskRows, drawn: list[Example], console: Console) -> None:
    tokenizer, limit = tokenizer_for(kind.config.model), kind.algorithm.max_tokens
    texts = [_instructed(kind, task, example) for example in drawn]
    queries = tokenizer([row[0] for row in texts]).input_ids
    passages = tokenizer([text for row in texts for text in row[1:]]).input_ids
    rule = "algorithm.max_tokens"
    lengths: dict[str, tuple[list[int], int | None, str]] = {
        "query": (list(map(len, queries)), limit, rule),
        "passage": (list(map(len, passages)), limit, rule),
    }
    if kind.reranks:
        # Any: a tokenizer takes pairs of texts as tuples, and its annotation knows only lists.
        pairs: Any = [pair for row in texts for pair in kind.read_texts(row)]
        lengths["together"] = (list(map(len, tokenizer(pairs).input_ids)), limit, rule)
    unknown = tokenizer.unk_token_id
    count = 0 if unknown is None else sum(token == unknown for token in chain(*queries, *passages))
    print_lengths(lengths, count, task.field, console)
