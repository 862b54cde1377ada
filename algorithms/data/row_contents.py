"""What rows hold, as a short text: another one as soon as a row is another or stands elsewhere. No torch, no tokenizer.

It is the same on every machine, and for a row from JSON, Parquet or a generator: columns in any order, keys that are
null like keys that are absent, as Arrow fills them in, and 1.0 like 1.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from algorithms.config import DataConfig
from algorithms.data.sources import Row, each_row

_FORM = 1
"""Of the text that is hashed: contents of another one say nothing about these."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_LOOK_ROWS = 256
"""Rows between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class Content:
    """What the rows of a set hold.

    Example: content_of([{"prompt": "a"}, {"prompt": "b"}]).rows is 2
    """

    rows: int
    sha256: str
    """Of all rows in their order."""
    any_order: str
    """The same for the same rows in another order."""
    form: int = _FORM

    @classmethod
    def kept(cls, given: object) -> "Content | None":
        """What a manifest keeps; None where that is nothing that can be compared with."""
        if not isinstance(given, dict) or given.get("form") != _FORM or set(given) != set(cls.__slots__):
            return None
        return cls(**given)

    def entry(self) -> dict[str, object]:
        """What a manifest keeps of it."""
        return asdict(self)


Contents = dict[str, Content]
"""Setting of each set -> its content. Example: {"data.train.math": ..., "data.train.code": ..., "data.eval": ...}"""


def content_of(rows: Iterable[Row]) -> Content:
    """The content of rows, which are read once, one after the other."""
    ordered, total, count = hashlib.sha256(), 0, 0
    for row in rows:
        digest = hashlib.sha256(_text(row).encode("utf-8", "surrogatepass")).digest()
        ordered.update(digest)
        total, count = (total + int.from_bytes(digest[:16])) % 2**128, count + 1
    return Content(rows=count, sha256=ordered.hexdigest(), any_order=f"{total:032x}")


def contents_of(data: DataConfig, fields: Iterable[str], longest_s: float) -> Contents | None:
    """The contents of those sets of `data` that `fields` name, read for this alone.

    None where that takes longer than so many seconds. Raises UserError as `read_rows` does.
    """
    until, found = time.monotonic() + longest_s, Contents()
    given = {"data.train": data.train, "data.eval": data.eval, "data.corpus": data.corpus}
    limits = {"data.train": data.limit, "data.eval": data.eval_limit}
    sources = {
        f"{where}.{name}" if name else where: (where, source)
        for where, value in given.items()
        for name, source in (value if isinstance(value, dict) else {"": value}).items()
    }
    for field in fields:
        where, source = sources[field]
        assert source is not None, field
        rows = each_row(
            source,
            split=data.split if where == "data.train" else data.eval_split,
            arguments=data.arguments,
            limit=limits.get(where),
            field=field,
            converter=None if where == "data.corpus" else data.converter,  # texts, which none changes
            columns=None if where == "data.corpus" else data.columns,
        )
        try:
            found[field] = content_of(_until(rows, until))
        except TimeoutError:
            return None
    return found


def _until(rows: Iterator[Row], until: float) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if number % _LOOK_ROWS == 0 and time.monotonic() > until:
            raise TimeoutError
        yield row


def _text(row: Row) -> str:
    return json.dumps(_plain(row), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """A value as JSON has it, alike for all that says the same."""
    # Most frequent first: every value of every row comes here.
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, int):
        return value
    if isinstance(value, set | frozenset):
        return sorted(map(_text_of, value))
    if hasattr(value, "tolist"):  # an array or a scalar of numpy's
        return _plain(value.tolist())
    return _text_of(value)


def _text_of(value: object) -> str:
    """A value that JSON has not, without its address in memory."""
    return f"{type(value).__qualname__} {_ADDRESS.sub('', repr(value))}"
