"""Where a process of a group writes what it prints: into a log of its own in the run's directory."""

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def write_output_to_log() -> None:
    """Send this process's output, that of its libraries included, to the file that `TANDEM_LOG` names."""
    log = os.environ.get("TANDEM_LOG")
    # On another node the run directory may not exist; the output then stays in that node's Ray logs.
    if not log or not os.path.isdir(os.path.dirname(log)):
        return
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    # What is buffered was meant for the output as it is now.
    sys.stdout.flush()
    sys.stderr.flush()
    # The descriptors, not sys.stdout: libraries in C++ and child processes write to those.
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout, sys.stderr = _Log.text(1), _Log.text(2)


class _Log(io.FileIO):
    """A log that leaves out what its disk has no room for: a `print` fails nothing."""

    @classmethod
    def text(cls, descriptor: int) -> io.TextIOWrapper:
        raw = cls(descriptor, "w", closefd=False)
        return io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )

    def write(self, content: "ReadableBuffer", /) -> int:
        try:
            return super().write(content) or 0
        except OSError:
            return memoryview(content).nbytes
