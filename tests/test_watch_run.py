"""A run of which a reward process stops goes on; one of which a rank stops ends within seconds, though deadlines are
ten minutes; its events say who it was, and how that was noticed."""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.conftest import LETTERS, Job

SETTINGS: dict[str, Any] = {
    "algorithm": {"name": "grpo", "steps": 100_000, "prompts_per_step": 4, "samples_per_prompt": 4},
    "model": {"init": {"hidden_size": 64, "layers": 1, "heads": 2, "alphabet": LETTERS, "max_positions": 64}},
    "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8},
    "reward": {"functions": ["exact_match"]},
    "tracking": {"wandb": False},
}


def pid_of(job: Job, worker: str, *before: int) -> int:
    """Of the run's process that runs this class of worker."""
    found: list[int] = []

    def is_there() -> bool:
        for pid in job.pids():
            try:
                if psutil.Process(pid).cmdline()[:1][0].startswith(f"ray::{worker}") and pid not in before:
                    found.append(pid)
            except (psutil.NoSuchProcess, IndexError):
                continue
        return bool(found)

    job.wait_until(is_there, f"process of a {worker}")
    return found[0]


def test_a_run_notices_what_stops(tandem: Callable[..., Job], reverse: dict[str, Any]) -> None:
    job = tandem(SETTINGS | {"data": reverse}, alone=True, forked=True)
    job.wait_until(lambda: len(job.steps()) >= 2, "second step")
    reward = pid_of(job, "RewardWorker")
    os.kill(reward, signal.SIGSTOP)
    before = len(job.steps())
    events = job.directory / "events.jsonl"
    job.wait_until(lambda: events.exists() and "recovered" in events.read_text(), "recovery")
    job.wait_until(lambda: len(job.steps()) > before + 2, "step after it")
    assert pid_of(job, "RewardWorker", reward) != reward

    policy, began = pid_of(job, "PolicyWorker"), time.monotonic()
    os.kill(policy, signal.SIGSTOP)
    assert job.wait(60) == 1
    assert time.monotonic() - began < 60
    assert f"warning: policy[0] froze (process {policy}), noticed by stopped within " in job.text
    assert "run failed: policy[0]." in job.text and "the process died" in job.text
    assert job.left_behind() == []
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert [(line["event"], line["who"], line["pid"], line["what"], line["noticed_by"]) for line in lines] == [
        ("noticed", "reward[0]", reward, "froze", "stopped"),
        ("recovered", "reward[0]", reward, "froze", "stopped"),
        ("noticed", "policy[0]", policy, "froze", "stopped"),
    ]
    assert all(0 < line["noticed_s"] <= 5 for line in lines)
