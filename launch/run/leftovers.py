"""What a driver that was killed leaves behind: processes that would hold memory, GPUs and ports of the next attempt.

Ray's daemons end with their driver; workers and Ray's agents notice that, but for one that is stopped or waits on a
device, and some take a minute. They have a mark in their environment, or are of the driver's process group: Ray 2.60
overwrites the environment of its agents with their title, and the mark is gone or not by the order of the variables,
while its workers have groups of their own. Only the standard library: the process that starts drivers imports it.
"""

import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import NoReturn

MARK = "TANDEM_ATTEMPT"
"""Environment variable that tells the processes of one attempt from those of another: its value begins with that of the
command, see `new_mark`, and ends with a dot."""
_DELIVERING = b"wandb"
"""In the command of what still delivers metrics when its driver is dead, and ends by itself."""
_DISMISSED = b"."
DEADLINE_S = 30.0


def new_mark() -> str:
    """What the marks of a command's attempts begin with, and those of no other command."""
    return f"{secrets.token_hex(8)}."


class Guard:
    """A process that ends what carries a mark as soon as this one has died without a word: whoever kills the started
    process has then ended the run."""

    def __init__(self, mark: str) -> None:
        reading, self._writing = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._writing)
            _keep_guard(reading, mark)
        os.close(reading)

    def has(self, group: int) -> None:
        """Another process group is of the run: a driver's."""
        with suppress(BrokenPipeError):  # somebody has killed the guard
            os.write(self._writing, b"%d\n" % group)

    def leave(self) -> None:
        """In a process that was forked from the one that is guarded: its life is not what counts."""
        os.close(self._writing)

    def dismiss(self) -> None:
        """The run has ended by itself."""
        with suppress(BrokenPipeError, ChildProcessError):  # somebody has killed the guard
            os.write(self._writing, _DISMISSED)
            os.waitpid(self._pid, 0)
        os.close(self._writing)


def _keep_guard(reading: int, mark: str) -> NoReturn:
    os.setsid()  # who kills the whole group of the process, as a terminal does, shall not kill this one
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ray Jobs sends them to all of a job's processes
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)  # whoever reads the output waits for its end
    os.closerange(3, reading)
    os.closerange(reading + 1, os.sysconf("SC_OPEN_MAX"))
    told = b""
    while _DISMISSED not in told and (more := os.read(reading, 1 << 12)):
        told += more
    if _DISMISSED not in told:
        end_leftovers(mark, _sleep, [int(group) for group in told.split()[-1:]])
    os._exit(0)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def end_leftovers(
    mark: str, pause: Callable[[float], bool], groups: Collection[int], within_s: float = DEADLINE_S
) -> list[str]:
    """Kill what is left of an attempt, and wait until it has ended; what delivers to Weights & Biases is waited for.

    Args:
        mark: of the attempt, whose driver has ended, or what it begins with.
        pause: waits some seconds, and says whether to wait no longer.
        groups: process groups of the attempt, ended a moment ago: nobody else has their numbers yet.
        within_s: deadline in seconds.

    Returns:
        What is still there after it, as `process 4711 (raylet)`.
    """
    deadline = time.monotonic() + within_s
    while left := list(_left(mark, groups)):
        late = time.monotonic() >= deadline
        for pid, command in left:
            if late or _DELIVERING not in command:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        if late or pause(0.05):
            return [f"process {pid} ({_name(command)})" for pid, command in left]
    return []


def _left(mark: str, groups: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """Processes with this mark or of these groups, and their commands; a zombie holds nothing any more."""
    wanted, own = f"{MARK}={mark}".encode(), os.getpid()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == own:
            continue
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            state, _, group = _read(f"/proc/{entry}/stat").rpartition(b")")[2].split()[:3]
            marked = any(each.startswith(wanted) for each in _read(f"/proc/{entry}/environ").split(b"\0"))
            if state not in (b"Z", b"X") and (marked or int(group) in groups):
                yield int(entry), _read(f"/proc/{entry}/cmdline")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _name(command: bytes) -> str:
    return os.path.basename(command.split(b"\0")[0]).decode(errors="replace").split(" ")[0] or "unknown"
