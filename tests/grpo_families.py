"""Families through two steps of GRPO, each as a run of its own: `python -m tests.grpo_families NAME...` (short names of
tests/families).

    tiny model and character tokenizer -> `tandem run` -> canary, mismatch, and which exported tensors are others now

Prints a JSON line for each; a family that engines do not serve is refused before anything starts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from actors.models.tokenizer import build_char_tokenizer
from tests.families.engine_sizes import for_engine
from tests.families.table import FAMILIES, build

CANARY, KL, SECONDS = 1e-4, 1e-6, 300
CONFIG = """
algorithm: {name: grpo, steps: 2, prompts_per_step: 4, samples_per_prompt: 4}
data: {train: rows.jsonl}
reward: {functions: ["reward.py:score"]}
rollout: {max_prompt_tokens: 16, max_response_tokens: 24, max_concurrent: 16, memory_gib: 1}
policy: {optimizer: {lr: 1e-3}}

run: {name: run}
"""
UNMOVED = ("e_score_correction_bias", "expert_bias", "balancing_biases", "layer_scalar", ".eps", ".beta")
"""Ends of names of tensors that training leaves as they are."""


def written(name: str, directory: Path) -> Path:
    """A run's directory: model, rows, reward and configuration."""
    tokenizer = build_char_tokenizer("abcdefgh")
    end, padding = (int(tokenizer.convert_tokens_to_ids(str(t))) for t in (tokenizer.eos_token, tokenizer.pad_token))  # type: ignore[arg-type]
    # Some kinds take no null here; nothing begins with it.
    ends = {"eos_token_id": end, "pad_token_id": padding, "bos_token_id": end, "vocab_size": len(tokenizer)}
    FAMILIES[name] = for_engine(name) | ends
    build(name).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    prompts = ["abc", "bcd", "cde", "def", "efg", "fgh", "gha", "hab"]
    (directory / "rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (directory / "reward.py").write_text("def score(completion): return float(len(set(completion)))\n")
    (directory / "run.yaml").write_text(CONFIG)
    return directory


def through_grpo(name: str, directory: Path) -> dict[str, Any]:
    """What two steps say of a family."""
    written(name, directory)
    command = [sys.executable, "-m", "launch", "run", "run.yaml", "model.path=model"]
    ended = subprocess.run(
        command,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment(directory),
        check=False,
    )
    told: dict[str, Any] = {"name": name, "rc": ended.returncode}
    if ended.returncode:
        return told | {"said": [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()][-1][:300]}
    steps = [json.loads(line) for line in (directory / "outputs/run/metrics.jsonl").read_text().splitlines()]
    # numpy's max: Python's would lose a NaN that is not the first. A step that lacks one is a KeyError.
    told["canary"] = float(np.max([step["weights/canary_difference"] for step in steps]))
    told["kl"] = float(np.max([step["mismatch/kl"] for step in steps]))
    told["spread"] = [step["reward/std"] for step in steps]
    before, after = (_tensors(directory / place) for place in ("model", "outputs/run/export"))
    told["lost"] = sorted(before.keys() ^ after.keys())
    told["still"] = [
        key
        for key, tensor in before.items()
        if key in after and torch.equal(tensor, after[key]) and not key.endswith(UNMOVED)
    ]
    within = told["canary"] <= CANARY and told["kl"] <= KL
    told["right"] = within and min(told["spread"]) > 0 and not told["lost"] and not told["still"]
    return told


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def environment(directory: Path) -> dict[str, str]:
    """Of a run that sees nothing of this machine's settings, and this tree's packages."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "HOME": str(directory), "HF_HUB_OFFLINE": "1"}


def main(names: list[str]) -> int:
    """Run the families that are named, or all; returns how many are neither right nor refused."""
    wrong = 0
    for name in names or list(FAMILIES):
        with TemporaryDirectory() as directory:
            found = through_grpo(name, Path(directory))
        refused = found["rc"] == 2
        wrong += not (refused or found.get("right", False))
        print(json.dumps(found), flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
