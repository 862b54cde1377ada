"""Real processes for tests: what they do is a short program; each is killed at the end, whatever became of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SLEEPS = "import time; print('up', flush=True); time.sleep(600)"
SPINS = "print('up', flush=True)\nwhile True: pass"
HOLDS_THE_LOCK = "import ctypes; print('up', flush=True); ctypes.PyDLL(None).sleep(600)"
COMPUTES_WITH_THE_LOCK = "import re; print('up', flush=True); re.match(r'(a+)+$', 'a' * 60 + 'b')"
HAS_A_CHILD = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)
NAMED = "import ctypes; ctypes.CDLL(None).prctl(15, b'VLLM::EngineCor'); " + SLEEPS
"""Called as vLLM calls an engine's process: PR_SET_NAME keeps 15 characters."""

Start = Callable[..., tuple[int, int]]


@contextmanager
def processes() -> Iterator[Start]:
    """Starts Python programs and waits until they are up; gives each one's pid, and that of its child or 0."""
    started: list[subprocess.Popen[bytes]] = []
    others: list[int] = []

    def start(program: str, *arguments: str, niceness: int = 0) -> tuple[int, int]:
        command = ["nice", "-n", str(niceness), sys.executable, "-c", program, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        child = int(said) if said.isdigit() else 0
        others.extend([child] if child else [])
        return process.pid, child

    try:
        yield start
    finally:
        for pid in [*others, *(process.pid for process in started)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in started:
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()
