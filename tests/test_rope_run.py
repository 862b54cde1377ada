"""A run of a model whose positions depend on length, on the real stack: all its groups take those of the engines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from actors.config import ModelConfig, ModelInit
from actors.models.skeleton import write_skeleton
from tests.conftest import LETTERS

ORIGINAL = 16


def _longrope_model(directory: Path) -> None:
    init = ModelInit(family="llama", hidden_size=64, layers=2, heads=2, alphabet=LETTERS, max_positions=64)
    write_skeleton(ModelConfig(init=init), directory)
    file = directory / "config.json"
    factors = {"short_factor": [1.0] * 16, "long_factor": [3.0] * 16}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": ORIGINAL, **factors}
    # Sharp enough that other positions give other logprobs.
    values = json.loads(file.read_text()) | {"rope_parameters": rope, "initializer_range": 0.2}
    file.write_text(json.dumps(values))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory)).save_pretrained(directory)


def test_all_groups_take_the_engines_positions(
    tandem: Callable[..., Any], reverse: dict[str, Any], tmp_path: Path
) -> None:
    """Sequences are short, and the engines made for long ones: the canary compares them with the policy, the first KL
    divergence the policy with the reference."""
    _longrope_model(tmp_path)
    config = {
        "algorithm": {"name": "ppo", "steps": 1, "prompts_per_step": 4, "samples_per_prompt": 2},
        "model": {"path": str(tmp_path)},
        "data": reverse,
        "critic": {},
        "rollout": {"max_prompt_tokens": 2 * ORIGINAL, "max_response_tokens": 4},
        "reward": {"functions": ["exact_match"]},
        "tracking": {"wandb": False},
    }
    job = tandem(config)
    assert job.wait() == 0, job.text
    [step] = job.metrics()
    assert step["mismatch/logprob_abs_mean"] < 1e-5
    assert abs(step["policy/kl"]) < 1e-6
