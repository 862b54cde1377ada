"""In place of Ray's setup_worker.py, in tests: a worker is forked by `preloaded.py`, where one answers.

It imports nothing but what it needs, as it is started for every worker.
"""

import json
import os
import socket
import sys

_CONTEXT = "--serialized-runtime-env-context="
_PROGRAM = "default_worker.py"


def main() -> None:
    """Have the worker forked and wait for its end; or become it."""
    given = context(sys.argv)
    environment = merged(given.get("env_vars") or {})
    path = environment.get("TANDEM_TEST_PRELOADED", "")
    worker = next((index for index, text in enumerate(sys.argv) if text.endswith(_PROGRAM)), 0)
    command = [text for text in sys.argv[worker:] if not text.startswith((_CONTEXT, "--language="))]
    # A rank has a log; Ray's own workers, those of rewards and of jobs start quickly.
    asked = worker and "TANDEM_LOG" in environment and os.path.exists(path)
    if asked and forked(path, {"command": command, "environment": environment, "directory": os.getcwd()}):
        return
    if worker and not (given.get("command_prefix") or given.get("override_worker_entrypoint")):
        # What Ray's own program does, without importing Ray for it.
        python = given.get("py_executable") or sys.executable
        os.execve(python, [python, *sys.argv[1:worker], *command], environment)
    import ray

    program = os.path.join(os.path.dirname(ray.__file__), "_private/workers/setup_worker.py")
    os.execv(sys.executable, [sys.executable, program, *sys.argv[1:]])


def context(arguments: list[str]) -> dict:
    """What Ray has made of the worker's runtime environment."""
    return json.loads(next((text.removeprefix(_CONTEXT) for text in arguments if text.startswith(_CONTEXT)), "{}"))


def merged(added: dict[str, str]) -> dict[str, str]:
    """The worker's environment: this process's, and what its runtime environment adds."""
    return dict(os.environ) | {name: os.path.expandvars(value) for name, value in added.items()}


def forked(path: str, request: dict[str, object]) -> bool:
    """Whether a worker was forked, and has ended since."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(path)
        except OSError:
            return False
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        if not connection.recv(1):
            return False  # nobody there could fork it
        # The other end is closed when the worker has ended.
        connection.recv(1)
        return True


if __name__ == "__main__":
    main()
