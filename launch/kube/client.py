"""The verbs submit, status, logs, stop and list for a RayJob on Kubernetes.

What is said of a job goes to stderr, its log and the answers to stdout. Watching ends with the job; Ctrl-C ends only
the watching.
"""

import dataclasses
import difflib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from actors.config import UserError
from launch.config import RunConfig
from launch.kube.kubeconfig import KubeApi, connect_kube
from launch.kube.objects import RayJob
from launch.kube.submission import DELETION_S, OURS, command_for, delete_in_full, pods_grace_s, submit_documents
from launch.kube.watch import JobLog, RayJobState, follow_rayjob, state_line

INTERRUPTED = 130  # as shells say of what Ctrl-C ended: 128 and SIGINT


def kube_submit(
    config: RunConfig,
    *,
    namespace: str | None,
    context: str | None,
    wait: bool,
    as_json: bool,
    told: Sequence[str] = (),
) -> int:
    """Create the run's RayJob, or attach to the one that is there, and with `wait` watch it to its end.

    `namespace` defaults to the configuration's. The lines `told` are printed once it is there.
    The exit code is 0, or with `wait` the job's: 0 succeeded, 130 stopped, deleted or detached by Ctrl-C, else the
    driver's or 1.

    Raises:
        UserError: another RayJob has the name, the cluster refuses the request, or KubeRay finds the RayJob invalid.
    """
    from launch.kube.render import manifests

    # Before the cluster is asked: a mistake of the configuration is told without one.
    documents = manifests(config, "rayjob")
    api = connect_kube(namespace or config.cluster.kubernetes.namespace, context)
    document, action = submit_documents(api, documents, say=_say)
    for line in told:  # only now: an error is told alone
        _say(line)
    name = document["metadata"]["name"]
    answer = {"name": name, "namespace": api.namespace, "context": api.context, "action": action}
    if not as_json:
        print(f"RayJob {name} {action} in namespace {api.namespace}", *_next_commands(api, name), sep="\n", flush=True)
    elif not wait:
        print(json.dumps(answer))
    return _detachable(api, name, lambda: _waited(api, document, answer if as_json else None)) if wait else 0


def kube_status(name: str, *, namespace: str | None, context: str | None, as_json: bool) -> int:
    """Print a RayJob's state: a line, or an object; raises UserError if there is none of that name."""
    api, name = connect_kube(namespace, context), _rayjob_name(name)
    state = RayJobState.of(_existing(api, name))
    if as_json:
        print(json.dumps({**dataclasses.asdict(state), "namespace": api.namespace, "context": api.context}))
        return 0
    more = {"cluster": state.cluster, "dashboard": state.dashboard, "started": state.started, "ended": state.ended}
    print(f"{name}: {state_line(api, state)}", *(f"{key} {value}" for key, value in more.items() if value), sep="; ")
    return 0


def kube_logs(name: str, *, namespace: str | None, context: str | None, follow: bool, tail: int | None) -> int:
    """Print the log of a RayJob's driver, or its last `tail` lines; with `follow` go on until the job has ended.

    The exit code is 1 if there is no log yet, or none any more; with `follow` the job's, as for `kube_submit`.

    Raises:
        UserError: there is no such RayJob, or its submission mode leaves the log to Ray's dashboard.
    """
    api, name = connect_kube(namespace, context), _rayjob_name(name)
    document = _existing(api, name)
    state, log = RayJobState.of(document), JobLog(api, _mode(document), tail)
    if not log.in_a_pod:
        raise UserError(f"logs: must be in a pod, got submissionMode {log.mode} ({_through_dashboard(api, state)})")
    if follow:
        return _detachable(api, name, lambda: _tailed(api, document, log))
    lines = list(log.new_lines(state))
    for line in lines:
        _print(line)
    if not lines:
        _say(f"no log{' any more' if state.finished else ' yet'}: {state_line(api, state)}")
    return 0 if lines else 1


def kube_stop(name: str, *, namespace: str | None, context: str | None, timeout_s: float | None) -> int:
    """Delete a RayJob that has not finished, and wait until it and its pods are gone; nothing to stop is no error.

    KubeRay's operator tells Ray to stop the job: its driver gets SIGTERM, and its pods the time that they allow.
    `timeout_s` defaults to that grace period and a minute. The exit code is 1 if they are still there then; their
    end comes nevertheless.
    """
    api, name = connect_kube(namespace, context), _rayjob_name(name)
    document = api.rayjob(name)
    if document is None:
        print(f"nothing to stop: no RayJob {name} in namespace {api.namespace}{_nearest(api, name)}")
        return 0
    state = RayJobState.of(document)
    if state.finished:
        removal = f"kubectl delete rayjob {name} --namespace {api.namespace}"
        print(f"nothing to stop: RayJob {name} has ended: {state.line}; {removal} removes it and its log")
        return 0
    allowed_s = pods_grace_s(document)
    limit_s = allowed_s + DELETION_S if timeout_s is None else timeout_s
    if state.starting:
        _say(f"stopping RayJob {name}, whose driver does not run yet: there is nothing to save")
    else:
        _say(
            f"stopping RayJob {name}: it finishes its step and saves a checkpoint, if that takes at most {allowed_s} s"
        )
    return _detachable(api, name, lambda: _stopped(api, document, limit_s), what="is being deleted")


