"""Whether the data of a configuration is what it claims to be. Imports no torch and no Ray."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from actors.config import UserError
from algorithms.config_rl import RLConfig
from launch.config import RunConfig
from launch.reward_checks import ProbeRow

READ_ROWS = 20_000
"""Rows of each data set that are read here; the run itself reads all of them."""
TOKENISED_ROWS, TOKENISED_CHARACTERS = 1_000, 200_000
"""Rows of those that are tokenised to learn how long they are on average, and their size: a quarter of a second."""
_COUNTING_S, _EXACT_COUNT_S = 0.7, 5.0
"""CPU seconds for looking whether rows are too long, and as many more for counting them once one is; rows that come
later are not counted here."""
_CHUNK = 128
"""Rows that are tokenised at one time."""
_EXAMPLES = 4
"""Rows of each set that rewards may be called with."""

Field = Literal["data.train", "data.eval"]
Row = dict[str, Any]
Sets = dict[str, list[Row]]
"""Rows of each set, by its name; "" where there is one."""


@dataclass(slots=True, kw_only=True)
class Rows:
    """What is known about the training or the evaluation rows."""

    count: int = 0
    """Rows read, at most READ_ROWS of each set, without those that are left out as too long."""
    columns: set[str] = field(default_factory=set)
    """Columns that every row has, under the names rewards see."""
    lacking: dict[str, str] = field(default_factory=dict)
    """Columns that only some rows have -> the first row without them, such as `data.train: row 11`."""
    mean_tokens: float | None = None
    """Mean length of a prompt, sequence or pair; None when nothing was tokenised."""
    examples: list[ProbeRow] = field(default_factory=list)
    """Prompts to call rewards with."""
    notes: list[str] = field(default_factory=list)
    """A line for each set of which rows are too long, and are left out or cut."""
    warnings: list[str] = field(default_factory=list)
    digest: int = 0
    """Differs for rows that differ; 0 without data.eval, where there is nothing to compare with."""


def read_sets(config: RunConfig, where: Field, told: list[str] | None = None) -> Sets:
    """The first rows of each set, each read by its convention: all that can be known without a tokenizer.

    `told` gets a line for each set of which a converter keeps rows.

    Raises:
        UserError: missing, empty or malformed data, a missing column, a row that is empty or of another kind.
    """
    from algorithms.data import load_sets

    sets = load_sets(config.data, where, at_most=READ_ROWS, told=told)
    for name, rows in sets.items():
        _reading(config, rows, f"{where}.{name}" if name else where, tokenise=False)
    return sets


def check_rows(config: RunConfig, where: Field, *, tokenise: bool, sets: Sets | None = None) -> Rows:
    """What is known about the rows; when `tokenise`, the first ones and all that might be too long are rendered.

    `sets` are what `read_sets` gave, if it was called before.

    Raises:
        UserError: as `read_sets` does, and rows that are too long or cannot be rendered.
    """
    found, lengths = Rows(), []
    sets = read_sets(config, where) if sets is None else sets
    columns, by_set = [], []
    for name, rows in sets.items():
        label = f"{where}.{name}" if name else where
        found.warnings += _limit_warnings(config, where, label, len(rows))
        reading = _reading(config, rows, label, tokenise=tokenise)
        columns.append(set.intersection(*map(set, reading.rows)))
        by_set.append((label, reading.rows, set.union(*map(set, reading.rows))))
        found.count += len(rows)
        if config.data.eval is not None:
            found.digest = hash((found.digest, *map(repr, rows)))
        if isinstance(config.algorithm, RLConfig):
            found.examples += _examples(reading)
        if tokenise:
            found.count -= _measure(reading, lengths, found)
    found.columns = set.intersection(*columns)
    found.lacking = _lacking(by_set, found.columns)
    found.mean_tokens = sum(lengths) / len(lengths) if lengths else None
    if where == "data.train" and config.data.eval_fraction is not None and found.count < 2 * len(sets):
        raise UserError(f"data.eval_fraction: needs at least two rows in {where}, got {found.count}")
    return found


def _lacking(sets: list[tuple[str, list[Row], set[str]]], everywhere: set[str]) -> dict[str, str]:
    """Column that only some rows have -> the first row without it; `sets`: label, rows and all columns of each set."""
    found = {}
    for column in set.union(*(columns for _, _, columns in sets)) - everywhere:
        places = (
            f"{label}: row {number}"
            for label, rows, _ in sets
            for number, row in enumerate(rows, start=1)
            if column not in row
        )
        found[column] = next(places)
    return found


def same_rows(config: RunConfig, train: Rows, held_out: Rows) -> list[str]:
    """A warning when evaluation reads what is trained on."""
    data = config.data
    files = all(isinstance(source, str) and Path(source).is_file() for source in (data.train, data.eval))
    if train.digest != held_out.digest and not (files and Path(str(data.train)).samefile(str(data.eval))):
        return []
    return [f"data.eval: {data.eval} holds rows that are trained on: what is evaluated says nothing about other rows"]


def _reading(config: RunConfig, rows: list[Row], label: str, *, tokenise: bool) -> Any:
    """The rows as the job reads them; without a tokenizer they cannot be encoded."""
    from actors.tokenizer import tokenizer_for
    from algorithms.reading import reading_of

    tokenizer: Any = tokenizer_for(config.model) if tokenise else None
    limit = config.rollout.max_prompt_tokens
    return reading_of(config.algorithm, rows, config.data, tokenizer, max_prompt_tokens=limit, field=label)


def _limit_warnings(config: RunConfig, where: Field, label: str, count: int) -> list[str]:
    name = "data.limit" if where == "data.train" else "data.eval_limit"
    limit = config.data.limit if where == "data.train" else config.data.eval_limit
    if limit is None or count >= min(limit, READ_ROWS):
        return []
    return [f"{name}: {limit:,} is above the {count:,} rows of {label}, and has no effect"]


def _examples(reading: Any) -> list[ProbeRow]:
    from algorithms.data import prompt_text

    last = len(reading.rows) - 1
    chosen = dict.fromkeys(last * number // (_EXAMPLES - 1) for number in range(_EXAMPLES))
    return [ProbeRow(number=i + 1, prompt=prompt_text(reading.examples[i]), row=reading.rows[i]) for i in chosen]


def _measure(reading: Any, lengths: list[int], found: Rows) -> int:
    """Count the rows that are too long, and learn how long the first ones are; returns how many are left out.

    A row of fewer bytes than the limit has tokens is not tokenised: no token is shorter than a byte.
    """
    tally, sample = reading.tally(), _affordable(reading.rows)
    if len(reading.rows) == READ_ROWS:
        tally.total += 1  # there may be more than were read
    until = time.process_time() + _COUNTING_S
    for seen, wanted in _chunks(reading, sample):
        items = reading.encode(wanted) if wanted else []
        lengths += [_tokens(item) for item, index in zip(items, wanted, strict=True) if index < sample]
        reading.limited(items, wanted, tally)
        tally.looked_at = seen
        late = time.process_time() > until + (_EXACT_COUNT_S if tally.over else 0)
        if late and seen >= sample:
            break
    reading.conclude(tally)
    if note := reading.account(tally):
        found.notes.append(note)
    elif tally.looked_at < len(reading.rows):
        _check_longest(reading, tally.looked_at)
    return tally.dropped


def _chunks(reading: Any, sample: int) -> Iterator[tuple[int, list[int]]]:
    """Rows to tokenise, a few at a time, after how many rows they were found."""
    wanted: list[int] = []
    for index in range(len(reading.rows)):
        if index < sample or _may_be_too_long(reading, index):
            wanted.append(index)
        if len(wanted) == _CHUNK:
            yield index + 1, wanted
            wanted = []
    yield len(reading.rows), wanted


def _check_longest(reading: Any, start: int) -> None:
    """Raise UserError when the longest of the rows from `start` on, which were not counted, is too long."""
    index = max(range(start, len(reading.rows)), key=lambda index: len(str(reading.rows[index])))
    tally = reading.tally()
    reading.limited(reading.encode([index]), [index], tally)
    if tally.over and reading.data.overlong == "error":
        raise UserError(
            f"{reading.field}: row {index + 1} has {tally.longest:,} tokens, {reading.rule} is {reading.limit}, and "
            f"others may be longer too; data.overlong=drop leaves them out, data.overlong=truncate cuts them"
        )


def _may_be_too_long(reading: Any, index: int) -> bool:
    return _bytes_of(reading.examples[index]) * reading.growth + reading.overhead > reading.limit


def _bytes_of(example: Any) -> int:
    """Bytes of what is read in a row, of a pair the longer one's; more than that rather than less."""
    from algorithms.readers import Completion, Preference, Text

    if isinstance(example, Preference):
        return max(_bytes_of(example.chosen), _bytes_of(example.rejected))
    if isinstance(example, Completion):
        return _bytes_of(example.prompt) + _bytes_of(example.completion)
    text = example.text if isinstance(example, Text) else str(example)
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _tokens(item: Any) -> int:
    """Tokens of a prompt or sequence, of a pair those of both sequences."""
    from actors.batch import Prompt, Sequence
    from algorithms.pairs import Pair

    if isinstance(item, Pair):
        return len(item.chosen) + len(item.rejected)
    if isinstance(item, Prompt):
        return len(item.token_ids)
    return len(item if isinstance(item, Sequence) else item.sequence)


def _affordable(rows: list[Row]) -> int:
    """How many of the first rows can be tokenised without a noticeable wait, at least one."""
    left = TOKENISED_CHARACTERS
    for count, row in enumerate(rows[:TOKENISED_ROWS]):
        left -= len(str(row))
        if left < 0:
            return max(1, count)
    return min(len(rows), TOKENISED_ROWS)
