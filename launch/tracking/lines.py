"""Files that get one line of JSON at a time, each whole or not at all; what a full disk does not take waits."""

import contextlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from actors.config_base import UserError
from actors.files.full_disk import disk_problem, failing

Warn = Callable[[str], None]
_MOST_WAITING = 64 * 2**20
"""Bytes of lines that wait for storage, of all files together."""


class Waiting:
    """What the files of a run have in memory, because storage takes none of it; `warn` is told once until all is
    written."""

    def __init__(self, warn: Warn) -> None:
        self._warn = warn
        self._bytes, self._told = 0, False

    def has_room(self, size: int) -> bool:
        """Whether a line of so many bytes may wait, too."""
        return self._bytes + size <= _MOST_WAITING

    def add(self, size: int, path: Path, why: str) -> None:
        """A line waits."""
        self._bytes += size
        if not self._told:
            self._told = True
            self._warn(
                f"{path} cannot be written ({why}): lines of metrics and samples wait in memory, and are written when "
                f"there is room"
            )

    def remove(self, size: int) -> None:
        """A line was written."""
        self._bytes -= size
        self._told &= self._bytes > 0


class Lines:
    """A file that gets one line of JSON at a time, each of them whole or not at all, in order."""

    def __init__(self, path: Path, *, anew: bool, warn: Warn, waiting: Waiting) -> None:
        self._path, self._warn, self._waiting = path, warn, waiting
        self._lines = deque[bytes]()
        """Those that wait for storage."""
        self._file = self._open(os.O_TRUNC if anew else 0)

    def write(self, row: Mapping[str, object]) -> None:
        """Write a row, and before it those that wait; where storage fails, it waits, too.

        Raises:
            UserError: the file cannot be written, for another reason or with too much that waits already.
        """
        # A lone surrogate, which UTF-8 lacks, is written as the escape that JSON has for it.
        line = _text(row).encode("utf-8", "backslashreplace") + b"\n"
        with unwritable(self._path):
            try:
                self._write_waiting()
                self._append(line)
            except OSError as error:
                if not failing(error) or not self._waiting.has_room(len(line)):
                    raise
                self._lines.append(line)
                self._waiting.add(len(line), self._path, os.strerror(error.errno or 0))

    def close(self) -> None:
        """Write what waits, and tell how many lines are lost where that fails."""
        try:
            self._write_waiting()
        except OSError as error:
            if count := len(self._lines):
                self._warn(f"{self._path}: its last lines, {count} of them, were not written ({error.strerror})")
        with contextlib.suppress(OSError):  # nothing waits to be written
            os.close(self._file)

    def _write_waiting(self) -> None:
        self._go_on_where_it_should_be()
        while self._lines:
            self._append(self._lines[0])
            self._waiting.remove(len(self._lines.popleft()))

    def _append(self, line: bytes) -> None:
        end, written = os.fstat(self._file).st_size, 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, end)  # the part that a full disk still took
            raise

    def _go_on_where_it_should_be(self) -> None:
        """Open the file again when it was removed, or an editor has put another one in its place."""
        try:
            found, ours = self._path.stat(), os.fstat(self._file)
            if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except FileNotFoundError:
            pass
        os.close(self._file)
        self._file = self._open()
        self._warn(f"{self._path} was removed or replaced while the run goes on: the next lines go to the new one")

    def _open(self, flags: int = 0) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, 0o666)


@contextlib.contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Within it, a file of a run is opened or written; raises UserError where that fails."""
    try:
        yield
    except OSError as error:
        if problem := disk_problem(error, path):
            raise problem from None
        why = error.strerror or type(error).__name__
        rule = f"must be a directory whose files can be written ({why}: {path})"
        raise UserError(f"run.output: {rule}, got {path.parent.parent}") from None


def _text(row: Mapping[str, object]) -> str:
    """A row as JSON, whatever its columns are: those of a generator's rows may hold anything, and their classes' code
    may fail where it is asked for a text."""
    try:
        return json.dumps(_strict(row), ensure_ascii=False, allow_nan=False, default=str)
    except Exception as error:
        if len(row) == 1:
            (name,) = row
            return json.dumps({str(name): f"cannot be shown ({type(error).__name__})"})
        # One by one, so that only the columns that fail are replaced.
        parts = (_text({name: value})[1:-1] for name, value in row.items())
        return f"{{{', '.join(parts)}}}"


def _strict(value: object) -> object:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
