"""All data of a run: its sources, which reading the job has of their rows, and those to train and to evaluate on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from actors.config import UserError
from actors.episodes import Prompt
from algorithms.config import DataConfig
from algorithms.config_offline import DPOConfig, OfflineConfig, SFTConfig
from algorithms.config_rl import RLConfig
from algorithms.data.held_out import divided
from algorithms.data.pairs import judged_reading, pair_reading
from algorithms.data.reading import Reading, Told
from algorithms.data.row_contents import Contents, content_of
from algorithms.data.sources import Row, check_source_settings, read_rows
from algorithms.data.tokens import prompt_reading, sequence_reading

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

Field = Literal["data.train", "data.eval"]
Item = TypeVar("Item")


@dataclass(kw_only=True)
class RunData:
    """The rows of a run, as its job reads them."""

    train: list[Any] = field(default_factory=list)
    """Rows of several sets stand one set behind the other."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Rows of each set."""
    held_out: list[Any] = field(default_factory=list)
    contents: Contents = field(default_factory=Contents)
    """What the sets hold, before anything is left out or cut."""
    notes: list[str] = field(default_factory=list)
    """A line for each set of which rows are skipped as bad ones, and one where rows are too long."""

    def drawn(self, weights: Mapping[str, float]) -> int:
        """Rows that one pass draws: all but those of sets with weight 0."""
        return sum(size for name, size in self.sizes.items() if weights.get(name, 1))


def load_sets(
    data: DataConfig,
    field: Field,
    *,
    at_most: int | None = None,
    told: list[str] | None = None,
    contents: Contents | None = None,
) -> dict[str, list[Row]]:
    """The training or evaluation rows of each source that `data` names, as data.converter leaves them; `at_most` so
    many of each. A single source has the name "". Rows of several get a column `source`, unless they have one.

    data.limit and data.eval_limit count the rows of a source that the converter keeps, and so do the numbers in later
    messages; `told` gets a line about what the converter kept, `contents` what each set holds.

    Raises UserError as read_rows and check_source_settings do.
    """
    train = field == "data.train"
    given, limit = (data.train, data.limit) if train else (data.eval, data.eval_limit)
    if given is None:
        raise UserError(f"{field}: required, got nothing")
    check_source_settings(data)
    found = {
        name: read_rows(
            source,
            split=data.split if train else data.eval_split,
            arguments=data.arguments,
            limit=min((count for count in (limit, at_most) if count is not None), default=None),
            field=f"{field}.{name}" if name else field,
            converter=data.converter,
            columns=data.columns,
            told=told,
        )
        for name, source in ({"": given} if isinstance(given, str) else given).items()
    }
    if contents is not None:
        contents.update({f"{field}.{name}" if name else field: content_of(rows) for name, rows in found.items()})
    if isinstance(given, str):
        return found
    return {name: [{"source": name} | row for row in rows] for name, rows in found.items()}  # a row's own column wins


def reading_of(
    algorithm: RLConfig | OfflineConfig,
    rows: list[Row],
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_prompt_tokens: int,
    field: str,
) -> Reading[Any]:
    """The rows as the algorithm reads them, not yet rendered.

    Raises UserError for rows that fit no convention or are empty.
    """
    if isinstance(algorithm, RLConfig):
        return prompt_reading(rows, data, tokenizer, max_prompt_tokens=max_prompt_tokens, field=field)
    if isinstance(algorithm, SFTConfig):
        return sequence_reading(rows, data, tokenizer, train_on=algorithm.train_on, field=field)
    if isinstance(algorithm, DPOConfig) and algorithm.unpaired:
        return judged_reading(rows, data, tokenizer, field=field)
    return pair_reading(rows, data, tokenizer, field=field)  # reward models and all other preference losses


def run_data(
    algorithm: RLConfig | OfflineConfig,
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_prompt_tokens: int,
    told: Told | None = None,
) -> RunData:
    """Load, render and tokenise all rows to train on and to evaluate on; of data.eval_fraction, every set its share.

    `told` hears of each set how many rows are done, of how many.

    Raises UserError as `load_sets`, `Reading.items` and `divided` do.
    """
    found = RunData()
    fields: list[Field] = ["data.train"] if data.eval is None else ["data.train", "data.eval"]
    for where in fields:
        for name, rows in load_sets(data, where, contents=found.contents).items():
            label = f"{where}.{name}" if name else where
            reading = reading_of(algorithm, rows, data, tokenizer, max_prompt_tokens=max_prompt_tokens, field=label)
            tally = reading.tally()
            items = reading.items(tally, told)
            found.notes += reading.notes
            found.notes += reading.accounts(tally)
            if where == "data.eval":
                found.held_out += items
                continue
            if data.eval_fraction is not None:
                # After rendering: rows that are left out as too long are in neither part.
                items, held_out = divided(items, data.eval_fraction, label)
                found.held_out += _of_set(held_out, name)
            found.sizes[name] = len(items)
            found.train += _of_set(items, name)
    if len(found.sizes) > 1 and isinstance(algorithm, RLConfig):
        # The rows of each set are numbered from 0, and two prompts of a run must not have one number.
        found.train = _numbered(found.train)
    return found


def _of_set(items: list[Item], name: str) -> list[Item]:
    """Prompts know which set they are from, so that rewards can be told apart."""
    return [replace(item, of_set=name) if isinstance(item, Prompt) else item for item in items] if name else items


def _numbered(prompts: list[Prompt]) -> list[Prompt]:
    """Prompts of several sets with numbers of their own."""
    return [replace(prompt, index=index) for index, prompt in enumerate(prompts)]
