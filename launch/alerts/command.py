"""The command that alerts go to: it gets each as JSON on its standard input, and ends in time or is ended."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence

from actors.secret_text import masked
from actors.user.confined import without_secrets
from launch.alerts.delivery import DeliveryError

TIMEOUT_S = 30.0
"""Longest time that a command may take for one alert."""
_MOST_SAID = 200
"""Characters of what it says last that are told."""


class AlertCommand:
    """Runs one command for each alert, in a process group of its own, without the secrets of this environment."""

    def __init__(self, command: Sequence[str], timeout_s: float = TIMEOUT_S) -> None:
        self._command, self._timeout_s = list(command), timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock, self._ended = threading.Lock(), False

    def run(self, row: Mapping[str, object]) -> None:
        """Give a row of alerts.jsonl to the command; raises DeliveryError where it fails or takes too long."""
        with tempfile.TemporaryFile() as said:
            process = self._started(said.fileno())
            try:
                process.communicate(json.dumps(row).encode() + b"\n", self._timeout_s)
            except subprocess.TimeoutExpired:
                _kill(process)
                raise DeliveryError(f"it took longer than {self._timeout_s:g} s, and was ended") from None
            if process.returncode:
                said.seek(0)
                raise DeliveryError(f"it ended with {process.returncode}{_last_line(said.read())}")

    def end(self) -> None:
        """End what runs; nothing is started any more. From another thread."""
        with self._lock:
            self._ended = True
            if self._process is not None and self._process.poll() is None:
                _kill(self._process)

    def _started(self, errors: int) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._ended:
                raise DeliveryError("the run has ended")
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,  # Ctrl-C is for the run; and all that it starts can be ended with it
                    env=without_secrets(os.environ, ()),
                )
            except (OSError, ValueError) as error:
                raise DeliveryError(f"it cannot be started ({type(error).__name__}: {error})") from None
            return self._process


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # what it was not given any more
            process.stdin.close()


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").split("\n")
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {masked(line)[:_MOST_SAID]}" if line else ""
