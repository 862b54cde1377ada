"""Where the cluster's dashboard is, and the token that it wants: from the command line and Ray's own variables."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from actors.config import UserError

TOKEN_PLACES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or, with RAY_AUTH_MODE=token, ~/.ray/auth_token"
_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_EXAMPLE = "such as http://head:8265"


@dataclass(frozen=True, slots=True)
class DashboardAccess:
    """A dashboard's address, and the token to send there."""

    address: str
    """Scheme, host, port and path if any, without a slash at the end."""
    token: str | None = field(repr=False)  # so that no message or traceback shows it
    token_source: str
    """Where the token is from, or why there is none."""
    source: str = "--address"
    """Option or variable that the address is from."""


def dashboard_access(address: str | None, environment: Mapping[str, str] = os.environ) -> DashboardAccess:
    """Address: as given, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS if it is http(s); token: see `_token`.

    Raises:
        UserError: no address or none of a dashboard, or the token that RAY_AUTH_MODE asks for is missing.
    """
    token, source = _token(environment)
    name, normal = _address(address, environment)
    return DashboardAccess(normal, token, source, name)


def _address(given: str | None, environment: Mapping[str, str]) -> tuple[str, str]:
    """Option or variable that names an address, and the address."""
    candidates = {"--address": given} | {name: environment.get(name) for name in _VARIABLES}
    for name, value in candidates.items():
        if value and (name != "RAY_ADDRESS" or value.startswith(("http://", "https://"))):
            return name, _normal(name, value)
    other = environment.get("RAY_ADDRESS")
    hint = f" (RAY_ADDRESS={other} is no dashboard's)" if other else ""
    raise UserError(
        f"--address: must be the address of the cluster's dashboard {_EXAMPLE}, or stand in RAY_API_SERVER_ADDRESS, "
        f"got nothing{hint}"
    )


def _normal(name: str, value: str) -> str:
    text = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # asked for, as only reading it tells that a port is no number
    except ValueError:
        host, parts = None, urlsplit("")
    if "@" in parts.netloc:
        raise UserError(f"{name}: must hold no user and password, as commands print it (token: {TOKEN_PLACES})")
    plain = not (parts.query or parts.fragment) and re.fullmatch(r"[\x21-\x7e]+", text)
    # Between two dots of a name are 1 to 63 characters; an address in brackets has colons.
    plain = plain and host and (":" in host or all(0 < len(part) < 64 for part in host.rstrip(".").split(".")))
    # `auto` is how Ray calls a cluster on this machine: an address for ray.init, not of a dashboard.
    if not host or parts.scheme not in ("http", "https") or not plain or value == "auto":
        raise UserError(f"{name}: must be the http(s) address of the cluster's dashboard, {_EXAMPLE}, got {value}")
    return text.rstrip("/")


def _token(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Token and its source by RAY_AUTH_MODE: disabled sends none, token needs one, unset sends one that is named.

    Any local `ray.init` writes ~/.ray/auth_token, for a cluster of its own: it goes nowhere unless asked for.
    """
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode not in ("", "token", "disabled"):
        raise UserError(f"RAY_AUTH_MODE: must be token or disabled, or unset, got {mode}")
    if mode == "disabled":
        return None, "RAY_AUTH_MODE is disabled"
    # Unset is not the same as token: see the docstring for why the file of a local Ray does not count.
    if not (mode or environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")):
        return None, "no variable names one"
    token, source = _stored_token(environment)
    if token is None and mode == "token":
        places = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        raise UserError(f"RAY_AUTH_MODE: token needs a token in {places}, there is none")
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise UserError(f"{source}: must hold one token of printable ASCII without spaces, got another (not shown)")
    return token, source


def _stored_token(environment: Mapping[str, str]) -> tuple[str | None, str]:
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else Path("~/.ray/auth_token").expanduser()
    source = f"RAY_AUTH_TOKEN_PATH ({path})" if named else str(path)
    try:
        token = path.read_text(encoding="utf-8").strip()  # an editor leaves a line end
    except (OSError, UnicodeDecodeError) as error:
        # A file that is named must be there; the default one need not.
        if named or not isinstance(error, FileNotFoundError):
            reason = getattr(error, "strerror", None) or "not text"
            raise UserError(f"{source}: must be a file with a token that can be read ({reason})") from None
        return None, "there is none"
    return (token, source) if token else (None, f"{source} is empty")
