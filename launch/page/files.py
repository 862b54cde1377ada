"""Files below one directory, and none outside of it, whatever links and names lead there."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

_DEEPEST = 3
"""Levels below the directory at which runs are looked for."""
_MOST_FOLDERS = 20_000
"""That are looked into: a home directory may be given by mistake."""


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
        try:
            with os.scandir(path) as entries:
                found = sorted((entry.is_symlink(), entry.name) for entry in entries if entry.is_dir())
        except OSError:
            return []
        return [path / name for _, name in found if self._leads_inside(path / name)]

    def names(self, path: Path) -> list[str]:
        """Names of the regular files in a directory, in order; none where there is no such directory inside."""
        try:
            with os.scandir(self.inside(path)) as entries:
                found = sorted(entry.name for entry in entries if entry.is_file())
        except OSError:
            return []
        return [name for name in found if self._leads_inside(path / name)]

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
    seen = {below.path}
    level, looked = [below.path], 0
    for _ in range(_DEEPEST):
        folders = [folder for parent in level for folder in below.folders(parent)]
        level = []
        for folder in folders:
            real = folder.resolve()
            looked += 1
            if real in seen or looked > _MOST_FOLDERS:
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
