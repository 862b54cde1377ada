"""Jobs on a cluster of three nodes, each in namespaces of its own: one for trainers, one for engines, and the head
without work, from which jobs are submitted."""

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.cluster.bed import Bed, Node, missing, running
from tests.cluster.jobs import DEADLINE_S, Commands, interrupt, make_project

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
TOKEN = "correct-horse-battery-staple-0123456789"


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    nodes = [["--num-cpus=0"], ["--num-cpus=2", "--labels=role=trainer"], ["--num-cpus=3", "--labels=role=rollout"]]
    with running(Bed(*nodes, token=TOKEN, environment={"WANDB_MODE": "offline"})) as made:
        yield made


@pytest.fixture(scope="module")
def tandem(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(bed, make_project(tmp_path_factory.mktemp("project") / "code"))
    yield made
    made.close()


def test_a_wrong_token_is_one_line(tandem: Commands) -> None:
    code, output = tandem("list", RAY_AUTH_TOKEN="wrong" * 8)
    assert (code, output.count("\n")) == (2, 1), output
    assert "RAY_AUTH_TOKEN" in output and "wrong" * 8 not in output


def test_a_dead_address_is_one_line(bed: Bed, tandem: Commands) -> None:
    started = time.monotonic()
    for address in (f"http://{bed.subnet}.99:8265", f"http://{bed.nodes[1].address}:8265"):
        code, output = tandem("submit", "config.yaml", "--address", address)
        assert (code, output.count("\n")) == (2, 1), output
        assert address in output
    assert time.monotonic() - started < 30


def test_a_mistake_that_only_the_cluster_finds(tandem: Commands) -> None:
    code, output = tandem(
        "submit", "config.yaml", "data.train=/nowhere/rows.jsonl", "data.arguments={}", "--id", "mistaken", "--wait"
    )
    assert code == 2, output
    cause = "data.train: "
    assert cause in output.splitlines()[-1] and "/nowhere/rows.jsonl" in output.splitlines()[-1]
    assert tandem.state("mistaken")["exit_code"] == 2


def test_a_placement_that_cannot_be(tandem: Commands) -> None:
    overrides = ["rollout.node_labels={role: serving}", "cluster.wait_s=1", "run.name=nowhere"]
    code, output = tandem("submit", "config.yaml", *overrides, "--id", "nowhere", "--wait")
    assert code == 2, output
    line = "rollout needs nodes with label role=serving, but its nodes have rollout, trainer"
    assert f"cluster.wait_s: resources did not come within 1 s: {line}" in output.splitlines()[-1]


def test_engines_make_room_for_groups_that_fit_nowhere_else(bed: Bed, tandem: Commands) -> None:
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
    output = bed.run(bed.nodes[0], "env", "-C", str(tandem.project), "python", "-c", program)
    trainer, engine = bed.nodes[2].address, bed.nodes[1].address
    assert output.splitlines()[-1] == f"policy on {trainer} (1); rollout on {engine} (1); reward on {trainer} (1)"


@pytest.mark.parametrize(("number", "package", "code"), [(0, "rich", 2), (2, "vllm", 1)])
def test_a_dependency_that_a_node_lacks(bed: Bed, tandem: Commands, number: int, package: str, code: int) -> None:
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


def freeze(tandem: Commands, run: str, processes: list[tuple[str, Node, int]]) -> None:
    """Stop processes on other nodes than that of the driver, which sees nothing of them; they are noticed, and back."""
    for _, _, pid in processes:
        os.kill(pid, signal.SIGSTOP)
    for who, node, _ in processes:
        noticed = tandem.wait_for_event(run, who, "noticed")
        assert (noticed["what"], noticed["noticed_by"], noticed["node"]) == ("froze", "stopped", node.address)
        assert noticed["noticed_s"] <= 5, noticed
    for who, _, _ in processes:
        recovered = tandem.wait_for_event(run, who, "recovered")
        assert recovered["attempt"] == 1, recovered
    tandem.wait_for_step(run, tandem.metrics(run)[-1]["step"] + 1)


def test_a_job_lives_on_its_nodes_learns_is_stopped_resumed_and_preempted(bed: Bed, tandem: Commands) -> None:
    head, trainer, engine = bed.nodes
    submit = ("submit", "config.yaml", "run.name=first", "--id", "first")
    code, output = tandem(*submit)
    assert code == 0, output
    assert "tandem logs first -f --address" in output and "tandem stop first --address" in output
    following = tandem.start("logs", "-f", "first")
    code, output = tandem(*submit)
    assert code == 0 and "it was submitted before" in output

    tandem.wait_for_step("first", 3)
    assert sum("PolicyWorker" in line for line in bed.processes(trainer)) == 2
    assert sum("RolloutWorker" in line for line in bed.processes(engine)) == 1
    assert not any(re.search(r"ray::\w*Worker", line) for line in bed.processes(head))
    assert tandem.state("first")["state"] == "RUNNING"
    assert re.search(r"^first +RUNNING +first +grpo ", tandem("list")[1], re.MULTILINE)
    seen = ""
    while "GRPO: " not in seen:
        line = following.stdout.readline()
        assert line, f"the log has ended: {seen}"
        seen += line
    interrupt(following)
    output, _ = following.communicate(timeout=30)
    assert following.returncode == 130, output
    assert "tandem logs first -f --address" in output

    sampler, rank = bed.pids(engine, "ray::RolloutWorker")[0], bed.pids(trainer, "ray::PolicyWorker")[0]
    freeze(tandem, "first", [("rollout[0]", engine, sampler), ("policy[", trainer, rank)])

    # Stopped: the step is finished, and a checkpoint is kept.
    code, output = tandem("stop", "first")
    assert code == 0, output
    assert tandem.state("first")["state"] == "STOPPED"
    reached = tandem.metrics("first")[-1]["step"]
    assert tandem.latest("first") == f"step-{reached}"

    [curves] = (tandem.project.parent / "shared/first/wandb").glob("offline-run-*/*.wandb")
    assert curves.stat().st_size > 1000, "W&B has what was logged, although Ray has signalled the driver's children"

    # Submitted again, with its driver on another node, it goes on, learns, and is preempted when the engine's node has
    # to leave.
    code, output = tandem(*submit, "cluster.driver_labels={role: trainer}")
    assert code == 0 and "submitting it again" in output, output
    following = tandem.start("logs", "-f", "first")
    tandem.wait_for_step("first", reached + 25)
    assert any("launch run" in line for line in bed.processes(trainer)), "the driver"
    bed.terminate(engine)
    output, _ = following.communicate(timeout=DEADLINE_S)
    assert following.returncode == 75, output
    assert f"resuming from step {reached}" in output
    assert f"preempted, as {engine.address} is about to go" in output.splitlines()[-1]
    assert tandem.state("first")["exit_code"] == 75
    steps = tandem.metrics("first")
    assert tandem.latest("first") == f"step-{steps[-1]['step']}"
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1)), "each step once, none missing"
    assert max(line["mismatch/kl"] for line in steps if "mismatch/kl" in line) < 1e-6
    learned = [0.0 + ("mismatch/kl" in line) for line in steps]
    assert [line["weights/version"] for line in steps] == [sum(learned[: number + 1]) for number in range(len(steps))]
    rewards = [line["reward/mean"] for line in steps]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3, rewards
