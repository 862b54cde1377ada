"""The verb `watch`: a page about the runs in a directory, served until Ctrl-C."""

import contextlib
import errno
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import UserError
from launch.page.access_token import usual_token
from launch.page.guard import Access

if TYPE_CHECKING:
    import uvicorn

PORT, _TRIED = 8400, 20
"""Port where none is given, and how many further ones are tried."""
_GRACE_S = 3
"""That answers which are being given have when the server ends."""


def watch(directory: str, *, host: str, port: int | None, token: str | None) -> int:
    """Serve the page of a run, or of the runs in a directory, until Ctrl-C; returns 0.

    Raises:
        UserError: no such directory, an address or port that cannot be listened at, or a token in the environment that
            may be none.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise UserError(f"DIRECTORY: must be a run, or a directory of runs, got {directory}, which is none")
    token = token or usual_token()
    listener = listening(host, port)
    access = Access(host, listener.getsockname()[1], token)
    if port is None and access.port != PORT:
        print(f"port {PORT} is taken: {access.port} is used", file=sys.stderr)
    serve_page(folder, access, listener, ready=lambda: print(f"{access.address}  (Ctrl-C ends it)", flush=True))
    return 0


def listening(host: str, port: int | None) -> socket.socket:
    """A socket that listens, at the first free port from PORT on where none is given.

    Raises:
        UserError: it cannot.
    """
    tried = range(PORT, PORT + _TRIED + 1) if port is None else [port]
    for each in tried:
        try:
            return _bound(host, each)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise _unusable(host, each, error) from None
    if port is not None:
        raise UserError(f"--port: must be free, got {port}, at which another program listens")
    raise UserError(f"--port: must be free, got none, and {tried[0]} to {tried[-1]} are taken")


def _bound(host: str, port: int) -> socket.socket:
    [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    listener = socket.socket(family, kind, protocol)
    try:
        # What ended a moment ago leaves a port that is free and looks taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def _unusable(host: str, port: int, error: OSError) -> UserError:
    why = error.strerror or str(error)
    if error.errno == errno.EACCES:
        return UserError(f"--port: must be one that this user may listen at ({why}), got {port}")
    return UserError(f"--host: must be an address of this machine ({why}), got {host}")


def serve_page(
    directory: Path, access: Access, listener: socket.socket, ready: Callable[[], None] | None = None
) -> None:
    """Serve until SIGTERM, or Ctrl-C, which is how a server ends; `ready` is called before the first answer."""
    server = page_server(directory, access)
    if ready:
        ready()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def page_server(directory: Path, access: Access) -> "uvicorn.Server":
    """The server of a page, which listens at what it is given; arguments as `page_app` has them."""
    import uvicorn

    from launch.page.app import page_app

    config = uvicorn.Config(
        page_app(directory, access, lambda: server.should_exit),
        log_level="warning",
        access_log=False,  # it would hold the token of the first request
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = uvicorn.Server(config)
    return server
