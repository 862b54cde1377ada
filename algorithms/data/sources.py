"""Rows from a file (JSONL, JSON, CSV, Parquet), a folder, a generator or a Hugging Face dataset, as dictionaries."""

import functools
import inspect
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, TypeVarTuple

from actors.config import UserError
from actors.failure import reason_of
from algorithms.config import DataConfig
from algorithms.data.row_files import FILE_TYPES, MAX_ROW_BYTES, rows_of_file
from algorithms.data.row_folders import has_splits, row_files
from algorithms.data.row_nulls import without_nulls
from algorithms.user.code import cause_of, function_fault, load_function
from algorithms.user.deadline import TooLate, Watch
from algorithms.words import kind_of, nearest_file

Row = dict[str, object]
T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_HUB_DEADLINE_S = 5
_CONVERTED_S, _GENERATED_S = 10.0, 60.0
"""Longest time that one call of a converter and the next row of a generator may take."""
_ENDLESS_ROWS, _ENDLESS_S = 5_000_000, 3600.0
"""Rows and seconds after which a generator is taken to have no end, where data.limit does not end it."""


def read_rows(
    source: str,
    *,
    split: str,
    arguments: Mapping[str, object],
    limit: int | None,
    field: str,
    converter: str | None = None,
    columns: Mapping[str, str] | None = None,
    told: list[str] | None = None,
) -> list[Row]:
    """The rows of `source`, after `converter`, at most `limit` of them; see `each_row`."""
    return list(
        each_row(
            source,
            split=split,
            arguments=arguments,
            limit=limit,
            field=field,
            converter=converter,
            columns=columns,
            told=told,
        )
    )


def each_row(
    source: str,
    *,
    split: str,
    arguments: Mapping[str, object],
    limit: int | None,
    field: str,
    converter: str | None = None,
    columns: Mapping[str, str] | None = None,
    told: list[str] | None = None,
) -> Iterator[Row]:
    """The rows of `source`, after `converter`, at most `limit` of them, one after the other.

    Args:
        source: JSONL, JSON (one list, or one object a line), CSV, TSV or Parquet file, all but the last also gzipped;
            a folder, all files of one type below it, or those of `split` where they are named by one;
            `module:function` or `path.py:function`, called with split=split and `arguments`; or a Hugging Face
            dataset id, loaded with `arguments` (for example name: main).
        field: `data.train` or `data.eval`, for messages.
        converter: `module:function` or `path.py:function`, called with every row; drops those it answers None to.
        columns: data.columns, name that is read -> name in the data: of CSV it says what cells hold, too. Those it
            names may be null; all else that is null is absent, see `algorithms.data.row_nulls`.
        told: gets a line that says how many rows the converter kept.

    Raises:
        UserError: one line with `field`: missing, unreadable, malformed or empty source, or a row that is no object;
            or with `data.converter`: it cannot be found, fails, answers anything else, or drops all rows.
    """
    kind, filled = kind_of_source(source, field), True
    if kind == "generator":
        rows = _generated(source, split, arguments, field)
        if limit is None or converter:  # one that drops rows may never reach the limit
            rows = _bounded(rows, source, field)
    elif kind == "hub":
        rows = _from_hub(source, split, arguments, field)
    else:
        files = row_files(Path(source), split, field) if kind == "folder" else [Path(source)]
        filled = files[0].suffix == ".parquet"  # they are of one type
        rows = itertools.chain.from_iterable(_from_file(file, field, columns) for file in files)
    # zip takes a number only with a row: the next one then says how many the converter was given.
    read, found = itertools.count(), _objects(rows, source, field)
    renamed = frozenset((columns or {}).values())
    found = (without_nulls(row, filled=filled, kept=renamed) for row in found)
    if converter:
        found = _converted((row for row, _ in zip(found, read, strict=False)), converter, field)
        found = (without_nulls(row, filled=False, kept=renamed) for row in found)
    taken = 0
    for row in itertools.islice(found, limit):
        taken += 1
        yield row
    if converter and told is not None and taken:
        told.append(f"{field}: {converter} kept {taken:,} of {next(read):,} rows")
    if not taken:
        raise UserError(f"{field}: must hold at least one row, got none from {source}")


def kind_of_source(source: str, field: str) -> Literal["generator", "file", "folder", "hub"]:
    """What a source is, by its form and by what is here. Raises UserError for a text that can be none of them."""
    if not source.strip() or "\0" in source:
        rule = "must be a file or folder, a generator module:function or a dataset of the hub"
        raise UserError(f"{field}: {rule}, got {source!r}")
    if "://" in source:
        raise UserError(
            f"{field}: must be a file here, a generator or a dataset of the hub, got address {_short(source)}"
        )
    path = Path(source)
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{field}: {error.strerror}, got {_short(source)}") from None
    if ":" in source[1:] and not exists:  # a file may have a colon in its name
        return "generator"
    if path.is_dir():
        return "folder"
    return "file" if exists or source.endswith(FILE_TYPES) or not _is_hub_id(source) else "hub"


