"""Buckets that the processes of one node share: memory without a name, which those who receive map and need not copy.

Over loopback the same bytes pass each receiver's socket: for a model of a few megabytes, half of a transfer's time.
"""

import mmap
import os

import torch


class SharedBucket:
    """Memory of one bucket that other processes of this node can map as long as it is not closed."""

    def __init__(self, size: int) -> None:
        """`size`: bytes. Raises OSError where the system has no such memory to give."""
        self.descriptor = os.memfd_create("weights", os.MFD_CLOEXEC)
        # A mapping of nothing is refused.
        os.ftruncate(self.descriptor, max(1, size))
        self.bytes = torch.frombuffer(mmap.mmap(self.descriptor, max(1, size)), dtype=torch.uint8)[:size]
        """uint8 [size]; whoever has mapped them sees what is written."""

    @property
    def place(self) -> tuple[int, int]:
        """Where others find it: this process and its descriptor."""
        return os.getpid(), self.descriptor

    def close(self) -> None:
        """Let nobody else map it; what is mapped stays."""
        os.close(self.descriptor)


def mapped(place: tuple[int, int], size: int) -> torch.Tensor:
    """The bytes of another process's `SharedBucket`, uint8 [size]; what is written to them here, it does not see.

    Raises OSError when it is closed, or belongs to another user.
    """
    process, descriptor = place
    opened = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        memory = mmap.mmap(opened, max(1, size), access=mmap.ACCESS_COPY)
    finally:
        os.close(opened)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]
