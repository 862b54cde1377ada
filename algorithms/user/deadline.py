"""Deadlines for code of the user's that runs in this process: converters, generators and the import of their files.

A timer's signal looks at what the call is doing. Past its limit the call is ended; after a second already if it stands
in a loop of the user's file that nothing can end, so that a plain mistake costs no more than that. Signals reach the
main thread only: in other threads nothing is watched.
"""

import ast
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, TypeVar, TypeVarTuple

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_LOOK_EVERY_S = 0.2
_HARMLESS = ("sleep", "print", "append", "len", "time", "monotonic", "count", "cycle")
"""Functions that end no loop."""
_SURELY_STUCK_S = 1.0
"""Seconds after which a call that stands in an endless loop is ended, whatever its limit is."""


class TooLate(BaseException):
    """Raised inside a watched call; a BaseException, so that the `except Exception` of the call does not keep it."""


class Watch:
    """Watches one call at a time.

    Example:
        with Watch(10) as watch:
            made = watch(function, row)  # raises TooLate("took longer than 10 s (at line 3 of convert.py)")
    """

    def __init__(self, limit_s: float, file: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """A call may take `limit_s` by `clock`: time.thread_time for one that only computes, on a machine that is busy.

        `file`: the user's, in whose loops a call can be known to be stuck; None for the file of what is called.
        """
        self._limit_s = limit_s
        self._clock = clock
        self._file = file
        self._began: float | None = None

    def __enter__(self) -> "Watch":
        self._works = threading.current_thread() is threading.main_thread()
        if self._works:
            self._handler = signal.signal(signal.SIGALRM, self._look)
            # A watch within a watch gives the outer one its timer back.
            self._timer = signal.setitimer(signal.ITIMER_REAL, _LOOK_EVERY_S, _LOOK_EVERY_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._began = None
        if self._works:
            signal.setitimer(signal.ITIMER_REAL, *self._timer)
            signal.signal(signal.SIGALRM, self._handler)

    def __call__(self, function: Callable[[*Arguments], T], *args: *Arguments) -> T:
        """What `function` returns; raises TooLate."""
        if self._file is None:
            self._file = getattr(getattr(function, "__code__", None), "co_filename", None)
        self._began, ends = self._clock(), os._exit
        os._exit = _raise_exit  # type: ignore[assignment]
        try:
            return function(*args)
        finally:
            os._exit = ends
            self._began = None

    def _look(self, _: int, frame: FrameType | None) -> None:
        if self._began is None:
            return
        passed = self._clock() - self._began
        if reason := stuck(frame, self._file, passed, self._limit_s):
            raise TooLate(reason)
        if passed > self._limit_s:
            raise TooLate(f"took longer than {self._limit_s:g} s{line_in(frame, self._file)}")


def _raise_exit(status: int) -> NoReturn:
    """Stands for os._exit in users' code, which would end this process without a word."""
    raise SystemExit(status)


def stuck(frame: FrameType | None, file: str | None, passed_s: float, limit_s: float) -> str | None:
    """Why a call that has run for `passed_s` seconds and stands at `frame` cannot end within `limit_s`, or None."""
    if passed_s < _SURELY_STUCK_S or file is None:
        return None
    innermost = frame
    while frame is not None:
        name = frame.f_code.co_filename
        if name == file and any(first <= _line(frame) <= last for first, last in _endless_loops(file)):
            return f"never ends: a loop without an end{line_in(frame, file)}"
        # Only where it stands in the sleep itself, and not in something that the line calls.
        if name == file and frame is innermost and (seconds := _sleep_at(file, _line(frame))) > limit_s:
            return f"took longer than {limit_s:g} s: it sleeps for {seconds:g} s{line_in(frame, file)}"
        frame = frame.f_back
    return None


def _line(frame: FrameType) -> int:
    """The line that a frame stands at; 0 in the code before a function's first one, where Python 3.11 has none."""
    line: int | None = frame.f_lineno
    return line or 0


def line_in(frame: FrameType | None, file: str | None) -> str:
    """Where in the user's file a call stands, for messages; nothing when it is not in there."""
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    return "" if frame is None else f" (line {_line(frame)} of {Path(frame.f_code.co_filename).name})"


@functools.lru_cache(maxsize=8)
def _endless_loops(file: str) -> tuple[tuple[int, int], ...]:
    """First and last line of each loop of a file that has neither a condition nor a way out.

    Whatever is called in it may raise, as next() does at the end of a file, and so end it: only loops that call none
    but a few harmless functions are sure to go on.
    """
    exits = ast.Break | ast.Return | ast.Raise | ast.Yield | ast.YieldFrom | ast.Await
    return tuple(
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.While | ast.For)
        and _has_no_condition(node)
        and not any(
            isinstance(inner, exits) or (isinstance(inner, ast.Call) and _called(inner) not in _HARMLESS)
            for inner in ast.walk(node)
        )
    )


def _has_no_condition(node: ast.While | ast.For) -> bool:
    if isinstance(node, ast.While):
        return isinstance(node.test, ast.Constant) and bool(node.test.value)
    return isinstance(node.iter, ast.Call) and not node.iter.keywords and _called(node.iter) in ("count", "cycle")


def _sleep_at(file: str, line: int) -> float:
    """Seconds that a line of a file sleeps for, where they stand there as a number; else 0."""
    return max((seconds for number, seconds in _sleeps(file) if number == line), default=0.0)


@functools.lru_cache(maxsize=8)
def _sleeps(file: str) -> tuple[tuple[int, float], ...]:
    return tuple(
        (node.lineno, float(node.args[0].value))
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.Call)
        and _called(node) == "sleep"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, int | float)
    )


def _tree(file: str) -> ast.AST:
    try:
        return ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ast.Module(body=[], type_ignores=[])


def _called(node: ast.Call) -> str:
    name = node.func
    return name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""


def stack_of(thread: int) -> FrameType | None:
    """Where another thread of this process stands now."""
    return sys._current_frames().get(thread)
