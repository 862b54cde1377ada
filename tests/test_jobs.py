"""The verbs on Ray's Jobs API against FakeRayServer: states, exit codes, idempotency, one line per error.

The same verbs against a real Ray are in tests/cluster.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from launch.cli import main
from launch.jobs import client as jobs_client
from launch.jobs import follow, verbs
from launch.jobs.client import NoAnswer, cause_line
from launch.jobs.own_lines import WithoutOwnLines
from tests.fake_ray import FakeJob, FakeRayServer, fake_ray_server

ROOT = Path(__file__).parent.parent
CONFIG = {
    "algorithm": {"name": "sft", "steps": 2, "samples_per_update": 4},
    "model": {"init": {"hidden_size": 32, "layers": 2, "heads": 1, "max_positions": 64}},
    "data": {"train": "rows.jsonl", "max_length": 32},
    "cluster": {"stop_wait_s": 90},
    "run": {"name": "demo", "output": "/shared/outputs"},
}
OURS = {"tandem": "0.1.0", "run": "demo", "algorithm": "sft", "user": "me", "digest": "x", "stop_wait_s": "0"}
RUN = "Running entrypoint for job first: exec python\nstarting Ray ...\n"
SAVED = "stopped; a checkpoint is in /shared/outputs/demo, the same command continues\n"


@pytest.fixture
def fake() -> Iterator[FakeRayServer]:
    with fake_ray_server() as server:
        yield server


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a configuration, a home without a token, and Ray's variables unset."""
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    (work / "rows.jsonl").write_text('{"prompt": "ab", "completion": "ba"}\n' * 4)
    (work / "job.yaml").write_text(yaml.safe_dump(CONFIG))
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    for name in ("CONNECT_S", "READ_S"):
        monkeypatch.setattr(jobs_client, name, 3.0)
    monkeypatch.setattr(verbs, "_POLL_S", 0.02)
    monkeypatch.setattr(follow, "PAUSE_S", 0.02)
    return work


def meanwhile(action: Callable[[], None], after_s: float = 0.3) -> threading.Timer:
    timer = threading.Timer(after_s, action)
    timer.start()
    return timer


def when_submitted(fake: FakeRayServer, job_id: str, action: Callable[[FakeJob], None]) -> None:
    def wait() -> None:
        while job_id not in fake.jobs:
            time.sleep(0.01)
        action(fake.jobs[job_id])

    threading.Thread(target=wait, daemon=True).start()


