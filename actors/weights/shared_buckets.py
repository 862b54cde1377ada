"""Buckets that pass between processes of one node through memory without a name: written once, copied by each.

Over loopback the same bytes would pass the kernel's sockets once for each receiver. The memory stays mapped on both
sides from one transfer to the next: fresh pages cost more than what is written to them.
"""

import mmap
import os

import torch

Place = tuple[int, int, int]
"""Where a `SharedMemory` is found: its process, the descriptor there, and the inode, which no other memory has."""


class SharedMemory:
    """Memory of a process that others on its node can read."""

    def __init__(self, size: int) -> None:
        """`size`: bytes. Raises OSError where the system has no such memory to give."""
        self.size = size
        self._descriptor = os.memfd_create("weights", os.MFD_CLOEXEC)
        # A mapping of nothing is refused.
        os.ftruncate(self._descriptor, max(1, size))
        self._map = mmap.mmap(self._descriptor, max(1, size))
        self.place: Place = (os.getpid(), self._descriptor, os.fstat(self._descriptor).st_ino)

    def bytes(self, count: int) -> torch.Tensor:
        """The first `count`, uint8; whoever reads sees what is written to them."""
        return torch.frombuffer(self._map, dtype=torch.uint8)[:count]

    def __del__(self) -> None:
        # Nobody can come any more; who has it mapped keeps it.
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class Reader:
    """The side that copies; it keeps what it has mapped last."""

    def __init__(self) -> None:
        self._last: tuple[Place, torch.Tensor] | None = None

    def read(self, place: Place, count: int) -> torch.Tensor:
        """A copy of the first bytes of another process's memory, uint8 [count].

        Raises OSError when that is closed, or belongs to another user.
        """
        last = self._last
        # Never larger than it was: a sender that needs more makes another.
        if last is None or last[0] != place:
            self._last = last = place, _mapped(place)
        return last[1][:count].clone()


def _mapped(place: Place) -> torch.Tensor:
    process, descriptor, inode = place
    opened = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(opened).st_ino != inode:  # closed, and the number given anew
            raise FileNotFoundError(f"memory {descriptor} of process {process} is gone")
        # Private: torch takes no memory that cannot be written to.
        return torch.frombuffer(mmap.mmap(opened, 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
    finally:
        os.close(opened)
