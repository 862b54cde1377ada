"""Watching a RayJob: its state in one line, what its pods wait for, its log, until it has ended.

The API server is asked again every POLL_S seconds. Nothing stays open between: a log, too, is read from where the last
reading ended, so that neither quiet hours nor a lost connection cost a line.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from actors.config import UserError
from launch.jobs.own_lines import of_ray
from launch.kube.kubeconfig import KubeApi, KubeUnreachable
from launch.kube.objects import Pod, RayJob, RayJobStatus

Diagnosis = TypeVar("Diagnosis")
POLL_S = 2.0
OPERATOR_WAIT_S = 120
"""Time in which the operator must have looked at a new RayJob."""
UNREACHABLE_S = 120
"""Time for which the API server may be away while a RayJob is watched."""
_SUBMITTER = "ray-job-submitter"
_LONGEST = 240  # characters of a message in a line


@dataclass(frozen=True, slots=True)
class RayJobState:
    """What the operator says of a RayJob; empty strings for what it has not said.

    Example: RayJobState(name="grpo", uid="6f1...", state="Running", job_status="RUNNING", cluster="grpo-x7k2p", ...)
    """

    name: str
    uid: str
    state: str
    """jobDeploymentStatus: Initializing, Running, Complete, Failed, ValidationFailed, Suspended, Retrying, ..."""
    job_status: str
    """Of the Ray job: PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED."""
    reason: str
    message: str
    cluster: str
    job_id: str
    dashboard: str
    started: str
    ended: str

    @classmethod
    def of(cls, document: RayJob) -> "RayJobState":
        """Read it from a RayJob as the API server gives it."""
        status: RayJobStatus = document.get("status") or {}
        return cls(
            name=document["metadata"]["name"],
            uid=document["metadata"].get("uid") or "",
            state=status.get("jobDeploymentStatus") or "",
            job_status=status.get("jobStatus") or "",
            reason=status.get("reason") or "",
            message=status.get("message") or "",
            cluster=status.get("rayClusterName") or "",
            job_id=status.get("jobId") or "",
            dashboard=status.get("dashboardURL") or "",
            started=status.get("startTime") or "",
            ended=status.get("endTime") or "",
        )

    @property
    def finished(self) -> bool:
        """Whether the operator does nothing more for it, but clean up."""
        return self.state in ("Complete", "Failed", "ValidationFailed")

    @property
    def starting(self) -> bool:
        """Whether the driver does not run yet."""
        return self.state in ("", "Initializing", "Suspended", "Retrying") or (
            self.state == "Running" and self.job_status in ("", "PENDING")
        )

    @property
    def exit_code(self) -> int:
        """Of a finished one: 0 for success, 130 for stopped; the driver's where the message gives it, else 1."""
        if self.job_status == "SUCCEEDED":
            return 0
        if self.job_status == "STOPPED":
            return 130
        found = re.search(r"exit code (-?\d+)", self.message)
        code = int(found[1]) if found else 1
        return 128 - code if code < 0 else code or 1  # As a shell does: 128 and the signal's number.

    @property
    def line(self) -> str:
        """All of it that a line can hold: `Failed, job FAILED, AppFailed: Job entrypoint command failed ...`."""
        job = f", job {self.job_status}" if self.job_status else ""
        reason = f", {self.reason}" if self.reason else ""
        first = self.message.strip().partition("\n")[0]
        return (self.state or "new") + job + reason + (f": {_short(first)}" if first else "")


@dataclass
class JobLog:
    """The log of a RayJob's driver, over all its attempts."""

    api: KubeApi
    mode: str
    """The RayJob's submissionMode."""
    tail: int | None = None
    """Lines to begin with (default: all)."""
    read: dict[str, "_Position"] = field(default_factory=dict)
    """How far the log of each pod, by its uid, has been read."""

    @property
    def in_a_pod(self) -> bool:
        """Whether a pod prints it: else only Ray's dashboard has it."""
        return self.mode in ("K8sJobMode", "SidecarMode")

    def new_lines(self, state: RayJobState) -> Iterator[str]:
        """Lines that have come since the last call."""
        pods = self._pods(state)
        if self.tail is not None and not self.read:
            # The last lines are those of the latest attempt: the logs of those before count as read.
            self.read = {pod["metadata"]["uid"]: _Position(complete=True) for pod in pods[:-1]}
        for pod in pods:
            position = self.read.setdefault(pod["metadata"]["uid"], _Position())
            if not position.complete:
                yield from (line for line in self._new_lines_of(pod, position) if not of_ray(line))

    def _pods(self, state: RayJobState) -> list[Pod]:
        if self.mode == "K8sJobMode":
            return self.api.pods(f"job-name={state.name}")
        if self.mode == "SidecarMode" and state.cluster:
            return self.api.pods(f"ray.io/cluster={state.cluster},ray.io/node-type=head")
        return []

    def _new_lines_of(self, pod: Pod, position: "_Position") -> list[str]:
        began = time.monotonic()
        # Counted back from the node's own clock; the surplus is dropped by its times.
        since = None if position.at is None else int(began - position.at) + 5
        container = _SUBMITTER if self.mode == "SidecarMode" else pod["spec"]["containers"][0]["name"]
        tail = self.tail if position.at is None else None
        text = self.api.log(pod["metadata"]["name"], container, since_s=since, tail=tail)
        # The pod was asked before its log: if it had ended by then, this was all of it.
        position.complete = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        # An empty answer is no reading: the container may not have begun.
        position.at = began if text else position.at
        return position.after(text)


