"""Files below one directory, and none outside of it, whatever links and names lead there."""

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

_DEEPEST = 3
"""Levels below the directory at which runs are looked for."""
_MOST_FOLDERS, _LOOK_S = 20_000, 5.0
"""That are looked into, and for how long: a home directory may be given by mistake."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells whether a file is the one of before."""

    inode: int
    size: int
    mtime_ns: int

    @property
    def mtime(self) -> float:
        """Seconds since 1970."""
        return self.mtime_ns / 1e9


class Below:
    """A directory of which everything may be read, and nothing outside of it.

    Raises (all methods that open): FileNotFoundError for what is not there, leads outside, or is no regular file.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory.resolve()
        """Without links."""

    def inside(self, path: Path) -> Path:
        """The path without links; raises FileNotFoundError where it leads outside, or nowhere."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file can have
            raise FileNotFoundError(str(path)) from None
        if not real.is_relative_to(self.path):
            raise FileNotFoundError(str(path))
        return real

    def open(self, path: Path) -> int:
        """A descriptor of a regular file, for reading."""
        try:
            # NONBLOCK: a pipe in a file's place would be waited for.
            file = os.open(self.inside(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise FileNotFoundError(str(path)) from None
        try:
            # What is open, and not what the path led to a moment ago: a directory may have become a link meanwhile.
            there = Path(os.readlink(f"/proc/self/fd/{file}"))
            if not stat.S_ISREG(os.fstat(file).st_mode) or not there.is_relative_to(self.path):
                raise FileNotFoundError(str(path))
        except OSError:
            os.close(file)
            raise FileNotFoundError(str(path)) from None
        return file

    def stamp(self, path: Path) -> Stamp | None:
        """Of a file; None where there is none to be read."""
        try:
            found = self.inside(path).stat()
        except OSError:
            return None
        return Stamp(found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None

    def changed(self, path: Path) -> int | None:
        """When something was put into a directory or taken out of it, in ns; None where there is none."""
        try:
            return self.inside(path).stat().st_mtime_ns
        except OSError:
            return None

    def read(self, path: Path, most: int, *, end: int | None = None) -> bytes:
        """At most `most` bytes: the first ones, or those before the byte `end`."""
        file = self.open(path)
        try:
            start = 0 if end is None else max(0, end - most)
            return os.pread(file, most if end is None else end - start, start)
        except OSError:
            raise FileNotFoundError(str(path)) from None
        finally:
            os.close(file)

    def folders(self, path: Path) -> list[Path]:
        """The directories in one, by name, links behind the others; links that lead outside are left out."""
        found = self._entries(path, lambda entry: entry.is_dir())
        found = sorted((is_link, name) for name, is_link in found)
        return [path / name for is_link, name in found if not is_link or self._leads_inside(path / name)]

    def names(self, path: Path, ends: tuple[str, ...] = ("",), most: int = 2**31) -> list[str]:
        """Names of the regular files in a directory that end so, the first ones in order; none where there is no such
        directory inside."""
        found = sorted(self._entries(path, lambda entry: entry.name.endswith(ends) and entry.is_file()))
        inside = (name for name, is_link in found if not is_link or self._leads_inside(path / name))
        return list(islice(inside, most))

    def _entries(self, path: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[tuple[str, bool]]:
        """Name, and whether it is a link: what is none lies where the directory does, and need not be looked up."""
        try:
            with os.scandir(self.inside(path)) as entries:
                return [(entry.name, entry.is_symlink()) for entry in entries if wanted(entry)]
        except OSError:
            return []

    def _leads_inside(self, path: Path) -> bool:
        try:
            self.inside(path)
        except FileNotFoundError:
            return False
        return True


def find_runs(below: Below) -> dict[str, Path]:
    """Id -> directory of each run: the directory itself (`.`), or those up to three levels below it.

    What lies within a run, as what an earlier start has left, is no run of its own.
    """
    if is_run(below, below.path):
        return {".": below.path}
    found: dict[str, Path] = {}
    seen, until = {below.path}, time.monotonic() + _LOOK_S
    level, looked = [below.path], 0
    for _ in range(_DEEPEST):
        parents, level = level, list[Path]()
        for folder in (folder for parent in parents for folder in below.folders(parent)):
            looked += 1
            if looked > _MOST_FOLDERS or time.monotonic() > until:
                break
            real = folder.resolve()
            if real in seen:
                continue
            seen.add(real)
            if is_run(below, folder):
                found[folder.relative_to(below.path).as_posix()] = folder
            else:
                level.append(folder)
    return found


def is_run(below: Below, folder: Path) -> bool:
    """Whether a directory is a run's: a model's has a config.json, too, of another kind."""
    if below.stamp(folder / "metrics.jsonl"):
        return True
    try:
        text = below.read(folder / "config.json", 2**20)
    except FileNotFoundError:
        return False
    return b'"algorithm"' in text and b'"run"' in text


def run_of(below: Below, name: str) -> Path:
    """The directory of the run with this id; raises FileNotFoundError where there is none."""
    parts = name.split("/")
    if name == ".":
        parts = []
    elif "\0" in name or not all(part and part not in (".", "..") for part in parts):
        raise FileNotFoundError(name)
    folder = below.path.joinpath(*parts)
    below.inside(folder)
    if not is_run(below, folder):
        raise FileNotFoundError(name)
    return folder
