"""Submitting to Kubernetes: against a fake API server, with a fake operator that moves the RayJob along."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from launch.config import RunConfig, load
from launch.kube import kubeconfig, submission, watch
from launch.kube.client import kube_list, kube_logs, kube_status, kube_stop, kube_submit
from tests.fake_kubernetes import FakeKubernetes, FakeOperator, Object

ROOT = Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / "configs" / "own-task.yaml")
NAME, CLUSTER, SUBMITTER = "grpo", "grpo-x7k2p", "grpo-s9dq4"
WHERE: dict[str, Any] = {"namespace": None, "context": None}
Step = Callable[[FakeOperator, Object], None]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    """A cluster, with a kubeconfig for it; everything that is polled is so without waiting."""
    monkeypatch.setattr(watch, "POLL_S", 0.02)
    monkeypatch.setattr(submission, "POLL_S", 0.02)
    with FakeKubernetes() as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path / "kubeconfig")))
        yield fake


def config(*overrides: str) -> RunConfig:
    """The run that is submitted."""
    return load(CONFIG, [f"run.name={NAME}", "cluster.kubernetes.namespace=train", *overrides])


def submit(*overrides: str, wait: bool = False, as_json: bool = False) -> int:
    """As the command line does it."""
    return kube_submit(config(*overrides), **WHERE, wait=wait, as_json=as_json)


def status(**values: Any) -> Step:
    """The operator says something."""
    return lambda operator, job: operator.status(job, **values)


def initializing(operator: FakeOperator, job: Object) -> None:
    """The cluster's pods wait for GPUs."""
    operator.status(job, jobDeploymentStatus="Initializing", rayClusterName=CLUSTER, jobId="grpo-8wl2c")
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    }
    head = {"ray.io/cluster": CLUSTER, "ray.io/node-type": "head"}
    operator.pod(job, f"{CLUSTER}-head", head, "ray-head", "ray-job-submitter")
    for worker in range(2):
        labels = {"ray.io/cluster": CLUSTER, "ray.io/node-type": "worker"}
        operator.pod(job, f"{CLUSTER}-{worker}", labels, "ray", phase="Pending", conditions=[unscheduled])


def running(*lines: str, pod: str = SUBMITTER) -> Step:
    """The driver runs, and prints lines."""

    def step(operator: FakeOperator, job: Object) -> None:
        for worker in range(2):
            operator.pod(job, f"{CLUSTER}-{worker}", {})
        operator.pod(job, pod, {"job-name": NAME}, "ray-job-submitter")
        operator.status(
            job,
            jobDeploymentStatus="Running",
            jobStatus="RUNNING",
            startTime="2026-01-02T03:04:05Z",
            dashboardURL=f"{CLUSTER}-head-svc.train.svc.cluster.local:8265",
        )
        operator.log(pod, *lines)

    return step


def ended(state: str, job_status: str, *lines: str, pod: str = SUBMITTER, **values: Any) -> Step:
    """The driver has ended."""

    def step(operator: FakeOperator, job: Object) -> None:
        if (job.get("status") or {}).get("jobDeploymentStatus") == state:
            return
        operator.log(pod, *lines)
        operator.pod(job, pod, {}, phase="Succeeded" if job_status == "SUCCEEDED" else "Failed")
        operator.status(job, jobDeploymentStatus=state, jobStatus=job_status, **values)

    return step


def hold(operator: FakeOperator, job: Object) -> None:
    """Nothing changes."""


RAYS = (
    "2026-08-01 12:00:00,123\tINFO cli.py:41 -- Job submission server address: http://head:8265",
    "Running entrypoint for job grpo-x: exec python -m launch run /etc/tandem/run.json",
)
SUCCEEDS = [
    *(initializing, hold, hold, running(*RAYS, "step 1/2", "step 2/2"), hold, hold),
    ended("Complete", "SUCCEEDED", "model: export"),
]
RUNS = [initializing, running("step 1/2"), hold]


