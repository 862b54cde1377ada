"""Whether the data of an embedding model or reranker is what it claims to be. Imports no torch and no Ray."""

import importlib.util
from typing import Any

import numpy as np

from actors.config import UserError
from actors.models.tokenizer import tokenizer_for
from algorithms.config_encoder import EmbeddingConfig, EncoderConfig, RerankerConfig
from algorithms.encoder.batches import Example, TaskBatches
from algorithms.encoder.data import training_tasks
from algorithms.encoder.held_out import held_out
from launch.checks.inputs import READ_ROWS, TOKENISED_CHARACTERS, Rows
from launch.config import RunConfig

_TOKENISED = 500
"""Rows of each task that are tokenised, at most."""


def check_encoder_rows(config: RunConfig, *, tokenise: bool) -> Rows:
    """Read the training rows of every task as their losses do; `tokenise`: learn how long they are.

    Raises:
        UserError: missing, empty or malformed data, rows that a loss cannot learn from, or too few of different texts
            for an update.
    """
    algorithm = config.algorithm
    assert isinstance(algorithm, EmbeddingConfig | RerankerConfig)
    tasks = training_tasks(algorithm, config.data, at_most=READ_ROWS)
    for task in tasks:
        if task.distinct and len(task.rows) < READ_ROWS:  # otherwise there may be more rows than are read here
            TaskBatches([task], seed=config.run.seed, shuffle=config.data.shuffle).next(algorithm.samples_per_update)
    count = sum(len(task.rows) for task in tasks)
    if not tokenise:
        return Rows(count=count)
    drawn = [task.draw(row, np.random.default_rng(0)) for task in tasks for row in task.rows[:_TOKENISED]]
    return Rows(count=count, mean_tokens=_mean_tokens(config, drawn))


def check_encoder_packages(config: RunConfig) -> None:
    """Raise UserError unless the packages that the job needs are installed."""
    algorithm = config.algorithm
    if not isinstance(algorithm, EncoderConfig):
        return
    needs = {"sentence-transformers": ("algorithm.name", algorithm.name)}
    needs |= {"mteb": ("algorithm.mteb", ", ".join(algorithm.mteb))} if algorithm.mteb else {}
    missing = {name: needs[name] for name in needs if importlib.util.find_spec(name.replace("-", "_")) is None}
    if missing:
        rule = "needs the package {}, which is not installed, got {}"
        raise UserError(*(f"{field}: {rule.format(name, value)}" for name, (field, value) in missing.items()))


def check_held_out(config: RunConfig) -> None:
    """Read the evaluation sets and their corpus; raises UserError."""
    held_out(config.data, reranker=isinstance(config.algorithm, RerankerConfig))


def _mean_tokens(config: RunConfig, drawn: list[Example]) -> float:
    """Mean tokens of a row, of all its texts, as many as are read."""
    tokenizer, algorithm = tokenizer_for(config.model), config.algorithm
    assert isinstance(algorithm, EmbeddingConfig | RerankerConfig)
    total = characters = 0
    for number, row in enumerate(drawn, start=1):
        query, *passages = row.texts
        texts: Any = [*row.texts]
        if isinstance(algorithm, RerankerConfig):
            texts = [(query, passage) for passage in passages]
        lengths = [len(ids) for ids in tokenizer(texts).input_ids]
        total += sum(min(length, algorithm.max_tokens or length) for length in lengths)
        characters += sum(map(len, row.texts))
        if characters > TOKENISED_CHARACTERS:
            return total / number
    return total / len(drawn)
