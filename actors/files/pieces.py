"""Files that travel as bytes, piece by piece, from a rank to who keeps them in memory, and back.

No torch: who keeps them does not know what they are.
"""

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.files.full_disk import told_when_full

MOST_BYTES = 2**24
"""Of a piece: so many of each rank are in the object store at one time."""

Contents = deque[tuple[str, deque[bytes]]]
"""Files by their names, each as bytes that follow one another."""


@dataclass(frozen=True, slots=True)
class FilePiece:
    """What comes next of a rank's files.

    Example: FilePiece([("average-0.pt", array([0, 6], uint8)), ("random-0.pt", array([80, ...], uint8))], last=True)
    """

    parts: list[tuple[str, NDArray[np.uint8]]]
    """Names of files, and bytes that follow what earlier pieces had of them."""
    last: bool

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(content.nbytes for _, content in self.parts)


def size_of(files: Contents) -> int:
    """Bytes of files."""
    return sum(len(content) for _, contents in files for content in contents)


def pieces_of(files: Contents, most_bytes: int = MOST_BYTES) -> Iterator[FilePiece]:
    """All that files hold, in pieces of at most so many bytes; what was given takes no memory any more."""
    parts: list[tuple[str, NDArray[np.uint8]]] = []
    room = most_bytes
    while files:
        name, contents = files.popleft()
        parts.append((name, np.empty(0, np.uint8)))  # also of a file without a byte
        while contents:
            content = np.frombuffer(contents.popleft(), np.uint8)
            while len(content) > room:
                parts.append((name, content[:room]))
                content = content[room:]
                yield FilePiece(parts, last=False)
                parts, room = [], most_bytes
            parts.append((name, content))
            room -= len(content)
    yield FilePiece(parts, last=True)


class Unpacked:
    """Files of pieces, in a directory of its own that this process' user alone can look into: below TMPDIR."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tandem-copy-"))

    def write(self, piece: FilePiece) -> None:
        """Write what comes next; raises UserError where the disk is full."""
        with told_when_full(self.directory):
            for name, content in piece.parts:
                file = self.directory / name
                file.parent.mkdir(parents=True, exist_ok=True)
                # Appended; no others may write it, whatever the process' mask is, or it would not be loaded.
                with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644), "wb") as to:
                    to.write(content.data)

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.directory, ignore_errors=True)
