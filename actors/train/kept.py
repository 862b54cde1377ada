"""A rank whose state others keep in their memory, between checkpoints.

    begin_copy --> training goes on ... next_piece, next_piece, ... --> a keeper --> receive, receive, ... load_kept

The files are those of a checkpoint, byte by byte: a rank of a new process loads them as it loads one.
"""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from actors.files.pieces import Contents, FilePiece, Unpacked, pieces_of, size_of
from actors.pulse import beside
from actors.train.shards import Shards
from actors.train.worker import Worker


class KeptWorker(Worker):
    """One rank of a group that has state."""

    _pieces: Iterator[FilePiece] | None = None
    """What is still to be handed out of a copy."""
    _unpacked: Unpacked | None = None
    """What has arrived of one."""

    @abstractmethod
    def captured_files(self) -> Contents:
        """What `save` would write, in memory; collective."""

    @abstractmethod
    def load(self, directory: Path, saved: Shards | None = None) -> object:
        """Restore what `save` wrote."""

    def begin_copy(self) -> int:
        """Copy what `save` would write, for `next_piece`; what was copied before is forgotten. Returns its bytes;
        collective."""
        self._pieces = None  # first: there is room for one
        files = self.captured_files()
        size = size_of(files)
        self._pieces = pieces_of(files)
        return size

    @beside
    def next_piece(self) -> FilePiece:
        """The next piece of what `begin_copy` has copied, which is then forgotten here; raises LookupError where there
        is none, as in a process that was started since."""
        if self._pieces is None:
            raise LookupError("nothing was copied")
        piece = next(self._pieces)
        if piece.last:
            self._pieces = None
        return piece

    def receive(self, piece: FilePiece) -> None:
        """Take in what comes next of the files that `load_kept` is to load; raises UserError where the disk is full."""
        self._unpacked = self._unpacked or Unpacked()
        self._unpacked.write(piece)

    def load_kept(self) -> None:
        """Restore what has arrived, which is then removed; as `load`."""
        assert self._unpacked is not None, "receive comes first"
        try:
            self.load(self._unpacked.directory)
        finally:
            self.forget_received()

    def forget_received(self) -> None:
        """Remove what has arrived, if anything has."""
        if self._unpacked:
            self._unpacked.remove()
        self._unpacked = None
