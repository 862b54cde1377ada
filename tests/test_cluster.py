"""What a run tells Ray: authentication, the code that workers import, and shares of a GPU."""

import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors.config import UserError
from launch import ray_address, reports
from launch.cluster import _runtime_environment, _set_authentication
from launch.config import RunConfig, validate
from launch.ray_address import check_ray_address
from tests.bad_servers import ANSWERS, bad_server


@pytest.mark.parametrize(
    ("joining", "given", "mode"),
    [
        (False, {}, "disabled"),
        (False, {"RAY_AUTH_TOKEN": "x"}, "disabled"),
        (True, {}, "disabled"),
        (True, {"RAY_AUTH_TOKEN": "x"}, "token"),
        (True, {"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "k8s"}, "k8s"),
    ],
)
def test_authentication_is_decided_only_where_the_user_has_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, joining: bool, given: dict[str, str], mode: str
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that monkeypatch removes what the function sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    _set_authentication(joining=joining)
    assert os.environ["RAY_AUTH_MODE"] == mode


def test_a_token_file_is_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("x")
    _set_authentication(joining=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"


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
    with _runtime_environment(config, joining=True) as joined:
        assert {"rewards.py"} <= set(zipfile.ZipFile(joined["working_dir"]).namelist())
        assert not any("model.pt" in n or "big" in n for n in zipfile.ZipFile(joined["working_dir"]).namelist())
        assert joined["env_vars"]["HF_HOME"] == "/shared"
    with _runtime_environment(config, joining=False) as alone:
        assert "working_dir" not in alone


def test_a_submitted_job_keeps_its_own_environment(monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> None:
    """It has its code from the submission, and Ray refuses to have anything set twice."""
    job = {"runtime_env": {"working_dir": "gcs://x.zip", "env_vars": {"PYTHONPATH": "/code"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with _runtime_environment(config, joining=True) as submitted:
        assert submitted == {"env_vars": {"HF_HOME": "/shared", **reports.chosen()}}


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
