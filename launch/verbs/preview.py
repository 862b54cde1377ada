"""The verb `data`: what rows become, token by token, and how long they are."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actors.episodes import Prompt, Sequence
from actors.models.tokenizer import tokenizer_for
from algorithms.data.held_out import divided
from algorithms.data.pairs import Judged, Pair, prompt_length
from algorithms.data.reading import Reading
from algorithms.data.run_data import load_sets, reading_of
from launch.checks.chat_template import check_chat_template
from launch.config import RunConfig
from launch.kinds.table import job_kind
from launch.screen.console import VisibleConsole
from launch.screen.shown import visible
from launch.settings.named_code import refuse_code

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

Field = Literal["data.train", "data.eval"]
Item = TypeVar("Item")
"""What a job reads in a row: a prompt, a sequence, a pair, a judged response."""


def preview(config: RunConfig, rows: int = 3, console: Console | None = None, *, code: bool = True) -> None:
    """Print the detected convention, the first `rows` rendered training rows and length statistics.

    Trained tokens are highlighted and masked ones dim; without colours, trained tokens stand between « and ». The
    prompt of a pair is shown once, above its two responses. Without `code`, rows that come from code that the
    configuration names are refused.

    Raises:
        UserError: when data or tokenizer cannot be read. Rows over the length limit are counted, with what becomes of
            them; where that is an error it is told, not raised.
    """
    if not code:
        refuse_code(config)
    console = console or VisibleConsole(emoji=False)
    job_kind(config).preview(rows, console)


def preview_sets(config: RunConfig, rows: int, console: Console, show: "Show[Item]") -> None:
    """Print every set of rows as `show` does it: `rows` of the training rows each, and lengths of all."""
    tokenizer = tokenizer_for(config.model)
    fields: list[Field] = ["data.train"] if config.data.eval is None else ["data.train", "data.eval"]
    for field in fields:
        for name, found in load_sets(config.data, field).items():
            shown = rows if field == "data.train" else 0
            label = f"{field}.{name}" if name else field
            limit = config.rollout.max_prompt_tokens
            reading = reading_of(config.algorithm, found, config.data, tokenizer, max_prompt_tokens=limit, field=label)
            _preview(Shown(config, reading, tokenizer, shown, console, []), show)
    for line in check_chat_template(config):
        console.print(line, highlight=False, markup=False)


@dataclass(frozen=True, slots=True)
class Shown(Generic[Item]):
    """One set of rows that is shown, and where."""

    config: RunConfig
    reading: Reading[Item]
    tokenizer: "PreTrainedTokenizerFast"
    count: int
    """Rows of it to print."""
    console: Console
    numbers: list[int]
    """Of the rows of what is shown, the first 1."""

    def first(self, found: list[Item]) -> list[tuple[int, Item]]:
        """What is to be printed of them, with the numbers of their rows."""
        return list(zip(self.numbers, found, strict=True))[: self.count]


Show = Callable[[Shown[Item], list[Item]], None]
"""Prints the first rows of a set as its job reads them, and the lengths of all."""


def _preview(shown: Shown[Item], show: Show[Item]) -> None:
    """One set of rows, and what becomes of those that are too long."""
    config, reading, console = shown.config, shown.reading, shown.console
    tally = reading.tally()
    indices = reading.without_huge([*reading.examples], tally)
    # Rows over the limit included: their lengths are what one looks for here.
    items = reading.encode(indices) if indices else {}
    reading.limited(items, indices, tally)
    reading.bad.check()
    if not items:
        reading.conclude(tally)  # raises: there is nothing to show
    _print_convention(config, reading, console)
    show(replace(shown, numbers=[index + 1 for index in items]), [*items.values()])
    for line in [*reading.notes, *reading.accounts(tally)]:
        console.print(f"  {line}", style="bold", highlight=False, markup=False)
    if config.data.eval_fraction is not None:
        kept = [*range(tally.looked_at - tally.dropped - len(reading.bad.found))]
        train, held_out = divided(kept, config.data.eval_fraction, reading.field)
        console.print(
            f"  {len(train):,} rows are trained on, {len(held_out):,} are held out (data.eval_fraction "
            f"{config.data.eval_fraction:g})",
            highlight=False,
            markup=False,
        )


def preview_prompts(shown: Shown[Prompt], found: list[Prompt]) -> None:
    """Print what reward functions receive, and prompts as the policy reads them."""
    tokenizer, console, field = shown.tokenizer, shown.console, shown.reading.field
    columns = ", ".join(found[0].row)
    console.print(f"  reward functions receive the columns {columns}", highlight=False, markup=False)
    for prompt in found[: shown.count]:
        body = Text(visible(str(tokenizer.decode(prompt.token_ids, skip_special_tokens=False)), lines=True))
        console.print(Panel(body, title=f"row {prompt.index + 1}, {len(prompt.token_ids)} tokens", title_align="left"))
        console.print(_row_table(prompt))
    limit = shown.config.rollout.max_prompt_tokens
    lengths = {"prompt": ([len(prompt.token_ids) for prompt in found], limit, "rollout.max_prompt_tokens")}
    print_lengths(lengths, _unknown(tokenizer, (prompt.token_ids for prompt in found)), field, console)


def _row_table(prompt: Prompt) -> Table:
    table = Table("column", "value", show_edge=False, pad_edge=True)
    for name, value in prompt.row.items():
        text = visible(value if isinstance(value, str) else repr(value), lines=True)
        table.add_row(Text(visible(name)), Text(text if len(text) <= 200 else text[:197] + "..."))
    return table


def preview_sequences(shown: Shown[Sequence], found: list[Sequence]) -> None:
    """Print sequences, with the trained part marked."""
    tokenizer, console, field = shown.tokenizer, shown.console, shown.reading.field
    for number, sequence in shown.first(found):
        trained = int(sequence.action_mask.sum())
        title = f"row {number}, {len(sequence)} tokens, {trained} trained on"
        body = marked(sequence, tokenizer, marks=_needs_marks(console))
        console.print(Panel(body, title=title, title_align="left"))
    lengths = _sequence_lengths(found, "trained on", shown.config)
    print_lengths(lengths, _unknown(tokenizer, (sequence.token_ids for sequence in found)), field, console)


def preview_pairs(shown: Shown[Pair], found: list[Pair]) -> None:
    """Print prompts with their two responses."""
    tokenizer, console, field = shown.tokenizer, shown.console, shown.reading.field
    for number, pair in shown.first(found):
        start = prompt_length(pair.chosen)
        chosen, rejected = len(pair.chosen) - start, len(pair.rejected) - start
        title = f"row {number}, prompt {start} tokens, chosen {chosen}, rejected {rejected}"
        title += f", margin {pair.margin:g}" if pair.margin else ""
        body = Text("\n").join(_compared(pair, tokenizer, marks=_needs_marks(console)))
        console.print(Panel(body, title=title, title_align="left"))
    starts = [prompt_length(pair.chosen) for pair in found]
    lengths = {
        "prompt": (starts, None, ""),
        "chosen": ([len(pair.chosen) - start for pair, start in zip(found, starts, strict=True)], None, ""),
        "rejected": ([len(pair.rejected) - start for pair, start in zip(found, starts, strict=True)], None, ""),
        "longer of both": (
            [max(len(pair.chosen), len(pair.rejected)) for pair in found],
            shown.config.data.max_length,
            "data.max_length",
        ),
    }
    token_ids = (ids for pair in found for ids in (pair.chosen.token_ids, _response_ids(pair.rejected)))
    print_lengths(lengths, _unknown(tokenizer, token_ids), field, console)


def _compared(pair: Pair, tokenizer: "PreTrainedTokenizerFast", *, marks: bool) -> list[Text]:
    """A pair's prompt, and below it its two responses."""
    prompt = str(tokenizer.decode(pair.chosen.token_ids[: prompt_length(pair.chosen)].tolist()))
    lines = [Text(visible(prompt, lines=True), style="dim")]
    for name, style, sequence in (("chosen", "green", pair.chosen), ("rejected", "red", pair.rejected)):
        response = str(tokenizer.decode(_response_ids(sequence).tolist(), skip_special_tokens=False))
        response = visible(response, lines=True)
        lines.append(Text.assemble(f"{name:9}", (f"«{response}»" if marks else response, f"bold {style}")))
    return lines


