"""A checkpoint's files: written with their SHA-256, and read only where they are the user's own and hold plain data.

`torch.load` can run code that a file names. Here it may make tensors, numbers, texts, lists and dictionaries, and the
few `types` that the caller knows; whatever else a file names is refused before it is imported.
"""

import hashlib
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch.serialization import MAP_LOCATION, get_unsafe_globals_in_checkpoint, safe_globals

from actors.config_base import UserError
from actors.failure import first_sentence
from actors.files.own_files import create, sha256_of, stranger, stranger_by

_PIECE = 2**16
"""Bytes from which hashing and writing at one time is worth a thread."""
_NAMED = re.compile(r"GLOBAL (\S+)")
_UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, KeyError, AssertionError, pickle.UnpicklingError)
"""What torch raises for a file that `torch.save` did not write."""


def write(value: object, path: Path) -> str:
    """Write with `torch.save`; returns the file's SHA-256, of which the hashing and the writing go on side by side."""
    return _filled(path, partial(torch.save, value))


def pickled(value: object) -> list[bytes]:
    """What `write` would write of it, in memory, as pieces that follow each other: what becomes of its tensors later
    changes nothing."""
    pieces: Any = _Pieces()
    torch.save(value, pieces)
    return pieces.found


def write_pickled(pieces: list[bytes], path: Path) -> str:
    """Write what `pickled` has given; returns the file's SHA-256. The file is, byte by byte, that of `write`."""

    def fill(file: Any) -> None:
        for piece in pieces:
            file.write(piece)

    return _filled(path, fill)


def _filled(path: Path, fill: Callable[[Any], object]) -> str:
    hashing: Any = None
    try:
        with ThreadPoolExecutor(1) as hasher, os.fdopen(create(path), "wb") as file:
            hashing = _Hashing(file, hasher)  # all of a file that torch asks for
            fill(hashing)
    except (OSError, RuntimeError) as error:
        # Of a write that failed, torch says only where in its own code it noticed.
        failed = error if isinstance(error, OSError) else hashing and hashing.failed
        if not failed:
            raise
        raise OSError(failed.errno, failed.strerror, str(path)) from error
    return hashing.sha256.hexdigest()


def read(path: Path, types: Sequence[type] = (), map_location: MAP_LOCATION = "cpu", *, mapped: bool = False) -> Any:
    """What `write` wrote; raises UserError for a file of somebody else's, or that names another type.

    `mapped`: its tensors stay in the file until they are looked at; on CPU.
    """
    with path.open("rb") as file, safe_globals(list(types)):
        # Of the file that is open: its name may mean another one by now.
        why = stranger_by(os.fstat(file.fileno())) and stranger(path)
        if why is None:
            source = f"/proc/self/fd/{file.fileno()}" if mapped else file  # torch maps what has a name
            try:
                return torch.load(source, map_location=map_location, weights_only=True, mmap=mapped)
            except pickle.UnpicklingError as error:
                named = _NAMED.search(str(error))
                why = _names([named[1]]) if named else "is no plain data"
    raise UserError(f"checkpoint.resume: {path} {why}; it was not loaded")


@contextmanager
def only_data(directory: str) -> Iterator[None]:
    """Within it, a model is loaded; raises UserError where its *.bin files name more than tensors."""
    try:
        yield
    except pickle.UnpicklingError as error:
        named = _NAMED.search(str(error))
        why = _names([named[1]]) if named else "are no plain data"
        why = f"weights in {directory} {why.replace('holds', 'hold', 1)}"
        raise UserError(f"model.path: {why}; they were not loaded") from None


class Flaw(NamedTuple):
    """What is wrong with a file of a checkpoint that is to be loaded."""

    line: str
    damage: bool
    """Whether it has only been damaged; else somebody else may have had a hand in it."""


def fault(path: Path, sha256: str | None, types: Sequence[type] = ()) -> Flaw | None:
    """What is wrong with a file that is to be loaded, in words that follow its name; None when nothing is.

    Nothing in it is run or made. Without a hash, its content is not compared.
    """
    same = True
    try:
        if why := stranger(path):
            return Flaw(why, damage=False)
        same = sha256 is None or sha256_of(path) == sha256
        with safe_globals(list(types)):
            others = get_unsafe_globals_in_checkpoint(str(path)) if path.suffix == ".pt" else []
    except _UNREADABLE as error:
        if same:
            return Flaw(f"cannot be read ({type(error).__name__}: {first_sentence(str(error))[:200]})", damage=True)
        others = []
    if others:
        return Flaw(_names(others), damage=False)
    return None if same else Flaw("is not what was saved: its SHA-256 is another one than the manifest's", damage=True)


def faults(directory: Path, hashes: Mapping[str, str | None], types: Sequence[type] = ()) -> list[Flaw]:
    """What is wrong with files of a directory (name -> SHA-256)."""
    found = {name: fault(directory / name, sha256, types) for name, sha256 in hashes.items()}
    return [Flaw(f"{directory / name} {flaw.line}", flaw.damage) for name, flaw in found.items() if flaw]


def _names(types: Sequence[str]) -> str:
    named = ", ".join(sorted(types)[:3])
    return f"holds more than data: {named if named.isprintable() else ascii(named)}"


class _Pieces:
    """A file that is in memory."""

    def __init__(self) -> None:
        self.found: list[bytes] = []

    def write(self, content: bytes | memoryview) -> int:
        self.found.append(bytes(content))  # a copy: the content is torch's, and gone afterwards
        return len(content)

    def flush(self) -> None:
        pass


class _Hashing:
    """A file that is hashed as it is written."""

    def __init__(self, file: BinaryIO, hasher: ThreadPoolExecutor) -> None:
        self.sha256 = hashlib.sha256()
        self.failed: OSError | None = None
        self._file = file
        self._hasher = hasher

    def write(self, content: bytes | memoryview) -> int:
        if len(content) < _PIECE:
            self.sha256.update(content)
            return self._written(content)
        hashed = self._hasher.submit(self.sha256.update, content)
        try:
            return self._written(content)
        finally:
            hashed.result()  # the content is torch's, and gone afterwards

    def flush(self) -> None:
        self._file.flush()

    def _written(self, content: bytes | memoryview) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.failed = error
            raise
