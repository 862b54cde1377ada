"""Rows of files: JSON lines, JSON lists, CSV and Parquet. What JSON does not allow is refused, with the line."""

import functools
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from actors.config import UserError

FILE_TYPES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
MAX_ROW_BYTES = 2**22
"""Largest row that is read, about a million tokens: a larger one would take seconds to tokenise, and is a mistake."""
_MAX_LIST_BYTES = 2**30
"""Largest file that is one JSON list, which must be read whole."""
_EXPANDS, _EXPANDED_BYTES = 200, 2**28
"""How many times its size a compressed file may hold, and the bytes up to which it may hold any number of times more:
text is some ten times smaller, and what says little in gigabytes is a mistake or a trap."""
_GZIP = b"\x1f\x8b"
EXPANDS_TOO_FAR = f"must hold at most {_EXPANDS} times its size, got a file that expands to more"
_WEB_PAGE = re.compile(r"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
_LFS_POINTER = "version https://git-lfs"


class Stream(Protocol):
    """What is read of: a file, one that is being expanded, or bytes in memory."""

    def readline(self, size: int, /) -> bytes: ...
    def read(self, size: int, /) -> bytes: ...


def rows_of_file(path: Path, field: str, columns: Mapping[str, str] | None = None) -> Iterator[object]:
    """The rows of a file, whatever they are; `columns` renames those of CSV, which is read by their names.

    Raises UserError for a file that cannot be read, then or on the way.
    """
    if not path.is_file():
        raise UserError(f"{field}: must be a file, got a pipe or device: {path}")
    if not path.name.endswith(FILE_TYPES):
        small = " in small letters" if path.name.lower().endswith(FILE_TYPES) else ""
        raise UserError(f"{field}: file type must be one of {', '.join(FILE_TYPES)}{small}, got {path.name}")
    if path.suffix != ".parquet":
        return _text_file(path, field, columns or {})
    # Here, as that module imports from this one.
    from algorithms.data.row_parquet import rows_of_parquet

    return rows_of_parquet(path, field)


def _text_file(path: Path, field: str, columns: Mapping[str, str]) -> Iterator[object]:
    """Whether a file is gzipped is told by its first bytes, not by its name."""
    from algorithms.data.row_csv import rows_of_csv

    try:
        with path.open("rb") as raw:
            stream: Stream = _Expanding(raw, path, field) if raw.peek(2)[:2] == _GZIP else raw
            if path.name.removesuffix(".gz").endswith((".csv", ".tsv")):
                yield from rows_of_csv(stream, path, field, columns)
            else:
                yield from _json(stream, path, field)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{field}: {path} cannot be read ({reason})") from None


def _json(stream: Stream, path: Path, field: str) -> Iterator[object]:
    """Objects of a file of lines, or the items of a file that is one list. Blank lines are skipped."""
    if path.name.removesuffix(".gz").endswith(".json"):
        content = stream.read(_MAX_LIST_BYTES + 1)
        # Behind a byte order mark, if there is one.
        if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            yield from _list(content, path, field)
            return
        stream = io.BytesIO(content)
    yield from _lines(stream, path, field)


class _Expanding:
    """A gzipped file as it is read; raises UserError when it holds far more than its size tells."""

    def __init__(self, raw: BinaryIO, path: Path, field: str) -> None:
        self._stream = gzip.GzipFile(fileobj=raw)
        self._most = most_bytes(path)
        self._told = f"{field}: {path} {EXPANDS_TOO_FAR}"
        self._read = 0

    def readline(self, size: int) -> bytes:
        """Up to the line's end, at most `size` bytes."""
        return self._counted(self._stream.readline(size))

    def read(self, size: int) -> bytes:
        """All there is, at most `size` bytes."""
        parts = []
        # Piece by piece: a file that expands without end is noticed before it has filled the memory.
        while size > 0 and (part := self._counted(self._stream.read(min(size, 2**20)))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _counted(self, part: bytes) -> bytes:
        self._read += len(part)
        if self._read > self._most:
            raise UserError(self._told)
        return part


def most_bytes(path: Path) -> int:
    """Most that a compressed file may hold."""
    return max(_EXPANDED_BYTES, _EXPANDS * path.stat().st_size)


def _lines(stream: Stream, path: Path, field: str) -> Iterator[object]:
    # A byte more than a row may have tells a longer one, of which no more is read.
    for number, line in enumerate(iter(functools.partial(stream.readline, MAX_ROW_BYTES + 1), b""), start=1):
        if len(line) > MAX_ROW_BYTES:
            raise UserError(too_large(number, path, field))
        text = decoded(line, number, path, field)
        if text.strip():
            yield _parse(text, number, path, field)


def _list(content: bytes, path: Path, field: str) -> Iterator[object]:
    if len(content) > _MAX_LIST_BYTES:
        raise UserError(f"{field}: {path} must have an object a line (.jsonl) to be so large, got one list")
    rows = _parse(decoded(content, 1, path, field), 1, path, field)
    assert isinstance(rows, list), "it begins with a bracket"
    return iter(rows)


def too_large(line: int, path: Path, field: str) -> str:
    """That the row which begins at a line is too large."""
    return f"{field}: line {line} of {path} must be smaller than {MAX_ROW_BYTES // 2**20} MiB, got a larger row"


def decoded(line: bytes, number: int, path: Path, field: str) -> str:
    """The text of a line, or of a whole file; raises UserError where it is no UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")  # a byte order mark stands first
    except UnicodeDecodeError as error:
        number += error.object.count(b"\n", 0, error.start)  # a list is decoded as one text
        raise UserError(f"{field}: line {number} of {path} is not UTF-8 text") from None


def no_rows(text: str) -> str | None:
    """What a file is that begins with `text`, where it stands for another one; None where it does not."""
    if text.startswith(_LFS_POINTER):
        return "must hold the rows, is a pointer of Git LFS (git lfs pull)"
    return "must hold the rows, is a web page, not the file itself" if _WEB_PAGE.match(text) else None


def parsed(text: str) -> object:
    """The value of a JSON text. Raises JSONDecodeError, ValueError for what Python takes and JSON does not, and
    RecursionError."""
    # Python's parser also takes NaN, infinities and names given twice, and makes infinity of 1e999.
    return json.loads(
        text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
    )


def _parse(text: str, line: int, path: Path, field: str) -> object:
    try:
        return parsed(text)
    except json.JSONDecodeError as error:
        if what := no_rows(text):
            raise UserError(f"{field}: {path} {what}") from None
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        raise UserError(
            f"{field}: {where} of {path} is not valid JSON ({error.msg[0].lower()}{error.msg[1:]})"
        ) from None
    except ValueError as error:  # of the hooks below
        # A .json file was parsed whole: the hooks do not know the line.
        where = f"line {line} of {path}" if path.suffixes[:1] != [".json"] else str(path)
        raise UserError(f"{field}: {where} {error}") from None
    except RecursionError:
        raise UserError(f"{field}: line {line} of {path} is not valid JSON (nested too deeply)") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"must give each name once, got {abbreviated(twice)} twice")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"is not valid JSON, which has no {name}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"must hold numbers of at most 1.8e308, got {abbreviated(text)}")
    return number


def _whole(text: str) -> int:
    # From 4,300 digits on Python refuses in words of its own; no data has numbers as long as that.
    if len(text) > 1000:
        raise ValueError(f"must hold numbers of at most 1000 digits, got one of {len(text)}")
    return int(text)


def abbreviated(text: str) -> str:
    """A text quoted, and cut."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
