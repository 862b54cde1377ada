"""Jobs on a bed: a user's directory, `tandem` commands on its head, and what a run has written."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.tracking.events import read_events
from tests.cluster.bed import Bed

DEADLINE_S = 120
ENDLESS = 100_000


def make_project(directory: Path) -> Path:
    """A user's directory: a configuration, and a reward that is in no installed package."""
    directory.mkdir()
    (directory / "letters.py").write_text(
        "def share_of_a(completion: str) -> float:\n    return completion.count('a') / max(1, len(completion))\n"
    )
    config = {
        "algorithm": {"name": "grpo", "steps": ENDLESS, "prompts_per_step": 8, "samples_per_prompt": 8},
        "model": {"init": {"hidden_size": 64, "layers": 2, "heads": 2, "alphabet": "abcdefgh", "max_positions": 64}},
        "data": {
            "train": "algorithms.tasks:reverse",
            "arguments": {"count": 64, "eval_count": 8, "length": 4, "letters": "abcdefgh"},
        },
        "reward": {"functions": ["letters.py:share_of_a"]},
        "policy": {"ranks": 2, "threads_per_rank": 1, "optimizer": {"lr": 5e-3}},
        "rollout": {"max_prompt_tokens": 8, "max_response_tokens": 4, "node_labels": {"role": "rollout"}},
        "tracking": {"samples_per_step": 1},
        "cluster": {"placement": "separate", "wait_s": 60, "stop_wait_s": 60},
        "run": {"output": str(directory.parent / "shared")},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return directory


class Commands:
    """`tandem` on the node that is neither trainer nor engine, in the user's directory."""

    def __init__(self, bed: Bed, project: Path) -> None:
        self._bed, self.project = bed, project
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """Start a command."""
        inside = ["env", "-C", str(self.project), "python", "-m", "launch", *arguments]
        address = {"RAY_API_SERVER_ADDRESS": self._bed.dashboard, "COLUMNS": "240"}
        self._started.append(
            subprocess.Popen(
                self._bed.command(self._bed.nodes[0], *inside),
                env=self._bed.environment | address | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return self._started[-1]

    def __call__(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        process = self.start(*arguments, **variables)
        output, _ = process.communicate(timeout=DEADLINE_S)
        return process.returncode, output

    def close(self) -> None:
        """End what still runs."""
        for process in self._started:
            process.kill()
            process.wait()

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Lines that a run has written."""
        path = self.project.parent / "shared" / name / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for_step(self, name: str, step: int) -> None:
        """Until a run has done so many."""
        deadline = time.monotonic() + DEADLINE_S
        while max((line["step"] for line in self.metrics(name)), default=0) < step:
            if time.monotonic() > deadline:
                pytest.fail(f"no step {step}: {self('logs', name)[1]}")
            time.sleep(0.1)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What befell a run."""
        return read_events(self.project.parent / "shared" / name / "events.jsonl")

    def wait_for_event(
        self, name: str, who: str, event: str, generation: int | None = 0, *, node: str | None = None
    ) -> dict[str, Any]:
        """The line that tells this of a fault of `who`, or of one whose name begins so; it has to come.

        `generation`, `node`: of the fault; with `node`, of any generation.
        """
        generation = generation if node is None else None
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for line in self.events(name):
                if not line["who"].startswith(who) or line["event"] != event:
                    continue
                if generation in (None, line.get("generation")) and node in (None, line.get("node")):
                    return line
            if time.monotonic() > deadline:
                pytest.fail(f"{who} {event}: not among {self.events(name)}\n{self('logs', name)[1]}")
            time.sleep(0.1)

    def state(self, name: str) -> dict[str, Any]:
        """What `tandem status` says of a job."""
        code, output = self("status", name, "--json")
        assert code == 0, output
        return json.loads(output)

    def latest(self, name: str) -> str:
        """Name of a run's last checkpoint."""
        return (self.project.parent / "shared" / name / "checkpoints/latest").read_text()


def interrupt(process: "subprocess.Popen[str]") -> None:
    """Ctrl-C to a command on a node, which is a child of the one that entered it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGINT)
