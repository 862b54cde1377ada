"""Engines on one core, the trainer on another: by the operating system, from outside, whatever the settings say.

A run's processes are told by the titles that Ray gives to its workers, with those that they have started. Threads that
come later, and such processes, are where the one that starts them is; so each is moved once, soon after its start.
"""

import os
from collections import defaultdict
from pathlib import Path

from benchmarks import load
from benchmarks.compare_trl import BenchmarkError

SIDES = {"ray::RolloutWorker": "engines", "ray::PolicyWorker": "trainer"}
"""How titles of processes begin -> their side. The driver, Ray and rewards are wherever they like."""


class Pinned:
    """Keeps the two sides of one run apart; `look` is called about once a second."""

    def __init__(self) -> None:
        """Raises BenchmarkError where there are fewer than two cores."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < len(SIDES):
            raise BenchmarkError(f"/pin: needs {len(SIDES)} cores, one for each side, and there is {len(cores)}")
        self.core_of = dict(zip(SIDES.values(), cores, strict=False))
        """Side -> its core."""
        self._moved: set[int] = set()
        """Processes of which all threads have been moved."""
        self._seen: dict[str, int] = defaultdict(int)
        """Side -> most of its threads that were there at one time."""
        self._strays: dict[str, int] = defaultdict(int)
        """Side -> threads of processes that had been moved, and were elsewhere."""

    def look(self, pid: int) -> None:
        """Move what has come since the last call, of the run that process `pid` has started."""
        now: dict[str, int] = defaultdict(int)
        for each, side in sides_of(pid).items():
            now[side] += len(_threads(each))
            strays = 0
            # A thread that has not been moved may start another one meanwhile.
            while moved := sum(_move(thread, self.core_of[side]) for thread in _threads(each)):
                strays += moved
            if each in self._moved:
                self._strays[side] += strays
            self._moved.add(each)
        for side, threads in now.items():
            self._seen[side] = max(self._seen[side], threads)

    def broken(self) -> list[str]:
        """Why the run was none of two sides apart, a line for each reason."""
        missing = [f"NOT PINNED: no process of the {side} was found." for side in self.core_of if not self._seen[side]]
        return missing + [
            f"NOT PINNED: {threads} threads of the {side} left their core."
            for side, threads in self._strays.items()
            if threads
        ]


def sides_of(pid: int) -> dict[int, str]:
    """Processes of both sides among those that descend from this one."""
    family = load.family(pid)
    own = {each: side for each in family for title, side in SIDES.items() if _title(each).startswith(title)}
    # A process that an engine has started is on its side.
    nearest = {each: next((own[up] for up in line if up in own), None) for each, line in family.items()}
    return {each: side for each, side in nearest.items() if side}


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""  # It has ended since.


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []  # It has ended since.


def _move(thread: int, core: int) -> bool:
    """Whether it was elsewhere."""
    try:
        if os.sched_getaffinity(thread) == {core}:
            return False
        os.sched_setaffinity(thread, {core})
        return True
    except ProcessLookupError:
        return False  # It has ended since.
