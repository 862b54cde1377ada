"""A run that loses its driver and a rank, one after the other, goes on as if nothing had."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.alerts.record import NAME, read_alerts
from launch.tracking.events import NOTICED, RECOVERED, append_whole, read_events
from tests.conftest import LETTERS, Job
from tests.outside import process_name

Start = Callable[..., Job]
STEPS = 60
FAULTS = (
    ("policy", signal.SIGKILL, "died"),
    ("driver", signal.SIGKILL, "died"),
)
"""Others, and the same in other ways, are in tests/chaos."""
CONFIG: dict[str, Any] = {
    "algorithm": {"name": "sft", "steps": STEPS, "samples_per_update": 128, "eval_every": 40},
    "model": {"init": {"hidden_size": 96, "layers": 4, "heads": 2, "alphabet": LETTERS, "max_positions": 64}},
    "policy": {"optimizer": {"lr": 3e-3}, "ranks": 2},
    "checkpoint": {"every": 4},
    # In a row: without a new step, which those are not that are done again.
    "run": {"heartbeat_s": 2, "max_restarts": 9},
}
NOT_DELIVERED = "told as the driver was killed"


@pytest.fixture(scope="module")
def undisturbed(tandem: Start, reverse: dict[str, Any]) -> Job:
    """The same run without a fault, which nobody has waited for yet."""
    return tandem(CONFIG | {"data": reverse | {"max_length": 32}})


@pytest.fixture(scope="module")
def disturbed(
    tandem: Start, reverse: dict[str, Any], undisturbed: Job, tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """All faults, each a step or more after the one before is survived; `vars(job)["hit"]`: what was done when;
    `vars(job)["sent"]`: a file of the alerts that have arrived.

    The other run, on another Ray, goes on while this one stands still.
    """
    sent = tmp_path_factory.mktemp("alerts") / "sent"
    tracking = {"wandb": False, "alert_command": ["sh", "-c", 'cat >> "$0"', str(sent)]}
    job = tandem(CONFIG | {"data": reverse | {"max_length": 32}, "tracking": tracking}, alone=True, forked=True)
    vars(job)["sent"] = sent
    hit = vars(job)["hit"] = list[tuple[str, int, float]]()
    for number, (who, how, _) in enumerate(FAULTS):
        job.wait_until(lambda number=number: len(survived(job)) == number, f"end of fault {number}")
        done = len(job.metrics())
        job.wait_until(lambda done=done: len(job.metrics()) > done, "step")
        pid = process_of(job, who)
        hit.append((who, pid, time.time()))
        if who == "driver":
            row = {"at": "", "attempt": number + 1, "step": 1, "rule": "x", "level": "warn", "text": NOT_DELIVERED}
            append_whole(job.directory / NAME, json.dumps(row).encode() + b"\n")
        os.kill(pid, how)
        job.wait_until(lambda number=number: len(survived(job)) > number, f"end of fault {number} ({who})", 60)
    assert job.wait() == 0, job.text
    return job


def survived(job: Job) -> list[dict[str, Any]]:
    """Faults that are over, as events.jsonl has them."""
    return [line for line in read_events(job.directory / "events.jsonl") if line["event"] == RECOVERED]


def process_of(job: Job, who: str) -> int:
    """Id of the process that is one of the run's now."""
    children = Path(f"/proc/{job.process.pid}/task/{job.process.pid}/children").read_text().split()
    driver = int(children[-1])  # the other one is its guard
    if who == "driver":
        return driver
    return max(pid for pid in job.pids() if process_name(pid).startswith("ray::"))


def test_every_fault_has_its_lines(disturbed: Any) -> None:
    """What it was, when, and that it is over; nothing else was taken for a fault."""
    lines = [line for line in read_events(disturbed.directory / "events.jsonl") if line["event"] == NOTICED]
    told = [(line["who"].partition("[")[0], line["what"]) for line in lines]
    assert told == [(who, what) for who, _, what in FAULTS]
    for line, (who, pid, _) in zip(lines, disturbed.hit, strict=True):
        assert line["pid"] in ((pid,) if who != "policy" else (None, pid)) and line["phase"] and line["phase"] != "end"
        assert line["attempt"] == 1 + lines.index(line)
    assert [line["did"] for line in survived(disturbed)] == ["resumed"] * len(FAULTS)
    assert [line["fault"] for line in survived(disturbed)] == [line["fault"] for line in lines]
    assert any(line["redone_steps"] for line in survived(disturbed))


def test_the_run_equals_the_undisturbed_one_bit_for_bit(disturbed: Job, undisturbed: Job) -> None:
    """Every step is there once, with the same numbers, times aside."""
    assert undisturbed.wait() == 0, undisturbed.text
    steps = [line["step"] for line in disturbed.metrics()]
    assert steps == list(range(1, STEPS + 1))
    assert numbers(disturbed) == numbers(undisturbed)


def numbers(job: Job) -> list[dict[str, Any]]:
    """Metrics that do not tell time."""
    return [{k: v for k, v in line.items() if not re.match(r"time/|tokens_per_second", k)} for line in job.metrics()]


def test_it_says_what_has_happened(disturbed: Job) -> None:
    text = disturbed.text
    # The first may come before there is a checkpoint.
    assert len(re.findall(r"starting again (?:from the last checkpoint|anew, .*) \(restart \d of 9\)", text)) == len(
        FAULTS
    )
    assert re.search(r"warning: policy\[\d\]\.\w+: the process died", text)
    assert "warning: the driver was killed by signal 9; " in text
    assert text.count(f"done: all {STEPS} steps") == 1 and "run failed" not in text and "Traceback" not in text


def test_every_alert_arrives(disturbed: Any) -> None:
    """Also one that the driver could not deliver any more."""
    sent = [json.loads(line) for line in disturbed.sent.read_text().splitlines()]
    assert {row["text"] for row in sent} == {row["text"] for row in read_alerts(disturbed.directory)}
    assert [row["text"] for row in sent].count(NOT_DELIVERED) == 1


def test_nothing_is_left(disturbed: Job) -> None:
    """No process, and no directory of Ray's that was killed."""
    assert disturbed.left_behind() == []
    ray = disturbed.directory / "logs/ray"
    assert ray.is_dir() and not ray.is_symlink()
