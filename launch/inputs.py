"""Whether the data and the rewards of a configuration are what they claim to be. Imports no torch and no Ray."""

from dataclasses import dataclass
from typing import Any, Literal

from actors.config import UserError
from algorithms.config import GRPOConfig
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
    """Mean length of a prompt (GRPO) or sequence (SFT); None when nothing was tokenised."""


def check_rows(config: RunConfig, field: Field, *, tokenise: bool) -> Rows:
    """Read a data set and, when `tokenise`, render and tokenise its first rows and its longest one.

    Raises:
        UserError: missing, empty or malformed data, a missing column, a row that is too long or cannot be rendered.
    """
    from algorithms.data import read_rows

    data, training = config.data, field == "data.train"
    limit = data.limit if training else data.eval_limit
    rows = read_rows(
        data.train if training else str(data.eval),
        split=data.split if training else data.eval_split,
        arguments=data.arguments,
        limit=min(limit or READ_ROWS, READ_ROWS),
        field=field,
    )
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
    from algorithms.reward_functions import resolve
    from algorithms.rewards import check_signature

    function = config.reward.functions[index]
    if columns is None:
        resolve(function, index)
    else:
        check_signature(function, columns, index)


def _tokenised(config: RunConfig, rows: list[Row], field: Field) -> tuple[list[int], set[str]]:
    """Tokens of each row's prompt or sequence, and the columns that every row has."""
    from actors.tokenizer import tokenizer_for
    from algorithms.data import prompts, sequences

    tokenizer = tokenizer_for(config.model)
    if isinstance(config.algorithm, GRPOConfig):
        limit = config.rollout.max_prompt_tokens
        found = prompts(rows, config.data, tokenizer, max_prompt_tokens=limit, field=field)
        return [len(item.token_ids) for item in found], set.intersection(*(set(item.row) for item in found))
    learned = sequences(rows, config.data, tokenizer, train_on=config.algorithm.train_on, field=field)
    return [len(item) for item in learned], set.intersection(*map(set, rows))


def _affordable(rows: list[Row]) -> list[Row]:
    """The first rows, as many as can be tokenised without a noticeable wait, at least one."""
    left = TOKENISED_CHARACTERS
    for count, row in enumerate(rows[:TOKENISED_ROWS]):
        left -= len(str(row))
        if left < 0:
            return rows[: max(1, count)]
    return rows[:TOKENISED_ROWS]
