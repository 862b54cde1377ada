"""Ranks that are killed or frozen in a run come back in it, and it equals the undisturbed one bit for bit: PPO with
LoRA, a critic, an adaptive KL, and a reference that follows the policy."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from launch.tracking.events import NOTICED, RECOVERED, read_events

Start = Callable[..., Any]
STEPS = 13
FAULTS = (
    ("policy[0]", "update", signal.SIGKILL, 1),
    ("critic[0]", "update", signal.SIGSTOP, 1),
    ("reference[0]", "rollout", signal.SIGKILL, 1),
    ("policy[1]", "sync", signal.SIGKILL, 1),
    ("policy[0]", "checkpoint", signal.SIGKILL, 9),
)
"""Who, in which phase of a step, how, and after how many steps at least; each once the one before is over."""


@pytest.fixture(scope="module")
def settings(warm_model: Path, reverse: dict[str, Any]) -> dict[str, Any]:
    algorithm = {"name": "ppo", "samples_per_update": 16, "epochs_per_step": 2, "kl_coef": 0.05, "kl_target": 1.0}
    return {
        "algorithm": algorithm | {"prompts_per_step": 8, "samples_per_prompt": 4, "steps": STEPS, "eval_every": 5},
        "model": {"path": str(warm_model), "lora": {"rank": 4}},
        "data": reverse,
        "policy": {"optimizer": {"lr": 1e-3}, "ranks": 2, "zero_stage": 2},
        "critic": {"optimizer": {"lr": 1e-3}},
        "reference": {"sync_every": 4, "sync_mix": 0.5},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8},
        "reward": {"functions": ["exact_match"]},
        "checkpoint": {"every": 6, "memory_every": 2},
        "run": {"max_restarts": 9},
        "tracking": {"wandb": False},
    }


@pytest.fixture(scope="module")
def undisturbed(tandem: Start, settings: dict[str, Any]) -> Any:
    job = tandem(settings)
    assert job.wait() == 0, job.text
    return job


@pytest.fixture(scope="module")
def disturbed(tandem: Start, settings: dict[str, Any]) -> Any:
    """`vars(job)["hit"]`: process of each fault."""
    job = tandem(settings)
    hit = vars(job)["hit"] = list[int]()
    for number, (who, phase, how, least) in enumerate(FAULTS):
        job.wait_until(lambda number=number: len(lines(job, RECOVERED)) == number, f"end of fault {number}", 90)
        done = max(len(job.metrics()), least)
        job.wait_until(lambda done=done: len(job.metrics()) > done, "step", 90)
        job.wait_until(lambda phase=phase, who=who: now(job)["phase"] == phase and who in now(job)["processes"], phase)
        hit.append(now(job)["processes"][who])
        os.kill(hit[-1], how)
    assert job.wait() == 0, job.text
    return job


def now(job: Any) -> dict[str, Any]:
    """Where the run is."""
    return json.loads((job.directory / "logs/now.json").read_text())


def lines(job: Any, event: str) -> list[dict[str, Any]]:
    """Those of events.jsonl about faults that were noticed, or are over."""
    return [line for line in read_events(job.directory / "events.jsonl") if line["event"] == event]


def test_every_fault_is_told_and_over_in_the_same_attempt(disturbed: Any) -> None:
    """And nothing else was taken for one."""
    noticed = lines(disturbed, NOTICED)
    assert [(line["who"], line["what"]) for line in noticed] == [
        (who, "froze" if how == signal.SIGSTOP else "died") for who, _, how, _ in FAULTS
    ]
    over = lines(disturbed, RECOVERED)
    assert [line["did"] for line in over] == ["rebuilt"] * len(FAULTS)
    assert {line["attempt"] for line in [*noticed, *over]} == {1}
    assert any(line["redone_steps"] for line in over), "some came after steps that no checkpoint had"
    generations = [line["generation"] for line in noticed]
    assert any(generations), "one of a process that was a successor"
    for pid, line in zip(disturbed.hit, noticed, strict=True):
        assert line["pid"] in (pid, None)


def test_the_run_equals_the_undisturbed_one_bit_for_bit(disturbed: Any, undisturbed: Any) -> None:
    assert [line["step"] for line in disturbed.metrics()] == list(range(STEPS + 1))
    assert numbers(disturbed) == numbers(undisturbed)
    for name in ("samples.jsonl", "eval_samples.jsonl"):
        assert (disturbed.directory / name).read_text() == (undisturbed.directory / name).read_text()
    assert_same_tokens(disturbed, undisturbed)
    one, other = (load_file(job.directory / "export/model.safetensors") for job in (disturbed, undisturbed))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def assert_same_tokens(*jobs: Any) -> None:
    """But for what a rank took along that had just learned from them; all others were read once, by the rank and in
    the pass that came first."""
    found = [(job.directory / "tokens.jsonl").read_text().splitlines() for job in jobs]
    for one, other in zip(*(map(json.loads, lines) for lines in found), strict=True):
        shared = one.keys() & other.keys()
        assert {name: one[name] for name in shared} == {name: other[name] for name in shared}
        assert one.keys() ^ other.keys() <= {"ratio", "entropy"}
    assert all(sum("ratio" in line for line in lines) >= STEPS - 2 for lines in found)


def numbers(job: Any) -> list[dict[str, Any]]:
    """Metrics that do not tell time, nor what was compared of a transfer: a new policy sends whole weights again."""
    timed = r"time/|bubble/|tokens_per_second|.*seconds|weights/canary_difference"
    return [{name: value for name, value in line.items() if not re.match(timed, name)} for line in job.metrics()]


def test_it_says_what_has_happened_and_leaves_nothing(disturbed: Any) -> None:
    assert disturbed.text.count("building its group anew") and "Traceback" not in disturbed.text
    assert len(re.findall(r"is back after [\d.]+ s", disturbed.text)) == len(FAULTS)
    assert disturbed.left_behind() == []
    # The last one comes a step after the copy of step 8; the checkpoint before is that of step 6.
    back = re.findall(r"back to step (\d+), of which there was a copy in memory", disturbed.text)
    assert any(int(step) % 2 == 0 for step in back), "of checkpoint.memory_every"
    lost = [line["time/lost"] for line in disturbed.metrics()]
    assert max(lost) > 0 and 0 < disturbed.metrics()[-1]["time/effective"] < 1
