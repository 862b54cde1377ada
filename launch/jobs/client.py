"""Ray's Jobs API by REST, without ray: every call has a deadline, and every failure is one line.

Wire format: ray/dashboard/modules/job/job_head.py of Ray 2.60. A job that fails, and a 500 of the server, come with
whole tracebacks and logs: `cause_line` finds the line that says why.
"""

import difflib
import importlib.metadata
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TypeAlias, TypeVar
from urllib.parse import quote

import requests
from urllib3.exceptions import HTTPError

from actors.config import UserError
from launch.jobs.access import TOKEN_PLACES, DashboardAccess
from launch.jobs.call_deadline import DeadlinePassed, within

CONNECT_S, READ_S, UPLOAD_S = 5.0, 30.0, 600.0
"""Deadlines of a connection, of an answer, and of the answer to an upload, in seconds."""
FIRST_S = 8.0
"""Deadline of the first answer, in seconds: a wrong address shall show soon."""
_SLOW_S = 2.0
"""Time beyond its deadline in which an answer that has begun must end, in seconds."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
Texts: TypeAlias = Mapping[str, "str | Texts"]
"""Texts by name, or further ones below a name."""
_Answer = TypeVar("_Answer", dict, list)


class NoAnswer(UserError):
    """The cluster gave no usable answer; it may give one later."""


class UnknownJob(UserError):
    """The cluster has no job of that id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedJob:
    """What Ray knows of a job.

    Example: SubmittedJob(id="demo-20260801-120000-3fa2", state="FAILED", exit_code=2, message="Job entrypoint ...",
        start_s=1785585600.0, end_s=1785585610.0, metadata={"tandem": "0.1.0", "run": "demo", ...})
    """

    id: str
    state: str
    """PENDING, RUNNING, or one of ENDED."""
    message: str = ""
    exit_code: int | None = None
    """The driver's; None before its end, and when Ray ended the job."""
    start_s: float | None = None
    """When it was submitted, in seconds since 1970."""
    end_s: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether its state is final."""
        return self.state in ENDED

    @property
    def submitted_by_tandem(self) -> bool:
        """Whether `tandem submit` made it."""
        return "tandem" in self.metadata

    @property
    def cause(self) -> str | None:
        """Why it failed, in one line; None for one that did not fail."""
        return cause_line(self.message) if self.state == "FAILED" else None


class JobsClient:
    """The Jobs API of one cluster."""

    def __init__(self, access: DashboardAccess, warn: Callable[[str], None]) -> None:
        """Ask the cluster for its version, so that a wrong address or token shows at once.

        Raises:
            NoAnswer, UserError: one line: no answer, no Ray dashboard, no or a wrong token.
        """
        self.access = access
        self._session = requests.Session()
        self._session.auth = self._authorize
        self._check_version(warn)

    def job(self, job_id: str) -> SubmittedJob:
        """One job; raises UnknownJob."""
        return _job(self._json(self._request("GET", f"/api/jobs/{quote(job_id, safe='')}", job_id), dict))

    def find(self, job_id: str) -> SubmittedJob | None:
        """One job, or None."""
        response = self._request("GET", f"/api/jobs/{quote(job_id, safe='')}", accept=(200, 404))
        return None if response.status_code == 404 else _job(self._json(response, dict))

    def jobs(self) -> list[SubmittedJob]:
        """All jobs, drivers that were not submitted included."""
        # The slash at the end belongs to it: this path answers with a list, those of one job with an object.
        values = self._json(self._request("GET", "/api/jobs/"), list)
        return [_job(item) for item in values]

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        runtime_env: Texts,
        metadata: dict[str, str],
        labels: dict[str, str],
    ) -> None:
        """Start a job on a node with these labels, on the head without; an id that exists is the server's error."""
        body: dict[str, str | Texts] = {
            "entrypoint": entrypoint,
            "submission_id": job_id,
            "runtime_env": runtime_env,
            "metadata": metadata,
        }
        # Ray 2.60 leaves the head for a selector alone; it asks for no resources.
        selector = {"entrypoint_label_selector": labels} if labels else {}
        self._request("POST", "/api/jobs/", json=body | selector)

    def logs(self, job_id: str) -> str:
        """All that the job's driver has printed so far; nothing before it runs."""
        response = self._request("GET", f"/api/jobs/{quote(job_id, safe='')}/logs", job_id)
        return str(self._json(response, dict).get("logs") or "")

    def stop(self, job_id: str) -> None:
        """Tell a job to stop; returns at once, and has no effect on one that is PENDING (Ray 2.60)."""
        self._request("POST", f"/api/jobs/{quote(job_id, safe='')}/stop", job_id)

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended, so that its id can be used again."""
        self._request("DELETE", f"/api/jobs/{quote(job_id, safe='')}", job_id)

    def has_package(self, name: str) -> bool:
        """Whether the cluster holds the package; if so, it keeps it for the next ten minutes at least."""
        response = self._request("GET", f"/api/packages/gcs/{name}", accept=(200, 404))
        return response.status_code == 200

    def upload(self, name: str, data: IO[bytes]) -> None:
        """Send a package."""
        self._request("PUT", f"/api/packages/gcs/{name}", data=data, read_s=UPLOAD_S)

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As `auth`, since otherwise requests would put a password of ~/.netrc into this header.
        if self.access.token is not None:
            request.headers["Authorization"] = f"Bearer {self.access.token}"
        return request

    def _request(
        self,
        method: str,
        path: str,
        job_id: str | None = None,
        *,
        accept: tuple[int, ...] = (200,),
        read_s: float | None = None,
        json: Texts | None = None,
        data: IO[bytes] | None = None,
    ) -> requests.Response:
        read_s = read_s or READ_S
        url, timeout = self.access.address + path, (CONNECT_S, read_s)
        # No redirect is followed: the token is meant for this address.
        call = partial(self._session.request, method, url, timeout=timeout, allow_redirects=False, json=json, data=data)
        try:
            response = within(read_s + _SLOW_S, call)
        except (requests.exceptions.RequestException, HTTPError, UnicodeError, DeadlinePassed) as error:
            raise NoAnswer(f"{self.access.source}: {_why(error, read_s)}, got {self.access.address}") from None
        if response.status_code not in accept:
            raise self._refusal(response, job_id)
        return response

    def _refusal(self, response: requests.Response, job_id: str | None) -> UserError:
        address, status = self.access.address, response.status_code
        if status in (401, 403):
            return UserError(self._unauthorized(status))
        if status == 404 and job_id is not None:
            known = difflib.get_close_matches(job_id, [job.id for job in self.jobs()], 2)
            hint = f" (did you mean {' or '.join(known)}?)" if known else ""
            return UnknownJob(f"ID: {address} knows no such job{hint}, got {job_id}")
        said = cause_line(response.text) or response.reason  # a 500 of Ray's is a whole traceback
        if status >= 500:
            return NoAnswer(f"{self.access.source}: {address} answered {status}: {said}")
        return UserError(f"{self.access.source}: {address} refused the request ({status}): {said}")

    def _unauthorized(self, status: int) -> str:
        access = self.access
        if access.token is None:
            return (
                f"RAY_AUTH_TOKEN: {access.address} wants a token ({status}) and none was sent, as "
                f"{access.token_source}; set the cluster's in {TOKEN_PLACES}"
            )
        return (
            f"{access.token_source}: must be the token of the cluster's nodes, {access.address} refused it ({status})"
        )

    def _check_version(self, warn: Callable[[str], None]) -> None:
        response = self._request(
            # 401 and 403 are told as what they are; of other answers the body tells that this is no Ray.
            "GET",
            "/api/version",
            accept=tuple({*range(200, 500)} - {401, 403}),
            read_s=min(FIRST_S, READ_S),
        )
        try:
            theirs = str(response.json()["ray_version"])
        except (ValueError, KeyError, TypeError):
            said = f"GET /api/version: {response.status_code} {response.reason}"
            raise UserError(
                f"{self.access.source}: must be a Ray dashboard ({said}), got {self.access.address}"
            ) from None
        try:
            ours = importlib.metadata.version("ray")
        except importlib.metadata.PackageNotFoundError:  # a machine that only submits needs no ray
            return
        if ours != theirs:
            warn(f"the cluster runs Ray {theirs} and this machine has {ours}: Tandem is tested with the same on both")

    def _json(self, response: requests.Response, kind: type[_Answer]) -> _Answer:
        try:
            values = response.json()
        except ValueError:
            values = None
        if not isinstance(values, kind):
            raise NoAnswer(
                f"{self.access.source}: must be a Ray dashboard (its answer is not understood), got {response.url}"
            )
        return values


def cause_line(text: str) -> str:
    """The line of a driver's last output, or of a traceback, that says most about why it ended; "" if there is none.

    Example: cause_line("Job entrypoint command failed with exit code 2, ...:\\nerror: model.path: ...") is
        "error: model.path: ..."
    """
    # Colours and other sequences first: what is left of them would be text.
    plain = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    lines = [" ".join(re.sub(r"[\x00-\x1f\x7f]", " ", line).split()) for line in plain.splitlines()]
    lines = [line for line in lines if line.strip(". ")]
    # A line of our own says most, then the last exception of a traceback.
    for pattern in (r"(error|run failed): .", r"([\w.]*(Error|Exception|Exit|Interrupt)\b|Failed\b).*: ."):
        if found := [line for line in lines if re.match(pattern, line)]:
            return _shortened(found[-1])
    return _shortened(lines[-1]) if lines else ""


def _shortened(line: str) -> str:
    line = line.rstrip(".")
    return line if len(line) <= 500 else f"{line[:250]} ... {line[-250:]}"


def _job(values: Mapping[str, object]) -> SubmittedJob:
    start, end, code = values.get("start_time"), values.get("end_time"), values.get("driver_exit_code")
    metadata = values.get("metadata")
    return SubmittedJob(
        # A driver that was not submitted has only the second one.
        id=str(values.get("submission_id") or values.get("job_id")),
        state=str(values.get("status")),
        message=str(values.get("message") or ""),
        exit_code=code if isinstance(code, int) else None,
        start_s=start / 1000 if isinstance(start, int | float) and start else None,  # Ray counts milliseconds
        end_s=end / 1000 if isinstance(end, int | float) and end else None,
        metadata={str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {},
    )


def _why(error: Exception, read_s: float) -> str:
    """The rule that an address broke when a request failed before an answer."""
    if isinstance(error, DeadlinePassed):
        return f"must be a dashboard that answers (no whole answer within {read_s + _SLOW_S:g} s)"
    if isinstance(error, requests.exceptions.SSLError):
        return f"must be https with a certificate that this machine trusts ({_system_error(error)})"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"must be a dashboard that can be reached (no connection within {CONNECT_S:g} s)"
    if isinstance(error, requests.exceptions.ReadTimeout):
        return f"must be a dashboard that answers (none within {read_s:g} s)"
    text = str(error)
    if "BadStatusLine" in text or "RemoteDisconnected" in text or "Connection aborted" in text:
        return "must be a Ray dashboard, by default on port 8265 (the connection broke without an HTTP answer)"
    return f"must be a dashboard that can be reached ({_system_error(error)})"


def _system_error(error: BaseException) -> str:
    """The operating system's words for what lies below an error of requests."""
    todo: list[object] = [error]
    seen: list[BaseException] = []
    while todo:
        item = todo.pop(0)
        if not isinstance(item, BaseException) or item in seen:
            continue
        seen.append(item)
        if isinstance(item, OSError) and item.strerror:
            return str(item.strerror)
        # requests wraps urllib3, and that the system: by attribute, cause, context or as an argument.
        todo += [getattr(item, "reason", None), item.__cause__, item.__context__, *item.args]
    return " ".join(str(seen[-1]).split())[:200]
