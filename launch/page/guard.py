"""Who may ask the page's server: the Host header, the token, and the headers that confine what a browser does."""

import hmac
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.page.rows import encoded

HEADER = "x-tandem-token"
_SECURITY: Mapping[str, str] = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Where a server listens, and its token."""

    host: str
    port: int
    token: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def address(self) -> str:
        """What to open: with the token in its fragment, which no browser sends, or where every request needs it, in
        the query of the first one."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self.port}/{'#' if self.is_loopback else '?'}token={quote(self.token)}"

    def is_served(self, host: str) -> bool:
        """Whether a Host header names this server: a page of another name that was made to lead here is refused.

        Its port does not matter: behind a tunnel it is another one.
        """
        name = _without_port(host).lower()
        names = {self.host.lower(), "localhost"}
        if self.is_loopback:
            return name in {*names, "127.0.0.1", "::1"}
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in {*names, socket.gethostname().lower(), socket.getfqdn().lower()}
        return True  # an address is no name that somebody could lead elsewhere

    def knows(self, token: str | None) -> bool:
        """Whether this is the token."""
        return token is not None and hmac.compare_digest(token.encode(), self.token.encode())


class RequestGuard:
    """Lets through who may ask, and sets the headers of every answer.

    On loopback only requests that change something need the token, in a header, which no other site can set; anywhere
    else each one does, in that header, or in a cookie that `/?token=...` sets.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._cookie = f"tandem-{access.port}"  # cookies do not tell ports apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_RAW]
            await send(message)

        answer = self._refusal(scope)
        await (answer or self._app)(scope, receive, send_safely)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, access = Headers(scope=scope), self._access
        if not access.is_served(headers.get("host", "")):
            return refusal(403, f"Host: must be a name of this server, got {headers.get('host', '')[:200] or 'none'}")
        changes = scope["method"] not in ("GET", "HEAD")
        if changes and not access.knows(headers.get(HEADER)):
            return refusal(
                403, "X-Tandem-Token: must be the token of the address that was printed, got another or none"
            )
        if access.is_loopback or access.knows(headers.get(HEADER)) or access.knows(self._of_cookie(headers)):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [None])[0]
        if scope["path"] == "/" and access.knows(given):
            # The fragment: the page sends it where a request changes something.
            answer = RedirectResponse(f"/#token={quote(access.token)}", status_code=303)
            answer.set_cookie(self._cookie, access.token, httponly=True, samesite="strict", path="/")
            return answer
        return refusal(403, "token: must be that of the address that was printed, got another or none")

    def _of_cookie(self, headers: Headers) -> str | None:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return None
        return found.value if found else None


def refusal(status: int, line: str) -> Response:
    """An answer that says in one line what is wrong."""
    return Response(encoded({"error": " ".join(line.split())}), status, media_type="application/json")


_RAW = [(name.encode(), value.encode()) for name, value in _SECURITY.items()]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
