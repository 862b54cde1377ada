"""A head that is killed and started again, with Ray's tables on a disk or in Redis: a run whose driver is elsewhere
goes on.

Takes minutes: `make chaos` asks for it, with CHAOS_NODES.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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


ROCKSDB, REDIS = "rocksdb", "redis"


@contextmanager
def redis(directory: Path, port: int, password: str) -> Iterator[None]:
    """Debian's server, for whoever knows the password."""
    program = shutil.which("redis-server")
    assert program
    server = subprocess.Popen([program, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert server.stdin
    server.stdin.write(f"port {port}\nbind 0.0.0.0\nrequirepass {password}\ndir {directory}\nsave ''\n")
    server.stdin.close()
    try:
        until = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < until and server.poll() is None, "no Redis"
            time.sleep(0.05)
        yield
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", params=[ROCKSDB, REDIS])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The head, a node for the driver, and one each for ranks and engines."""
    if request.param == REDIS and not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed")
    storage, password, port = tmp_path_factory.mktemp("gcs"), secrets.token_hex(16), free_port()
    head, environment = ["--num-cpus=0"], {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
    if request.param == REDIS:
        head.append(f"--redis-password={password}")
    else:
        environment |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(storage)}
    nodes = [head, ["--num-cpus=1", "--labels=role=driver"], ["--num-cpus=3"], ["--num-cpus=3"]]
    made = Bed(*nodes, token=TOKEN, environment=environment)
    if request.param == REDIS:
        made.environment["RAY_REDIS_ADDRESS"] = f"{made.subnet}.254:{port}"
    with redis(storage, port, password) if request.param == REDIS else nullcontext(), running(made):
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
