"""Time from `tandem run` to the first scored rollouts: python -m benchmarks.first_rollout [--rounds 3]

Each round is a process of its own, started from a cold interpreter (the files are in the page cache after the first).
The clock stops when metrics.jsonl holds the evaluation before the first step.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import results

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {
    "algorithm": {"name": "grpo", "steps": 1, "eval_every": 1},
    "model": {"init": {"hidden_size": 192, "layers": 4, "heads": 4}},
    "data": {
        "train": "algorithms.tasks:reverse",
        "eval": "algorithms.tasks:reverse",
        "arguments": {"count": 256, "eval_count": 8},
    },
    "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 4},
    "reward": {"functions": ["exact_match"]},
}


def main() -> None:
    """Measure, print and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds = [_first_rollout(round_) for round_ in range(arguments.rounds + 1)][1:]
    listed = ", ".join(f"{value:.1f}" for value in seconds)
    text = (
        "## Time to the first rollouts\n\n"
        f"`python -m benchmarks.first_rollout --rounds {arguments.rounds}` on {results.machine()};"
        " one warm-up round.\n\n"
        f"From the command to scored rollouts, 1.8M parameters: {median(seconds):.1f} s (rounds: {listed})."
    )
    print(text)
    results.write_section("first-rollout", text)


def _first_rollout(number: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.yaml"
        config.write_text(json.dumps(CONFIG))
        command = [sys.executable, "-m", "launch", "run", str(config), f"run.output={directory}", f"run.name=r{number}"]
        metrics = Path(directory) / f"r{number}" / "metrics.jsonl"
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"WANDB_MODE": "disabled"}
        )
        try:
            while not (metrics.is_file() and metrics.stat().st_size):
                if process.poll() is not None or time.perf_counter() - started > 300:
                    raise RuntimeError(f"the run ended with {process.poll()} or took more than 300 s")
                time.sleep(0.02)
            return time.perf_counter() - started
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(120)


if __name__ == "__main__":
    main()
