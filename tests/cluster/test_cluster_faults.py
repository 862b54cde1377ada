"""Nodes that vanish under a run, on a cluster of four, each in namespaces of its own: the run goes on, on other nodes.

Takes minutes: `make chaos` asks for it, with CHAOS_NODES.
"""

import os
import time
from collections.abc import Iterator

import pytest

from tests.cluster.bed import Bed, Node, missing, running
from tests.cluster.jobs import DEADLINE_S, Commands, make_project
from tests.cluster.test_cluster_jobs import TOKEN

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(not os.environ.get("CHAOS_NODES"), reason="takes minutes: make chaos asks for it"),
]
RUN = "nodes"
PARTITION_S = 20.0


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    """The head, which has the driver, and three nodes of which the run needs two. Responses, as small as they are, stay
    where they are made."""
    small = {"RAY_max_direct_call_object_size": "1000"}
    with running(Bed(["--num-cpus=0"], *([["--num-cpus=3"]] * 3), token=TOKEN, environment=small)) as made:
        yield made


@pytest.fixture(scope="module")
def tandem(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """With a run that trains."""
    made = Commands(bed, make_project(tmp_path_factory.mktemp("project") / "code"))
    changes = ["checkpoint.every=5", "rollout.node_labels={}", "cluster.wait_s=120"]
    code, output = made("submit", "config.yaml", f"run.name={RUN}", "--id", RUN, *changes)
    assert code == 0, output
    made.wait_for_step(RUN, 5)
    yield made
    made.close()


def on(bed: Bed, worker: str) -> Node:
    """The node that has processes of this class, as soon as it is the only one."""
    until = time.monotonic() + DEADLINE_S
    while len(found := [node for node in bed.nodes if node.init and bed.pids(node, f"ray::{worker}")]) != 1:
        assert time.monotonic() < until, f"{worker} on {found}"
        time.sleep(0.2)
    return found[0]


def vanished(tandem: Commands, node: Node, who: list[str], did: str) -> None:
    """The run has told of the node, in time, and of what it had there, and has gone on within the same attempt."""
    noticed = tandem.wait_for_event(RUN, node.address, "noticed")
    assert (noticed["what"], noticed["noticed_by"], noticed["attempt"]) == ("vanished", "silent", 1)
    assert noticed["noticed_s"] <= 10, noticed
    for each in who:
        recovered = tandem.wait_for_event(RUN, each, "recovered", node=node.address)
        assert (recovered["what"], recovered["noticed_by"], recovered["did"]) == ("died", "node", did)
        assert recovered["attempt"] == 1, recovered
    tandem.wait_for_event(RUN, node.address, "recovered")
    tandem.wait_for_step(RUN, tandem.metrics(RUN)[-1]["step"] + 2)


def test_the_node_of_ranks_is_lost_and_they_go_on_elsewhere(bed: Bed, tandem: Commands) -> None:
    node = on(bed, "PolicyWorker")
    bed.power_off(node)
    vanished(tandem, node, ["policy[0]", "policy[1]"], "rebuilt")
    assert on(bed, "PolicyWorker") is not node
    bed.start_again(node)


def test_the_node_of_an_engine_is_cut_off_for_a_while(bed: Bed, tandem: Commands) -> None:
    node = on(bed, "RolloutWorker")
    with bed.cut(node, PARTITION_S):
        tandem.wait_for_event(RUN, node.address, "noticed")
    vanished(tandem, node, ["rollout[0]"], "restarted")
    assert len(bed.pids(on(bed, "RolloutWorker"), "ray::RolloutWorker")) == 1, "what was behind it has ended"


def test_the_node_of_an_engine_is_lost_for_good(bed: Bed, tandem: Commands) -> None:
    node = on(bed, "RolloutWorker")
    falls = sum(line["event"] == "noticed" for line in tandem.events(RUN) if line["who"] == node.address)
    bed.power_off(node)
    noticed = tandem.wait_for_event(RUN, node.address, "noticed", falls)
    assert noticed["attempt"] == 1 and noticed["noticed_s"] <= 10, noticed
    lost = sum(line["event"] == "noticed" for line in tandem.events(RUN) if line["who"] == "rollout[0]") - 1
    tandem.wait_for_event(RUN, "rollout[0]", "recovered", lost)
    tandem.wait_for_step(RUN, tandem.metrics(RUN)[-1]["step"] + 2)
    assert on(bed, "RolloutWorker") is not node


def test_each_step_was_made_once(tandem: Commands) -> None:
    code, output = tandem("stop", RUN)
    assert code == 0, output
    steps = [line["step"] for line in tandem.metrics(RUN)]
    assert steps == list(range(1, len(steps) + 1))
    assert {line["attempt"] for line in tandem.events(RUN)} == {1}
