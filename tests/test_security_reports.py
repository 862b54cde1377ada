"""Libraries send no reports about their use: neither here nor from workers, unless the user wants it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import telemetry
from launch.cli import main
from launch.config import RunConfig, validate
from launch.run.cluster import _runtime_environment

ROOT = Path(__file__).resolve().parent.parent
ASKS = """
from ray._common.usage.usage_lib import usage_stats_enabled
from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY
from wandb.env import error_reporting_enabled
print(usage_stats_enabled(), HF_HUB_DISABLE_TELEMETRY, error_reporting_enabled())
"""


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    for name in (*telemetry.OFF, "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    job = {"algorithm": {"name": "sft", "steps": 1}, "model": {"init": {}}, "data": {"train": "rows.jsonl"}}
    return validate(job)


def test_workers_get_the_switches(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with _runtime_environment(config) as environment:
        assert environment["env_vars"].items() >= telemetry.OFF.items()
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    with _runtime_environment(config) as environment:
        assert environment["env_vars"]["VLLM_NO_USAGE_STATS"] == "0", "the user's choice goes along"


def test_a_command_sets_them_first(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    assert {name: os.environ.get(name) for name in telemetry.OFF} == telemetry.OFF
    asked = subprocess.run([sys.executable, "-c", ASKS], capture_output=True, text=True, timeout=60, check=True)
    assert asked.stdout.split() == ["False", "True", "False"]


@pytest.mark.parametrize("image", ["Dockerfile", "Dockerfile.cpu"])
def test_so_do_the_images_for_rays_own_processes(image: str) -> None:
    lines = [line for line in (ROOT / image).read_text().splitlines() if line.startswith("ENV ")]
    given = dict(word.split("=", 1) for line in lines for word in line.split()[1:])
    assert given.items() >= telemetry.OFF.items()
