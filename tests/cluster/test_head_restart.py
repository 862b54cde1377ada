"""A head that is killed and started again, with Ray's tables on a disk: a run whose driver is elsewhere goes on.

Takes minutes: `make chaos` asks for it, with CHAOS_NODES.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.bed import Bed, missing, running
from tests.cluster.jobs import Commands, make_project
from tests.cluster.test_cluster_jobs import TOKEN

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(not os.environ.get("CHAOS_NODES"), reason="takes minutes: make chaos asks for it"),
]
RUN = "head"
AWAY_S = 15.0


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The head, a node for the driver, and one each for ranks and engines."""
    storage: Path = tmp_path_factory.mktemp("gcs")
    environment = {
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(storage),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    }
    nodes = [["--num-cpus=0"], ["--num-cpus=1", "--labels=role=driver"], ["--num-cpus=3"], ["--num-cpus=3"]]
    with running(Bed(*nodes, token=TOKEN, environment=environment)) as made:
        yield made


@pytest.fixture(scope="module")
def tandem(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """With a run that trains."""
    made = Commands(bed, make_project(tmp_path_factory.mktemp("project") / "code"))
    changes = ["checkpoint.every=5", "rollout.node_labels={}", "cluster.driver_labels={role: driver}"]
    code, output = made("submit", "config.yaml", f"run.name={RUN}", "--id", RUN, *changes)
    assert code == 0, output
    made.wait_for_step(RUN, 5)
    yield made
    made.close()


def test_a_head_that_is_started_again_is_no_fault_of_the_run(bed: Bed, tandem: Commands) -> None:
    head, driver, *_ = bed.nodes
    assert any("launch run" in line for line in bed.processes(driver))
    bed.power_off(head)
    time.sleep(AWAY_S)
    bed.start_again(head)
    reached = tandem.metrics(RUN)[-1]["step"]
    tandem.wait_for_step(RUN, reached + 5)
    assert tandem.events(RUN) == []
    # What is lost afterwards comes back as ever.
    [engine] = [node for node in bed.nodes if bed.pids(node, "ray::RolloutWorker")]
    os.kill(bed.pids(engine, "ray::RolloutWorker")[0], 9)
    tandem.wait_for_event(RUN, "rollout[0]", "recovered")
    steps = [line["step"] for line in tandem.metrics(RUN)]
    assert steps == list(range(1, len(steps) + 1))
