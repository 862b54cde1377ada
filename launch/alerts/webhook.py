"""The webhook that alerts go to: one POST each, {"text": ...} as Slack takes it, with retries and deadlines.

The address is a secret: it comes from the environment, and no message shows any of it.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

from launch.alerts.delivery import DeliveryError

TIMEOUT_S = 10.0
"""Longest wait for a connection, and for each part of an answer."""
PAUSES_S = (1.0, 3.0)
"""Before the second attempt, and before the third."""
LONGEST_PAUSE_S = 30.0
"""Of those that a service asks for."""
_LONGEST_TEXT = 3000
"""Characters; Slack cuts what is much longer."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    # urllib would follow with a GET that has no alert in it, to wherever it is sent.
    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


class Webhook:
    """Sends texts to one address."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S, pause: Callable[[float], object] = time.sleep) -> None:
        """`url`: as `is_web_address` has it; `pause`: waits some seconds."""
        self._url, self._timeout_s, self._pause = url, timeout_s, pause
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._pauses = PAUSES_S

    def send(self, text: str) -> None:
        """Send a text, in three attempts at most, or in one where the text before did not arrive; raises DeliveryError
        with the cause of the last one."""
        body = json.dumps({"text": _escaped(text[:_LONGEST_TEXT])}).encode()
        for pause_s in (*self._pauses, None):
            why, wait_s = self._post(body)
            if why is None:
                self._pauses = PAUSES_S
                return
            # Another attempt makes nothing right of a wrong address.
            if pause_s is None or wait_s is None:
                self._pauses = ()  # where nobody answers, those that wait shall not take minutes
                raise DeliveryError(why)
            self._pause(min(LONGEST_PAUSE_S, max(pause_s, wait_s)))

    def _post(self, body: bytes) -> tuple[str | None, float | None]:
        """Why an attempt has failed, None where it has not; and seconds to wait at least before another one, None where
        there shall be none."""
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        try:
            # Its body says nothing that is needed.
            with self._opener.open(request, timeout=self._timeout_s):
                return None, 0.0
        except urllib.error.HTTPError as error:
            with error:  # a connection, to be closed
                after = str(error.headers.get("Retry-After", ""))
                passes = error.code == 429 or error.code >= 500
                return f"it answered {error.code}", (float(after) if after.isdecimal() else 0.0) if passes else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            late = isinstance(reason, TimeoutError)
            # The kind alone: what an error says may hold the address.
            return ("no answer in time" if late else f"it cannot be reached ({type(reason).__name__})"), 0.0


def is_web_address(url: str) -> bool:
    """Whether a text is an address that a webhook can have: http or https, with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
    except ValueError:
        return False


def _escaped(text: str) -> str:
    """As Slack wants it: these three would begin links and mentions."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
