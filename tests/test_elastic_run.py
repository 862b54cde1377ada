"""A whole GRPO run on a Ray of several nodes, whose engines come and go with them; the run goes on."""

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from tests.conftest import LETTERS, Job
from tests.preloaded import MARK, preloaded_workers
from tests.preloaded_commands import Commands

STORE = 80 * 2**20
ENDLESS = 100_000
DRAIN_S = 40
CONFIG: dict[str, Any] = {
    "algorithm": {"name": "grpo", "steps": ENDLESS, "prompts_per_step": 4, "samples_per_prompt": 4},
    "model": {"init": {"hidden_size": 64, "layers": 2, "heads": 2, "alphabet": LETTERS, "max_positions": 64}},
    "data": {"train": "algorithms.tasks:reverse", "arguments": {"count": 64, "length": 4, "letters": LETTERS}},
    "reward": {"functions": ["exact_match"], "workers": 1},
    "policy": {"threads_per_rank": 1},
    "rollout": {
        "engines": {"min": 1, "max": 3},
        "cpus_per_engine": 1,
        "threads_per_engine": 1,
        "max_prompt_tokens": 8,
        "max_response_tokens": 6,
    },
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """With room for the driver, the policy, and an engine."""
    with preloaded_workers():
        head = {"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False}
        made = Cluster(True, head_node_args=head)
        try:
            made.wait_for_nodes(60)
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def job(nodes: Cluster, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    directory, mark = tmp_path_factory.mktemp("run"), uuid.uuid4().hex
    file, output = directory / "config.yaml", directory / "output.txt"
    file.write_text(yaml.safe_dump(CONFIG))
    environment = environment | {"RAY_ADDRESS": nodes.address, MARK: mark}
    with Commands(environment, runs=True) as forking, output.open("w") as stream:
        words = ["run", str(file), f"run.output={directory}"]
        given: dict[str, Any] = {"cwd": directory, "stdout": stream, "stderr": stream}
        started = Job(forking.start(words, env=environment, **given), mark, directory / "run", output)
        yield started
        started.end()


def told(job: Job) -> list[tuple[str, str]]:
    """What events.jsonl tells of engines, in order."""
    path = job.directory / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line["event"], line["who"]) for line in map(json.loads, lines)]


def serving(job: Job) -> float:
    """Engines with the weights of the last step."""
    return job.metrics()[-1]["rollout/engines"]


def drain(nodes: Cluster, node: Any) -> None:
    """Tell Ray that a node is about to go, as a preemption does."""
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    until_ms = int(1000 * (time.time() + DRAIN_S))
    accepted, why = GcsClient(address=nodes.address).drain_node(node.node_id, reason, "spot", until_ms)
    assert accepted, why


def test_engines_come_and_go_with_nodes(nodes: Cluster, job: Job) -> None:
    """One joins a node that comes, leaves it when the node is about to go, and another one leaves with a node that is
    gone at once; the numbers of all steps are there."""
    job.wait_until(lambda: len(job.metrics()) > 2, "step")
    assert serving(job) == 1 and told(job) == []
    node = nodes.add_node(num_cpus=1, object_store_memory=STORE)
    job.wait_until(lambda: serving(job) == 2, "engine on the new node")
    assert told(job) == [("joined", "rollout[1]")]
    now = json.loads((job.directory / "logs/now.json").read_text())
    assert (now["engines_serving"], now["engines_expected"]) == (2, 2)
    drain(nodes, node)
    job.wait_until(lambda: serving(job) == 1, "end of the engine")
    job.wait_until(lambda: ("left", "rollout[1]") in told(job), "farewell")
    assert told(job)[1:] == [("drained", "rollout[1]"), ("left", "rollout[1]")]
    nodes.remove_node(node)
    other = nodes.add_node(num_cpus=1, object_store_memory=STORE)
    job.wait_until(lambda: serving(job) == 2, "engine on another node")
    nodes.remove_node(other, allow_graceful=False)
    job.wait_until(lambda: ("recovered", "rollout[1]") in told(job), "end of the fault")
    steps = len(job.metrics())
    job.wait_until(lambda: len(job.metrics()) > steps + 3, "step with one engine")
    assert serving(job) == 1
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.wait() == 130, job.text
    assert [line["step"] for line in job.metrics()] == list(range(1, len(job.metrics()) + 1))
    assert job.left_behind() == []