def check_source_settings(data: DataConfig) -> None:
    """Raise UserError for arguments beside files alone, and for a split beside files and folders that have none."""
    train, held_out = _kinds(data.train, "data.train"), _kinds(data.eval, "data.eval")
    held_out |= _kinds(data.corpus, "data.corpus")
    problems = []
    if data.arguments and not {"generator", "hub"} & {*train.values(), *held_out.values()}:
        problems.append(f"data.arguments: must be left out for files, which take none, got {data.arguments}")
    for setting, kinds in (("split", train), ("eval_split", held_out)):
        given = getattr(data, setting)
        if given == DataConfig.model_fields[setting].default or any(_has_split(*source) for source in kinds.items()):
            continue
        what = "for files, which have no splits" if kinds else "without data.eval"
        if "folder" in kinds.values():
            what = "for folders whose files are not named by split"
        problems.append(f"data.{setting}: must be left out {what}, got {given}")
    if problems:
        raise UserError(*problems)


def _kinds(given: str | dict[str, str] | None, field: str) -> dict[tuple[str, str], str]:
    """Field and source -> its kind."""
    sources = [given] if isinstance(given, str) else [*(given or {}).values()]
    return {(field, source): kind_of_source(source, field) for source in sources}


def _has_split(source: tuple[str, str], kind: str) -> bool:
    field, path = source
    if kind == "folder":
        return has_splits(Path(path), field)
    # What is not here may be a folder elsewhere.
    return kind != "file" or not (Path(path).exists() or path.endswith(FILE_TYPES))


def _objects(rows: Iterable[object], source: str, field: str) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{field}: row {number} must be an object with named columns, got {kind_of(row)} in {source}"
            )
        if fault := _fault(row):
            raise UserError(f"{field}: row {number} {fault} in {source}")
        yield row


def _fault(row: Row) -> str | None:
    """What is wrong with a row's values, whatever they say."""
    if not all(isinstance(name, str) for name in row):
        return f"must have names of columns that are text, got {kind_of(next(n for n in row if type(n) is not str))}"
    size = 0
    for name, value in row.items():
        fault, more = _value_fault(name, value)
        size += more
        if fault:
            return fault
    return f"must be smaller than {MAX_ROW_BYTES // 2**20} MiB, got a larger one" if size > MAX_ROW_BYTES else None


_DEEPEST = 100
"""Lists and mappings of a row that may stand in each other."""
_READ = (
    *("prompt", "question", "query", "answer", "solution", "target", "ground_truth", "completion", "response"),
    *("label", "labels", "score", "scores", "margin"),
)
"""Columns that are read as they are: others may have holes, which tables from elsewhere fill with NaN."""


def _value_fault(name: str, given: object) -> tuple[str | None, int]:
    """What is wrong with the value of a column, or None, and the size of its texts."""
    # A stack of its own: what is nested too deeply would end Python's.
    unseen: list[tuple[object, int]] = [(name, 0), (given, 0)]
    size = 0
    while unseen:
        value, depth = unseen.pop()
        if isinstance(value, str):
            size += len(value)
            if not value.isascii() and (at := _surrogate(value)) is not None:
                return f"must be text that UTF-8 can express, got half a surrogate pair ({value[at]!r})", size
        elif isinstance(value, dict | list | tuple):
            if depth == _DEEPEST:  # what copies, shows or sends a row calls itself for each level
                return f"must hold values nested at most {_DEEPEST} deep, got more in column {name}", size
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            unseen += [(part, depth + 1) for part in parts]
        elif isinstance(value, float):
            if not math.isfinite(value) and name in _READ:
                return f"must hold finite numbers, got {value} in column {name}", size
        # Rows are compared and shown by their text, and sent to other processes: an object's address is no data.
        elif callable(value) or isinstance(value, Iterator) or type(value).__repr__ is object.__repr__:
            return f"must hold data, got {kind_of(value)} in column {name}", size
    return None, size


