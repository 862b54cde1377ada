"""Standard output as a run needs it: one that may go away, or lack letters, without ending the run."""

import contextlib
import os
import sys
from typing import Any, TextIO, cast


class LastingOutput:
    """A stream that goes on silently when nobody reads it any more (`| head`, a terminal that was closed).

    Of everything else, the stream behind it decides.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        try:
            return self._stream.write(text)
        except OSError:
            self._lose()
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what is left."""
        try:
            self._stream.flush()
        except OSError:
            self._lose()

    def _lose(self) -> None:
        # What the stream still holds goes there too, so that the interpreter's end finds nothing to complain about.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        tell("warning: standard output was closed; the run goes on")


def lasting_stdout() -> TextIO:
    """Standard output as it is now."""
    return cast(TextIO, LastingOutput(sys.stdout))


def tell(line: str) -> None:
    """Print a line to standard error, if anybody is there to read it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