def problem(action: Callable[[], object]) -> str:
    """The one line that tells the user what is wrong."""
    with pytest.raises(UserError) as caught:
        action()
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def test_submit_creates_watches_and_reports(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """Config map and RayJob are created, states and reasons are told once, the log is printed, success is 0."""
    with FakeOperator(server, SUCCEEDS):
        assert submit(wait=True) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "RayJob grpo created in namespace train",
        "  tandem logs -f grpo --kube --namespace train --context development",
        "  tandem status grpo --kube --namespace train --context development",
        "  tandem stop grpo --kube --namespace train --context development",
        "  kubectl get rayjob grpo --namespace train",
        "step 1/2",
        "step 2/2",
        "model: export",
    ]
    waits = "1 of 3 pods ready, 2 x Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    lines = err.splitlines()
    assert lines.count(f"Initializing; {waits}") == 1
    assert lines[-2:] == ["Running, job RUNNING", "Complete, job SUCCEEDED"]
    assert (server.names("configmaps"), server.names("networkpolicies")) == (["grpo-config"], ["grpo-network"])
    job = server.objects["rayjobs", "train", NAME]
    owner = server.objects["configmaps", "train", "grpo-config"]["metadata"]["ownerReferences"]
    assert owner == [{"apiVersion": "ray.io/v1", "kind": "RayJob", "name": NAME, "uid": job["metadata"]["uid"]}]
    policy = server.objects["networkpolicies", "train", "grpo-network"]
    assert policy["metadata"]["ownerReferences"] == owner
    assert job["spec"]["entrypoint"]


