"""Standard output as a run needs it: one that may go away, or lack letters, without ending the run."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable
from typing import TextIO, cast

_JOINERS = "\u200c\u200d"


class LastingOutput:
    """A stream that goes on silently when nobody reads it any more (`| head`, a terminal that was closed).

    Of everything else, the stream behind it decides.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
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


class VisibleOutput:
    """A stream for text of data, models and logs: control characters are written as escapes, which JSON has too.

    Line breaks, tabs and a carriage return in front, as progress bars have it, stay. Of everything else, the stream
    behind it decides.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write what can be seen."""
        self.stream.write(text if text.isprintable() or _acts_on_nothing(text) else _escaped(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)


def _acts_on_nothing(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


def _escaped(text: str) -> str:
    start = "\r" if text.startswith("\r") else ""
    text = text.removeprefix("\r").replace("\r\n", "\n")
    return start + "".join(char if _harmless(char) else json.dumps(char)[1:-1] for char in text)


def _harmless(char: str) -> bool:
    # Spaces of other scripts, too; up to 0x9F they are control characters.
    return char.isprintable() or char in "\n\t" or char in _JOINERS or (char.isspace() and ord(char) > 0x9F)


def show_what_acts() -> None:
    """From now on, neither stream takes a control character; letters that its encoding lacks become escapes, too.

    What prints colours of its own, as `launch.screen.console` does, writes to what is `behind` the stream.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # What stands there may be somebody else's stream, which need not have `reconfigure`.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        if not isinstance(stream, VisibleOutput):
            setattr(sys, name, VisibleOutput(stream))


def behind(stream: TextIO | VisibleOutput) -> TextIO:
    """The stream without what `show_what_acts` put before it."""
    return stream.stream if isinstance(stream, VisibleOutput) else stream


def lasting_stdout() -> TextIO:
    """Standard output as it is now, for a console that shows what acts by itself."""
    return cast(TextIO, LastingOutput(behind(sys.stdout)))  # a cast, as no type tells what `__getattr__` passes on


def tell(line: str) -> None:
    """Print a line to standard error, if anybody is there to read it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