def _surrogate(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _converted(rows: Iterator[Row], converter: str, field: str) -> Iterator[Row]:
    function = load_function(converter, "data.converter")
    if fault := _converter_fault(function):
        raise UserError(f"data.converter: {converter.rpartition(':')[2]} {fault}, got {converter}")
    number = kept = 0
    for number, row in enumerate(rows, start=1):
        made = _made(function, row, converter, f"row {number} of {field}")
        if made is not None and not isinstance(made, dict):
            raise UserError(
                f"data.converter: must return an object with named columns or None, got {kind_of(made)} "
                f"for row {number} of {field}"
            )
        if made is not None:
            if fault := _fault(made):
                raise UserError(f"data.converter: row {number} of {field} {fault} from {converter}")
            kept += 1
            yield made
    if number and not kept:
        raise UserError(f"data.converter: must keep at least one row of {field}, {converter} dropped all {number}")


def _converter_fault(function: Callable[..., object]) -> str | None:
    if inspect.isgeneratorfunction(function):
        return "must return a row, is a generator (it has yield)"
    if fault := function_fault(function):
        return fault
    try:
        inspect.signature(function).bind({})
    except TypeError:
        return f"must take one argument, the row, takes {inspect.signature(function)}"
    except ValueError:  # a built-in without a signature that can be read
        return None
    return None


def _bounded(rows: Iterator[object], source: str, field: str) -> Iterator[object]:
    until = time.monotonic() + _ENDLESS_S
    for number, row in enumerate(rows):
        if number == _ENDLESS_ROWS or time.monotonic() > until:
            raise UserError(f"{field}: {source} must end, gave {number:,} rows and more; data.limit takes the first")
        yield row


def _made(function: Callable[..., object], row: Row, converter: str, where: str) -> object:
    try:
        with Watch(_CONVERTED_S) as watch:
            return watch(function, row)
    except TooLate as error:
        raise UserError(f"data.converter: {converter} {error} for {where}") from None
    except (Exception, SystemExit) as error:  # someone else's code: any failure of it is reported as theirs
        raise UserError(f"data.converter: {converter} raised {cause_of(error)} for {where}") from error


def _from_file(path: Path, field: str, columns: Mapping[str, str] | None) -> Iterator[object]:
    if not path.exists():
        raise UserError(f"{field}: no such file{nearest_file(path)}, got {path}")
    return rows_of_file(path, field, columns)


def _generated(name: str, split: str, arguments: Mapping[str, object], field: str) -> Iterator[object]:
    function = load_function(name, field)
    _check_arguments(function, name, arguments, field)
    # The file of the function below its decorators: in its loops the watch can tell what never ends.
    code = getattr(inspect.unwrap(function), "__code__", None)
    file = code.co_filename if code else None
    try:
        given = _watched(file, functools.partial(function, split=split, **arguments))
        if not isinstance(given, Iterable) or isinstance(given, str | bytes | dict):
            raise UserError(f"{name} must give rows one after the other, got {kind_of(given)}")
        rows, end = iter(given), object()  # no row is this object
        # The deadline is that of one row: a generator may be right and take hours.
        while (row := _watched(file, next, rows, end)) is not end:
            yield row
    except UserError as error:  # such as the tasks that come with Tandem raise
        raise UserError(*(f"{field}: {problem}" for problem in error.problems)) from error
    except TooLate as error:
        raise UserError(f"{field}: {name} {error}, and gave no row") from None
    except (Exception, SystemExit) as error:  # someone else's code: any failure of it is reported as theirs
        raise UserError(f"{field}: {name} raised {cause_of(error)}") from error


def _check_arguments(function: Callable[..., object], name: str, arguments: Mapping[str, object], field: str) -> None:
    if fault := function_fault(function):
        raise UserError(f"{field}: {name} {fault}")
    if "split" in arguments:
        raise UserError(
            f"data.arguments.split: must be left out, as data.split and data.eval_split give it, "
            f"got {arguments['split']}"
        )
    signature = inspect.signature(function)
    # One with **options takes split among them.
    takes_any = any(item.kind is item.VAR_KEYWORD for item in signature.parameters.values())
    if "split" not in signature.parameters and not takes_any:
        raise UserError(f"{field}: {name} must take split, takes {signature}")
    try:
        signature.bind(split="", **arguments)
    except TypeError as error:
        raise UserError(f"data.arguments: {error}, {name} takes {signature}, got {arguments}") from None


def _watched(file: str | None, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
    with Watch(_GENERATED_S, file) as watch:
        return watch(function, *arguments)


def _from_hub(source: str, split: str, arguments: Mapping[str, Any], field: str) -> Iterator[object]:
    """Rows of a hub dataset. The hub is probed first: `datasets` would retry an unreachable one for minutes."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    near = nearest_file(Path(source))
    try:
        if not is_offline_mode():
            HfApi().dataset_info(source, timeout=_HUB_DEADLINE_S)
        elif not _is_cached(source):  # told here, without the seconds that importing `datasets` takes
            raise FileNotFoundError("the hub is switched off by HF_HUB_OFFLINE, and its cache has none")
        import datasets

        rows = datasets.load_dataset(source, split=split, **arguments)
    except Exception as error:  # the hub client's own types change with its versions; any cause is reported
        raise UserError(
            f"{field}: no such file{near}, and the hub cannot give a dataset of this name, split {split} "
            f"({reason_of(error)}), got {source}"
        ) from error
    return iter(rows)


def _is_cached(source: str) -> bool:
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    # Where `datasets` keeps what it has prepared, and below it where the hub's client keeps what it has loaded.
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets")) / source.replace("/", "___")
    return prepared.exists() or (Path(HF_HUB_CACHE) / f"datasets--{source.replace('/', '--')}").exists()


def _is_hub_id(source: str) -> bool:
    """`name` or `owner/name`; a name with a file's extension, or below a directory that exists here, is a path."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        return False
    return not (re.fullmatch(r"\.[A-Za-z]+", Path(source).suffix) and Path(source).parent.is_dir())


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
