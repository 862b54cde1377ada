"""Reward endpoints: one POST per batch to an HTTP service, with retries that end before the call's deadline.

    {"prompts": [...], "completions": [...], "rows": [...]}  ->  {"rewards": [1.0, null, ...]}

Each list has one entry per sample; `rows` holds the data row of each as an object, and null abstains. Tried again, with
growing pauses: a service that cannot be reached, is late, or answers 429 or 5xx. Anything else fails at once.
No message names more of an address than host and path, or the value of a header. Runs without torch and ray.
"""

import json
import os
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import SplitResult, urlsplit

import httpx

from actors.config import UserError
from algorithms.config import HEADER_VARIABLE as _VARIABLE
from algorithms.config import RewardEndpoint
from algorithms.rewards.calls import Outcome, Samples, checked_number
from algorithms.words import noun_of, shorten

FIRST_PAUSE_S = 0.5
"""Pause before the second attempt; it doubles with each further one."""
DEADLINE_SHARE = 0.9
"""Share of reward.deadline_s after which no answer is awaited: at its end the process would be killed."""
MAX_ANSWER_BYTES = 2**24
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, section 5.6.2


class _Failure(Exception):
    """A service gave no usable answer; the message is one line that says why."""


class _Passing(Exception):
    """An attempt failed in a way that may pass; `pause_s` is the least that the service asks to wait."""

    def __init__(self, cause: str, pause_s: float = 0.0) -> None:
        super().__init__(cause)
        self.pause_s = pause_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEndpoint:
    """A reward service, ready to be asked."""

    name: str
    """Its address, as messages show it."""
    label: str
    """Key of its values in Score.parts, unique within the run."""
    weight: float
    retries: int
    deadline_s: float
    """Longest time of one call, in seconds, all attempts together."""
    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    """As they are sent, secrets included."""
    secrets: tuple[str, ...] = field(repr=False)
    """What was read from the environment; left out of every message."""

    def evaluate(self, samples: Samples, until: float | None = None) -> list[Outcome]:
        """Ask the service; its mistakes are outcomes, never an exception.

        Ends by `until` (on time.monotonic()), and within `deadline_s`. So that an answer that was lost can be asked
        for again, an attempt waits for no more than half of the time left, the last one for all of it.
        """
        limit = time.monotonic() + self.deadline_s
        count = len(samples.completions)
        try:
            values = self._rewards(self._send(self._body(samples), limit if until is None else min(until, limit)))
        except _Failure as error:
            return [str(error)] * count
        if len(values) != count:
            return [f"returned {len(values)} rewards for {count} completions"] * count
        return [checked_number(value) for value in values]

    def _body(self, samples: Samples) -> bytes:
        try:
            values = {"prompts": samples.prompts, "completions": samples.completions, "rows": samples.rows}
            return json.dumps(values, allow_nan=False).encode()
        except (TypeError, ValueError) as error:  # a date, NaN
            raise _Failure(f"the data row cannot be sent as JSON: {error}") from None

    def _send(self, body: bytes, until: float) -> bytes:
        cause, pause_s = "not asked, as other reward sources took the time of the call", FIRST_PAUSE_S
        for attempt in range(1, self.retries + 2):
            left = until - time.monotonic()
            if left <= 0:
                break
            try:
                return self._attempt(body, left if attempt > self.retries else left / 2)
            except _Passing as error:
                plural = "" if attempt == 1 else "s"
                cause = f"{error} ({attempt} attempt{plural}, within reward.deadline_s)"
                wait = max(pause_s, error.pause_s)  # at least what Retry-After asks for
            pause_s *= 2
            # A pause beyond the deadline would only be waited for in vain.
            if attempt > self.retries or time.monotonic() + wait >= until:
                break
            time.sleep(wait)
        raise _Failure(cause)

    def _attempt(self, body: bytes, seconds: float) -> bytes:
        """The body of the answer; raises _Passing for what is worth another attempt."""
        # As bytes: httpx itself sends no text beyond ASCII. What is packed could be of any size when unpacked.
        own = {"Content-Type": "application/json", "Accept-Encoding": "identity", **self.headers}
        headers = [(name.encode(), value.encode("latin-1")) for name, value in own.items()]
        until = time.monotonic() + seconds
        try:
            # httpx follows no redirection, which would take the headers, secrets included, wherever it is sent.
            with (
                httpx.Client(verify=_trusted(), timeout=_shares(seconds)) as client,
                client.stream("POST", self.url, content=body, headers=headers) as response,
            ):
                if response.is_success:
                    return _read(response, until)
                raise self._refusal(response, until)
        except httpx.TimeoutException:
            raise _Passing("no answer in time") from None
        except httpx.ConnectError as error:
            raise _Passing(self._line(f"cannot be reached: {error}")) from None
        except httpx.LocalProtocolError:  # its text shows the header that is wrong
            raise _Failure("cannot be asked: a header is none") from None
        except httpx.TransportError as error:
            raise _Passing(self._line(f"the connection broke: {type(error).__name__} {error}")) from None
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # its text shows an address, perhaps a proxy's
            where = "look at its address, HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY"
            raise _Failure(f"cannot be asked ({type(error).__name__}): {where}") from None

    def _refusal(self, response: httpx.Response, until: float) -> Exception:
        try:
            # Services tell in the body what was wrong; the status alone seldom helps.
            said = _read(response, until, 2000).decode(errors="replace")
        except (httpx.TransportError, _Failure):
            said = ""
        said = self._line(said)
        said = f": {shorten(said[:200], 200)}" if said else ""
        cause = f"answered {response.status_code} {self._public(response.reason_phrase)}{said}"
        if response.status_code == 429 or response.status_code >= 500:
            after = response.headers.get("Retry-After", "")
            return _Passing(cause, float(after) if after.isdecimal() else 0.0)  # seconds; a date is not read
        return _Failure(cause)

    def _rewards(self, answer: bytes) -> list[object]:
        try:
            values = json.loads(answer)
        except (ValueError, RecursionError):
            text = shorten(self._public(answer.decode(errors="replace")))
            raise _Failure(f"returned what is not JSON, {text}") from None
        rewards = values.get("rewards") if isinstance(values, dict) else None
        if not isinstance(rewards, list):
            got = noun_of(values) if not isinstance(values, dict) else "an object without that list"
            raise _Failure(f'returned {got}, not {{"rewards": [...]}}')
        return rewards

    def _public(self, text: str) -> str:
        """`text` without what was read from the environment."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    def _line(self, text: str) -> str:
        """The same on one line: a secret with blanks in it is known before they are put together."""
        return " ".join(self._public(text).split())


def _shares(seconds: float) -> httpx.Timeout:
    """Of an attempt, as httpx has a time for each part of it: to be connected and to be heard take so long together."""
    return httpx.Timeout(seconds / 8, read=7 * seconds / 8)


@cache
def _trusted() -> ssl.SSLContext:
    """The machine's certificates: httpx has its own, which know nothing of a company's."""
    return ssl.create_default_context()


def _read(response: httpx.Response, until: float, most: int | None = None) -> bytes:
    """All of the body, or its first `most` bytes; raises httpx.ReadTimeout when it is not there by `until`."""
    read = bytearray()
    # httpx's own timeout starts anew with every part.
    for part in response.iter_raw():
        read += part
        if most is not None and len(read) >= most:
            return bytes(read[:most])
        if len(read) > MAX_ANSWER_BYTES:
            raise _Failure(f"returned more than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > until:
            raise httpx.ReadTimeout("too slow")
    return bytes(read)


def shown_address(url: str) -> str:
    """The address without user, password, query and fragment, where secrets may stand.

    Example: shown_address("https://me:secret@host:8000/score?key=secret") == "https://host:8000/score"
    """
    parts = urlsplit(url)
    return SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "").geturl()


def check_endpoint(endpoint: RewardEndpoint, index: int = 0, environment: Mapping[str, str] | None = None) -> None:
    """Check address and headers; variables only in a known `environment`, that of the reward processes.

    `index` is its place in reward.endpoints, for messages. Raises UserError, a line per problem; a variable must have a
    value, and with it the header must be one line of printable Latin-1.
    """
    problems = [f"reward.endpoints.{index}.url: {fault}" for fault in _faults(endpoint.url)]
    for name, template in endpoint.headers.items():
        where = f"reward.endpoints.{index}.headers"
        if not _HEADER_NAME.fullmatch(name):
            problems.append(f"{where}: a name must be letters, digits and hyphens, got {name!r}")
            continue
        used = [] if environment is None else _VARIABLE.findall(template)
        missing = [variable for variable in used if not (environment or {}).get(variable)]
        problems += [
            f"{where}.{name}: ${variable} must be set in the environment of the reward processes, is missing or empty"
            for variable in missing
        ]
        value = template if missing else _filled(template, environment or {})
        if not re.fullmatch(r"(?![\t ])[\t\x20-\x7e\xa0-\xff]*(?<![\t ])", value):
            rule = (
                "must be one line of printable Latin-1 with variables filled in, without blanks at its ends, got "
                "another (not shown)"
            )
            problems.append(f"{where}.{name}: {rule}")
    if problems:
        raise UserError(*problems)


def load_endpoint(
    endpoint: RewardEndpoint,
    index: int,
    label: str,
    deadline_s: float,
    environment: Mapping[str, str] = os.environ,
) -> LoadedEndpoint:
    """Fill the headers: every `$NAME` in a value is replaced from `environment`.

    `deadline_s` is reward.deadline_s. Raises UserError as `check_endpoint` does.
    """
    check_endpoint(endpoint, index, environment)
    templates = endpoint.headers.values()
    secrets = {environment[variable] for template in templates for variable in _VARIABLE.findall(template)}
    return LoadedEndpoint(
        name=shown_address(endpoint.url),
        label=label,
        weight=endpoint.weight,
        retries=endpoint.retries,
        deadline_s=DEADLINE_SHARE * deadline_s,
        url=endpoint.url,
        headers={name: _filled(template, environment) for name, template in endpoint.headers.items()},
        # The longest first: one secret may hold another.
        secrets=tuple(sorted(secrets, key=len, reverse=True)),
    )


def _filled(template: str, environment: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: environment.get(match[1], match[0]), template)


def _faults(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # reading the port checks it
    except ValueError:
        host = None
    if not host:
        return ["must be an address like http://host:8000/score, got one whose host or port is none"]
    if "@" in parts.netloc:
        rule = "must hold no user and password (a header with a $NAME keeps them out of files)"
        return [f"{rule}, got {shown_address(url)}"]
    if re.search(r"[^\x21-\x7e]", url):
        return [f"must be ASCII without spaces (%20 stands for one), got {shown_address(url)!r}"]
    return []