def _response_ids(sequence: Sequence) -> NDArray[np.int64]:
    return sequence.token_ids[sequence.action_mask]


def preview_judged(shown: Shown[Judged], found: list[Judged]) -> None:
    """Print single responses with their labels."""
    tokenizer, console, field = shown.tokenizer, shown.console, shown.reading.field
    for number, item in shown.first(found):
        console.print(_judged_panel(number, item, tokenizer, marks=_needs_marks(console)))
    good = sum(item.desirable for item in found)
    console.print(f"  {good} desirable rows, {len(found) - good} undesirable ones", highlight=False)
    lengths = _sequence_lengths([item.sequence for item in found], "response", shown.config)
    print_lengths(lengths, _unknown(tokenizer, (item.sequence.token_ids for item in found)), field, console)


def _judged_panel(number: int, item: Judged, tokenizer: "PreTrainedTokenizerFast", *, marks: bool) -> Panel:
    response = int(item.sequence.action_mask.sum())
    label = "desirable" if item.desirable else "undesirable"
    title = f"row {number}, {label}, prompt {len(item.sequence) - response} tokens, response {response}"
    return Panel(marked(item.sequence, tokenizer, marks=marks), title=title, title_align="left")


def _sequence_lengths(
    found: list[Sequence], trained: str, config: RunConfig
) -> dict[str, tuple[list[int], int | None, str]]:
    """Lengths of the part before the first trained token, of the trained part and of all, by name."""
    return {
        "prompt": ([prompt_length(sequence) for sequence in found], None, ""),
        trained: ([int(sequence.action_mask.sum()) for sequence in found], None, ""),
        "total": ([len(sequence) for sequence in found], config.data.max_length, "data.max_length"),
    }


