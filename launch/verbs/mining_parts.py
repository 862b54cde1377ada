"""What an unfinished `tandem mine` keeps beside its output: finished parts, each complete or not there.

A part is named by what it holds and its number, and depends only on the model, the data and the settings. So whatever
part an interrupted run was at, the next one makes it again, and the result is the same to the byte.
"""

import contextlib
import fcntl
import filecmp
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from actors.config import UserError

_IDENTITY, _LOCK, _RESULT = "identity.json", "lock", "result.jsonl"
_OURS = re.compile(r"(?:(?:passages|queries|mined)-\d+\.np[yz]|identity\.json|result\.jsonl)(?:\.tmp)?|lock")


class MinedPart(TypedDict):
    """What is found for some queries, as `launch.verbs.miner.Mined` has it for all."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    positive_scores: NDArray[np.float32]
    excluded: NDArray[np.int64]


class MiningParts:
    """The directory `FILE.jsonl.partial`."""

    def __init__(self, output: Path, directory: Path) -> None:
        self._output = output
        self.directory = directory

    def load(self, name: str, number: int) -> MinedPart | None:
        """A part, or None when it is not there."""
        try:
            with np.load(self._path(name, number)) as file:
                return {
                    "ids": file["ids"],
                    "scores": file["scores"],
                    "positive_scores": file["positive_scores"],
                    "excluded": file["excluded"],
                }
        except FileNotFoundError:
            return None

    def save(self, name: str, number: int, part: MinedPart) -> None:
        """Write a part."""
        with _replaced(self._path(name, number)) as partial, partial.open("wb") as file:
            np.savez(  # by name: to the type checker, a mapping's values could be savez's own argument
                file,
                ids=part["ids"],
                scores=part["scores"],
                positive_scores=part["positive_scores"],
                excluded=part["excluded"],
            )

    def shard(self, name: str, number: int) -> NDArray[np.float32] | None:
        """An array on disk, which is read where it is used, or None when it is not there."""
        path = self._path(name, number).with_suffix(".npy")
        return np.load(path, mmap_mode="r") if path.exists() else None

    def save_shard(self, name: str, number: int, array: NDArray[np.float32]) -> None:
        """Write an array."""
        with _replaced(self._path(name, number).with_suffix(".npy")) as partial, partial.open("wb") as file:
            np.save(file, array)

    def finish(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Put the rows in place, one JSON object a line, and remove all parts.

        Raises:
            UserError: when another file has come to be there.
        """
        result = self.directory / _RESULT
        with _replaced(result) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # An interrupted end may have left the same file there.
        if self._output.exists() and not filecmp.cmp(result, self._output, shallow=False):
            raise UserError(f"--output: must not exist yet (the result is in {result}), got {self._output}")
        os.replace(result, self._output)
        self.discard()

    def discard(self) -> None:
        """Remove all parts."""
        # First: a directory without it holds nothing that is needed, should this be interrupted.
        (self.directory / _IDENTITY).unlink()
        shutil.rmtree(self.directory)

    def _path(self, name: str, number: int) -> Path:
        return self.directory / f"{name}-{number:06d}.npz"


@contextlib.contextmanager
def mining_parts(output: Path, identity: Mapping[str, object]) -> Iterator[MiningParts]:
    """The parts of this mining; what an interrupted one has left is continued.

    Args:
        identity: all that the result depends on, JSON values by what they are: model, data, settings.

    Raises:
        UserError: the output exists, cannot be written, is being written, or was begun with another identity.
    """
    directory = output.with_name(output.name + ".partial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / _LOCK).open("w")
    except OSError as error:
        raise UserError(f"--output: must be a file that can be written ({error}), got {output}") from None
    with lock:
        _lock(lock.fileno(), output)
        _begin(directory, output, identity)
        yield MiningParts(output, directory)


def refuse_existing(output: Path) -> None:
    """Raise UserError when the output is there, and not merely waiting for its parts to be removed."""
    if output.exists() and not (output.with_name(output.name + ".partial") / _IDENTITY).exists():
        raise UserError(f"--output: must not exist yet, got {output}")


def _lock(file: int, output: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process that holds it, however that ends
    except BlockingIOError:
        raise UserError(f"--output: another process is writing it, got {output}") from None


def _begin(directory: Path, output: Path, identity: Mapping[str, object]) -> None:
    path = directory / _IDENTITY
    advice = f"remove the directory or choose another output, got {output}"
    if not path.exists():
        names = [entry.name for entry in directory.iterdir()]
        if strange := [name for name in names if not _OURS.fullmatch(name)]:
            raise UserError(f"--output: {directory} holds other files ({strange[0]}); {advice}")
        # Without an identity nobody can tell what these belong to; the lock is held by now.
        for name in set(names) - {_LOCK}:
            (directory / name).unlink()
        with _replaced(path) as partial:
            partial.write_text(json.dumps(identity, indent=2), encoding="utf-8")
        return
    then = json.loads(path.read_text(encoding="utf-8"))
    if other := [name for name in identity if then.get(name) != identity[name]]:
        raise UserError(f"--output: {directory} was begun with other {', '.join(other)}; {advice}")


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A path to write to; what is there at the end takes the place of `path`, at once and durably."""
    partial = path.with_name(path.name + ".tmp")
    try:
        partial.unlink(missing_ok=True)  # a link that somebody has put there is not followed
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written ({error.strerror or error})") from None


def digest_of_files(directory: Path) -> str:
    """Name, size and time of change of every file below a directory, as one number."""
    found = hashlib.sha256(str(directory.resolve()).encode())
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            # Not the content: reading gigabytes of weights would take longer than some minings.
            state = path.stat()
            found.update(json.dumps([str(path.relative_to(directory)), state.st_size, state.st_mtime_ns]).encode())
    return found.hexdigest()


def digest_of_values(values: Iterable[object]) -> str:
    """JSON values, as one number."""
    found = hashlib.sha256()
    for value in values:
        found.update(json.dumps(value).encode() + b"\n")
    return found.hexdigest()
