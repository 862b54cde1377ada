"""Whether KTO can compare: both labels in the rows, and two prompts in every update and in the held-out rows."""

import itertools
import json
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from actors.config import UserError
from algorithms.batches import row_order
from algorithms.config import DataConfig
from algorithms.config_offline import DPOConfig
from algorithms.data.pairs import Judged, prompt_length
from algorithms.data.readers import Completion, Judgement
from algorithms.data.run_data import RunData


class Unpaired(NamedTuple):
    """What decides of a row. Example: Unpaired("What is 2 + 2?", True)."""

    prompt: Hashable
    desirable: bool


def unpaired(row: Judged) -> Unpaired:
    """Of a row as it is trained on."""
    tokens = row.sequence.token_ids[: prompt_length(row.sequence)]
    return Unpaired(tokens.tobytes(), row.desirable)


def unpaired_text(row: Judgement) -> Unpaired:
    """Of a row that is not rendered yet."""
    answer = row.answer
    # As text, as messages are dictionaries, which cannot be counted.
    prompt = answer.prompt if isinstance(answer, Completion) else json.dumps(answer.messages[:-1])
    return Unpaired(prompt, row.desirable)


def require_comparable(found: RunData, algorithm: DPOConfig, data: DataConfig, *, seed: int) -> None:
    """Check the rows of a run, Judged; raises UserError as `check_comparable` does."""
    rows, sets = iter(found.train), {}  # sets stand one behind the other
    for name, size in found.sizes.items():
        sets[name] = [unpaired(row) for row in itertools.islice(rows, size)]
    check_comparable(algorithm, data, sets, [unpaired(row) for row in found.held_out], seed=seed)


def check_comparable(
    algorithm: DPOConfig,
    data: DataConfig,
    sets: dict[str, list[Unpaired]],
    held_out: Sequence[Unpaired],
    *,
    seed: int,
) -> None:
    """Check the rows of every update before the first one, in the run's own order.

    Args:
        algorithm: with `unpaired`.
        data: says in what order rows are drawn.
        sets: the rows to train on of each set, without those held out.
        held_out: all rows to evaluate on; none without evaluation.
        seed: the run's.

    Raises:
        UserError: one label in all rows that are drawn, or one prompt in all rows of an update or of the evaluation.
    """
    drawn = [row for name, rows in sets.items() if data.weights.get(name, 1) for row in rows]
    labels = Counter(row.desirable for row in drawn)
    if len(labels) == 1:
        label = str(drawn[0].desirable).lower()
        raise UserError(
            f"data.train: loss kto needs rows of both labels, true and false, got {label} in all {len(drawn):,} rows"
        )
    _require_two_prompts(drawn, "data.train")
    if held_out:
        _require_two_prompts(held_out, "data.eval" if data.eval is not None else "data.eval_fraction")
    # Of an epoch a row is drawn once, and an update may be of two epochs: so many rows have another prompt.
    rows = algorithm.samples_per_update
    if not data.weights and rows > 2 * max(Counter(row.prompt for row in drawn).values()):
        return
    order = row_order({name: len(each) for name, each in sets.items()}, data.weights, seed=seed, shuffle=data.shuffle)
    prompts = [row.prompt for each in sets.values() for row in each]
    for update in range(1, algorithm.updates(len(drawn)) + 1):
        if len({prompts[index] for index in order.next(rows)}) < 2:
            raise UserError(
                f"algorithm.samples_per_update: must give every update of kto two different prompts, got {rows}, with "
                f"which update {update} has one"
            )


def _require_two_prompts(rows: Sequence[Unpaired], field: str) -> None:
    if len({row.prompt for row in rows}) < 2:
        count = f"{len(rows)} row{'s' * (len(rows) != 1)}"
        raise UserError(f"{field}: kto compares responses to different prompts, so it needs two, got {count} of one")
