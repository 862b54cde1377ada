"""The verb `data`: what rows become, token by token, and how long they are."""

import sys
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actors.batch import Prompt, Sequence
from actors.tokenizer import tokenizer_for
from algorithms.config import GRPOConfig, SFTConfig
from algorithms.conventions import detect
from algorithms.data import load_rows, prompts, sequences
from algorithms.sources import Row
from launch.config import RunConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

Field = Literal["data.train", "data.eval"]


def preview(config: RunConfig, rows: int = 3, console: Console | None = None) -> None:
    """Print the detected convention, the first `rows` rendered training rows and length statistics.

    Trained tokens are highlighted and masked ones dim; without colours, trained tokens stand between « and ».

    Raises:
        UserError: when data or tokenizer cannot be read. Rows over the length limit are counted, not raised.
    """
    console = console or Console()
    tokenizer = tokenizer_for(config.model)
    fields: list[Field] = ["data.train"] if config.data.eval is None else ["data.train", "data.eval"]
    for field in fields:
        found = load_rows(config.data, field)
        shown = rows if field == "data.train" else 0
        if isinstance(config.algorithm, GRPOConfig):
            _preview_prompts(config, found, tokenizer, shown, field, console)
        else:
            _preview_sequences(config, config.algorithm, found, tokenizer, shown, field, console)


def _preview_prompts(
    config: RunConfig, rows: list[Row], tokenizer: "PreTrainedTokenizerFast", shown: int, field: Field, console: Console
) -> None:
    found = prompts(rows, config.data, tokenizer, max_prompt_tokens=sys.maxsize, field=field)
    columns = ", ".join(found[0].row)
    _print_convention(config, rows, "rl", field, console)
    console.print(f"  reward functions receive the columns {columns}", highlight=False, markup=False)
    for prompt in found[:shown]:
        body = Text(str(tokenizer.decode(prompt.token_ids, skip_special_tokens=False)))
        console.print(Panel(body, title=f"row {prompt.index + 1}, {len(prompt.token_ids)} tokens", title_align="left"))
        console.print(_row_table(prompt))
    limit = config.rollout.max_prompt_tokens
    lengths = {"prompt": ([len(prompt.token_ids) for prompt in found], limit, "rollout.max_prompt_tokens")}
    _print_lengths(lengths, _unknown(tokenizer, (prompt.token_ids for prompt in found)), field, console)


def _row_table(prompt: Prompt) -> Table:
    table = Table("column", "value", show_edge=False, pad_edge=True)
    for name, value in prompt.row.items():
        text = value if isinstance(value, str) else repr(value)
        table.add_row(Text(name), Text(text if len(text) <= 200 else text[:197] + "..."))
    return table


def _preview_sequences(
    config: RunConfig,
    algorithm: SFTConfig,
    rows: list[Row],
    tokenizer: "PreTrainedTokenizerFast",
    shown: int,
    field: Field,
    console: Console,
) -> None:
    unlimited = config.data.model_copy(update={"max_length": sys.maxsize})
    found = sequences(rows, unlimited, tokenizer, train_on=algorithm.train_on, field=field)
    _print_convention(config, rows, "sft", field, console)
    for number, sequence in enumerate(found[:shown], start=1):
        trained = int(sequence.action_mask.sum())
        title = f"row {number}, {len(sequence)} tokens, {trained} trained on"
        marks = console.color_system is None or console.no_color
        console.print(Panel(marked(sequence, tokenizer, marks=marks), title=title, title_align="left"))
    lengths = {
        "prompt": ([int(sequence.action_mask.argmax()) for sequence in found], None, ""),
        "trained on": ([int(sequence.action_mask.sum()) for sequence in found], None, ""),
        "total": ([len(sequence) for sequence in found], config.data.max_length, "data.max_length"),
    }
    _print_lengths(lengths, _unknown(tokenizer, (sequence.token_ids for sequence in found)), field, console)


def marked(sequence: Sequence, tokenizer: "PreTrainedTokenizerFast", *, marks: bool) -> Text:
    """The sequence's text with special tokens; trained parts green, and between « and » if `marks`; the rest dim."""
    text = Text()
    for trained, run in groupby(zip(sequence.action_mask, sequence.token_ids, strict=True), key=lambda pair: pair[0]):
        part = str(tokenizer.decode([int(token) for _, token in run], skip_special_tokens=False))
        text.append(f"«{part}»" if trained and marks else part, style="bold green" if trained else "dim")
    return text


def _print_convention(
    config: RunConfig, rows: list[Row], use: Literal["sft", "rl"], field: Field, console: Console
) -> None:
    convention, _ = detect(rows[:1], config.data, use, field)
    source = config.data.train if field == "data.train" else config.data.eval
    renames = "".join(f", {new} is {old}" for new, old in config.data.columns.items())
    line = f"{field}: {len(rows)} rows of {source}, convention {convention.name} ({convention.description}{renames})"
    console.print(line, highlight=False, markup=False, style="bold")


def _unknown(tokenizer: "PreTrainedTokenizerFast", token_ids: Iterable[Iterable[int]]) -> int:
    unknown = tokenizer.unk_token_id
    return sum(int(token) == unknown for ids in token_ids for token in ids)


def _print_lengths(
    lengths: Mapping[str, tuple[list[int], int | None, str]], unknown: int, field: Field, console: Console
) -> None:
    """One line per kind of length: its values, limit (or none) and the limit's field."""
    table = Table("tokens", "min", "median", "p95", "max", "over the limit", title=f"{field} lengths")
    for name, (values, limit, rule) in lengths.items():
        numbers = [min(values), *np.percentile(values, [50, 95]), max(values)]
        over = sum(value > limit for value in values) if limit else 0
        share = f"{over} rows ({over / len(values):.1%}) over {rule} {limit}" if limit else ""
        table.add_row(name, *(f"{number:g}" for number in numbers), Text(share, style="bold red" if over else ""))
    console.print(table)
    if unknown:
        console.print(f"{field}: {unknown} unknown tokens (text that the tokenizer cannot express)", style="yellow")
