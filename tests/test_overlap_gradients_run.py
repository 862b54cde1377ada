"""GRPO whose policy trains on finished groups while others are generated, on the real stack."""

from pathlib import Path
from typing import Any

import pytest

REWARD = """
def few(completion: str) -> float:
    return 1.0 - len(set(completion)) / 8
"""
STEPS = 2


def _settings(early: bool) -> dict[str, Any]:
    """Two ranks that share a prompt's responses, a reference, and few responses at one time: groups end one by one."""
    algorithm = {"name": "grpo", "steps": STEPS, "prompts_per_step": 12, "samples_per_prompt": 4, "kl_coef": 0.1}
    algorithm |= {"overlap_gradients": early, "dynamic_sampling": True}
    group = {"threads_per_rank": 1, "micro_batch_tokens": 256}
    return {
        "algorithm": algorithm,
        "model": {"init": {"hidden_size": 64, "layers": 2, "heads": 2, "alphabet": "abcdefgh", "max_positions": 64}},
        "data": {"train": "algorithms.tasks:reverse", "arguments": {"count": 200, "length": 4, "letters": "abcdefgh"}},
        "policy": group | {"ranks": 2, "zero_stage": 2, "optimizer": {"lr": 1e-3}},
        "reference": group,
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 24, "max_concurrent": 8, "threads_per_engine": 1},
        "reward": {"functions": ["reward.py:few"]},
        "tracking": {"wandb": False},
    }


def test_steps_are_those_that_wait_for_all_responses(tandem: Any, tmp_path: Path) -> None:
    """The same prompts in the same steps, and the same losses, norms and metrics; some is trained on early."""
    found = []
    for early in (True, False):
        directory = tmp_path / str(early)
        directory.mkdir()
        (directory / "reward.py").write_text(REWARD)
        job = tandem(_settings(early), directory=directory)
        assert job.wait() == 0, job.text
        found.append(job.steps())
    early, late = found
    assert sorted(early) == sorted(late) == list(range(1, STEPS + 1))
    names = (
        "loss/policy",
        "grad_norm",
        "policy/kl",
        "policy/entropy",
        "reward/mean",
        "tokens/generated",
        "mismatch/kl",
    )
    for step, expected in late.items():
        for name in names:
            # Later steps are of weights that were rounded otherwise, by which no token has become another one here.
            assert early[step][name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), (step, name)
        assert 0 <= early[step]["bubble/early_update_seconds"] < early[step]["time/step"]
    # How much depends on the machine: on a busy one, several groups end before anybody looks.
    assert sum(row["bubble/early_update_fraction"] for row in early.values()) > 0
    assert sum(row["bubble/early_update_seconds"] for row in early.values()) > 0
    assert early[STEPS]["policy/kl"] != 0 and early[STEPS]["grad_norm"] > 0
