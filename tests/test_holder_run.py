"""A whole GRPO run whose weights go through a holder: its numbers are those of one that broadcasts them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Start = Callable[..., Any]
TIMED = ("time/", "bubble/", "tokens_per_second", "weights/sync_seconds")


def settings(model: Path, data: dict[str, Any], lora: bool) -> dict[str, Any]:
    """Three steps of two updates, with two engines."""
    sizes = {"prompts_per_step": 8, "samples_per_prompt": 8, "samples_per_update": 32, "eval_every": 3}
    return {
        "algorithm": {"name": "grpo", "steps": 3, **sizes},
        "model": {"path": str(model)} | ({"lora": {"rank": 4}} if lora else {}),
        "data": data,
        "policy": {"optimizer": {"lr": 3e-3 if lora else 5e-4}},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8, "engines": 2},
        "reward": {"functions": ["exact_match"]},
    }


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapter"])
def test_a_run_with_a_holder_has_the_numbers_of_one_with_a_broadcast(
    tandem: Start, warm_model: Path, reverse: dict[str, Any], lora: bool
) -> None:
    """Bit for bit: losses, rewards, samples, what the canary says, and the weights in the end."""
    numbers, samples, exports = [], [], []
    for store in ("broadcast", "holder"):
        job = tandem(settings(warm_model, reverse, lora), f"rollout.transfer.store={store}")
        assert job.wait() == 0, job.text
        steps = job.metrics()
        assert [line["step"] for line in steps] == [0, 1, 2, 3]
        assert steps[3]["weights/version"] == 3, "every step has moved the policy"
        assert all(0 <= line["weights/canary_difference"] < 1e-4 for line in steps[1:])
        numbers.append([{k: v for k, v in line.items() if not k.startswith(TIMED)} for line in steps])
        samples.append([json.loads(line) for line in (job.directory / "samples.jsonl").read_text().splitlines()])
        exports.append(load_file(job.directory / "export/model.safetensors"))
        assert (job.directory / "logs/holder-0.log").exists() == (store == "holder")
        assert job.left_behind() == []
    assert numbers[0] == numbers[1]
    assert samples[0] == samples[1] and {sample["version"] for sample in samples[1]} == {0, 1, 2}
    assert exports[0].keys() == exports[1].keys()
    assert all(torch.equal(tensor, exports[1][name]) for name, tensor in exports[0].items())
    before = load_file(warm_model / "model.safetensors")
    assert any(not torch.equal(tensor, before[name]) for name, tensor in exports[1].items()), "something was learned"