@dataclass
class _Position:
    """How far a container's log has been read: a reading begins a little earlier, so that no line is missed."""

    at: float | None = None  # when it was read last, on time.monotonic()
    stamp: str = ""  # of its last line, as the node wrote it
    lines_of_stamp: int = 0  # lines of that stamp, which were shown
    complete: bool = False  # whether nothing more can come

    def after(self, text: str) -> list[str]:
        """The lines of `text` that were not there before."""
        lines, again = [], self.lines_of_stamp
        for raw in text.removesuffix("\n").split("\n") if text else []:
            stamp, _, line = raw.partition(" ")
            if stamp < self.stamp:  # times of the same form and zone compare as texts
                continue
            if stamp == self.stamp and again:  # several lines of one moment: as many as were shown are left out
                again -= 1
                continue
            again = 0
            self.lines_of_stamp = self.lines_of_stamp + 1 if stamp == self.stamp else 1
            self.stamp = stamp
            lines.append(line)
        return lines


def follow_rayjob(
    api: KubeApi, name: str, uid: str, log: JobLog, *, say: Callable[[str], None], show: Callable[[str], None]
) -> RayJobState | None:
    """Watch a RayJob until it has finished, and return its state then; None if it was deleted meanwhile.

    `say` gets what is new about its state, `show` each line of the log. Ctrl-C is the caller's.

    Raises:
        UserError: no operator looked at it within OPERATOR_WAIT_S; the API server was away for UNREACHABLE_S.
    """
    began, lost, said = time.monotonic(), None, ""
    while True:
        try:
            found = api.rayjob(name)
            if found is None or found["metadata"]["uid"] != uid:
                return None
            state = RayJobState.of(found)
            line = state_line(api, state)
            if line != said:  # only what is new: the state is asked for every two seconds, for days
                say(said := line)
            for text in log.new_lines(state):
                show(text)
            lost = None
        except KubeUnreachable as error:
            now = time.monotonic()
            if lost is None:
                say(f"{error} (trying for {UNREACHABLE_S} s)")
            lost = lost or now  # the first failure counts, not the last
            if now - lost > UNREACHABLE_S:
                raise
        else:
            if state.finished:  # here, and not above: what it printed last has been shown
                return state
            if not state.state and time.monotonic() - began > OPERATOR_WAIT_S:
                raise UserError(_no_operator(name))
        time.sleep(POLL_S)


def state_line(api: KubeApi, state: RayJobState) -> str:
    """Its state in one line and, before the driver runs, what its pods wait for."""
    asked = state.starting and state.state != "Suspended"
    waits = _allowed(lambda: _waits(api, state), "") if asked else ""
    return f"{state.line}; {waits}" if waits else state.line


def _waits(api: KubeApi, state: RayJobState) -> str:
    if not state.cluster:
        return ""
    pods = api.pods(f"ray.io/cluster={state.cluster}")
    # The submitter comes when the cluster is there.
    pods += api.pods(f"job-name={state.name}") if state.state == "Running" else []
    if not pods:
        said = _allowed(lambda: api.warnings(state.cluster), [])
        return f"no pods yet: {_short(said[-1])}" if said else "no pods yet"
    reasons = Counter(reason for pod in pods if (reason := _reason(pod)))
    if not reasons:
        return ""
    waiting = ", ".join(f"{count} x {_short(reason)}" for reason, count in reasons.most_common())
    return f"{len(pods) - reasons.total()} of {len(pods)} pods ready, {waiting}"


def _allowed(diagnosis: Callable[[], Diagnosis], otherwise: Diagnosis) -> Diagnosis:
    """What is found, if the user may look: what is being diagnosed must not fail by it."""
    try:
        return diagnosis()
    except KubeUnreachable:
        raise
    except UserError:
        return otherwise


def _reason(pod: Pod) -> str:
    """Why a pod does not run; empty if it does, or has ended."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason')}: {condition.get('message') or ''}"
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting")
        # That one waits for an init container, which has the reason.
        if waiting and waiting.get("reason") != "PodInitializing":
            message = waiting.get("message")
            return f"{waiting.get('reason')}: {message}" if message else str(waiting.get("reason"))
    return "starting" if status.get("phase", "Pending") == "Pending" else ""


def _no_operator(name: str) -> str:
    return (
        f"kubernetes: KubeRay's operator must look at RayJob {name} within {OPERATOR_WAIT_S} s, got no status "
        "(kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator)"
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
