"""A trial as a process: `tandem run`, as a user would start it, that ends with the sweep."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import launch
from launch.sweep.record import LOGS

_PR_SET_PDEATHSIG = 1
_TOLD = ("error: ", "run failed: ")
"""How a run begins the line that says why it has failed."""
_LONGEST_TAIL = 1 << 16


class TrialProcess:
    """A trial that runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, begins: int) -> None:
        """`begins`: bytes of the log that earlier starts have written."""
        self._process, self.log, self._begins = process, log, begins
        self._kill_at: float | None = None

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit code, below 0 for a signal; None while it runs."""
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self.signal(signal.SIGKILL)
        return self._process.poll()

    def stop(self, within_s: float) -> None:
        """Let it finish its step and save a checkpoint; it is killed where that takes longer."""
        self._kill_at = time.monotonic() + within_s
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is still there."""
        self._process.send_signal(number)

    def cause(self) -> str:
        """Why it has failed, in its own words."""
        return failure_of(self.log, self._process.returncode, self._begins)


def run_command(config: Path, overrides: list[str]) -> list[str]:
    """The command of a run with this very Tandem."""
    ours = Path(launch.__file__).resolve().parent.parent
    # Where the working directory is a clone, it may be what Python found us by; elsewhere nothing is imported from it.
    safe = [] if Path.cwd().resolve() == ours else ["-P"]
    return [sys.executable, *safe, "-m", "launch", "run", str(config), *overrides]


def start(command: list[str], directory: Path, name: str) -> TrialProcess | None:
    """Start a trial; None while a process of it, of an earlier start of the sweep, has not ended.

    Args:
        command: the program and its arguments.
        directory: of the sweep; what the trial prints is added to `logs/NAME.txt`.
        name: of the trial.
    """
    logs = directory / LOGS
    logs.mkdir(exist_ok=True)
    lock = os.open(logs / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not taken(lock):
            return None
        with (logs / f"{name}.txt").open("ab") as log:
            begins = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C reaches it by way of the sweep
                pass_fds=(lock,),  # held until the last process of the trial has ended
                preexec_fn=_ends_with(os.getpid()),
            )
        return TrialProcess(process, logs / f"{name}.txt", begins)
    finally:
        os.close(lock)


def taken(lock: int) -> bool:
    """Whether this process holds a lock from now on, given by its descriptor; else another one does."""
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def failure_of(log: Path, code: int, begins: int = 0) -> str:
    """Why a run has failed: the last line from that byte on in which it says so, else its exit code."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(begins, log.stat().st_size - _LONGEST_TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
        told = [line for line in lines if line.startswith(_TOLD)]
        if told:
            return told[-1][:600]
    return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _ends_with(parent: int) -> Callable[[], None]:
    """For a process that is forked: it is told to end, with a checkpoint, when its parent is gone."""
    libc = ctypes.CDLL(None, use_errno=True)  # before the fork, where other threads may hold locks

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
