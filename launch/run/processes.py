"""Processes of this machine as /proc shows them, and the end of those that are to end."""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from actors.pulse import ProcessId, own_process

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_FILE_WAIT = b"request_wait_answer"
"""Where the kernel waits for a file system in user space (FUSE): for what else keeps files, it is in state D."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at a process."""

    process: ProcessId
    name: str
    """At most 15 characters, as the kernel keeps it."""
    parent: int
    state: str
    """One letter, as in `ps`; of a process with several threads, of the first one."""
    cpu_s: float
    """Seconds that all its threads have run."""
    threads: int

    @property
    def is_dead(self) -> bool:
        """Whether it has ended, and only waits to be noticed by its parent."""
        # A first thread that has ended shows the same while others go on.
        return self.state in "ZX" and self.threads <= 1

    @property
    def is_halted(self) -> bool:
        """Whether a signal, or a debugger, lets it stand still just now."""
        return self.state in "Tt"


def look(pid: int) -> Seen | None:
    """A process as it is now, whoever's it is; None when there is none of this number."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    # The name may have any characters, brackets among them.
    begin, end = text.index(b"("), text.rindex(b")")
    fields = text[end + 2 :].split()
    return Seen(
        process=ProcessId(pid, int(fields[19]), own_process().pids),
        name=text[begin + 1 : end].decode(errors="replace"),
        parent=int(fields[1]),
        state=fields[0].decode(),
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        threads=int(fields[17]),
    )


def is_there(process: ProcessId) -> bool:
    """Whether a process, one of this machine's, has not ended."""
    found = look(process.pid)
    return found is not None and found.process == process and not found.is_dead


def descendants(pid: int) -> list[Seen]:
    """The processes that a process has started, and those that these have, but for what has ended."""
    found: list[Seen] = []
    waiting = [pid]
    while waiting:
        for child in _children(waiting.pop()):
            seen = look(child)
            if seen and not seen.is_dead:
                found.append(seen)
                waiting.append(child)
    return found


def can_run(pid: int) -> bool:
    """Whether any of a process's threads runs, waits for a core, or waits for a disk: it is at work, however slowly."""
    for thread in _threads(pid):
        text = _read(f"/proc/{pid}/task/{thread}/stat")
        if text and text[text.rindex(b")") + 2 : text.rindex(b")") + 3] in b"RD":
            return True
        if _read(f"/proc/{pid}/task/{thread}/wchan") == _FILE_WAIT:
            return True
    return False


def switches(pid: int) -> int:
    """How often the kernel has let a process's first thread go on: while it stays the same, that has not moved."""
    lines = _read(f"/proc/{pid}/status").splitlines()
    return sum(int(line.split()[1]) for line in lines if b"ctxt_switches" in line)


def kill_tree(process: ProcessId, others: Iterable[ProcessId] = ()) -> None:
    """SIGKILL a process with all that it has started, and `others`, which it had started before it ended, perhaps.

    Where a process has ended already, or is another machine's, whoever has its number here is left alone.
    """
    children = [seen.process for seen in descendants(process.pid)] if is_there(process) else []
    # The parent first: what its children's end would have it do, it shall not.
    for each in dict.fromkeys([process, *children, *others]):
        # Numbers are given out in turn: this one cannot come round between the look and the signal.
        if is_there(each):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it ends just now; or is another user's
                os.kill(each.pid, signal.SIGKILL)


def _children(pid: int) -> Iterator[int]:
    # Any thread may have started some, and they are listed with that.
    for thread in _threads(pid):
        yield from map(int, _read(f"/proc/{pid}/task/{thread}/children").split())


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _read(path: str) -> bytes:
    """A short file of /proc; nothing where the process, or the thread, has ended."""
    # Not by open(), which takes three times as long.
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(file, 1 << 16)
    except OSError:
        return b""
    finally:
        os.close(file)
