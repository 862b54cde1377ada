"""The tokens of single samples, with what the sampler gave each: tokens.jsonl."""

from typing import Any

from launch.page.rows import number, text, whole_number
from launch.page.samples import place_of
from launch.page.step_lines import Row, StepLines

_MOST = 65_536


def places_with_tokens(lines: StepLines, step: int) -> set[tuple[int, int]]:
    """(group, sample) of the samples of a step that have tokens. Raises FileNotFoundError where the file is gone."""
    return {place for row in lines.rows(step) if row is not None and (place := place_of(row)) is not None}


def tokens_of(lines: StepLines, step: int, sample: Row) -> dict[str, Any] | None:
    """The tokens of a row of samples.jsonl, all lists as long as `pieces`, and how many are left out behind them; None
    where it has none.

    Raises:
        FileNotFoundError: the file is gone.
    """
    wanted = place_of(sample)
    rows = (row for row in lines.rows(step) if row is not None)
    found = next((row for row in rows if wanted is not None and place_of(row) == wanted), None)
    if found is None or not isinstance(found.get("pieces"), list):
        return None
    pieces = [text(piece, 1000) for piece in found["pieces"][:_MOST]]
    count = len(pieces)
    sampled = _list(found, "sampled", count)
    return {
        "pieces": pieces,
        "sampled": [bool(each) for each in sampled] if sampled is not None else [True] * count,
        "logprobs": [number(each) for each in _list(found, "logprobs", count) or [None] * count],
        "versions": [whole_number(each) for each in _list(found, "versions", count) or [None] * count],
        **{name: _numbers(found, name, count) for name in ("entropy", "ratio")},
        "left_out": (whole_number(found.get("left_out")) or 0) + len(found["pieces"]) - count,
    }


def _numbers(row: Row, name: str, count: int) -> list[float | None] | None:
    values = _list(row, name, count)
    return None if values is None else [number(each) for each in values]


def _list(row: Row, name: str, count: int) -> list[Any] | None:
    """A list of this length; None where there is none."""
    found = row.get(name)
    return found[:count] if isinstance(found, list) and len(found) >= count else None
