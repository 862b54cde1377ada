"""Keeps what ranks have copied of their state in the memory of a process: one whole copy, and the next as it arrives.

Which copy is whole says the driver, who alone knows of all ranks and all keepers.
"""

from pathlib import Path

import numpy as np

from actors.files.pieces import FilePiece
from launch.sizes.machine import memory_here

Of = tuple[str, int]
"""Whose state it is: name of the group, and rank. Example: ("policy", 1)."""


class Keeper:
    """One process; what it keeps goes with it."""

    def __init__(self) -> None:
        self._copies: dict[int, dict[Of, list[FilePiece]]] = {}
        """By the number of the copy."""

    def free(self) -> int | None:
        """Bytes of memory that nobody uses on this host, or in this container; None where nobody says."""
        return memory_here(Path("/"))[1]

    def add(self, copy: int, of: Of, piece: FilePiece) -> bool:
        """Keep what comes next of a rank's share of a copy; returns whether that was all of it."""
        # Copied out of the object store, which would be full soon.
        own = [(name, np.array(content)) for name, content in piece.parts]
        self._copies.setdefault(copy, {}).setdefault(of, []).append(FilePiece(own, piece.last))
        return piece.last

    def keep_only(self, copy: int | None) -> None:
        """Forget all copies but this one."""
        self._copies = {number: kept for number, kept in self._copies.items() if number == copy}

    def piece(self, copy: int, of: Of, index: int) -> FilePiece:
        """A piece of what a rank has copied, in the order in which they came; raises LookupError where it is not
        here."""
        return self._copies[copy][of][index]
