"""A disk that is full, told as that: which disk, which file, and sizes, instead of what a library makes of it.

And which errors are those of storage, full or not, that may be gone when it is tried again.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.config_base import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FAILING = (*_FULL, errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)
"""What storage says that is full, or away for a while: permission is lost as well when a ticket has run out; a soft
mount of NFS times out, and a FUSE file system whose process has died is not connected."""
_RULE = "run.output: must be on a disk with room: "
_SAID = tuple(os.strerror(number) for number in _FULL)
"""What libraries that are not Python's own have of the reason."""


class DiskFull(UserError):
    """That a disk is full, as a mistake of the user's."""

    def __reduce__(self) -> tuple[type["DiskFull"], tuple[str, ...]]:
        return DiskFull, self.problems


def storage_failure(error: BaseException) -> str | None:
    """Why storage has failed, in one line, where that is what an error tells of, also one of a rank; else None.

    Example: storage_failure(OSError(errno.EROFS, "Read-only file system", "/a/b")) is "Read-only file system: /a/b".
    """
    chain = _chain(error)
    if any(isinstance(met, UserError) and not isinstance(met, DiskFull) for met in chain):
        return None
    for met in chain:
        if isinstance(met, DiskFull):
            return met.problems[0].removeprefix(_RULE)
        if isinstance(met, OSError) and met.errno in _FAILING:
            return (met.strerror or os.strerror(met.errno or 0)) + (f": {met.filename}" if met.filename else "")
    return None


def failing(error: OSError) -> bool:
    """Whether an error is one of storage that may take the same again later."""
    return error.errno in _FAILING


def disk_problem(error: BaseException, path: Path) -> UserError | None:
    """The user's mistake that an error is when a disk was full while `path`, or a file below it, was written.

    None also where it is told as one already, by a process whose disk it was.
    """
    chain = _chain(error)
    if any(isinstance(met, UserError) for met in chain):
        return None
    for met in chain:
        if isinstance(met, OSError) and met.errno in _FULL:
            named = isinstance(met.filename, str | Path)
            return _full(os.strerror(met.errno or 0), Path(met.filename) if named else path)
        said = next((words for words in _SAID if words in str(met)), None)
        if said and not isinstance(met, OSError):
            return _full(said, path)
    return None


@contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """Within it, `path` or files below it are written; raises UserError when their disk is full."""
    try:
        yield
    except Exception as error:  # a library's own kind, with the system's words in it, may be the one that tells
        if problem := disk_problem(error, path):
            raise problem from error
        raise


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it comes from, that of another process included."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        met = waiting.pop(0)
        # Errors that are raised from each other make a circle.
        if isinstance(met, BaseException) and met not in found:
            found.append(met)
            waiting += [getattr(met, "cause", None), met.__cause__ or met.__context__]
    return found


def _full(why: str, path: Path) -> DiskFull:
    path = path.absolute()
    written = f"{path} ({size_in_words(_bytes_of(path))} so far)"
    mount, disk = path, ""
    while not (mount.exists() and os.path.ismount(mount)) and mount != mount.parent:
        mount = mount.parent
    try:
        found = os.statvfs(mount)
        # What users may take: root has a reserve beyond it.
        whole, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        disk = f", {size_in_words(whole)} with {size_in_words(free)} free"
    except OSError:
        pass
    return DiskFull(f"{_RULE}{written} did not fit on {mount}{disk}, got {why!r}")


def _bytes_of(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def size_in_words(count: int) -> str:
    """Bytes as a person reads them. Example: size_in_words(3 * 2**20) == "3.0 MiB"."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
