"""What a run tells Ray: authentication, the code that workers import, and shares of a GPU."""

import json
import os
from pathlib import Path

import pytest
from ray.util.placement_group import PlacementGroup

from launch.cluster import _bundles, _runtime_environment, _set_authentication, _slots
from launch.config import validate
from launch.placement import demands


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


def test_a_submitted_job_keeps_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert _runtime_environment(joining=True)["working_dir"] == os.getcwd()
    assert "working_dir" not in _runtime_environment(joining=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}}))
    assert list(_runtime_environment(joining=True)) == ["env_vars"]
    job = {"runtime_env": {"env_vars": {"PYTHONPATH": "/code"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert _runtime_environment(joining=True) == {}


def test_groups_divide_the_gpu_of_the_bundles_they_share() -> None:
    config = validate(
        {
            "algorithm": {"name": "grpo", "kl_coef": 0.1},
            "model": {"init": {}},
            "data": {"train": "rows.jsonl"},
            "reward": {"functions": ["exact_match"]},
            "policy": {"ranks": 3, "gpus_per_rank": 1},
            "reference": {"ranks": 1, "gpus_per_rank": 1},
            "rollout": {"engines": 2, "gpus_per_engine": 1},
            "cluster": {"placement": "shared"},
        }
    )
    wanted = [demand for demand in demands(config) if demand.group != "reward"]
    bundles, where = _bundles(config, wanted)
    assert [bundle["GPU"] for bundle in bundles] == [1, 1, 1]
    slots = _slots(wanted, where, PlacementGroup.empty())
    shares = {group: [slot.gpus for slot in found] for group, found in slots.items()}
    assert shares == {"policy": [1 / 3, 1 / 2, 1], "rollout": [1 / 3, 1 / 2], "reference": [1 / 3]}
