"""Whether a Ray head is where RAY_ADDRESS says, asked before Ray is imported, which would try for a quarter hour."""

import os
import socket
import time
from pathlib import Path

from actors.config import UserError

CONNECT_S, ANSWER_S = 8.0, 8.0
"""Deadlines of a connection and of the first answer, in seconds."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How a client of HTTP/2 begins, on which gRPC rests: preface and an empty SETTINGS frame (RFC 9113, section 3.4)."""
_FRAME_HEADER, _SETTINGS = 9, 4
"""Bytes of a frame's header, and the type of the frame that a server must begin with; the fourth byte is the type."""


def auth_mode() -> str:
    """How a cluster is joined: as RAY_AUTH_MODE says, else with a token if there is one."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = bool(given) or (Path.home() / ".ray" / "auth_token").is_file()
    return os.environ.get("RAY_AUTH_MODE") or ("token" if token else "disabled")


def open_warnings() -> list[str]:
    """A warning where the Ray that a run starts or joins here answers to everybody."""
    means = "whoever reaches its ports can run code as its user"
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return [f"RAY_AUTH_MODE: disabled, so Ray asks nobody for a token: {means}"]
    if os.environ.get("RAY_ADDRESS") and auth_mode() == "disabled":
        return [f"RAY_AUTH_TOKEN: there is none, so the cluster that is joined can ask for none: {means}"]
    return []


def check_ray_address(address: str | None) -> None:
    """Ask the head at `host:port` for the first bytes of its protocol; `auto`, `local` and nothing are not asked.

    Raises:
        UserError: no such address, or nothing there that talks as Ray does.
    """
    if not address or address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    rule = "must be host:port of a Ray head that can be reached"
    # Length before int(), which refuses thousands of digits by an error of its own.
    fine = "://" not in address and host and not host.isspace() and port.isdecimal() and len(port) < 6
    if not fine or not 0 < int(port) < 2**16:
        raise UserError(f"RAY_ADDRESS: {rule} (`tandem submit` takes http addresses), got {address}")
    try:
        # Brackets are those of an IPv6 address.
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as connection:
            # With TLS, the handshake is Ray's.
            problem = None if os.environ.get("RAY_USE_TLS", "0") == "1" else _first_answer(connection)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or _no_connection(error)
        raise UserError(f"RAY_ADDRESS: {rule} ({reason}), got {address}") from None
    if problem:
        raise UserError(f"RAY_ADDRESS: must be host:port of a Ray head, by default 6379 ({problem}), got {address}")


def _no_connection(error: Exception) -> str:
    return "no name of a machine" if isinstance(error, UnicodeError) else f"no connection within {CONNECT_S:g} s"


def _first_answer(connection: socket.socket) -> str | None:
    """What is wrong with what a server says first; None for one of HTTP/2."""
    got, until = b"", time.monotonic() + ANSWER_S
    try:
        connection.sendall(_HELLO)
        while len(got) < _FRAME_HEADER:
            # 0 would mean not to wait, and end in another error than a timeout.
            connection.settimeout(max(0.001, until - time.monotonic()))
            if not (more := connection.recv(_FRAME_HEADER - len(got))):
                return "the connection was closed without an answer of its protocol"
            got += more
    except TimeoutError:
        return f"no answer within {ANSWER_S:g} s"
    except OSError as error:
        return f"the connection broke: {error.strerror}"
    return None if got[3] == _SETTINGS else "what answers there is another program"
