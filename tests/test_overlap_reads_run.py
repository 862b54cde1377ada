"""PPO whose reference, policy and critic read finished groups while others are generated, on the real stack."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from launch.tracking.events import NOTICED, RECOVERED
from tests.test_learners_run import lines, now

REWARD = """
def few(completion: str) -> float:
    return 1.0 - len(set(completion)) / 8
"""
STEPS = 2


def _settings(overlap: bool) -> dict[str, Any]:
    """Two ranks of the reference, and few responses at one time, so that groups end one after the other."""
    algorithm = {"name": "ppo", "steps": STEPS, "prompts_per_step": 12, "samples_per_prompt": 2, "kl_coef": 0.1}
    algorithm |= {"importance_correction": {}, "samples_per_update": 12, "overlap_reads": overlap}
    group = {"threads_per_rank": 1, "micro_batch_tokens": 256}
    return {
        "algorithm": algorithm,
        "model": {"init": {"hidden_size": 64, "layers": 2, "heads": 2, "alphabet": "abcdefgh", "max_positions": 64}},
        "data": {"train": "algorithms.tasks:reverse", "arguments": {"count": 200, "length": 4, "letters": "abcdefgh"}},
        "policy": group | {"optimizer": {"lr": 1e-4}},
        "critic": group | {"optimizer": {"lr": 1e-4}},
        "reference": group | {"ranks": 2},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 24, "max_concurrent": 4, "threads_per_engine": 1},
        "reward": {"functions": ["reward.py:few"]},
        "tracking": {"wandb": False},
    }


def test_losses_are_those_of_reads_after_the_rollout(tandem: Any, tmp_path: Path) -> None:
    """Logprobs and values are read in other batches, and nothing else is different."""
    found = []
    for overlap in (True, False):
        directory = tmp_path / str(overlap)
        directory.mkdir()
        (directory / "reward.py").write_text(REWARD)
        job = tandem(_settings(overlap), directory=directory)
        assert job.wait() == 0, job.text
        found.append(job.steps())
    early, late = found
    assert sorted(early) == sorted(late) == list(range(1, STEPS + 1))
    for step, expected in late.items():
        for name in ("loss/policy", "loss/critic", "grad_norm", "policy/kl", "critic/values_mean", "mismatch/kl"):
            assert early[step][name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6), (step, name)
        assert abs(expected["loss/critic"]) > 1e-3 and expected["reward/std"] > 0
    assert early[STEPS]["policy/kl"] != 0


def test_ranks_that_are_lost_while_others_are_generated_come_back_in_the_same_attempt(
    tandem: Any, tmp_path: Path
) -> None:
    """The thread of the rollouts meets it, as it has groups read; one is frozen, the other one learns."""
    (tmp_path / "reward.py").write_text(REWARD)
    settings = _settings(True)
    settings["algorithm"]["steps"] = 20
    settings["run"] = {"max_restarts": 9}
    job = tandem(settings, directory=tmp_path)
    for number, who in enumerate(("reference[0]", "policy[0]")):
        done = len(job.metrics())
        job.wait_until(lambda done=done: len(job.metrics()) > done, "step", 90)
        job.wait_until(lambda who=who: now(job)["phase"] == "rollout" and who in now(job)["processes"], who)
        os.kill(now(job)["processes"][who], signal.SIGKILL)
        job.wait_until(lambda number=number: len(lines(job, RECOVERED)) > number, f"return of {who}", 90)
    assert job.wait() == 0, job.text
    assert [(line["who"], line["attempt"]) for line in lines(job, NOTICED)] == [("reference[0]", 1), ("policy[0]", 1)]
    assert [line["did"] for line in lines(job, RECOVERED)] == ["rebuilt"] * 2
    assert sorted(job.steps()) == list(range(1, 21))
