"""A disk that is full, told as that: which disk, which file, and sizes, instead of what a library makes of it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.config_base import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = tuple(os.strerror(number) for number in _FULL)
"""What libraries that are not Python's own have of the reason."""


def disk_problem(error: BaseException, path: Path) -> UserError | None:
    """The user's mistake that an error is when a disk was full while `path`, or a file below it, was written.

    None also where it is told as one already, by a process whose disk it was.
    """
    chain, met = [], error
    # Errors that are raised from each other make a circle.
    while met is not None and met not in chain:
        chain.append(met)
        met = met.__cause__ or met.__context__
    if any(isinstance(found, UserError) for met in chain for found in (met, getattr(met, "cause", None))):
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


def _full(why: str, path: Path) -> UserError:
    path = path.absolute()
    written = f"{path} ({_size(_bytes_of(path))} so far)"
    mount, disk = path, ""
    while not (mount.exists() and os.path.ismount(mount)) and mount != mount.parent:
        mount = mount.parent
    try:
        found = os.statvfs(mount)
        # What users may take: root has a reserve beyond it.
        whole, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        disk = f", {_size(whole)} with {_size(free)} free"
    except OSError:
        pass
    return UserError(f"run.output: must be on a disk with room: {written} did not fit on {mount}{disk}, got {why!r}")


def _bytes_of(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def _size(count: int) -> str:
    """Bytes as a person reads them. Example: _size(3 * 2**20) == "3.0 MiB"."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
