"""A sweep on the real stack: it finds the better learning rate, and goes on where it was killed.

Takes a minute or more, and runs where SWEEP says of how many trials; `make sweep` has six, each with a Ray of its own,
and prints their table. What a sweep does with its trials is tested with smaller programs in test_sweep.py.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LETTERS, Job

Tandem = Callable[..., Job]
FULL = int(os.environ.get("SWEEP", "0"))
pytestmark = pytest.mark.skipif(not FULL, reason="takes a minute: make sweep asks for it")
RATES = ["1e-5", "3e-3", "1e-4", "3e-4", "1e-3", "1e-1"][: max(2, FULL)]
METRIC, STEPS = "eval/sequence_probability", 60 if FULL > 2 else 20


def config(data: dict[str, Any]) -> dict[str, Any]:
    """SFT of a tiny new model."""
    return {
        "algorithm": {"name": "sft", "steps": STEPS, "samples_per_update": 64, "eval_every": 5},
        "model": {"init": {"hidden_size": 64, "layers": 2, "heads": 2, "alphabet": LETTERS, "max_positions": 64}},
        "data": data | {"max_length": 32},
        "tracking": {"wandb": False},
        "checkpoint": {"every": 5},
    }


def test_a_sweep_finds_the_better_learning_rate_and_goes_on_after_a_kill(
    tandem: Tandem, reverse: dict[str, Any], tmp_path: Path
) -> None:
    values = f"policy.optimizer.lr={','.join(RATES)}", "--metric", METRIC

    def begin() -> Job:
        return tandem(config(reverse), *values, verb="sweep", directory=tmp_path, alone=FULL > 2)

    job, directory = begin(), tmp_path / "run-sweep"
    second = directory / "trial-2/metrics.jsonl"
    job.wait_until(lambda: second.exists() and second.read_text().count("\n") >= 6, "step of the second trial")
    os.kill(job.process.pid, signal.SIGKILL)
    job = begin()
    assert job.wait() == 0, job.text
    print(job.text)
    trials = json.loads((directory / "sweep.json").read_text())["trials"]
    assert [trial["state"] in ("finished", "stopped") for trial in trials] == [True] * len(RATES), job.text
    best = max(trials, key=lambda trial: trial["value"])
    assert best["point"] == {"policy.optimizer.lr": "3e-3"}
    assert (directory / "trial-2/export/config.json").is_file()
    # The first was not run again; the second has gone on from a checkpoint, and has each step once.
    starts = [(directory / f"logs/trial-{number}.txt").read_text().count("configuration checked") for number in (1, 2)]
    assert starts == [1, 2]
    steps = [json.loads(line)["step"] for line in second.read_text().splitlines()]
    assert steps == [*range(1, STEPS + 1)]
    assert "trial 2 of" in job.text
    assert "from step" in job.text
    assert job.left_behind() == []