def test_submit_uploads_once_and_says_what_to_do_next(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--address", fake.address]
    assert main(["submit", "job.yaml", "--id", "first", *at]) == 0
    out, err = capsys.readouterr()
    ((name, data),) = fake.packages.items()
    assert out.splitlines() == [
        f"uploading 3 files, {len(data) / 1024:.1f} KiB",
        "submitted first",
        f"  tandem logs first -f --address {fake.address}",
        f"  tandem status first --address {fake.address}",
        f"  tandem stop first --address {fake.address}",
    ]
    assert err == ""
    job = fake.jobs["first"]
    assert job.entrypoint == "exec python -m launch run tandem-run.json"
    assert job.runtime_env == {"working_dir": f"gcs://{name}", "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}}
    assert {**job.metadata, "digest": "-", "user": "-", "tandem": "-"} == {
        **OURS,
        "stop_wait_s": "90",
        "digest": "-",
        "user": "-",
        "tandem": "-",
        "directory": "/shared/outputs/demo",
    }
    assert job.entrypoint_label_selector is None
    job.end("SUCCEEDED", 0)
    assert main(["submit", "job.yaml", *at]) == 0
    out = capsys.readouterr().out
    assert out.startswith("already on the cluster: 3 files, ")
    assert sum(item.startswith("PUT") for item in fake.requests) == 1
    (generated,) = fake.jobs.keys() - {"first"}
    date, clock, end = generated.removeprefix("demo-").split("-")
    assert (len(date), len(clock), len(end)) == (8, 6, 4)


def test_submit_passes_on_how_often_a_fault_is_survived(fake: FakeRayServer) -> None:
    assert main(["submit", "job.yaml", "--id", "first", "--retries", "0", "--address", fake.address]) == 0
    assert fake.jobs["first"].entrypoint == "exec python -m launch run tandem-run.json --retries 0"


def test_submit_as_json_is_one_object(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "job.yaml", "--id", "first", "--json", "--address", fake.address]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["id"], found["state"], found["submitted"], found["files"]) == ("first", "PENDING", True, 3)
    assert found["digest"] == fake.jobs["first"].metadata["digest"]
    assert err.startswith("uploading 3 files")


@pytest.mark.parametrize(
    ("state", "exit_code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 7, 7), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_wait_follows_the_log_and_ends_as_the_driver(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], state: str, exit_code: int | None, expected: int
) -> None:
    def life(job: FakeJob) -> None:
        job.status, job.log = "RUNNING", "step 1/2\n"
        time.sleep(0.2)
        job.log += "step 2/2\n" + (SAVED if state == "STOPPED" else "")
        job.end(state, exit_code, "Job entrypoint command failed ...:\nerror: x: must be y, got z\nbye")

    when_submitted(fake, "first", life)
    assert main(["submit", "job.yaml", "--id", "first", "--wait", "--address", fake.address]) == expected
    out, err = capsys.readouterr()
    assert "step 1/2\nstep 2/2\n" in out
    lines = [line.partition(" after ")[0] for line in err.splitlines()]
    code = f" with exit code {exit_code}" if state == "FAILED" and exit_code is not None else ""
    cause = ["cause: error: x: must be y, got z"] if state == "FAILED" else []
    assert lines == [f"first {state}{code}", *cause]


RAYS = (
    "2026-08-01 12:00:00,123\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    "Running entrypoint for job first: exec python -m launch run .tandem.json\n"
)


def test_a_log_is_the_drivers_without_rays_own_lines(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    """However the text is cut on its way; a tail counts lines of the driver's."""

    def life(job: FakeJob) -> None:
        job.status = "RUNNING"
        for character in RAYS + "step 1/2\n":
            job.log += character
            time.sleep(0.001)
        job.log += "step 2/2\n" + RAYS + "Running late\n2026 rows"
        job.end("SUCCEEDED", 0)

    when_submitted(fake, "first", life)
    at = ["--address", fake.address]
    assert main(["submit", "job.yaml", "--id", "first", "--wait", *at]) == 0
    told = f"  tandem stop first --address {fake.address}\n"
    lines = "step 1/2\nstep 2/2\nRunning late\n2026 rows"
    assert capsys.readouterr().out.partition(told)[2] == lines
    for option in ([], ["-f"]):
        assert main(["logs", "first", *option, *at]) == 0
        assert capsys.readouterr().out == lines
        assert main(["logs", "first", *option, "--tail", "3", *at]) == 0
        assert capsys.readouterr().out == lines.partition("\n")[2]


def test_rays_lines_are_known_in_pieces() -> None:
    text = f"one\n{RAYS}two 2026-08\n\n{RAYS}{'Running entrypoint for jo' * 2}\n2026-01-01 and so on\n12"
    wanted = f"one\ntwo 2026-08\n\n{'Running entrypoint for jo' * 2}\n2026-01-01 and so on\n12"
    for size in range(1, len(text)):
        pieces: list[str] = []
        shown = WithoutOwnLines(pieces.append)
        for start in range(0, len(text), size):
            shown(text[start : start + size])
        shown.close()
        assert "".join(pieces) == wanted
    pieces.clear()
    shown("loading 10%")
    assert pieces == ["loading 10%"], "what cannot be Ray's is not kept back"


def test_wait_as_json_prints_how_it_ended(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    def life(job: FakeJob) -> None:
        job.log = "the log\n"
        job.end("FAILED", 3, "RuntimeError: no more")

    when_submitted(fake, "first", life)
    assert main(["submit", "job.yaml", "--id", "first", "--wait", "--json", "--address", fake.address]) == 3
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["state"], found["exit_code"], found["cause"]) == ("FAILED", 3, "RuntimeError: no more")
    assert "the log" in err


def submitted_before(fake: FakeRayServer, capsys: pytest.CaptureFixture[str], state: str) -> list[str]:
    arguments = ["submit", "job.yaml", "--id", "first", "--address", fake.address]
    assert main(arguments) == 0
    job = fake.jobs["first"]
    job.status = state
    fake.requests.clear()
    capsys.readouterr()
    return arguments


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "SUCCEEDED"])
def test_the_same_submission_is_not_started_twice(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    arguments = submitted_before(fake, capsys, state)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"first {'has' if state == 'SUCCEEDED' else 'is'} {state}: it was submitted before")
    assert not [item for item in fake.requests if item.startswith(("POST", "PUT", "DELETE"))]
    if state != "SUCCEEDED":
        meanwhile(lambda: fake.jobs["first"].end("FAILED", 5))
    assert main([*arguments, "--wait"]) == (0 if state == "SUCCEEDED" else 5)


@pytest.mark.parametrize("state", ["FAILED", "STOPPED"])
def test_a_job_that_failed_is_submitted_again(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    arguments = submitted_before(fake, capsys, state)
    fake.jobs["first"].log = "the first attempt\n"

    def life(job: FakeJob) -> None:  # Ray appends to the same log
        job.log = "the first attempt\nthe second attempt\n"
        job.end("SUCCEEDED", 0)

    old = fake.jobs["first"]
    threading.Thread(target=lambda: _when_replaced(fake, old, life), daemon=True).start()
    assert main([*arguments, "--wait"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"first was {state}: submitting it again, it resumes from its last checkpoint\n")
    assert out.endswith("the second attempt\n")
    assert "the first attempt" not in out
    assert [item for item in fake.requests if item.startswith("DELETE")] == ["DELETE /api/jobs/first"]


def _when_replaced(fake: FakeRayServer, old: FakeJob, action: Callable[[FakeJob], None]) -> None:
    while fake.jobs.get("first") in (None, old):
        time.sleep(0.01)
    action(fake.jobs["first"])


def test_another_configuration_under_the_same_id(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = submitted_before(fake, capsys, "RUNNING")
    changed = [*arguments[:2], "algorithm.steps=9", *arguments[2:]]
    assert main(changed) == 2
    stop = f"tandem stop first --address {fake.address}"
    rule = "must be new while this job is RUNNING with another configuration or other files"
    assert capsys.readouterr().err == f"error: --id: {rule} (to end it: {stop}), got first\n"
    fake.jobs["first"].status = "SUCCEEDED"
    assert main(changed) == 0
    assert capsys.readouterr().out.startswith(
        "first was SUCCEEDED: submitting it again, it resumes from its last checkpoint; configuration or files have "
        "changed\n"
    )


def test_a_run_without_resume_is_said_to_start_anew(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["submit", "job.yaml", "checkpoint.resume=false", "--id", "first", "--address", fake.address]
    assert main(arguments) == 0
    fake.jobs["first"].status = "FAILED"
    capsys.readouterr()
    assert main(arguments) == 0
    line = "first was FAILED: submitting it again, it starts anew, as checkpoint.resume is false"
    assert capsys.readouterr().out.splitlines()[0] == line


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_two_live_jobs_have_no_directory_in_common(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    at = ["--address", fake.address]
    arguments = submitted_before(fake, capsys, state)
    assert main(["submit", "job.yaml", "--id", "second", *at]) == 2
    assert capsys.readouterr().err == (
        f"error: run.name: must be another than that of job first, which is {state} in /shared/outputs/demo "
        f"(attach: tandem logs first -f --address {fake.address}, stop: tandem stop first --address {fake.address}), "
        "got demo\n"
    )
    assert not [item for item in fake.requests if item.startswith(("POST", "PUT"))]
    assert main(arguments) == 0  # the same job is no other
    assert main(["submit", "job.yaml", "run.name=other", "--id", "second", *at]) == 0
    fake.jobs["first"].status = "STOPPED"
    assert main(["submit", "job.yaml", "--id", "third", *at]) == 0


def test_driver_labels_place_the_driver(fake: FakeRayServer) -> None:
    labels = "cluster.driver_labels={role: driver}"
    assert main(["submit", "job.yaml", labels, "--id", "first", "--address", fake.address]) == 0
    assert fake.jobs["first"].entrypoint_label_selector == {"role": "driver"}


def test_home_is_not_uploaded(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(project))
    assert main(["submit", "job.yaml", "--address", fake.address]) == 2
    rule = "must be a project's directory, not your home or /, as all of it goes"
    assert capsys.readouterr().err == f"error: upload: {rule}, got {project}\n"
    assert fake.requests == []


def test_an_id_of_someone_else_is_left_alone(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.add("first", "FAILED")
    assert main(["submit", "job.yaml", "--id", "first", "--address", fake.address]) == 2
    assert capsys.readouterr().err == "error: --id: must be no other program's job (FAILED), got first\n"
    assert "first" in fake.jobs


def test_mistakes_are_found_before_anything_is_sent(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["run.output=outputs", "policy.ranks=9", "data.train=../rows.jsonl"]
    Path("../rows.jsonl").write_text(Path("rows.jsonl").read_text())
    assert main(["submit", "job.yaml", *changes, "--address", fake.address]) == 2
    fields = [line.removeprefix("error: ").partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert fields == ["run.output", "data.train", "policy.ranks"]
    assert main(["submit", "job.yaml", "--id", "a b", "--address", fake.address]) == 2
    assert capsys.readouterr().err.startswith("error: --id: must be letters, digits, dots")
    assert fake.requests == []


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    return line.removeprefix("error: ")


def test_a_dead_address_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    rule = "must be a dashboard that can be reached"
    line = one_line(capsys, "list", "--address", address)
    assert line == f"--address: {rule} (Connection refused), got http://{address}"
    monkeypatch.setattr(jobs_client, "CONNECT_S", 0.2)
    with socket.socket() as full:  # a listener that accepts nothing: its queue is full
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for item in waiting:
            item.setblocking(False)
            item.connect_ex(full.getsockname())
        line = one_line(capsys, "list", "--address", f"127.0.0.1:{full.getsockname()[1]}")
        for item in waiting:
            item.close()
    assert line.startswith(f"--address: {rule} (no connection within 0.2 s), got")


def test_what_is_no_dashboard_is_said_so(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.not_ray = True
    line = one_line(capsys, "list", "--address", fake.address)
    assert line == f"--address: must be a Ray dashboard (GET /api/version: 200 OK), got {fake.address}"
    with socket.socket() as server:  # as the port of Ray's GCS, which speaks gRPC
        server.bind(("127.0.0.1", 0))
        server.listen()

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"\x00\x00\x12\x04")

        threading.Thread(target=hang_up, daemon=True).start()
        line = one_line(capsys, "list", "--address", f"127.0.0.1:{server.getsockname()[1]}")
    assert line.startswith("--address: must be a Ray dashboard, by default on port 8265 (the connection broke without")


@pytest.mark.parametrize(
    ("arguments", "environment", "line"),
    [
        ([], {}, "--address: must be the address of the cluster's dashboard such as http://head:8265, or stand in "
         "RAY_API_SERVER_ADDRESS, got nothing"),
        ([], {"RAY_ADDRESS": "10.0.0.1:6379"}, "--address: must be the address of the cluster's dashboard such as "
         "http://head:8265, or stand in RAY_API_SERVER_ADDRESS, got nothing (RAY_ADDRESS=10.0.0.1:6379 is no "
         "dashboard's)"),
        (["--address", "ray://head:10001"], {}, "--address: must be the http(s) address of the cluster's dashboard, "
         "such as http://head:8265, got ray://head:10001"),
        (["--address", "http://me:hunter2@head"], {}, "--address: must hold no user and password, as commands print "
         "it (token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or, with RAY_AUTH_MODE=token, ~/.ray/auth_token)"),
        (["--address", "head"], {"RAY_AUTH_MODE": "tokn"}, "RAY_AUTH_MODE: must be token or disabled, or unset, got "
         "tokn"),
        (["--address", "head"], {"RAY_AUTH_MODE": "token"}, "RAY_AUTH_MODE: token needs a token in RAY_AUTH_TOKEN, "
         "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, there is none"),
        (["--address", "head"], {"RAY_AUTH_TOKEN_PATH": "/no/such"}, "RAY_AUTH_TOKEN_PATH (/no/such): must be a file "
         "with a token that can be read (No such file or directory)"),
        (["--address", "head"], {"RAY_AUTH_TOKEN": "two words"}, "RAY_AUTH_TOKEN: must hold one token of printable "
         "ASCII without spaces, got another (not shown)"),
        (["--kube", "--address", "head"], {}, "--address: is not for --kube, got head"),
        (["--namespace", "mine"], {}, "--namespace: needs --kube, got mine"),
    ],
)  # fmt: skip
def test_addresses_and_tokens_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    line: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert one_line(capsys, "list", *arguments) == line


def test_the_address_comes_from_rays_variables(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", fake.address + "/")
    assert main(["list"]) == 0
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", fake.address.removeprefix("http://"))
    assert main(["list"]) == 0
    expected = f"no jobs of Tandem's (--all shows others too) at {fake.address}\n"
    assert capsys.readouterr().out == 2 * expected


def test_the_token_is_sent_as_ray_auth_mode_says(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "the-right-one"
    places = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or, with RAY_AUTH_MODE=token, ~/.ray/auth_token"
    (Path.home() / ".ray").mkdir()
    stored = Path.home() / ".ray/auth_token"
    stored.write_text("the-right-one\n")  # as any local ray.init leaves it: sent only when asked for
    (Path.home() / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    (Path.home() / ".netrc").chmod(0o600)
    at = ["list", "--address", fake.address]
    assert one_line(capsys, *at) == (
        f"RAY_AUTH_TOKEN: {fake.address} wants a token (401) and none was sent, as no variable names one; "
        f"set the cluster's in {places}"
    )
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-wrong-one")
    assert one_line(capsys, *at) == (
        f"RAY_AUTH_TOKEN: must be the token of the cluster's nodes, {fake.address} refused it (403)"
    )
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "as RAY_AUTH_MODE is disabled; set" in one_line(capsys, *at)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    fake.add("first", log="a line\n").end("SUCCEEDED", 0)
    assert main(at) == 0
    assert main(["logs", "first", "-f", "--address", fake.address]) == 0
    capsys.readouterr()
    stored.write_text("old")
    assert one_line(capsys, *at).startswith(f"{stored}: must be the token of the cluster's nodes")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(Path.home() / "other"))
    (Path.home() / "other").write_text("the-right-one")
    assert main(at) == 0


def test_an_unknown_id_names_the_nearest(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.add("demo-1")
    for verb in (["status"], ["logs"], ["logs", "-f"], ["stop"]):
        line = one_line(capsys, verb[0], "demo-2", *verb[1:], "--address", fake.address)
        assert line == f"ID: {fake.address} knows no such job (did you mean demo-1?), got demo-2"


def test_a_fault_of_the_server_is_one_line(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--address", fake.address]
    fake.broken["POST"] = 1
    assert main(["submit", "job.yaml", "--id", "first", *at]) == 2
    assert capsys.readouterr().err == (
        f"error: --address: {fake.address} answered 500: RuntimeError: the head is unwell; whether it was submitted "
        f"says: tandem status first --address {fake.address}\n"
    )
    fake.broken["GET"] = 1
    assert one_line(capsys, "list", *at) == f"--address: {fake.address} answered 500: RuntimeError: the head is unwell"


def test_a_job_that_has_printed_nothing(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.add("first", "PENDING", metadata=OURS)
    assert main(["logs", "first", "--address", fake.address]) == 0
    assert capsys.readouterr() == ("", "warning: first is PENDING, and has printed nothing that Ray still holds\n")


def test_a_server_that_does_not_answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_client, "READ_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        line = one_line(capsys, "status", "first", "--address", address)
    assert line == f"--address: must be a dashboard that answers (none within 0.2 s), got {address}"


def test_another_ray_is_warned_about(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.version = "2.9.0"
    assert main(["list", "--address", fake.address]) == 0
    assert capsys.readouterr().err.startswith("warning: the cluster runs Ray 2.9.0 and this machine has ")


def test_status_and_logs_of_a_failed_job(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    log = "".join(f"line {number}\n" for number in range(5))
    job = fake.add("first", metadata=OURS, log=log, start_time=1_785_585_600_000)
    job.end("FAILED", 2, "Job entrypoint command failed with exit code 2, ...:\n\x1b[31mrun failed: it broke\x1b[0m\n")
    job.end_time = 1_785_585_600_000 + 3_723_000
    at = ["--address", fake.address]
    assert main(["status", "first", *at]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("first  FAILED  run demo  started 2026-08-0")
    assert line.endswith("  1:02:03  exit code 2  run failed: it broke")
    assert main(["status", "first", "--json", *at]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["exit_code"], found["cause"]) == ("FAILED", 2, "run failed: it broke")
    assert main(["logs", "first", *at]) == 0
    assert capsys.readouterr().out == log
    assert main(["logs", "first", "--tail", "2", *at]) == 0
    assert capsys.readouterr().out == "line 3\nline 4\n"
    assert main(["logs", "first", "-f", "--tail", "1", *at]) == 2
    assert capsys.readouterr().out == "line 4\n"


@pytest.mark.parametrize(
    ("cause", "exit_code", "hint"),
    [
        ("sh: 1: exec: python: not found", 127, "put a `python` with Tandem's packages on the PATH that nodes have"),
        ("python: No module named launch", 1, "the cluster's Python lacks Tandem: install it on all nodes"),
        ("ModuleNotFoundError: No module named 'ray._raylet'", 1, "the cluster's Python lacks ray: install it on all"),
    ],
)
def test_a_driver_that_cannot_start_says_what_to_install(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], cause: str, exit_code: int, hint: str
) -> None:
    job = fake.add("first", metadata=OURS)
    job.end("FAILED", exit_code, f"Job entrypoint command failed with exit code {exit_code}, ...:\n{cause}")
    assert main(["status", "first", "--address", fake.address]) == 0
    assert f"{cause} ({hint}" in capsys.readouterr().out
    assert main(["logs", "first", "-f", "--address", fake.address]) == exit_code
    assert f"cause: {cause} ({hint}" in capsys.readouterr().err


def test_list_shows_our_jobs_or_all(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.add("older", "SUCCEEDED", metadata=OURS, start_time=1000, end_time=61_000, driver_exit_code=0)
    fake.add("newer", "RUNNING", metadata=OURS)
    fake.add("other", "RUNNING", start_time=2000)
    assert main(["list", "--address", fake.address]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:5] for row in rows] == [
        ["ID", "STATE", "RUN", "ALGORITHM", "USER"],
        ["newer", "RUNNING", "demo", "sft", "me"],
        ["older", "SUCCEEDED", "demo", "sft", "me"],
    ]
    assert rows[2][-2:] == ["0:01:00", "0"]
    assert main(["list", "--all", "--json", "--address", fake.address]) == 0
    assert [item["id"] for item in json.loads(capsys.readouterr().out)] == ["newer", "other", "older"]


def test_stop_waits_for_the_end_and_may_be_repeated(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.add("first", metadata=OURS)
    assert main(["stop", "first", "--address", fake.address]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("first  STOPPED  run demo")
    assert err == "stopping first (RUNNING), for up to 30 s\n"
    assert main(["stop", "first", "--address", fake.address]) == 0
    assert capsys.readouterr().out == "first has already ended: STOPPED\n"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (RUN + SAVED, None),
        (RUN + "preempted, as node 2 is about to go; a checkpoint is in /x, the same command continues\n", None),
        (RUN + "interrupted; continue with the same command, results so far are in /x\n", None),
        (RUN + "step 9/9\nmodel:   /x/export\nmetrics: /x/metrics.jsonl\n", None),
        ("Running entrypoint for job first: exec python\nwarning: no GPU\n", None),
        (RUN + "step 3/9\n", "it did not finish within cluster.stop_wait_s (90 s) and was killed"),
        (RUN + SAVED + RUN + "step 5/9\n", "it did not finish within cluster.stop_wait_s (90 s) and was killed"),
        (RUN + "run failed: OSError: disk full\nfull log: /x\n", "run failed: OSError: disk full"),
    ],
)
def test_a_stop_says_when_the_last_step_is_lost(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], log: str, reason: str | None
) -> None:
    job = fake.add("first", metadata=OURS | {"stop_wait_s": "90"}, log=log)
    assert main(["stop", "first", "--address", fake.address]) == (1 if reason else 0)
    line = f"first ended without a checkpoint of its last step: {reason}"
    out, err = capsys.readouterr()
    assert (job.status, out.split()[1], err.splitlines()[1:]) == ("STOPPED", "STOPPED", [line] if reason else [])
    assert main(["logs", "first", "-f", "--address", fake.address]) == (1 if reason else 130)
    assert capsys.readouterr().err.splitlines()[1:] == ([line] if reason else [])


@pytest.mark.parametrize("value", ["soon", "nan", "9" * 5000])
def test_metadata_of_other_programs_is_no_number(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    fake.add("other", metadata={"stop_wait_s": value})
    assert main(["stop", "other", "--address", fake.address]) == 0
    assert capsys.readouterr().err == "stopping other (RUNNING), for up to 30 s\n"


def test_a_pending_job_is_stopped_once_it_runs(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    job = fake.add("first", "PENDING", metadata=OURS)
    meanwhile(lambda: setattr(job, "status", "RUNNING"))
    assert main(["stop", "first", "--timeout", "10", "--address", fake.address]) == 0
    assert job.status == "STOPPED"
    assert sum(item.endswith("/stop") for item in fake.requests) == 2


def test_a_job_that_stays_pending_is_said_to_be(fake: FakeRayServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.add("first", "PENDING", metadata=OURS)
    assert main(["stop", "first", "--timeout", "0.2", "--address", fake.address]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "first is still PENDING after 0.2 s: Ray cannot stop a job that has not started, and gives one up after 15 "
        f"minutes by default; once it runs, this stops it: tandem stop first --address {fake.address}"
    )


def test_a_lost_connection_is_taken_up_without_repeating(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str]
) -> None:
    job = fake.add("first", log="one\ntwo\n", metadata=OURS)

    def more() -> None:
        fake.broken["GET"] = 3
        job.log += "three\n"
        job.end("SUCCEEDED", 0)

    meanwhile(more, 0.5)
    assert main(["logs", "first", "-f", "--address", fake.address]) == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
    assert fake.broken["GET"] == 0


def test_a_long_log_is_asked_for_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer brings all of it: after one of two seconds there is a pause of eight, and of ten at most.
    What is not answered is asked again soon."""
    took, now, slept = iter([2.0, 60.0, 30.0, 0.0, 0.0]), [0.0], list[float]()
    job = SimpleNamespace(ended=False, state="RUNNING")

    def logs(_: str) -> str:
        now[0] += next(took)
        if len(slept) == 2:
            raise NoAnswer("--address: no answer")
        return "one\n"

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        job.ended = len(slept) == 4

    client: Any = SimpleNamespace(job=lambda _: job, logs=logs)
    monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    written: list[str] = []
    follow.follow_log(client, "first", written.append)
    assert slept == [8.0, 10.0, follow.PAUSE_S, follow.PAUSE_S] and written == ["one\n"]


def test_a_connection_lost_for_good_is_one_line(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "LOST_S", 1.0)
    fake.add("first", log="one\ntwo\n", metadata=OURS)
    meanwhile(lambda: fake.broken.update(GET=1000), 0.4)
    assert main(["logs", "first", "-f", "--address", fake.address]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("one\n")
    assert err == (
        f"connection lost: --address: {fake.address} answered 500: RuntimeError: the head is unwell (tried again for "
        f"1 s); first may go on; to come back: tandem logs first -f --address {fake.address}\n"
    )


def test_a_job_that_does_not_run_yet_is_said_to_wait(
    fake: FakeRayServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, after a while."""
    monkeypatch.setattr(follow, "PENDING_S", 0.0)
    job = fake.add("first", "PENDING", metadata=OURS)

    def end() -> None:
        while sum(item.endswith("/logs") for item in fake.requests) < 3:
            time.sleep(0.01)
        job.end("FAILED", 4)

    meanwhile(end, 0.0)
    assert main(["logs", "first", "-f", "--address", fake.address]) == 4
    said = capsys.readouterr().err
    assert said.startswith("first is PENDING: it waits for its files on a node, or for a process")
    assert said.count("PENDING") == 1


def test_ctrl_c_detaches(fake: FakeRayServer, project: Path) -> None:
    job = fake.add("first", metadata=OURS, log="one\n")
    command = [sys.executable, "-m", "launch", "logs", "first", "-f", "--address", fake.address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    back = f"tandem logs first -f --address {fake.address}"
    assert (process.returncode, err) == (130, f"\ndetached: first goes on; to come back: {back}\n")
    assert job.status == "RUNNING"
    assert not [item for item in fake.requests if item.endswith("/stop")]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("failed with exit code 2, last ...:\nerror: a: must be b\nerror: c: must be d\n", "error: c: must be d"),
        (
            "failed ...:\nValueError: odd\nrun failed: GroupError: rank 1\nfull log: /x\n",
            "run failed: GroupError: rank 1",
        ),
        (
            "Traceback (most recent call last):\n  File x\nray.exceptions.RayError: gone\n.",
            "ray.exceptions.RayError: gone",
        ),
        ("...\n/usr/bin/python: No module named launch\n", "/usr/bin/python: No module named launch"),
        ("sh: 1: python: not found", "sh: 1: python: not found"),
        ("", ""),
    ],
)
def test_the_cause_is_the_line_that_says_most(message: str, line: str) -> None:
    assert cause_line(message) == line


def test_a_package_that_is_missing_is_one_line(project: Path) -> None:
    """As on a cluster whose Python lacks something: here pydantic cannot be found."""
    hide = (
        "import sys; sys.modules['pydantic'] = None; from launch.cli import main; sys.exit(main(['run', 'job.yaml']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide], cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: package pydantic: must be installed for {sys.executable} on {socket.gethostname()}")
    assert (done.returncode, done.stdout) == (2, "")
