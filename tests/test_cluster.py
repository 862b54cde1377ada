"""What a run tells Ray: authentication, the code that workers import, and shares of a GPU."""

import json
import os
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors.config import UserError
from launch import telemetry
from launch.config import RunConfig, validate
from launch.run import ray_address
from launch.run.cluster import _runtime_environment
from launch.run.local_ray import private_directories, require_token
from launch.run.ray_address import auth_mode, check_ray_address, open_warnings
from tests.bad_servers import ANSWERS, bad_server


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No mode and no token anywhere; what a function sets is gone after the test."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_enable_metrics_collection"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "disabled"),
        ({"RAY_AUTH_TOKEN": "x"}, "token"),
        ({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "k8s"}, "k8s"),
    ],
)
@pytest.mark.usefixtures("unset")
def test_how_a_cluster_is_joined_is_decided_only_where_the_user_has_not(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], mode: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert auth_mode() == mode


@pytest.mark.usefixtures("unset")
def test_a_token_file_is_a_token(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("x")
    assert auth_mode() == "token"


@pytest.mark.usefixtures("unset")
def test_a_ray_that_answers_to_everybody_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert open_warnings() == [], "one of our own has a token"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert [line.partition(":")[0] for line in open_warnings()] == ["RAY_AUTH_TOKEN"]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    assert open_warnings() == []
    monkeypatch.setenv("RAY_AUTH_MODE", "Disabled")
    assert [line.partition(":")[0] for line in open_warnings()] == ["RAY_AUTH_MODE"]


@pytest.mark.parametrize(
    ("given", "file", "mode", "token"),
    [
        ({}, False, "token", "new"),
        ({}, True, "token", "new"),
        ({"RAY_AUTH_TOKEN": "x"}, False, "token", "x"),
        ({"RAY_AUTH_TOKEN_PATH": "y"}, False, "token", None),
        ({"RAY_AUTH_MODE": "token"}, False, "token", "new"),
        ({"RAY_AUTH_MODE": "token"}, True, "token", None),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}, False, "disabled", "x"),
    ],
)
@pytest.mark.usefixtures("unset")
def test_a_cluster_of_our_own_has_a_token_unless_the_user_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str], file: bool, mode: str, token: str | None
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text("x")
    require_token()
    found = os.environ.get("RAY_AUTH_TOKEN")
    assert os.environ["RAY_AUTH_MODE"] == mode
    assert len(found or "") == 64 if token == "new" else found == token
    if not given:
        del os.environ["RAY_AUTH_TOKEN"], os.environ["RAY_AUTH_MODE"]
        require_token()
        assert os.environ["RAY_AUTH_TOKEN"] != found


def test_a_session_is_in_a_directory_of_ones_own_that_goes_and_leaves_its_logs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    logs = tmp_path / "logs"
    logs.mkdir()
    for text in ("first", "second"):  # A run that is resumed has the logs of the one before.
        with pytest.raises(KeyError), private_directories(logs) as (ray, files):
            assert (ray.parent.parent, ray.parent.stat().st_mode & 0o777) == (Path("/tmp"), 0o700)
            assert files.stat().st_mode & 0o777 == 0o700
            session = ray / "session_1/logs"
            session.mkdir(parents=True)
            (session / "worker.out").write_text(text)
            (ray / "session_latest").symlink_to(ray / "session_1")
            (logs / "ray").is_dir() or (logs / "ray").symlink_to(session)
            raise KeyError
        assert not ray.parent.exists() and not files.exists()
        assert not (logs / "ray").is_symlink() and (logs / "ray/worker.out").read_text() == text
    monkeypatch.delenv("RAY_TMPDIR")
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with private_directories(logs) as (ray, files):
        assert ray.parent.parent == Path("/tmp"), "Ray's sockets must fit into 107 bytes"
        assert files.parent == long, "large files stay where the user wants them"


@pytest.fixture
def config() -> RunConfig:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 1},
            "model": {"init": {}},
            "data": {"train": "rows.jsonl"},
            "cluster": {"env": {"HF_HOME": "/shared"}},
            "run": {"output": "results"},
        }
    )


def test_a_cluster_that_is_joined_is_sent_the_code_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: RunConfig
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("rewards.py", "results/run/model.pt", ".git/index", "data/big.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".rayignore").write_text("data/\n")
    with _runtime_environment(config) as joined:
        assert {"rewards.py"} <= set(zipfile.ZipFile(joined["working_dir"]).namelist())
        assert not any("model.pt" in n or "big" in n for n in zipfile.ZipFile(joined["working_dir"]).namelist())
        assert joined["env_vars"]["HF_HOME"] == "/shared"


def test_a_submitted_job_keeps_its_own_environment(monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> None:
    """It has its code from the submission, and Ray refuses to have anything set twice."""
    job = {"runtime_env": {"working_dir": "gcs://x.zip", "env_vars": {"PYTHONPATH": "/code"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with _runtime_environment(config) as submitted:
        assert submitted == {"env_vars": {"HF_HOME": "/shared", **telemetry.chosen()}}


NO_HEAD = "RAY_ADDRESS: must be host:port of a Ray head that can be reached"


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("127.0.0.1:1", f"{NO_HEAD} (Connection refused), got 127.0.0.1:1"),
        ("http://head:8265", f"{NO_HEAD} (`tandem submit` takes http addresses), got http://head:8265"),
        *[(bad, f"{NO_HEAD} (`tandem submit` takes http") for bad in ("head", ":6379", "head:", "head:99999", " :1")],
        (f"{'a' * 70}:1", f"{NO_HEAD} (no name of a machine), got "),
    ],
)
def test_a_dead_cluster_is_one_line(address: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        check_ray_address(address)
    assert caught.value.problems[0].startswith(line)


@pytest.mark.parametrize("kind", ["silent", "dripping", *ANSWERS])
def test_what_is_no_ray_head_is_one_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would wait for it, for a minute or for ever."""
    monkeypatch.setattr(ray_address, "ANSWER_S", 0.3)
    with bad_server(kind) as port, pytest.raises(UserError) as caught:
        check_ray_address(f"127.0.0.1:{port}")
    (line,) = caught.value.problems
    why = {"silent": "no answer within 0.3 s", "closing": "the connection "}.get(kind, "what answers there is another")
    assert line.startswith(f"RAY_ADDRESS: must be host:port of a Ray head, by default 6379 ({why}")


def test_a_server_of_rays_protocol_is_taken() -> None:
    grpc = pytest.importorskip("grpc")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    check_ray_address(f"127.0.0.1:{port}")
    server.stop(None)
