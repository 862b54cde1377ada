"""Rows from a file (JSONL, JSON, Parquet), a Python generator or a Hugging Face dataset, as plain dictionaries."""

import gzip
import importlib
import importlib.util
import inspect
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from actors.config import UserError
from algorithms.reward_functions import cause_of, nearest

Row = dict[str, Any]

_FILE_TYPES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_HUB_DEADLINE_S = 5


def read_rows(
    source: str,
    *,
    split: str,
    arguments: dict[str, Any],
    limit: int | None,
    field: str,
    converter: str | None = None,
) -> list[Row]:
    """The rows of `source`, after `converter`, at most `limit` of them.

    Args:
        source: JSONL, JSON (one list, or one object a line) or Parquet file, the first two also gzipped;
            `module:function` or `path.py:function`, called with split=split and `arguments`; or a Hugging Face
            dataset id, loaded with `arguments` (for example name: main).
        field: `data.train` or `data.eval`, for messages.
        converter: `module:function` or `path.py:function`, called with every row; drops those it answers None to.

    Raises:
        UserError: one line with `field`: missing, unreadable, malformed or empty source, or a row that is no object;
            or with `data.converter`: it cannot be found, fails, answers anything else, or drops all rows.
    """
    path = Path(source)
    module, _, function = source.rpartition(":")
    if module and not path.exists():
        rows = _generated(module, function, split, arguments, field)
    elif path.exists() or source.endswith(_FILE_TYPES) or not _is_hub_id(source):
        rows = _from_file(path, field)
    else:
        rows = _from_hub(source, split, arguments, field)
    found = _objects(rows, source, field)
    taken = list(itertools.islice(_converted(found, converter, field) if converter else found, limit))
    if not taken:
        raise UserError(f"{field}: must hold at least one row, got none from {source}")
    return taken


def _objects(rows: Iterable[Any], source: str, field: str) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{field}: row {number} must be an object with named columns, got {kind_of(row)} in {source}"
            )
        yield row


def _converted(rows: Iterator[Row], converter: str, field: str) -> Iterator[Row]:
    module, _, name = converter.rpartition(":")
    if not module:
        raise UserError(f"data.converter: must be module:function or path.py:function, got {converter}")
    function = load_function(module, name, "data.converter")
    number = kept = 0
    for number, row in enumerate(rows, start=1):
        try:
            made = function(row)
        except Exception as error:  # someone else's code: any failure of it is reported as theirs
            raise UserError(
                f"data.converter: {converter} raised {cause_of(error)} for row {number} of {field}"
            ) from error
        if made is not None and not isinstance(made, dict):
            raise UserError(
                f"data.converter: must return an object with named columns or None, got {kind_of(made)} "
                f"for row {number} of {field}"
            )
        if made is not None:
            kept += 1
            yield made
    if number and not kept:
        raise UserError(f"data.converter: must keep at least one row of {field}, {converter} dropped all {number}")


def _from_file(path: Path, field: str) -> Iterator[Any]:
    if not path.exists():
        raise UserError(f"{field}: no such file{_nearest_file(path)}, got {path}")
    if not path.is_file():
        raise UserError(f"{field}: must be a file, got directory {path}")
    if not path.name.endswith(_FILE_TYPES):
        raise UserError(f"{field}: file type must be one of {', '.join(_FILE_TYPES)}, got {path.name}")
    return _parquet(path, field) if path.suffix == ".parquet" else _json(path, field)


def _json(path: Path, field: str) -> Iterator[Any]:
    """Objects of a file of lines, or the items of a file that is one list. Blank lines are skipped."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{field}: line {line} of {path} is not UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{field}: {path} cannot be read ({reason})") from None
    if path.name.removesuffix(".gz").endswith(".json") and text.lstrip().startswith("["):
        yield from _parse(text, 1, path, field)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _parse(line, number, path, field)


def _parse(text: str, line: int, path: Path, field: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        raise UserError(
            f"{field}: {where} of {path} is not valid JSON ({error.msg[0].lower()}{error.msg[1:]})"
        ) from None
    except RecursionError:
        raise UserError(f"{field}: line {line} of {path} is not valid JSON (nested too deeply)") from None


def _parquet(path: Path, field: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{field}: {path} cannot be read as Parquet ({_first_line(error)})") from None


def _generated(module: str, name: str, split: str, arguments: dict[str, Any], field: str) -> Iterator[Any]:
    function = load_function(module, name, field)
    try:
        inspect.signature(function).bind(split=split, **arguments)
    except TypeError as error:
        raise UserError(
            f"data.arguments: {error}, {module}:{name} takes {inspect.signature(function)}, got {arguments}"
        ) from None
    try:
        yield from function(split=split, **arguments)
    except UserError as error:
        raise UserError(*(f"{field}: {problem}" for problem in error.problems)) from error
    except Exception as error:  # someone else's code: any failure of it is reported as theirs
        raise UserError(f"{field}: {module}:{name} raised {cause_of(error)}") from error


def load_function(module: str, name: str, field: str) -> Callable[..., Any]:
    """Import `name` from a module (the working directory is importable) or from a `path.py` file.

    Raises:
        UserError: one line with `field`: no such file, a failing import, or no such function (with the nearest name).
    """
    try:
        loaded = _load_path(Path(module), field) if module.endswith(".py") else _load_module(module)
    except UserError:
        raise
    except Exception as error:  # importing runs someone else's code
        raise UserError(f"{field}: {module} cannot be imported ({cause_of(error)}), got {module}:{name}") from error
    function = getattr(loaded, name, None)
    if not callable(function):
        names = [key for key, value in vars(loaded).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{field}: {module} has no function {name!r}{nearest(name, names)}, got {module}:{name}")
    return function


def _load_module(module: str) -> Any:
    # A console script does not have the working directory on its path. Last, so that it hides no installed module.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return importlib.import_module(module)


def _load_path(path: Path, field: str) -> Any:
    if not path.is_file():
        raise UserError(f"{field}: no such file{_nearest_file(path)}, got {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_hub(source: str, split: str, arguments: dict[str, Any], field: str) -> Iterator[Any]:
    """Rows of a hub dataset. The hub is probed first: `datasets` would retry an unreachable one for minutes."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    near = _nearest_file(Path(source))
    try:
        if not is_offline_mode():
            HfApi().dataset_info(source, timeout=_HUB_DEADLINE_S)
        import datasets

        rows = datasets.load_dataset(source, split=split, **arguments)
    except Exception as error:  # the hub client's own types change with its versions; any cause is reported
        raise UserError(
            f"{field}: no such file{near}, and the hub cannot give a dataset of this name, split {split} "
            f"({_first_line(error)}), got {source}"
        ) from error
    return iter(rows)


def _is_hub_id(source: str) -> bool:
    """`name` or `owner/name`; a name with a file's extension, or below a directory that exists here, is a path."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        return False
    return not (re.fullmatch(r"\.[A-Za-z]+", Path(source).suffix) and Path(source).parent.is_dir())


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    return nearest(str(path), [str(path.parent / name) for name in names])


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def kind_of(value: Any) -> str:
    """Type and (shortened) value, for messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
