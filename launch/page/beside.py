"""The page's server as a process of its own beside a run, which it does not outlive: `--watch` of `run`.

The driver listens, so that the address is known at once, and hands the socket on. Attempts at the run share one server:
it ends with the process that starts them.
"""

import contextlib
import importlib.util
import json
import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from launch.page.access_token import VARIABLE, usual_token
from launch.page.guard import Access
from launch.page.server import listening, serve_page
from launch.run.attempt_link import is_restarted, owner
from launch.run.leftovers import MARK

_HOST = "127.0.0.1"
_NEEDS = ("starlette", "uvicorn")


class Beside:
    """The server of one run's page. Within the block, it may be started.

    Args:
        directory: of the run.

    Raises:
        UserError: no port is free, or the token in the environment may be none.
        ModuleNotFoundError: a package of the server is missing.
    """

    def __init__(self, directory: Path) -> None:
        for name in _NEEDS:
            if importlib.util.find_spec(name) is None:  # else the other process would fail, where nobody sees it
                raise ModuleNotFoundError(name, name=name)
        token = usual_token()
        self._directory, self._listener = directory, listening(_HOST, None)
        self._access = Access(_HOST, self._listener.getsockname()[1], token)
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return self._access.address

    def start(self) -> None:
        """Start the process; whoever has asked before is answered then."""
        listener = self._listener.fileno()
        # -P: the file's directory, whose modules have names like those of libraries, is no place to import from.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener],
            start_new_session=True,  # Ctrl-C is for the run
            # It is of all attempts, and is told its token.
            env={name: value for name, value in os.environ.items() if name not in (MARK, VARIABLE)},
            text=True,
        )
        access = self._access
        given = {"host": access.host, "port": access.port, "token": access.token, "owner": owner()}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:  # and no argument: all see those
            pipe.write(json.dumps(given | {"directory": str(self._directory.absolute()), "listener": listener}))
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._listener.close()
        if self._process is not None and owner() == os.getpid():  # nobody starts the run again
            self._process.terminate()
            self._process.wait()


def page_beside(directory: Path) -> "Beside | None":
    """The server of a run's page; None where an attempt before has started it. Raises as `Beside` does."""
    return None if is_restarted() else Beside(directory)


def _serve_beside() -> None:
    given = json.load(sys.stdin)
    os.nice(10)  # the run comes first
    threading.Thread(target=_end_with, args=(given["owner"],), daemon=True).start()
    access = Access(given["host"], given["port"], given["token"])
    serve_page(Path(given["directory"]), access, socket.socket(fileno=given["listener"]))


def _end_with(process: int) -> None:
    try:
        file = os.pidfd_open(process)
    except ProcessLookupError:
        os._exit(0)
    select.select([file], [], [])
    os._exit(0)  # whoever still listens to events learns it by the end of the connection


if __name__ == "__main__":
    _serve_beside()
