"""Rows as `check` reads them: whether the job can learn from them, and how long they are. Imports no torch, no Ray."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from actors.config import UserError
from algorithms.config import DataConfig, RewardFunction
from algorithms.config_offline import DPOConfig
from algorithms.data.row_folders import has_splits
from algorithms.data.sources import kind_of_source
from launch.checks.known_rows import Field, Row, Rows, Sets
from launch.checks.reward_checks import ProbeRow
from launch.config import RunConfig
from launch.kinds.table import job_kind

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

    from algorithms.data.readers import Asked, Judgement
    from algorithms.data.reading import Reading, Tally

READ_ROWS = 20_000
"""Rows of each data set that are read here; the run itself reads all of them."""
TOKENISED_ROWS, TOKENISED_CHARACTERS = 1_000, 200_000
"""Rows of those that are tokenised to learn how long they are on average, and their size: a quarter of a second."""
_COUNTING_S, _EXACT_COUNT_S = 0.7, 5.0
"""CPU seconds for looking whether rows are too long, and as many more for counting them once one is; rows that come
later are not counted here."""
_CHUNK, _CHUNK_BYTES = 128, 2**20
"""Rows that are tokenised at one time, and their size."""
_EXAMPLES = 4
"""Rows of each set that rewards may be called with."""


def read_sets(config: RunConfig, where: Field, told: list[str] | None = None) -> Sets:
    """The first rows of each set, each read by its convention: all that can be known without a tokenizer.

    `told` gets a line for each set of which a converter keeps rows.

    Raises:
        UserError: missing, empty or malformed data, a missing column, a row that is empty or of another kind.
    """
    from algorithms.data.run_data import load_sets

    sets = load_sets(config.data, where, at_most=READ_ROWS, told=told)
    for name, rows in sets.items():
        label = f"{where}.{name}" if name else where
        reading = _reading(config, rows, label, None)
        if any(_is_math(function) for function in config.reward.functions):
            from algorithms.rewards.math_golds import check_golds

            check_golds({index + 1: reading.rows[index] for index in reading.examples}, label)
    return sets


def sets_and_notes(config: RunConfig, where: Field) -> tuple[Sets, list[str]]:
    """What `read_sets` gives, and the lines that it tells, as another process hands them over."""
    told: list[str] = []
    return read_sets(config, where, told), told


def _is_math(function: RewardFunction) -> bool:
    """Whether it is the built-in reward that reads the column answer as mathematics."""
    return function.name == "math" and "answer" not in function.arguments


def check_rows(config: RunConfig, where: Field, *, tokenise: bool, sets: Sets | None = None) -> Rows:
    """What is known about the rows; when `tokenise`, the first ones and all that might be too long are rendered.

    `sets` are what `read_sets` gave, if it was called before.

    Raises:
        UserError: as `read_sets` does, and rows that are too long or cannot be rendered.
    """
    from actors.models.tokenizer import tokenizer_for
    from algorithms.data.held_out import held_out_count
    from algorithms.offline.comparable import unpaired_text

    kind, found, lengths = job_kind(config), Rows(), []
    sets = read_sets(config, where) if sets is None else sets
    tokenizer = tokenizer_for(config.model) if tokenise else None
    columns = []
    for name, rows in sets.items():
        label = f"{where}.{name}" if name else where
        found.warnings += _limit_warnings(config, where, name, label, len(rows))
        reading = _reading(config, rows, label, tokenizer)
        tally = reading.tally()
        tally.total += len(rows) == READ_ROWS  # there may be more than were read
        found.complete = found.complete and len(rows) < READ_ROWS
        rendered = _measure(reading, tally, lengths, found) if tokenise else 0
        found.notes += reading.accounts(tally)
        found.rendered = found.rendered and (rendered == len(reading.examples) or not reading.bad.allowed)
        good = [index for index in reading.examples if index not in reading.bad.found]
        # A reward can take a column only if every row has it.
        columns.append(set.intersection(*(set(reading.rows[index]) for index in good)))
        _note_lacking({index + 1: reading.rows[index] for index in good}, columns[-1], label, found)
        if config.data.eval is not None:
            found.digest = hash((found.digest, *map(repr, rows)))  # by repr, as lists and mappings have no hash
        if kind.samples_responses:
            found.examples += _examples(reading, good, tokenizer)
        # What a row has been read as is said by the convention of the kind of job, not by a type.
        if kind.unpaired:
            judged = cast("Mapping[int, Judgement]", reading.examples)
            found.unpaired[name] = [unpaired_text(judged[index]) for index in good]
        # With data.overlong error none is left out, whether they are counted or not.
        counted = config.data.overlong == "error" or tally.looked_at == len(rows)
        found.whole = found.whole and not tally.dropped and counted
        kept = len(good) - tally.dropped
        if where == "data.train" and config.data.eval_fraction is not None:  # held-out rows are taken from what is left
            kept -= held_out_count(kept, config.data.eval_fraction, label)
        # Of a set with weight 0 no row is drawn.
        found.count += kept if where == "data.eval" or config.data.weights.get(name, 1) else 0
    found.columns = set.intersection(*columns)
    found.mean_tokens = sum(lengths) / len(lengths) if lengths else None
    if kind.samples_responses:  # what was counted are prompts
        found.lengths = []
    return found


def check_unpaired(config: RunConfig, algorithm: DPOConfig, train: Rows, held_out: Rows | None) -> None:
    """Check that every update of KTO and its evaluation can compare, where all rows are known that it will have.

    Raises UserError as `check_comparable` does.
    """
    fraction = config.data.eval_fraction
    if not (train.complete and train.whole):
        return
    from algorithms.data.held_out import divided
    from algorithms.offline.comparable import check_comparable

    sets, evaluated = {}, []
    for name, rows in train.unpaired.items():
        kept, apart = divided(rows, fraction, "data.train") if fraction is not None else (rows, [])
        sets[name], evaluated = kept, evaluated + apart
    if held_out is not None and held_out.complete and held_out.whole:
        evaluated = [row for rows in held_out.unpaired.values() for row in rows]
    check_comparable(algorithm, config.data, sets, evaluated, seed=config.run.seed)


def same_rows(config: RunConfig, train: Rows, held_out: Rows) -> list[str]:
    """A warning when evaluation reads what is trained on."""
    data = config.data
    # The same file tells it, too, where not as many rows of both were read.
    if train.digest != held_out.digest and not _same_files(data):
        return []
    return [f"data.eval: {data.eval} holds rows that are trained on: what is evaluated says nothing about other rows"]


def _same_files(data: DataConfig) -> bool:
    """Whether both sets are the same files."""
    if not (isinstance(data.train, str) and isinstance(data.eval, str)):
        return False
    kinds = {kind_of_source(data.train, "data.train"), kind_of_source(data.eval, "data.eval")}
    if kinds - {"file", "folder"} or not Path(data.train).samefile(data.eval):
        return False
    return data.split == data.eval_split or "folder" not in kinds or not has_splits(Path(data.train), "data.train")


def _reading(config: RunConfig, rows: list[Row], label: str, tokenizer: Any) -> "Reading[object]":
    """The rows as the job reads them; without a tokenizer they cannot be encoded."""
    from algorithms.data.run_data import reading_of

    limit = config.rollout.max_prompt_tokens
    return reading_of(config.algorithm, rows, config.data, tokenizer, max_prompt_tokens=limit, field=label)


def _limit_warnings(config: RunConfig, where: Field, name: str, label: str, count: int) -> list[str]:
    if _may_be_endless(config, where, name, label, count):
        return [f"{label}: gave {count:,} rows and may give more, of which the run reads all; data.limit ends it"]
    setting = "data.limit" if where == "data.train" else "data.eval_limit"
    limit = config.data.limit if where == "data.train" else config.data.eval_limit
    if limit is None or count >= min(limit, READ_ROWS):
        return []
    return [f"{setting}: {limit:,} is above the {count:,} rows of {label}, and has no effect"]


def _may_be_endless(config: RunConfig, where: Field, name: str, label: str, count: int) -> bool:
    """Whether a generator gave as many rows as are read here, and nothing bounds what the run reads."""
    train = where == "data.train"
    given, limit = (config.data.train, config.data.limit) if train else (config.data.eval, config.data.eval_limit)
    source = given[name] if isinstance(given, dict) else given
    return limit is None and count == READ_ROWS and source is not None and kind_of_source(source, label) == "generator"


def _note_lacking(rows: dict[int, Row], everywhere: set[str], label: str, found: Rows) -> None:
    """Note of each column that not all rows have which row is the first without it; `rows` by number."""
    for name in sorted(set().union(*rows.values()) - everywhere):
        number = next(number for number, row in rows.items() if name not in row)
        found.lacking.setdefault(name, f"{label}: row {number}")


def _examples(
    reading: "Reading[object]", good: list[int], tokenizer: "PreTrainedTokenizerFast | None"
) -> list[ProbeRow]:
    """Some of the rows of these indices."""
    from algorithms.data.chat_format import stop_ids
    from algorithms.data.tokens import prompt_text

    last = len(good) - 1
    prompts = cast("Mapping[int, Asked]", reading.examples)
    # Evenly from the first to the last; of fewer rows each once.
    chosen = dict.fromkeys(good[last * number // (_EXAMPLES - 1)] for number in range(_EXAMPLES))
    found = [ProbeRow(number=i + 1, prompt=prompt_text(prompts[i]), row=reading.rows[i]) for i in chosen]
    if tokenizer is None:
        return found
    end = stop_ids(tokenizer, reading.data.template_arguments)[:1]
    return [replace(row, completion_ids=_sampled(row, tokenizer, end)) for row in found]


def _sampled(row: ProbeRow, tokenizer: "PreTrainedTokenizerFast", end: list[int]) -> tuple[list[int], ...]:
    """Its completions as a model would sample them, with the token that ends each."""
    return tuple([*tokenizer.encode(text, add_special_tokens=False), *end] for text in row.completions)


def _measure(reading: "Reading[object]", tally: "Tally", lengths: list[int], found: Rows) -> int:
    """Count the rows that are too long, and learn how long the first ones are; returns how many were rendered for that.

    A row of fewer bytes than the limit has tokens is not tokenised: no token is shorter than a byte.
    """
    sample, rendered = _affordable(reading.rows), 0
    # CPU time: what is found must not depend on what else the machine does.
    until, unknown = time.process_time() + _COUNTING_S, 0
    for seen, wanted in _chunks(reading, sample):
        rendered += len(wanted)
        wanted = reading.without_huge(wanted, tally)
        items = reading.encode(wanted) if wanted else {}
        ids_of = (ids for item in items.values() for ids in _ids_of(item))
        unknown += sum(int(np.count_nonzero(ids == reading.unknown_id)) for ids in ids_of)
        sampled = [_ids_of(item) for index, item in items.items() if index < sample]
        lengths += [sum(map(len, each)) for each in sampled]
        found.lengths += [min(len(ids), reading.limit) for each in sampled for ids in each]
        reading.limited(items, wanted, tally)
        tally.looked_at = seen
        late = time.process_time() > until + (_EXACT_COUNT_S if tally.over else 0)
        if late and seen >= sample:
            break
    if unknown:
        found.warnings.append(f"{reading.field}: {unknown:,} unknown tokens (text that the tokenizer cannot express)")
    reading.conclude(tally)
    found.notes += reading.notes
    if not tally.over and tally.looked_at < len(reading.rows):
        _check_longest(reading, tally.looked_at)
    return rendered


def _chunks(reading: "Reading[object]", sample: int) -> Iterator[tuple[int, list[int]]]:
    """Rows to tokenise, a few at a time, after how many rows they were found."""
    wanted: list[int] = []
    size = 0
    for index in reading.examples:
        if index < sample or _may_be_too_long(reading, index):
            wanted.append(index)
            size += _bytes_of(reading.examples[index])
        if len(wanted) == _CHUNK or size > _CHUNK_BYTES:
            yield index + 1, wanted
            wanted, size = [], 0
    yield len(reading.rows), wanted


def _check_longest(reading: "Reading[object]", start: int) -> None:
    """Raise UserError when the longest of the rows from `start` on, which were not counted, is too long."""
    # By its text, which takes no tokenizer: the longest one is most likely too long, if any is.
    unseen = [index for index in reading.examples if index >= start]
    if not unseen:
        return
    index, tally = max(unseen, key=lambda index: len(str(reading.rows[index]))), reading.tally()
    indices = reading.without_huge([index], tally)
    reading.limited(reading.encode(indices) if indices else {}, indices, tally)
    reading.bad.check(start)
    if tally.over and reading.data.overlong == "error":
        raise UserError(
            f"{reading.field}: row {index + 1} has {'over ' * tally.huge}{tally.longest:,} tokens, {reading.rule} is "
            f"{reading.limit}, and others may be longer too; data.overlong=drop leaves them out, "
            f"data.overlong=truncate cuts them"
        )


def _may_be_too_long(reading: "Reading[object]", index: int) -> bool:
    return _bytes_of(reading.examples[index]) * reading.growth + reading.overhead > reading.limit


def _bytes_of(example: object) -> int:
    """Bytes of what is read in a row, of a pair the longer one's; more than that rather than less."""
    from algorithms.data.readers import Completion, Preference, Text

    if isinstance(example, Preference):
        return max(_bytes_of(example.chosen), _bytes_of(example.rejected))
    if isinstance(example, Completion):
        return _bytes_of(example.prompt) + _bytes_of(example.completion)
    text = example.text if isinstance(example, Text) else str(example)
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _ids_of(item: object) -> list[NDArray[np.int64]]:
    """Token ids of a prompt or sequence, of a pair those of both sequences."""
    from actors.episodes import Prompt, Sequence
    from algorithms.data.pairs import Judged, Pair

    if isinstance(item, Pair):
        return [item.chosen.token_ids, item.rejected.token_ids]
    if isinstance(item, Prompt):
        return [np.asarray(item.token_ids, dtype=np.int64)]
    sequence = item.sequence if isinstance(item, Judged) else item
    assert isinstance(sequence, Sequence), "there are no other items"
    return [sequence.token_ids]


def _affordable(rows: list[Row]) -> int:
    """How many of the first rows can be tokenised without a noticeable wait, at least one."""
    left = TOKENISED_CHARACTERS
    for count, row in enumerate(rows[:TOKENISED_ROWS]):
        left -= len(str(row))
        if left < 0:
            return max(1, count)
    return min(len(rows), TOKENISED_ROWS)
