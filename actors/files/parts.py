"""What a part of a run that has state keeps in a checkpoint: JSON values in the manifest, arrays in files of its own.

No torch: the driver's parts are numbers and arrays of numpy.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from actors.config_base import UserError
from actors.files.full_disk import told_when_full
from actors.files.own_files import create, stranger, stranger_by

_captured: ContextVar[dict[Path, bytes] | None] = ContextVar("captured", default=None)

Entry = dict[str, Any]
"""What the manifest keeps of a part: a few JSON values, for people to read too."""


class SavedPart(Protocol):
    """What has a name in a run's checkpoints, which is also the directory of its files.

    Example: an order of rows of which two wait is `batches/waiting.safetensors`, int64 [2, 2], and in the manifest
        {"updates": 7, "tasks": {"faq": {"rows": 90, "epoch": 0, "position": 58}}}.
    """

    def save(self, directory: Path) -> Entry:
        """Write arrays, if there are any, by `write_arrays` below `directory`, which need not exist; returns what the
        manifest keeps.

        What grows with the data or the run is an array: a manifest is read whole by every `check`.
        """
        ...

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from what `save` has written and returned; its files have been compared with their hashes.

        Raises:
            UserError: the configuration is another one than then, in a way that this part cannot go on with.
            KeyError, TypeError, ValueError, AttributeError: it is not what `save` has returned.
        """
        ...


def write_arrays(arrays: Mapping[str, NDArray[np.generic]], file: Path) -> None:
    """Write arrays by name, as safetensors, into a new file in a directory that is made where it is missing.

    Raises:
        UserError: the disk is full.
    """
    # Of an array that does not lie in a row, safetensors would write the bytes in another order.
    content = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    captured = _captured.get()
    if captured is None:
        write_captured({file: content})
    else:
        captured[file] = content


@contextmanager
def captured_arrays() -> Iterator[dict[Path, bytes]]:
    """Within it, `write_arrays` writes nothing on this thread: what it would write is kept for `write_captured`."""
    found: dict[Path, bytes] = {}
    before = _captured.set(found)
    try:
        yield found
    finally:
        _captured.reset(before)


def write_captured(files: Mapping[Path, bytes]) -> None:
    """Write files as `write_arrays` does; raises as it does."""
    for file, content in files.items():
        with told_when_full(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            # safetensors' own way goes through a temporary file, whose permissions would differ from the shards'.
            with os.fdopen(create(file), "wb") as opened:
                opened.write(content)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` has written, read-only.

    Raises:
        UserError: the file is somebody else's.
        ValueError: it is no whole file of arrays.
    """
    with file.open("rb") as opened:
        # Of the file that is open: its name may mean another one by now.
        if why := stranger_by(os.fstat(opened.fileno())) and stranger(file):
            raise UserError(f"checkpoint.resume: {file} {why}; it was not loaded")
        content = opened.read()
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"{file.name} holds no arrays ({error})") from None
