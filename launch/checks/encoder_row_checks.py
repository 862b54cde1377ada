"""Whether the data of an embedding model or reranker is what it claims to be. Imports no torch and no Ray."""

from typing import Any

import numpy as np

from actors.models.tokenizer import tokenizer_for
from algorithms.encoder.batches import Example, TaskBatches
from algorithms.encoder.data import training_tasks
from algorithms.encoder.held_out import held_out
from launch.checks.known_rows import Rows
from launch.checks.row_checks import READ_ROWS, TOKENISED_CHARACTERS
from launch.kinds.encoder import EncoderKind

_TOKENISED = 500
"""Rows of each task that are tokenised, at most."""


def check_encoder_rows(kind: EncoderKind, *, tokenise: bool) -> Rows:
    """Read the training rows of every task as their losses do; `tokenise`: learn how long they are.

    Raises:
        UserError: missing, empty or malformed data, rows that a loss cannot learn from, or too few of different texts
            for an update.
    """
    algorithm, config = kind.algorithm, kind.config
    tasks = training_tasks(algorithm, config.data, at_most=READ_ROWS)
    for task in tasks:
        if task.distinct and len(task.rows) < READ_ROWS:  # otherwise there may be more rows than are read here
            TaskBatches([task], seed=config.run.seed, shuffle=config.data.shuffle).next(algorithm.samples_per_update)
    count = sum(len(task.rows) for task in tasks)
    if not tokenise:
        return Rows(count=count)
    # Any seed will do: which of its texts a row gives changes a mean length little.
    drawn = [task.draw(row, np.random.default_rng(0)) for task in tasks for row in task.rows[:_TOKENISED]]
    return Rows(count=count, mean_tokens=_mean_tokens(kind, drawn))


def check_held_out(kind: EncoderKind) -> None:
    """Read the evaluation sets and their corpus; raises UserError."""
    held_out(kind.config.data, reranker=kind.reranks)


def _mean_tokens(kind: EncoderKind, drawn: list[Example]) -> float:
    """Mean tokens of a row, of all its texts, as many as are read."""
    tokenizer, limit = tokenizer_for(kind.config.model), kind.algorithm.max_tokens
    total = characters = 0
    for number, row in enumerate(drawn, start=1):
        texts: Any = kind.read_texts(row.texts)  # transformers declares pairs as lists, and takes these
        lengths = [len(ids) for ids in tokenizer(texts).input_ids]
        total += sum(min(length, limit or length) for length in lengths)
        characters += sum(map(len, row.texts))
        if characters > TOKENISED_CHARACTERS:
            return total / number
    return total / len(drawn)
