"""Who may ask the page's server: the Host header, the token, and the headers that confine what a browser does."""

import hmac
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, quote

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.page.rows import encoded

HEADER, CHANGES = "x-tandem-token", "x-tandem"
"""What may hold the token; and what says which change is meant, as no other site's page can without being let."""
_API = "/api/"
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
        """What to open: the query of the first request has the token."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self.port}/?token={quote(self.token)}"

    def is_served(self, host: str) -> bool:
        """Whether a Host header names this server: a page of another name that was made to lead here is refused.

        Its port does not matter: behind a tunnel it is another one. Beyond loopback any name will do, as that of a
        proxy in front: the token alone decides.
        """
        known = {self.host.lower(), "localhost", "127.0.0.1", "::1"}
        return not self.is_loopback or _without_port(host).lower() in known

    def knows(self, token: str | None) -> bool:
        """Whether this is the token."""
        return token is not None and hmac.compare_digest(token.encode(), self.token.encode())


class RequestGuard:
    """Lets through who may ask, and sets the headers of every answer.

    The page's own files are for everybody. All else needs the token: in a header, or in a cookie that `/?token=...`
    sets. What changes something needs a header of its own beside it: a link or a form of another site would send the
    cookie along.
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
        reads = scope["method"] in ("GET", "HEAD")
        if not scope["path"].startswith(_API):
            return self._entered(scope) if reads and scope["path"] == "/" else None
        if not (access.knows(headers.get(HEADER)) or access.knows(self._of_cookie(headers))):
            return refusal(403, "token: must be that of the address that was printed, got another or none")
        if not reads and headers.get(CHANGES) != "stop":
            return refusal(403, "X-Tandem: must be stop, got something else or nothing")
        return None

    def _entered(self, scope: Scope) -> Response | None:
        """To the page, with the token in a cookie and no longer in the address; None without the token."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [None])[0]
        if not self._access.knows(given):
            return None
        answer = RedirectResponse("/", status_code=303)
        # Lax: a link in a mail or a chat opens the page.
        answer.set_cookie(self._cookie, self._access.token, httponly=True, samesite="lax", path="/")
        return answer

    def _of_cookie(self, headers: Headers) -> str | None:
        return cookie_parser(headers.get("cookie", "")).get(self._cookie)


def refusal(status: int, line: str) -> Response:
    """An answer that says in one line what is wrong."""
    return Response(encoded({"error": " ".join(line.split())}), status, media_type="application/json")


_RAW = [(name.encode(), value.encode()) for name, value in _SECURITY.items()]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
