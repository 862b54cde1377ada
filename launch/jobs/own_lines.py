"""Which lines of a job's log are Ray's own: how it started the driver, which says nothing to whoever did."""

import re
from collections.abc import Callable

_ENTRYPOINT = "Running entrypoint for job "
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+(INFO|SUCC) (job_manager|cli)\.py:\d+ -- ")
"""Such as `2026-11-28 18:00:00,000 INFO job_manager.py:581 -- Runtime env is setting up.`; warnings are kept."""
_LONGEST = 500
"""Characters for which an unfinished line that may be Ray's is kept back."""


def of_ray(line: str) -> bool:
    """Whether Ray has written this line, not the driver."""
    return line.startswith(_ENTRYPOINT) or bool(_LOGGED.match(line))


def start_of_tail(text: str, count: int) -> int:
    """Where the last `count` lines begin that are the driver's."""
    start = len(text)
    for line in reversed(text.splitlines(keepends=True)):
        if not count:
            break
        start -= len(line)
        count -= not of_ray(line)  # lines of Ray are passed over: they are not shown either
    return start


class WithoutOwnLines:
    """Passes on a text that comes in pieces, less Ray's own lines; what cannot be one is passed on at once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._held = ""
        self._within_line = False  # whether the beginning of the line at hand was passed on

    def __call__(self, text: str) -> None:
        kept = []
        for piece in re.findall(r"[^\n]*\n|[^\n]+", self._held + text):
            if self._within_line or not (of_ray(piece) if piece.endswith("\n") else _may_become(piece)):
                kept.append(piece)
                self._within_line, self._held = not piece.endswith("\n"), ""
            else:
                self._held = "" if piece.endswith("\n") else piece
        if kept:
            self._write("".join(kept))

    def close(self) -> None:
        """Pass on what was kept back: nothing follows."""
        if self._held and not of_ray(self._held):
            self._write(self._held)
        self._held = ""


def _may_become(start: str) -> bool:
    """Whether a line that begins so, and has not ended, may be Ray's."""
    if len(start) > _LONGEST:
        return False
    # A year, or digits that may become one: the rest of a time follows.
    return start.startswith(_ENTRYPOINT[: len(start)]) or bool(re.match(r"\d{1,3}$|\d{4}($|-)", start))
