"""What is new of a run, or of all runs, as server-sent events."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from launch.page.answers import Answers, mark_of, since
from launch.page.metric_table import thinned
from launch.page.rows import encoded

_LOOK_S, _RUN_S, _LIST_S = 0.5, 2.0, 2.0
"""Between two looks at a run's metrics, at all else of it, and at all runs, in seconds; of all who look at them."""
_CLOCKS = "eta_s", "seen"
_COMMENT_S = 15.0
"""Longest silence: proxies end a connection that says nothing."""
_MOST_ROWS = 2000
_ENDING_S = 0.2
"""After so many seconds a connection has noticed that the server is ending."""

Ending = Callable[[], bool]
"""Whether the server is ending."""


def event(name: str, value: object, mark: str = "") -> bytes:
    """One event; `mark` comes back as Last-Event-ID when the browser connects again."""
    return (
        (f"id: {mark}\n".encode() if mark else b"") + f"event: {name}\n".encode() + b"data: " + encoded(value) + b"\n\n"
    )


@dataclass
class RunNews:
    """What is new of one run since it was looked at last."""

    answers: Answers
    name: str
    mark: str
    """Up to where metrics are known, as the answer to /api/metrics has it; empty: up to now."""
    _before: bytes = field(default=b"", init=False)
    _found: dict[str, Any] | None = field(default=None, init=False)

    def look(self) -> list[bytes]:
        """The events. Raises FileNotFoundError where the run is gone."""
        return [*self._steps(), *self._run()]

    def _steps(self) -> Iterator[bytes]:
        run = self.answers.opened(self.name)
        with run.lock:
            table = run.table
            first = since(table, self.mark) if self.mark else table.rows
            mark = mark_of(table)
            new = thinned(table, table.names, first or 0, _MOST_ROWS) if mark != self.mark and self.mark else None
        if first is None:
            yield event("steps", {"reset": True}, mark)
        elif new is not None and new["step"]:
            yield event("steps", new, mark)
        self.mark = mark

    def _run(self) -> Iterator[bytes]:
        found = self.answers.run(self.name, _RUN_S)
        if found is self._found:
            return
        self._found = found
        # What changes by the clock alone is no news.
        told = encoded({name: value for name, value in found.items() if name not in _CLOCKS})
        if told != self._before:
            self._before = told
            yield event("run", found)


@dataclass
class ListNews:
    """What is new in the list of runs."""

    answers: Answers
    _before: Any = field(default=None, init=False)

    def look(self) -> list[bytes]:
        """The events."""
        found = self.answers.runs(_LIST_S)
        if found == self._before:
            return []
        self._before = found
        return [event("runs", found)]


async def stream(look: Callable[[], list[bytes]], every_s: float, ending: Ending) -> AsyncIterator[bytes]:
    """Events as they come, and a comment now and then; ends with the server, or with `gone` when the run is."""
    said = time.monotonic()
    yield b": \n\n"  # the browser knows that it is connected
    while not ending():
        try:
            found = await run_in_threadpool(look)
        except FileNotFoundError as error:
            yield event("gone", {"error": str(error)})
            return
        for each in found:
            yield each
        now = time.monotonic()
        if found or now - said >= _COMMENT_S:
            if not found:
                yield b": \n\n"
            said = now
        until = now + every_s
        while not ending() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _ENDING_S))


def live(answers: Answers, name: str | None, mark: str, ending: Ending) -> AsyncIterator[bytes]:
    """The events of a run, or of the list where there is no `name`."""
    if name is None:
        return stream(ListNews(answers).look, _LIST_S, ending)
    return stream(RunNews(answers, name, mark).look, _LOOK_S, ending)