# Where no colour tells what is trained: in a file, a pipe, or by NO_COLOR.
def _needs_marks(console: Console) -> bool:
    return console.color_system is None or console.no_color


def marked(sequence: Sequence, tokenizer: "PreTrainedTokenizerFast", *, marks: bool) -> Text:
    """The sequence's text with special tokens; trained parts green, and between « and » if `marks`; the rest dim."""
    text = Text()
    for trained, run in groupby(zip(sequence.action_mask, sequence.token_ids, strict=True), key=lambda pair: pair[0]):
        part = visible(str(tokenizer.decode([int(token) for _, token in run], skip_special_tokens=False)), lines=True)
        text.append(f"«{part}»" if trained and marks else part, style="bold green" if trained else "dim")
    return text


def _print_convention(config: RunConfig, reading: Reading[Item], console: Console) -> None:
    data, field = config.data, reading.field
    convention = reading.convention
    where, _, name = field.removeprefix("data.").partition(".")
    source = data.train if where == "train" else data.eval
    source = source[name] if isinstance(source, dict) else source
    source = f"{source} after {data.converter}" if data.converter else source
    renames = "".join(f", {new} is {old}" for new, old in data.columns.items())
    rows = f"{len(reading.rows)} rows"
    line = f"{field}: {rows} of {source}, convention {convention.name} ({convention.description}{renames})"
    console.print(line, highlight=False, markup=False, style="bold")


def _unknown(tokenizer: "PreTrainedTokenizerFast", token_ids: Iterable[Iterable[int]]) -> int:
    unknown = tokenizer.unk_token_id
    return sum(int(token) == unknown for ids in token_ids for token in ids)


def print_lengths(
    lengths: Mapping[str, tuple[list[int], int | None, str]], unknown: int, field: str, console: Console
) -> None:
    """One line per kind of length: its values, limit (or none) and the limit's field; and unknown tokens, if any."""
    table = Table("tokens", "min", "median", "p95", "max", "over the limit", title=f"{field} lengths")
    for name, (values, limit, rule) in lengths.items():
        numbers = [min(values), *np.percentile(values, [50, 95]), max(values)]
        over = sum(value > limit for value in values) if limit else 0
        share = f"{over} rows ({over / len(values):.1%}) over {rule} {limit}" if limit else ""
        table.add_row(name, *(f"{number:g}" for number in numbers), Text(share, style="bold red" if over else ""))
    console.print(table)
    if unknown:
        console.print(f"{field}: {unknown} unknown tokens (text that the tokenizer cannot express)", style="yellow")
