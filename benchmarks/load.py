"""What the rest of the machine does while a benchmark runs: figures taken on a busy machine are no figures."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "BENCHMARK_PROCESS"
QUIET_CORES = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")


def marked_environment() -> dict[str, str]:
    """Environment for the measured process; its descendants inherit the mark by which they are told from the rest."""
    return marked(dict(os.environ))


def marked(environment: dict[str, str]) -> dict[str, str]:
    """An environment with the mark."""
    return {**environment, MARK: str(os.getpid())}


class ForeignLoad:
    """Cores used by processes that are neither this one, nor marked, nor their descendants, averaged since it was made.

    Sums differences between samples, so what a process does before it is first seen, or after it was last seen, is
    missed: call `sample` about once a second.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._seconds = 0.0
        self._last = _foreign_cpu_seconds()

    def sample(self) -> None:
        """Add what was used since the last sample."""
        now = _foreign_cpu_seconds()
        self._seconds += sum(used - self._last.get(pid, used) for pid, used in now.items())
        self._last = now

    def cores(self) -> float:
        """Average number of cores that others kept busy."""
        return self._seconds / max(time.monotonic() - self._started, 1e-9)


def wait_until_quiet(deadline_s: float, window_s: float = 3.0) -> bool:
    """Wait for a window in which others used less than QUIET_CORES; False when the deadline came first."""
    end = time.monotonic() + deadline_s
    while True:
        load = ForeignLoad()
        time.sleep(window_s)
        load.sample()
        if load.cores() < QUIET_CORES:
            return True
        if time.monotonic() > end:
            return False


def family(pid: int) -> dict[int, list[int]]:
    """A process and those that descend from it, each with the line of its ancestors, itself first."""
    parents = {each: parent for each, parent, _ in _processes()}
    lines = {each: _line(each, parents) for each in parents}
    return {each: line for each, line in lines.items() if pid in line}


def _foreign_cpu_seconds() -> dict[int, float]:
    """CPU seconds so far of every process that is not ours, by process id."""
    mark = f"{MARK}={os.getpid()}".encode()
    used: dict[int, float] = {}
    parents: dict[int, int] = {}
    ours = {os.getpid()}
    for pid, parent, seconds in _processes():
        try:
            marked = mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # It has ended since, or belongs to another user and cannot be told.
        parents[pid], used[pid] = parent, seconds
        if marked:
            ours.add(pid)
    return {pid: seconds for pid, seconds in used.items() if not ours.intersection(_line(pid, parents))}


def _processes() -> Iterator[tuple[int, int, float]]:
    """Of every process of the machine: its id, its parent's, and the CPU seconds that it has used."""
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            stat = (directory / "stat").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # It has ended since.
        # After the command's closing bracket: state, parent, ...; fields 11 and 12 are user and system time.
        fields = stat.rpartition(")")[2].split()
        yield int(directory.name), int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS


def _line(pid: int, parents: dict[int, int]) -> list[int]:
    """The process and its ancestors: a process that renames itself may overwrite the mark in its environment."""
    line = [pid]
    while (parent := parents.get(line[-1])) and parent not in line:
        line.append(parent)
    return line
