"""Weight sync against one copy of the same bytes in memory: python -m benchmarks.weight_sync [--model small|0.5b]

A GRPO run of a few steps with learning rate 0 and short answers; its `weights/sync_seconds` is compared with the time
that this machine takes to copy the model's bytes once, measured just before and after.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import results

ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "small": {"hidden_size": 512, "layers": 8, "heads": 8},
    "0.5b": {"hidden_size": 1024, "layers": 32, "heads": 16, "intermediate_size": 4096},
}


def main() -> None:
    """Measure, print and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="0.5b")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        seconds, parameters = _sync_seconds(arguments, Path(directory))
    size = parameters * (2 if arguments.dtype == "bf16" else 4)
    before = _copy_seconds(size)
    ratio = median(seconds) / before
    text = (
        f"## Weight sync, {parameters / 1e6:.0f}M parameters in {arguments.dtype} ({size / 1e6:.0f} MB), gloo\n\n"
        f"`python -m benchmarks.weight_sync --model {arguments.model} --dtype {arguments.dtype}` "
        f"on {results.machine()}\n\n"
        + results.table(
            ["what", "seconds"],
            [
                ["pause, send, finish, resume (median)", f"{median(seconds):.3f}"],
                ["one copy of the same bytes", f"{before:.3f}"],
                ["ratio", f"{ratio:.1f}"],
            ],
        )
    )
    print(text)
    results.write_section(f"weight-sync-{arguments.model}-{arguments.dtype}", text)


def _sync_seconds(arguments: argparse.Namespace, directory: Path) -> tuple[list[float], int]:
    init = MODELS[arguments.model] | {"max_positions": 64, "alphabet": "abcdefghijklmnopqrstuvwxyz"}
    config = {
        "algorithm": {
            "name": "grpo",
            "steps": arguments.steps,
            "prompts_per_step": 2,
            "samples_per_prompt": 2,
        },
        "model": {"init": init, "dtype": arguments.dtype},
        "data": {"train": "algorithms.tasks:reverse", "arguments": {"count": 64, "length": 4}},
        "policy": {"zero_stage": 1 if arguments.dtype == "bf16" else 0, "optimizer": {"lr": 0.0}},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 2, "transfer": {"verify_every": 1000}},
        "reward": {"functions": ["exact_match"]},
        "tracking": {"wandb": False},
        "run": {"name": "sync", "output": str(directory)},
    }
    path = directory / "config.yaml"
    path.write_text(json.dumps(config))
    subprocess.run([sys.executable, "-m", "launch", "run", str(path)], cwd=ROOT, check=True)
    rows = [json.loads(line) for line in (directory / "sync" / "metrics.jsonl").read_text().splitlines()]
    header = json.loads(_safetensors_header(directory / "sync" / "export" / "model.safetensors"))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return [row["weights/sync_seconds"] for row in rows], sum(int(np.prod(shape)) for shape in shapes)


def _safetensors_header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def _copy_seconds(size: int) -> float:
    source, target = np.ones(size // 8), np.empty(size // 8)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - started)
    # The first copy also fetches the target's pages from the system.
    return median(times[1:])


if __name__ == "__main__":
    main()
