"""Rows of data that name a single source."""

from algorithms.config import DataConfig
from algorithms.data.run_data import Field, load_sets
from algorithms.data.sources import Row


def load_rows(data: DataConfig, field: Field, *, at_most: int | None = None) -> list[Row]:
    """The training or evaluation rows of the one source that `data` names; see `load_sets`."""
    [rows] = load_sets(data, field, at_most=at_most).values()
    return rows
