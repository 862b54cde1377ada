"""Rows of CSV and TSV files: which cells are more than text is told by the names of their columns, not guessed.

A cell is text. Columns of numbers (`label`, `score`, `margin`, ...) hold numbers and truth values where the whole cell
is one, columns of lists hold JSON; whoever renames columns (data.columns) says so of others. An empty cell is an absent
column, as pandas and `datasets` take it for a missing value. Of a column that may be text or messages, only a list of
messages is JSON: a prompt may begin with a bracket.
"""

import ast
import csv
import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from actors.config import UserError
from algorithms.data.row_files import MAX_ROW_BYTES, Stream, abbreviated, decoded, no_rows, parsed, too_large

_NUMBERS = {"label", "labels", "margin", "score", "scores", "pos_scores", "neg_scores", "teacher_scores"}
_MESSAGES = {"prompt", "completion", "chosen", "rejected"}
"""Columns that are text or messages."""
_LISTS = {"messages", "conversations", "tools"}
"""Columns that are lists of objects, and nothing else."""
_TEXTS = {
    *("pos", "positive", "positives", "neg", "negative", "negatives", "positive_ids"),
    *("documents", "docs", "passages", "document", "passage"),
}
"""Columns that are one text or a list of them."""
_TEXTS_NUMBERED = re.compile(r"(positive|negative)_\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_LIKE_MESSAGES = re.compile(r"""\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
"""How a list begins that was meant as one: pandas writes lists as Python shows them, with single quotes."""
_OTHERS = {",": ";\t", "\t": ",;"}
"""Separator -> what files of that ending are separated by instead, by mistake."""
_LIMIT = threading.Lock()


def rows_of_csv(stream: Stream, path: Path, field: str, columns: Mapping[str, str]) -> Iterator[object]:
    """The rows of a file, by the names in its first line; `columns` renames, as data.columns does.

    Raises UserError with the line: names that are empty or there twice, other numbers of cells, quotes that are never
    closed, or that stand elsewhere than around a cell, no UTF-8, a row that is too large.
    """
    lines = _Lines(stream, path, field)
    separator = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
    reader = csv.reader(lines, delimiter=separator, strict=True)
    kinds: list[tuple[str, str]] = []
    header = 1
    while (cells := _next(reader, lines)) is not None:
        if not cells or (len(kinds) > 1 and len(cells) == 1 and not cells[0].strip()):  # a blank line
            continue
        if not kinds:
            names, header = _checked_names(cells, separator, lines), lines.first
            meant = {old: new for new, old in columns.items()}
            kinds = [(name, _kind(meant.get(name, name))) for name in names]
            continue
        if len(cells) != len(kinds):
            raise lines.problem(f"must have {len(kinds)} cells, as line {header} has, got {len(cells)}")
        row: dict[str, object] = {}
        for (name, kind), cell in zip(kinds, cells, strict=True):
            if cell:
                row[name] = _value(cell, name, kind, lines)
        yield row


class _Lines:
    """Lines of a file as the parser takes them; knows where the row that is being parsed begins."""

    def __init__(self, stream: Stream, path: Path, field: str) -> None:
        self.path, self.field = path, field
        self._stream, self._number, self._size = stream, 0, 0
        self.first = 1
        """Line at which the row begins."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self._number, self._size = self._number + 1, self._size + len(line)
        # A quote that is never closed makes one row of all that follows.
        if self._size > MAX_ROW_BYTES:
            several = " (is a quote not closed?)" if self._number > self.first else ""
            raise UserError(f"{too_large(self.first, self.path, self.field)}{several}")
        text = decoded(line, self._number, self.path, self.field)
        if "\0" in text:
            raise UserError(f"{self.field}: line {self._number} of {self.path} must be text, got a null byte")
        if self._number == 1 and (what := no_rows(text)):
            raise UserError(f"{self.field}: {self.path} {what}")
        return text

    def begin(self) -> None:
        """What follows is another row."""
        self.first, self._size = self._number + 1, 0

    def problem(self, rule: str) -> UserError:
        """What is wrong with the row."""
        return UserError(f"{self.field}: line {self.first} of {self.path} {rule}")


def _next(reader: Iterator[list[str]], lines: _Lines) -> list[str] | None:
    """The cells of the next row; None behind the last one."""
    lines.begin()
    with _LIMIT:
        # The parser's limit, 128 KiB for a cell, is that of the whole process, in which others parse too: it is
        # another one for this row only. A row's own limit is that of its lines.
        others = csv.field_size_limit()
        csv.field_size_limit(max(others, MAX_ROW_BYTES))
        try:
            return next(reader, None)
        except csv.Error as error:
            raise lines.problem(_told(str(error))) from None
        finally:
            csv.field_size_limit(others)


def _told(reason: str) -> str:
    """The parser's complaint about a row, for people."""
    if reason.startswith("unexpected end of data"):
        return "must close its quotes, got a quote that is never closed"
    if reason.startswith("new-line character"):
        return "must end its lines with a line feed, got a carriage return alone"
    if "expected after" in reason:
        return 'must double the quotes within a quoted cell (""), got a single one'
    return f"is not valid CSV ({reason})"


def _checked_names(names: list[str], separator: str, lines: _Lines) -> list[str]:
    """The names of the header, if they are such."""
    if len(names) == 1 and (other := next((each for each in _OTHERS[separator] if each in names[0]), None)):
        shown = {",": "commas", ";": "semicolons", "\t": "tabs"}
        rule = f"must be separated by {shown[separator]}, as {lines.path.name} is called"
        raise lines.problem(f"{rule}, got {shown[other]} in {abbreviated(names[0])}")
    for number, name in enumerate(names, start=1):
        if not name.strip():
            index = " (pandas leaves its index out with index=False)" if number == 1 else ""
            raise lines.problem(f"must name every column{index}, got no name for column {number}")
        # Rows become dictionaries, in which one of the two would be lost.
        if names.index(name) < number - 1:
            raise lines.problem(f"must have each column once, got {abbreviated(name)} twice")
    return names


def _kind(name: str) -> str:
    if _TEXTS_NUMBERED.fullmatch(name):
        return "texts"
    kinds = {"numbers": _NUMBERS, "messages": _MESSAGES, "lists": _LISTS, "texts": _TEXTS}
    return next((kind for kind, names in kinds.items() if name in names), "text")


def _value(cell: str, name: str, kind: str, lines: _Lines) -> object:
    """What a cell holds that is not empty."""
    if kind == "numbers":
        return _number(cell, name, lines)
    start = cell.lstrip()[:1]
    if kind == "text" or start not in ("[", "{"):
        return cell
    if kind == "lists":
        return _json(cell, name, lines)
    if start == "{":  # neither messages nor texts
        return cell
    if _LIKE_MESSAGES.match(cell.lstrip()) if kind == "messages" else _is_shown_by_python(cell):
        return _json(cell, name, lines)
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    wanted = _is_message if kind == "messages" else _is_text_or_id
    return _json(cell, name, lines) if isinstance(found, list) and all(map(wanted, found)) else cell


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and "role" in value


def _is_text_or_id(value: object) -> bool:
    return isinstance(value, str | int)


def _is_shown_by_python(cell: str) -> bool:
    """Whether a text is a list of texts as Python shows it."""
    if not cell.strip().startswith("['"):
        return False
    try:
        return isinstance(ast.literal_eval(cell.strip()), list)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _number(cell: str, name: str, lines: _Lines) -> object:
    """A number, a truth value or a list of those; other text stays as it is, for whoever reads the column to refuse."""
    text = cell.strip()
    if text.startswith("["):
        return _json(cell, name, lines)
    if text in _TRUTHS:
        return _TRUTHS[text]
    if not _NUMBER.fullmatch(text):
        return cell
    # JSON has no plus, and no point without digits on both sides.
    return int(text) if text.lstrip("+-").isdecimal() and len(text) < 1000 else float(text)


def _json(cell: str, name: str, lines: _Lines) -> object:
    try:
        return parsed(cell)
    except json.JSONDecodeError:
        rule = f"must hold JSON, whose quotes are double, in column {name}, got {abbreviated(cell)}"
    except ValueError as error:  # what Python's parser takes, and JSON does not
        rule = f"{error} in column {name}"
    except RecursionError:
        rule = f"is not valid JSON in column {name} (nested too deeply)"
    raise lines.problem(rule)
