"""Whether the data and the rewards of a configuration are what they claim to be. Imports no torch and no Ray."""

from dataclasses import dataclass
from typing import Any, Literal

from actors.config import UserError
from algorithms.config_offline import DPOConfig, SFTConfig
from algorithms.config_rl import RLConfig
from launch.config import RunConfig

READ_ROWS = 20_000
"""Rows of each data set that are read here; the run itself reads all of them."""
TOKENISED_ROWS, TOKENISED_CHARACTERS = 1_000, 200_000
"""Rows of those that are tokenised here, and their size: a quarter of a second."""

Field = Literal["data.train", "data.eval"]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known about a data set."""

    count: int
    """Rows read, at most READ_ROWS."""
    columns: set[str]
    """Columns that every row has, under the names rewards see."""
    mean_tokens: float | None
    """Mean length of a prompt, sequence or pair; None when nothing was tokenised."""


def check_rows(config: RunConfig, field: Field, *, tokenise: bool) -> Rows:
    """Read a data set and, when `tokenise`, render and tokenise its first rows and its longest one.

    Raises:
        UserError: missing, empty or malformed data, a missing column, a row that is too long or cannot be rendered.
    """
    from algorithms.data import load_rows

    rows = load_rows(config.data, field, at_most=READ_ROWS)
    if not tokenise:
        return Rows(len(rows), set.intersection(*map(set, rows)), None)
    lengths, columns = _tokenised(config, _affordable(rows), field)
    try:
        _tokenised(config, [max(rows, key=lambda row: len(str(row)))], field)
    except UserError:
        _tokenised(config, rows, field)  # slower, but names the row
    return Rows(len(rows), columns, sum(lengths) / len(lengths))


def check_reward(config: RunConfig, index: int, columns: set[str] | None) -> None:
    """Import reward function `index` and compare its parameters with `columns`, unless those are unknown.

    Raises:
        UserError: it cannot be imported, or the data does not provide what it takes.
    """
    from algorithms.reward_calls import check_signature
    from algorithms.reward_functions import resolve

    function = config.reward.functions[index]
    if columns is None:
        resolve(function, index)
    else:
        check_signature(function, columns, index)


def _tokenised(config: RunConfig, rows: list[Row], field: Field) -> tuple[list[int], set[str]]:
    """Tokens of each row's prompt or sequence, and the columns that every row has."""
    from actors.tokenizer import tokenizer_for
    from algorithms.data import prompts, sequences
    from algorithms.pairs import judged, pairs

    algorithm, data, tokenizer = config.algorithm, config.data, tokenizer_for(config.model)
    if isinstance(algorithm, RLConfig):
        limit = config.rollout.max_prompt_tokens
        found = prompts(rows, data, tokenizer, max_prompt_tokens=limit, field=field)
        return [len(item.token_ids) for item in found], set.intersection(*(set(item.row) for item in found))
    if isinstance(algorithm, SFTConfig):
        lengths = [len(item) for item in sequences(rows, data, tokenizer, train_on=algorithm.train_on, field=field)]
    elif isinstance(algorithm, DPOConfig) and algorithm.unpaired:
        lengths = [len(item.sequence) for item in judged(rows, data, tokenizer, field=field)]
    else:
        compared = pairs(rows, data, tokenizer, field=field)
        lengths = [len(item.chosen) + len(item.rejected) for item in compared]
    return lengths, set.intersection(*map(set, rows))


def _affordable(rows: list[Row]) -> list[Row]:
    """The first rows, as many as can be tokenised without a noticeable wait, at least one."""
    left = TOKENISED_CHARACTERS
    for count, row in enumerate(rows[:TOKENISED_ROWS]):
        left -= len(str(row))
        if left < 0:
            return rows[: max(1, count)]
    return rows[:TOKENISED_ROWS]
