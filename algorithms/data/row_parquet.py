"""Rows of Parquet files. What a file expands to is known before it is made.

A value that rows share is stored once, in a dictionary: a small file may stand for any number of gigabytes. Columns
with dictionaries are read as such, so that lengths can be added up first.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.config import UserError
from actors.failure import reason_of
from algorithms.data.row_files import EXPANDS_TOO_FAR, abbreviated, most_bytes

_BATCH_ROWS, _BATCH_BYTES = 256, 2**26
"""Rows that are read at one time, and bytes of those that are made at one time where rows share large values."""
_FACTOR, _USUAL = 8, 4
"""How many times more than a compressed file may hold may come out by values that rows share, and how many times more
than is stored comes out of a usual group of rows."""
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 4}
"""Bytes of a value; for one of any length those of its place in a dictionary."""


class _Array(Protocol):
    """An array of Arrow's, which has no types of its own; each kind of array has some of these."""

    type: object
    nbytes: int
    dictionary: "_Array"
    indices: "_Array"
    offsets: Any
    keys: "_Array"
    items: "_Array"

    def __len__(self) -> int: ...
    def slice(self, offset: int, length: int) -> "_Array": ...
    def flatten(self) -> Any: ...  # Of a struct its fields, of lists all their items.


class _File(Protocol):
    """A Parquet file; its footer, which says how columns are stored, has no types."""

    metadata: Any
    schema: Any

    def iter_batches(self, batch_size: int, row_groups: list[int]) -> "Iterator[_Batch]": ...


class _Batch(Protocol):
    """Some rows, column by column."""

    columns: Sequence[_Array]
    num_rows: int

    def slice(self, offset: int, length: int) -> "_Batch": ...
    def to_pylist(self) -> list[object]: ...


def rows_of_parquet(path: Path, field: str) -> Iterator[object]:
    """The rows of a file; raises UserError for one that cannot be read, or that expands too far, then or on the way."""
    import pyarrow
    import pyarrow.parquet

    too_far = UserError(f"{field}: {path} {EXPANDS_TOO_FAR}")
    most, expanded = most_bytes(path), 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in names:
                # Rows become dictionaries, in which one of the two would be lost.
                if names.count(name) > 1:
                    raise UserError(f"{field}: {path} must have each column once, got {abbreviated(name)} twice")
            # By the footer alone: of the rows nothing is read yet.
            if _stored(file) > most or _least(file) > _FACTOR * most:
                raise too_far
            # Read as dictionaries, values stay shared: their lengths can be added up without making them.
            shared = _shared(file)
            with pyarrow.parquet.ParquetFile(path, read_dictionary=shared) as careful:
                for index, group in enumerate(_groups(file)):
                    size = _expanded_table(careful.read_row_group(index, columns=shared)) if shared else 0
                    expanded += size
                    if expanded > _FACTOR * most:
                        raise too_far
                    usual = size <= max(_BATCH_BYTES, _USUAL * group.total_byte_size)
                    # The quick way makes _BATCH_ROWS rows at one time, whatever they hold.
                    yield from _rows(file, index) if usual else _rows_by_size(careful, index)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{field}: {path} cannot be read as Parquet ({reason_of(error)})") from None


def _rows(file: _File, group: int) -> Iterator[object]:
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
        yield from batch.to_pylist()


def _rows_by_size(careful: _File, group: int) -> Iterator[object]:
    """The same, slowly, of values that stay in their dictionaries until a few rows of them are made."""
    for batch in careful.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
        size = sum(map(_expanded, batch.columns))
        rows = max(1, batch.num_rows * _BATCH_BYTES // max(size, _BATCH_BYTES))
        for start in range(0, batch.num_rows, rows):
            yield from batch.slice(start, rows).to_pylist()


def _groups(file: _File) -> Iterator[Any]:
    return (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))


def _stored(file: _File) -> int:
    """Bytes of all columns, uncompressed, as they are stored."""
    return sum(group.total_byte_size for group in _groups(file))


def _least(file: _File) -> int:
    """Bytes of all values but those of any length, of which it counts places."""
    widths = [
        _WIDTHS.get(column.physical_type) or max(1, column.length)
        for column in (file.schema.column(index) for index in range(len(file.schema)))
    ]
    return sum(group.column(index).num_values * width for group in _groups(file) for index, width in enumerate(widths))


def _shared(file: _File) -> list[str]:
    """Paths of the columns of texts or bytes that have a dictionary."""
    found = []
    for index in range(len(file.schema)):
        column = file.schema.column(index)
        # All else has a fixed width, and is counted by `_least`.
        texts = column.physical_type == "BYTE_ARRAY" and column.logical_type.type in ("STRING", "JSON", "ENUM", "NONE")
        if texts and any("DICTIONARY" in text for group in _groups(file) for text in group.column(index).encodings):
            found.append(column.path)
    return found


def _expanded_table(table: Any) -> int:
    return sum(_expanded(chunk) for column in table.columns for chunk in column.chunks)


def _expanded(array: _Array) -> int:
    """Bytes of an array of Arrow's when each value is made where it is shared."""
    import pyarrow
    import pyarrow.compute

    compute: Any = pyarrow.compute
    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        values = array.dictionary
        if not (pyarrow.types.is_string(values.type) or pyarrow.types.is_binary(values.type)):
            return array.nbytes
        lengths = compute.binary_length(values).cast(pyarrow.int64()).take(array.indices)
        return (compute.sum(lengths).as_py() or 0) + 4 * len(array)  # the sum of nothing is null
    if pyarrow.types.is_struct(kind):
        return 4 * len(array) + sum(map(_expanded, array.flatten()))  # 4 bytes: roughly what a place costs
    if pyarrow.types.is_map(kind):
        # A slice of a map has keys and items of the whole: its offsets say which are its own.
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return 4 * len(array) + sum(_expanded(part.slice(first, last - first)) for part in (array.keys, array.items))
    if pyarrow.types.is_list(kind):
        return 4 * len(array) + _expanded(array.flatten())
    return array.nbytes
