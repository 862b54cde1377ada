"""What a run tells Ray: authentication, the code that workers import, and shares of a GPU."""

import json
import os
from pathlib import Path

import pytest

from launch.cluster import _runtime_environment, _set_authentication
from launch.config import validate


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


def test_workers_get_the_code_and_the_clusters_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(
        {
            "algorithm": {"name": "sft", "steps": 1},
            "model": {"init": {}},
            "data": {"train": "rows.jsonl"},
            "cluster": {"env": {"HF_HOME": "/shared"}},
        }
    )
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    joined = _runtime_environment(config, joining=True)
    assert joined["working_dir"] == os.getcwd()
    assert joined["env_vars"]["HF_HOME"] == "/shared"
    assert "working_dir" not in _runtime_environment(config, joining=False)
    # A submitted job has its code from the submission, and Ray refuses to have anything set twice.
    job = {"runtime_env": {"working_dir": "gcs://x.zip", "env_vars": {"PYTHONPATH": "/code"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert _runtime_environment(config, joining=True) == {"env_vars": {"HF_HOME": "/shared"}}