def kube_list(*, namespace: str | None, context: str | None, as_json: bool) -> int:
    """Print Tandem's RayJobs in the namespace: a table, or a list of objects."""
    # Here, as that module imports requests, which no other verb of this one needs.
    from launch.jobs.verbs import print_table

    api = connect_kube(namespace, context)
    found = api.rayjobs(",".join(f"{key}={value}" for key, value in OURS.items()))
    # Times begin with a digit below 9, so that those which have not started come last.
    states = sorted(map(RayJobState.of, found), key=lambda state: (state.started or "9", state.name))
    if as_json:
        print(json.dumps([dataclasses.asdict(state) for state in states]))
        return 0
    if not states:
        print(f"no RayJobs of Tandem in namespace {api.namespace}")
        return 0
    rows = [(one.name, one.state or "new", one.job_status, one.started, one.ended) for one in states]
    print_table([("NAME", "STATE", "JOB", "STARTED", "ENDED"), *([cell or "-" for cell in row] for row in rows)])
    return 0


def _waited(api: KubeApi, document: RayJob, answer: Mapping[str, object] | None) -> int:
    """Watch to the end, print `answer` with what became of the job if there is one, and return the job's exit code."""
    log = JobLog(api, _mode(document))
    if not log.in_a_pod:
        _say(f"no pod has the log in {log.mode}: {_through_dashboard(api, RayJobState.of(document))}")
    # With --json, standard output is for the object alone.
    state = _followed(api, document, log, _print if answer is None else _say)
    code = INTERRUPTED if state is None else state.exit_code
    # It never ran, and its message is the operator's rule: the user's mistake, as one of the configuration.
    if state is not None and state.state == "ValidationFailed":
        raise UserError(f"RayJob {state.name}: must keep KubeRay's rules, got {state.message or state.line}")
    if state is not None and code:
        # Where no pod had the log, the operator's message holds the last of it.
        _say(*([] if log.in_a_pod else state.message.splitlines()[-20:]), f"RayJob {state.name} ended with {code}")
    if answer is not None:
        print(json.dumps({**answer, **({} if state is None else dataclasses.asdict(state)), "exit_code": code}))
    return code


def _tailed(api: KubeApi, document: RayJob, log: JobLog) -> int:
    state = _followed(api, document, log, _print)
    return INTERRUPTED if state is None else state.exit_code


def _followed(api: KubeApi, document: RayJob, log: JobLog, show: Callable[[str], None]) -> RayJobState | None:
    """Watch to the end, and return the state then; None if the RayJob was deleted."""
    name = document["metadata"]["name"]
    state = follow_rayjob(api, name, document["metadata"]["uid"], log, say=_say, show=show)
    if state is None:
        _say(f"RayJob {name} was deleted")
    return state


def _stopped(api: KubeApi, document: RayJob, limit_s: float) -> int:
    name, began = document["metadata"]["name"], time.monotonic()
    if not delete_in_full(api, document, limit_s):
        _say(f"RayJob {name} and its pods should be gone within {limit_s:g} s and are not: the deletion goes on")
        return 1
    print(f"RayJob {name} and its pods are gone, after {time.monotonic() - began:.0f} s", flush=True)
    return 0


def _detachable(api: KubeApi, name: str, watch: Callable[[], int], what: str = "goes on") -> int:
    """Watch; Ctrl-C ends that with 130, and leaves word of what becomes of the job, as does an error."""
    try:
        return watch()
    except KeyboardInterrupt:
        _say(f"detached: RayJob {name} {what}; next:", *_next_commands(api, name))
        return INTERRUPTED
    except UserError:
        _say(f"RayJob {name} was not ended by this error; next:", *_next_commands(api, name))
        raise


def _rayjob_name(run: str) -> str:
    """Of the RayJob that runs a run; a RayJob's name is left as it is."""
    from launch.kube.render import LONGEST_NAME, kube_name

    return kube_name(run, LONGEST_NAME["rayjob"])


def _existing(api: KubeApi, name: str) -> RayJob:
    document = api.rayjob(name)
    if document is None:
        raise UserError(f"name: must be a RayJob in namespace {api.namespace}, got {name}{_nearest(api, name)}")
    return document


def _nearest(api: KubeApi, name: str) -> str:
    near = difflib.get_close_matches(name, [item["metadata"]["name"] for item in api.rayjobs()], 1)
    return f" (did you mean {near[0]}?)" if near else " (--namespace names another)"


def _mode(document: RayJob) -> str:
    return document["spec"].get("submissionMode") or "K8sJobMode"  # KubeRay's default


def _next_commands(api: KubeApi, name: str) -> list[str]:
    ours = [f"  {command_for(api, verb, name)}" for verb in ("logs -f", "status", "stop")]
    return [*ours, f"  kubectl get rayjob {name} --namespace {api.namespace}"]


def _through_dashboard(api: KubeApi, state: RayJobState) -> str:
    """How to reach the log that only Ray's dashboard has."""
    service = f"service/{state.cluster or 'CLUSTER'}-head-svc"
    return (
        f"kubectl port-forward {service} 8265 --namespace {api.namespace}, and beside it "
        f"tandem logs -f {state.job_id or 'JOB_ID'} --address http://127.0.0.1:8265"
    )


def _print(text: str) -> None:
    print(text, flush=True)


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)
