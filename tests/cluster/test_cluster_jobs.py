"""Jobs on a cluster of three nodes, each in namespaces of its own: one for trainers, one for engines, and the head
without work, from which jobs are submitted."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.bed import Bed, missing, running

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
TOKEN = "correct-horse-battery-staple-0123456789"
DEADLINE_S = 120
ENDLESS = 100_000


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    nodes = [["--num-cpus=0"], ["--num-cpus=2", "--labels=role=trainer"], ["--num-cpus=3", "--labels=role=rollout"]]
    with running(Bed(*nodes, token=TOKEN, environment={"WANDB_MODE": "offline"})) as made:
        yield made


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory: a configuration, and a reward that is in no installed package."""
    directory = tmp_path_factory.mktemp("project") / "code"
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


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def start(bed: Bed, project: Path) -> Iterator[Start]:
    """Starts a `tandem` command on the node that is neither trainer nor engine, in the user's directory."""
    started: list[subprocess.Popen[str]] = []

    def starter(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
        inside = ["env", "-C", str(project), "python", "-m", "launch", *arguments]
        address = {"RAY_API_SERVER_ADDRESS": bed.dashboard, "COLUMNS": "240"}
        started.append(
            subprocess.Popen(
                bed.command(bed.nodes[0], *inside),
                env=bed.environment | address | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield starter
    for process in started:
        process.kill()
        process.wait()


Tandem = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def tandem(start: Start) -> Tandem:
    """Exit code and output of a `tandem` command."""

    def run(*arguments: str, **variables: str) -> tuple[int, str]:
        process = start(*arguments, **variables)
        output, _ = process.communicate(timeout=DEADLINE_S)
        return process.returncode, output

    return run


def metrics(project: Path, name: str) -> list[dict[str, Any]]:
    path = project.parent / "shared" / name / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for_step(project: Path, name: str, step: int, tandem: Tandem) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while max((line["step"] for line in metrics(project, name)), default=0) < step:
        if time.monotonic() > deadline:
            pytest.fail(f"no step {step}: {tandem('logs', name)[1]}")
        time.sleep(0.1)


def state(tandem: Tandem, name: str) -> dict[str, Any]:
    code, output = tandem("status", name, "--json")
    assert code == 0, output
    return json.loads(output)


def interrupt(process: "subprocess.Popen[str]") -> None:
    """Ctrl-C to a command on a node, which is a child of the one that entered it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGINT)


def latest(project: Path, name: str) -> str:
    return (project.parent / "shared" / name / "checkpoints/latest").read_text()


def test_a_wrong_token_is_one_line(tandem: Tandem) -> None:
    code, output = tandem("list", RAY_AUTH_TOKEN="wrong" * 8)
    assert (code, output.count("\n")) == (2, 1), output
    assert "RAY_AUTH_TOKEN" in output and "wrong" * 8 not in output


def test_a_dead_address_is_one_line(bed: Bed, tandem: Tandem) -> None:
    started = time.monotonic()
    for address in (f"http://{bed.subnet}.99:8265", f"http://{bed.nodes[1].address}:8265"):
        code, output = tandem("submit", "config.yaml", "--address", address)
        assert (code, output.count("\n")) == (2, 1), output
        assert address in output
    assert time.monotonic() - started < 30


def test_a_mistake_that_only_the_cluster_finds(tandem: Tandem) -> None:
    code, output = tandem(
        "submit", "config.yaml", "data.train=/nowhere/rows.jsonl", "data.arguments={}", "--id", "mistaken", "--wait"
    )
    assert code == 2, output
    cause = "data.train: "
    assert cause in output.splitlines()[-1] and "/nowhere/rows.jsonl" in output.splitlines()[-1]
    assert state(tandem, "mistaken")["exit_code"] == 2


def test_a_placement_that_cannot_be(tandem: Tandem) -> None:
    overrides = ["rollout.node_labels={role: serving}", "cluster.wait_s=1", "run.name=nowhere"]
    code, output = tandem("submit", "config.yaml", *overrides, "--id", "nowhere", "--wait")
    assert code == 2, output
    line = "rollout needs nodes with label role=serving, but its nodes have rollout, trainer"
    assert f"cluster.wait_s: resources did not come within 1 s: {line}" in output.splitlines()[-1]


def test_engines_make_room_for_groups_that_fit_nowhere_else(bed: Bed, project: Path) -> None:
    """Ray puts an engine that may be anywhere on the largest node, which is the only one for this policy."""
    program = """
import ray
from launch.config import load
from launch.run.reserve import place
changes = ["policy={ranks: 1, cpus_per_rank: 2.5}", "rollout.node_labels={}", "cluster.wait_s=20"]
config = load("config.yaml", changes)
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print(place(config, print).where())
"""
    output = bed.run(bed.nodes[0], "env", "-C", str(project), "python", "-c", program)
    trainer, engine = bed.nodes[2].address, bed.nodes[1].address
    assert output.splitlines()[-1] == f"policy on {trainer} (1); rollout on {engine} (1); reward on {trainer} (1)"


@pytest.mark.parametrize(("number", "package", "code"), [(0, "rich", 2), (2, "vllm", 1)])
def test_a_dependency_that_a_node_lacks(bed: Bed, tandem: Tandem, number: int, package: str, code: int) -> None:
    node = bed.nodes[number]
    bed.hide(node, package)
    try:
        found, output = tandem("submit", "config.yaml", "run.name=lacking", "--id", f"lacks-{package}", "--wait")
    finally:
        bed.show(node)
    assert found == code, output
    assert "starting again" not in output, "it would be lacking then, too"
    last = output.splitlines()[-1]
    assert package in last and (node.address in last or f"node{number + 1}" in last), output


def test_a_job_lives_on_its_nodes_learns_is_stopped_resumed_and_preempted(
    bed: Bed, project: Path, tandem: Tandem, start: Start
) -> None:
    head, trainer, engine = bed.nodes
    submit = ("submit", "config.yaml", "run.name=first", "--id", "first")
    code, output = tandem(*submit)
    assert code == 0, output
    assert "tandem logs first -f --address" in output and "tandem stop first --address" in output
    following = start("logs", "-f", "first")
    code, output = tandem(*submit)
    assert code == 0 and "it was submitted before" in output

    wait_for_step(project, "first", 3, tandem)
    assert sum("PolicyWorker" in line for line in bed.processes(trainer)) == 2
    assert sum("RolloutWorker" in line for line in bed.processes(engine)) == 1
    assert not any(re.search(r"ray::\w*Worker", line) for line in bed.processes(head))
    assert state(tandem, "first")["state"] == "RUNNING"
    assert re.search(r"^first +RUNNING +first +grpo ", tandem("list")[1], re.MULTILINE)
    interrupt(following)
    output, _ = following.communicate(timeout=30)
    assert following.returncode == 130, output
    assert "GRPO: " in output and "tandem logs first -f --address" in output

    # Stopped: the step is finished, and a checkpoint is kept.
    code, output = tandem("stop", "first")
    assert code == 0, output
    assert state(tandem, "first")["state"] == "STOPPED"
    reached = metrics(project, "first")[-1]["step"]
    assert latest(project, "first") == f"step-{reached}"

    [curves] = (project.parent / "shared/first/wandb").glob("offline-run-*/*.wandb")
    assert curves.stat().st_size > 1000, "W&B has what was logged, although Ray has signalled the driver's children"

    # Submitted again, with its driver on another node, it goes on, learns, and is preempted when the engine's node has
    # to leave.
    code, output = tandem(*submit, "cluster.driver_labels={role: trainer}")
    assert code == 0 and "submitting it again" in output, output
    following = start("logs", "-f", "first")
    wait_for_step(project, "first", reached + 25, tandem)
    assert any("launch run" in line for line in bed.processes(trainer)), "the driver"
    bed.terminate(engine)
    output, _ = following.communicate(timeout=DEADLINE_S)
    assert following.returncode == 75, output
    assert f"resuming from step {reached}" in output
    assert f"preempted, as {engine.address} is about to go" in output.splitlines()[-1]
    assert state(tandem, "first")["exit_code"] == 75
    steps = metrics(project, "first")
    assert latest(project, "first") == f"step-{steps[-1]['step']}"
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1)), "each step once, none missing"
    assert max(line["mismatch/kl"] for line in steps if "mismatch/kl" in line) < 1e-6
    learned = [0.0 + ("mismatch/kl" in line) for line in steps]
    assert [line["weights/version"] for line in steps] == [sum(learned[: number + 1]) for number in range(len(steps))]
    rewards = [line["reward/mean"] for line in steps]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3, rewards
