"""Files of lines that grow: each line is read once, and what was cut back is noticed."""

import os
from collections.abc import Callable
from pathlib import Path

from launch.page.files import Below, Stamp

_CHUNK = 2**22
_LONGEST = 2**26
"""Bytes of a line that is still taken for one."""
_ANCHOR = 128
"""Bytes before the place up to which a file is read: what was put in its place has others."""


class FileTail:
    """The new lines of one file.

    Args:
        below: directory that the file must lie in.
        path: of the file, which need not be there yet.
        take: gets the place of each whole line in the file, in bytes, and the line without its end.
        reset: all lines that were taken are void, as the file was cut back, replaced or removed.
    """

    def __init__(self, below: Below, path: Path, take: Callable[[int, bytes], None], reset: Callable[[], None]) -> None:
        self._below, self._path, self._take, self._reset = below, path, take, reset
        self._stamp: Stamp | None = None
        self._read = 0
        self._anchor = b""
        self._skipping = False
        """Within a line that is too long."""

    def read(self) -> bool:
        """Take what is new; returns whether the file is there. A last line without an end is left for later."""
        stamp = self._below.stamp(self._path)
        if stamp is not None and stamp == self._stamp:
            return True
        try:
            file = self._below.open(self._path)
        except FileNotFoundError:
            self._begin_anew()
            self._stamp = None
            return False
        try:
            found = os.fstat(file)
            now = Stamp(found.st_ino, found.st_size, found.st_mtime_ns)
            if self._is_another(file, now):
                self._begin_anew()
            self._stamp = now
            self._read_on(file)
        except OSError:  # of storage that fails, the next look tries again
            self._stamp = None
        finally:
            os.close(file)
        return True

    def _is_another(self, file: int, now: Stamp) -> bool:
        if self._stamp is not None and now.inode != self._stamp.inode:
            return True
        # Also where it has become shorter: there is less to be read then.
        return os.pread(file, len(self._anchor), self._read - len(self._anchor)) != self._anchor

    def _begin_anew(self) -> None:
        if self._read:
            self._reset()
        self._read, self._anchor, self._skipping = 0, b"", False

    def _read_on(self, file: int) -> None:
        size = _CHUNK
        while more := os.pread(file, size, self._read):
            end = more.rfind(b"\n") + 1
            if not end:
                if len(more) < size:
                    return  # half a line, which waits
                if size < _LONGEST:
                    size *= 2
                    continue
                self._skipping, end = True, len(more)
            else:
                self._take_lines(more[:end])
                size = _CHUNK
            self._anchor = more[max(0, end - _ANCHOR) : end]
            self._read += end

    def _take_lines(self, text: bytes) -> None:
        start = 0
        while start < len(text):
            end = text.index(b"\n", start)
            if not self._skipping:
                self._take(self._read + start, text[start:end])
            self._skipping, start = False, end + 1