def test_submitted_twice_is_submitted_once(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """The same configuration attaches; another one is refused, in one line that says how to end the first."""
    with FakeOperator(server, RUNS):
        assert submit() == 0
        uid = server.objects["rayjobs", "train", NAME]["metadata"]["uid"]
        assert submit() == 0
        assert "attached" in capsys.readouterr().out
        line = problem(lambda: submit("policy.optimizer.lr=0.5"))
    assert line.startswith("run.name: must not be that of an unfinished RayJob of another configuration, got grpo (")
    assert "tandem stop grpo --kube --namespace train --context development" in line
    assert server.objects["rayjobs", "train", NAME]["metadata"]["uid"] == uid
    assert server.requests.count("POST rayjobs/") == 1


def test_a_finished_one_is_replaced(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """Submitting again after the end deletes the old RayJob, says so, and starts a new one; other people's stay."""
    with FakeOperator(server, SUCCEEDS):
        assert submit(wait=True) == 0
        uid = server.objects["rayjobs", "train", NAME]["metadata"]["uid"]
        capsys.readouterr()
        assert submit("policy.optimizer.lr=0.5", wait=True) == 0
        assert server.objects["rayjobs", "train", NAME]["metadata"]["uid"] != uid
        out, err = capsys.readouterr()
        assert "RayJob grpo of an earlier submission is deleted: Complete, job SUCCEEDED" in err
        assert out.startswith("RayJob grpo created again in namespace train\n")
        assert out.endswith("step 1/2\nstep 2/2\nmodel: export\n")
        del server.objects["rayjobs", "train", NAME]["metadata"]["labels"]
        assert "got a RayJob grpo not of Tandem's" in problem(submit)


def test_a_config_map_of_someone_else_stays(server: FakeKubernetes) -> None:
    """What Tandem has not made, it does not delete."""
    server.put("configmaps", "train", {"metadata": {"name": "grpo-config"}, "data": {"a": "b"}})
    assert "got a ConfigMap grpo-config not of Tandem's" in problem(submit)
    assert server.objects["configmaps", "train", "grpo-config"]["data"] == {"a": "b"}


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (ended("Failed", "FAILED", "KeyError: 'x'", reason="AppFailed", message="failed with exit code 7, last"), 7),
        (ended("Failed", "FAILED", reason="AppFailed", message="failed with exit code -9, last"), 137),
        (ended("Failed", "", reason="DeadlineExceeded", message="The RayJob has passed the deadline"), 1),
        (ended("Complete", "STOPPED"), 130),
    ],
)
def test_failure_is_the_exit_code(
    end: Step, code: int, server: FakeKubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    """The driver's exit code where KubeRay knows it, else 1; the cause is in the last lines."""
    with FakeOperator(server, [initializing, running("step 1/2"), end]):
        assert submit(wait=True) == code
    out, err = capsys.readouterr()
    assert "step 1/2" in out.splitlines()
    state, last = err.splitlines()[-2:]
    assert last == f"RayJob grpo ended with {code}"
    assert state.startswith(("Failed", "Complete, job STOPPED"))
    if code == 7:
        assert state == "Failed, job FAILED, AppFailed: failed with exit code 7, last"
        assert out.splitlines()[-1] == "KeyError: 'x'"


def test_a_rayjob_that_breaks_the_operators_rules(server: FakeKubernetes) -> None:
    """It is the user's mistake, in the operator's words."""
    message = "The RayJob spec is invalid: backoffLimit must be positive"
    invalid = status(jobDeploymentStatus="ValidationFailed", reason="ValidationFailed", message=message)
    with FakeOperator(server, [invalid]):
        assert problem(lambda: submit(wait=True)) == f"RayJob grpo: must keep KubeRay's rules, got {message}"


def test_a_retry_is_followed(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """A new cluster after a failed one has a new submitter, whose log follows that of the first."""

    def retrying(operator: FakeOperator, job: Object) -> None:
        operator.kubernetes.remove("pods", "train", SUBMITTER)
        operator.status(job, jobDeploymentStatus="Retrying", jobStatus="", rayClusterName="", failed=1)

    second = "grpo-second"
    again = [initializing, running("step 2/2", pod=second), hold, ended("Complete", "SUCCEEDED", pod=second)]
    first = [initializing, running("step 1/2"), *[hold] * 8, retrying, hold, hold, hold]
    with FakeOperator(server, [*first, *again]):
        assert submit(wait=True) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-2:] == ["step 1/2", "step 2/2"]
    assert "Retrying" in err


def test_json(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """One object or list on stdout; the log of the one that is waited for goes to stderr."""
    with FakeOperator(server, SUCCEEDS):
        assert submit(wait=True, as_json=True) == 0
        out, err = capsys.readouterr()
        answer = json.loads(out)
        assert "step 1/2" in err
        keys = ("name", "namespace", "context", "action", "state", "job_status", "exit_code")
        assert [answer[key] for key in keys] == [
            *("grpo", "train", "development", "created", "Complete", "SUCCEEDED", 0),
        ]
        assert kube_status(NAME, **WHERE, as_json=True) == 0
        assert json.loads(capsys.readouterr().out)["cluster"] == CLUSTER
        assert kube_list(**WHERE, as_json=True) == 0
        assert [one["name"] for one in json.loads(capsys.readouterr().out)] == [NAME]


def test_status_and_list(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """A line of status; a table of Tandem's RayJobs only."""
    server.put("rayjobs", "train", {"metadata": {"name": "other"}, "spec": {}})
    assert kube_list(**WHERE, as_json=False) == 0
    assert capsys.readouterr().out == "no RayJobs of Tandem in namespace train\n"
    with FakeOperator(server, RUNS):
        submit()
        server_reaches(server, "Running")
    capsys.readouterr()
    assert kube_status(NAME, **WHERE, as_json=False) == 0
    assert capsys.readouterr().out == (
        "grpo: Running, job RUNNING; cluster grpo-x7k2p; "
        "dashboard grpo-x7k2p-head-svc.train.svc.cluster.local:8265; started 2026-01-02T03:04:05Z\n"
    )
    assert kube_list(**WHERE, as_json=False) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["NAME", "STATE", "JOB", "STARTED", "ENDED"],
        ["grpo", "Running", "RUNNING", "2026-01-02T03:04:05Z", "-"],
    ]
    assert "(did you mean grpo?)" in problem(lambda: kube_status("grp", **WHERE, as_json=False))


def server_reaches(server: FakeKubernetes, state: str) -> None:
    """Wait until the operator has moved the RayJob so far."""
    deadline = time.monotonic() + 10
    while (server.objects["rayjobs", "train", NAME].get("status") or {}).get("jobDeploymentStatus") != state:
        assert time.monotonic() < deadline, f"the fake operator did not come to {state}"
        time.sleep(0.01)


def test_logs(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """All of it, its tail, or as it comes; none yet is said, with the reason."""
    with FakeOperator(server, [initializing, hold]):
        submit()
        server_reaches(server, "Initializing")
        capsys.readouterr()
        assert kube_logs(NAME, **WHERE, follow=False, tail=None) == 1
        assert "no log yet: Initializing; 1 of 3 pods ready, 2 x Unschedulable" in capsys.readouterr().err
    with FakeOperator(server, [running("one", "two", "three"), *[hold] * 4, ended("Complete", "SUCCEEDED", "four")]):
        server_reaches(server, "Running")
        assert kube_logs(NAME, **WHERE, follow=False, tail=2) == 0
        assert capsys.readouterr().out == "two\nthree\n"
        assert kube_logs(NAME, **WHERE, follow=True, tail=1) == 0
        assert capsys.readouterr().out == "three\nfour\n"
    assert kube_logs(NAME, **WHERE, follow=False, tail=None) == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (ended("Failed", "FAILED", "bye", reason="AppFailed", message="failed with exit code 7, last"), 7),
        (ended("Complete", "STOPPED", "bye"), 130),
        (lambda operator, job: operator.kubernetes.remove("rayjobs", "train", NAME), 130),
    ],
    ids=["failed", "stopped", "deleted"],
)
def test_followed_logs_end_with_the_exit_code(
    end: Step, code: int, server: FakeKubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `submit --wait` does; without `follow` a log that is there is 0, whatever became of its job."""
    with FakeOperator(server, [initializing, running("step 1/2"), *[hold] * 8, end]):
        submit()
        server_reaches(server, "Running")
        capsys.readouterr()
        assert kube_logs(NAME, **WHERE, follow=True, tail=None) == code
    assert capsys.readouterr().out.startswith("step 1/2\n")
    if server.names("rayjobs"):
        assert kube_logs(NAME, **WHERE, follow=False, tail=None) == 0


def test_the_next_commands_name_the_configurations_namespace(
    server: FakeKubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    """`submit` takes it from there, unless told otherwise; the other verbs, which cannot, take the context's."""
    submit("cluster.kubernetes.namespace=tandem")
    assert "  tandem status grpo --kube --namespace tandem --context development\n" in capsys.readouterr().out
    line = problem(lambda: kube_status(NAME, **WHERE, as_json=False))
    assert line == "name: must be a RayJob in namespace train, got grpo (--namespace names another)"
    assert kube_status(NAME, namespace="tandem", context=None, as_json=False) == 0
    kube_submit(config(), namespace="default", context=None, wait=False, as_json=False)
    assert "RayJob grpo created in namespace default" in capsys.readouterr().out


def test_logs_of_other_submission_modes(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """A sidecar's are its container's; with HTTPMode only Ray has them, and the line says how to get there."""
    with FakeOperator(server, RUNS) as operator:
        submit("cluster.kubernetes.submission_mode=SidecarMode")
        server_reaches(server, "Running")
        operator.log(f"{CLUSTER}-head", "from the sidecar")
        capsys.readouterr()
        assert kube_logs(NAME, **WHERE, follow=False, tail=None) == 0
        assert capsys.readouterr().out == "from the sidecar\n"
        assert kube_stop(NAME, **WHERE, timeout_s=None) == 0
        submit("cluster.kubernetes.submission_mode=HTTPMode")
        server_reaches(server, "Running")
        line = problem(lambda: kube_logs(NAME, **WHERE, follow=False, tail=None))
    assert "kubectl port-forward service/grpo-x7k2p-head-svc 8265 --namespace train" in line
    assert "tandem logs -f grpo-8wl2c --address http://127.0.0.1:8265" in line


def test_no_line_of_the_log_is_lost_or_repeated() -> None:
    """A reading begins before the last one's end: what has been seen is known by its time, also lines of one moment."""
    position = watch._Position()
    assert position.after("1 a\n2 b\n2 c\n") == ["a", "b", "c"]
    assert position.after("2 b\n2 c\n") == []
    assert position.after("2 b\n2 c\n2 d\n3 \n3 e\rf\n") == ["d", "", "e\rf"]
    assert position.after("3 \n3 e\rf\n4 g h\n") == ["g h"]
    assert position.after("") == []


def test_stop_deletes_and_says_what_becomes_of_it(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """RayJob, pods and config map are gone when it returns; stopped again, there is nothing to stop."""
    with FakeOperator(server, RUNS, stop_s=0.2):
        submit()
        server_reaches(server, "Running")
        capsys.readouterr()
        assert kube_stop(NAME, **WHERE, timeout_s=None) == 0
        out, err = capsys.readouterr()
        assert "it finishes its step and saves a checkpoint, if that takes at most 360 s" in err
        assert out.startswith("RayJob grpo and its pods are gone, after ")
        assert server.names("rayjobs") + server.names("configmaps") + server.names("pods") == []
        assert kube_stop(NAME, **WHERE, timeout_s=None) == 0
        assert capsys.readouterr().out.startswith("nothing to stop: no RayJob grpo in namespace train")


def test_stop_has_a_deadline(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """Pods that take their time: 1, and the line says that their end comes. Foreground, so that they are waited for."""
    with FakeOperator(server, RUNS, stop_s=3600):
        submit()
        server_reaches(server, "Running")
        assert kube_stop(NAME, **WHERE, timeout_s=0.1) == 1
    assert "should be gone within 0.1 s and are not" in capsys.readouterr().err
    assert server.objects["rayjobs", "train", NAME]["propagation"] == "Foreground"


def test_stop_leaves_a_finished_one(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """Its log is still wanted: what removes it is said."""
    with FakeOperator(server, SUCCEEDS):
        assert submit(wait=True) == 0
        capsys.readouterr()
        assert kube_stop(NAME, **WHERE, timeout_s=None) == 0
    assert "has ended: Complete, job SUCCEEDED; kubectl delete rayjob grpo --namespace train" in capsys.readouterr().out
    assert server.names("rayjobs") == [NAME]


def test_deleted_while_watched(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """Someone else's stop ends the watching with 130."""

    def deleted(operator: FakeOperator, job: Object) -> None:
        operator.kubernetes.remove("rayjobs", "train", NAME)

    with FakeOperator(server, [initializing, running(), hold, deleted]):
        assert submit(wait=True) == 130
    assert "RayJob grpo was deleted" in capsys.readouterr().err


def test_a_run_is_found_by_its_name(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """Kubernetes takes no underscores; status takes the run's name nevertheless."""
    submit("run.name=my_run")
    assert kube_status("my_run", **WHERE, as_json=False) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{server.names('rayjobs')[0]}: new"


def test_interrupting_the_watch_detaches(server: FakeKubernetes, tmp_path: Path) -> None:
    """Ctrl-C: exit code 130, the RayJob goes on, and the commands to come back are printed."""
    program = (
        "import sys; from launch.config import load; from launch.kube import watch\n"
        "from launch.kube.client import kube_submit\n"
        "watch.POLL_S = 0.05\n"
        f"config = load({CONFIG!r}, ['run.name={NAME}'])\n"
        "sys.exit(kube_submit(config, namespace='train', context=None, wait=True, as_json=False))"
    )
    pipe = subprocess.PIPE
    with FakeOperator(server, RUNS):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
        try:
            assert process.stdout is not None
            assert any(line == "step 1/2\n" for line in process.stdout)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-5:] == [
        "detached: RayJob grpo goes on; next:",
        "  tandem logs -f grpo --kube --namespace train --context development",
        "  tandem status grpo --kube --namespace train --context development",
        "  tandem stop grpo --kube --namespace train --context development",
        "  kubectl get rayjob grpo --namespace train",
    ]
    assert "Traceback" not in err
    assert server.names("rayjobs") == [NAME]


def test_a_server_that_is_away_for_a_while(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """Watching goes on when it is back."""

    def failing(operator: FakeOperator, job: Object) -> None:
        operator.kubernetes.broken = 3

    with FakeOperator(server, [initializing, failing, hold, running("step 1/2"), ended("Complete", "SUCCEEDED")]):
        assert submit(wait=True) == 0
    out, err = capsys.readouterr()
    assert out.endswith("step 1/2\n")
    assert "got 503: the server is currently unable to handle the request (trying for 120 s)" in err


def test_a_server_that_stays_away(
    server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Watching ends after its deadline, and says that the job does not."""
    monkeypatch.setattr(watch, "UNREACHABLE_S", 0.2)

    def failing(operator: FakeOperator, job: Object) -> None:
        operator.kubernetes.broken = 10**6

    with FakeOperator(server, [initializing, failing, hold]):
        assert "got 503" in problem(lambda: submit(wait=True))
    assert "RayJob grpo was not ended by this error; next:\n  tandem logs -f grpo --kube" in capsys.readouterr().err


def test_no_operator(server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CRD without its operator: nothing would ever happen."""
    monkeypatch.setattr(watch, "OPERATOR_WAIT_S", 0.1)
    assert "KubeRay's operator must look at RayJob grpo within 0.1 s" in problem(lambda: submit(wait=True))


def test_no_pods_because_of_a_quota(server: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    """What the cluster's events say is said; where events may not be read, nothing is lost by it."""
    event = {"metadata": {"name": "e1"}, "involvedObject": {"name": CLUSTER}, "type": "Warning"}
    server.put("events", "train", {**event, "message": "pods is forbidden: exceeded quota: gpus"})
    starting = status(jobDeploymentStatus="Initializing", rayClusterName=CLUSTER)
    with FakeOperator(server, [starting, hold]):
        submit()
        server_reaches(server, "Initializing")
    assert kube_status(NAME, **WHERE, as_json=False) == 0
    assert "Initializing; no pods yet: pods is forbidden: exceeded quota: gpus" in capsys.readouterr().out
    server.forbidden.add(("list", "events"))
    assert kube_status(NAME, **WHERE, as_json=False) == 0
    assert "Initializing; no pods yet;" in capsys.readouterr().out
    server.forbidden.add(("list", "pods"))
    assert kube_status(NAME, **WHERE, as_json=False) == 0
    assert "grpo: Initializing; cluster" in capsys.readouterr().out


def test_refusals_are_one_line_each(server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who may not, what is not there, and what is wrong with the manifest."""
    server.forbidden.add(("create", "rayjobs"))
    line = problem(submit)
    assert line.startswith("kubernetes: the user must be allowed to create rayjobs in namespace train, got 403: ")
    assert server.names("configmaps") == [], "what had been created for it is removed"
    assert server.names("networkpolicies") == []
    server.forbidden = {("create", "networkpolicies")}
    line = problem(submit)
    assert line.startswith("kubernetes: the user must be allowed to create networkpolicies in namespace train, got 403")
    assert server.names("configmaps") == server.names("rayjobs") == [], "no pod runs without its policy"
    server.forbidden.clear()

    def listing(**where: Any) -> Callable[[], int]:
        return lambda: kube_list(**WHERE | where, as_json=False)

    expected = "namespace: must exist in the cluster, got trian (kubectl create namespace trian)"
    assert problem(lambda: submit("cluster.kubernetes.namespace=trian")) == expected
    line = problem(listing(context="prodction"))
    assert line == "context: must be one of development, production, got prodction (did you mean production?)"
    server.kuberay = False
    line = problem(submit)
    assert line.startswith("kubernetes: KubeRay must be installed in the cluster, got no rayjobs (helm install ")
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "stranger", token="wrong")))
    assert "must know the user of context development, got 401 at list rayjobs in namespace train" in problem(listing())


def test_what_the_server_finds_wrong(server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown fields are refused, not dropped; the server's message is passed on."""
    from launch.kube import render

    documents = render.manifests(config(), "rayjob")

    def spoiled(**fields: Any) -> Callable[..., list[Any]]:
        return lambda *_: [*documents[:-1], {**documents[-1], "spec": {**documents[-1]["spec"], **fields}}]

    monkeypatch.setattr(render, "manifests", spoiled(backoffLimits=3))
    assert 'got 400: RayJob in version "v1" cannot be handled: strict decoding error: unknown field ' in problem(submit)
    monkeypatch.setattr(render, "manifests", spoiled(backoffLimit="3"))
    assert 'got 422: RayJob.ray.io "grpo" is invalid: spec.backoffLimit' in problem(submit)
    assert server.names("configmaps") == []


def test_a_race_for_the_name(server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Created by someone else between looking and creating: 409, in one line, and theirs is left alone."""
    create = kubeconfig.KubeApi.create_part

    def late(api: kubeconfig.KubeApi, document: Object) -> None:
        create(api, document)
        server.put("rayjobs", "train", {"metadata": {"name": NAME}, "spec": {}})

    monkeypatch.setattr(kubeconfig.KubeApi, "create_part", late)
    assert 'got 409: rayjobs.ray.io "grpo" already exists' in problem(submit)
    assert server.names("rayjobs") == [NAME]


def test_a_server_that_cannot_be_reached(
    server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody listens, nobody answers, no such host, or not TLS: within its deadline, in one line."""
    path = tmp_path / "nowhere"

    def listing(url: str) -> str:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(path, url=url)))
        return problem(lambda: kube_list(**WHERE, as_json=False))

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    line = listing(f"http://127.0.0.1:{port}")
    assert line == (
        f"kubernetes: the API server at http://127.0.0.1:{port} must take connections, "
        "got [Errno 111] Connection refused"
    )
    assert "must have a trusted certificate, got SSLError" in listing(server.url.replace("http", "https"))
    server.silent = True
    monkeypatch.setattr(kubeconfig, "READ_S", 0.2)
    assert listing(server.url).endswith("must answer within 0.2 s, got nothing")


def test_no_kubeconfig(server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None, an empty one, one without the cluster it names, and no client."""

    def listing() -> str:
        return problem(lambda: kube_list(**WHERE, as_json=False))

    path = tmp_path / "missing"
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert listing() == f"kubeconfig: must exist, got no file {path} (KUBECONFIG names another)"
    path.write_text("")
    assert listing().startswith(f"kubeconfig: {path} must be valid, with a current context, got ")
    path.write_text("a: [")
    assert listing().startswith(f"kubeconfig: {path} must be valid, with a current context, got ")
    content = server.kubeconfig(path).read_text()
    path.write_text(content.replace("name: fake", "name: another"))
    assert listing().startswith(f"kubeconfig: {path} must be valid, with a current context, got ")
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert listing() == (
        f"--kube: needs the package kubernetes, got none ({sys.executable} -m pip install 'kubernetes>=37,<38'; "
        f"`make setup` includes it)"
    )


def test_inside_a_pod(server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a kubeconfig, the service account's token and namespace are used."""
    from kubernetes.config import incluster_config

    for name in ("token", "namespace", "ca.crt"):
        (tmp_path / name).write_text({"token": server.token, "namespace": "default"}.get(name, "certificate"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kubeconfig, "_SERVICE_ACCOUNT", tmp_path / "namespace")
    api = kubeconfig.connect_kube(None, None)
    assert (api.server, api.namespace, api.context) == ("https://127.0.0.1:6443", "default", None)
    assert os.environ["KUBERNETES_SERVICE_HOST"] in api.server
    (tmp_path / "token").unlink()
    expected = (
        f"kubeconfig: must exist, or this pod have its service account's token and certificate, got no file "
        f"{tmp_path / 'missing'}; Service token file does not exist."
    )
    assert problem(lambda: kubeconfig.connect_kube(None, None)) == expected
