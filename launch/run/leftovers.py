"""What a driver that was killed leaves behind: processes that would hold memory, GPUs and ports of the next attempt.

Ray's daemons end with their driver, and workers with their raylet, but for one that is stopped or waits on a device.
All of them have a mark in their environment. Only the standard library: the process that starts drivers imports it.
"""

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

MARK = "TANDEM_ATTEMPT"
"""Environment variable that tells the processes of one attempt from those of another."""
_DELIVERING = b"wandb"
"""In the command of what still delivers metrics when its driver is dead, and ends by itself."""
DEADLINE_S = 30.0


def new_mark() -> str:
    """A value of `MARK` that no other attempt has."""
    return secrets.token_hex(8)


def end_leftovers(mark: str, pause: Callable[[float], bool], within_s: float = DEADLINE_S) -> list[str]:
    """Kill what is left of an attempt, and wait until it has ended; what delivers to Weights & Biases is waited for.

    Args:
        mark: of the attempt, whose driver has ended.
        pause: waits some seconds, and says whether to wait no longer.
        within_s: deadline in seconds.

    Returns:
        What is still there after it, as `process 4711 (raylet)`.
    """
    deadline = time.monotonic() + within_s
    while left := list(_marked(mark)):
        late = time.monotonic() >= deadline
        for pid, command in left:
            if late or _DELIVERING not in command:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        if late or pause(0.05):
            return [f"process {pid} ({_name(command)})" for pid, command in left]
    return []


def _marked(mark: str) -> Iterator[tuple[int, bytes]]:
    """Processes with this mark, and their commands; a zombie, which holds nothing, has no environment any more."""
    wanted, own = f"{MARK}={mark}".encode(), os.getpid()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == own:
            continue
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if wanted in _read(f"/proc/{entry}/environ").split(b"\0"):
                yield int(entry), _read(f"/proc/{entry}/cmdline")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _name(command: bytes) -> str:
    return os.path.basename(command.split(b"\0")[0]).decode(errors="replace").split(" ")[0] or "unknown"
