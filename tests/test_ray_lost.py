"""A run whose Ray dies says so, instead of the process that it took along."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RaySystemError

from actors.group import GroupError
from launch.run import ray_lost
from launch.run.ray_lost import RayLost, told_of_ray

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import os, signal, sys
import ray
from ray._private import worker as ray_worker
from ray.util.placement_group import placement_group
from actors.group import ActorGroup, Slot
from launch.run.ray_lost import RayLost, told_of_ray
from tests.fake_receivers import Engine

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
placement = placement_group([{"CPU": 1.0}])
assert placement.wait(60)
slot = Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
group = ActorGroup("rollout", Engine, [slot], timeout_s=60, log_directory=sys.argv[1])
group.spawn()
group.call(Engine.state)
[raylet] = [process for kind, [process] in ray_worker._global_node.all_processes.items() if kind == "raylet"]
os.kill(raylet.process.pid, signal.SIGKILL)
try:
    with told_of_ray({ray.get_runtime_context().get_node_id()}):
        group.call(Engine.will, "freeze")
        group.call(Engine.update_weights)
except RayLost as error:
    print("told:", raylet.process.pid, *error.who, error)
"""


def test_a_killed_raylet_is_what_is_told_of(tmp_path: Path) -> None:
    """Ray 2.60: the driver lives on, and its actors have died for no reason that it is told of."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("told:")] or [done.stderr[-2000:]]
    _, pid, who, told = line.split(" ", 3)
    assert who == "raylet"
    assert told.startswith(
        f"of Ray's own processes on this machine died raylet (process {pid}, killed by signal 9), and the run's "
        f"processes with it; first told of: rollout[0]."
    ), line


NODES = [
    {"NodeID": "a", "Alive": True, "NodeManagerAddress": "10.0.0.1"},
    {"NodeID": "b", "Alive": False, "NodeManagerAddress": "10.0.0.2", "DeathReasonMessage": "health check failed"},
    {"NodeID": "c", "Alive": False, "NodeManagerAddress": "10.0.0.3"},
]


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ({"a"}, None),
        ({"a", "b"}, "node 10.0.0.2 (health check failed) died, and the run's processes with it; first told of: x"),
        ({"c"}, "node 10.0.0.3 (no reason given) died, and the run's processes with it; first told of: x"),
    ],
)
def test_a_dead_node_is_told_of_where_the_run_lived_on_it(
    nodes: set[str], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_lost, "_dead_processes", lambda: ("", []))
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    with pytest.raises(RayLost if told else GroupError) as caught, told_of_ray(nodes):
        raise GroupError("x")
    assert str(caught.value) == (told or "x")
    if isinstance(caught.value, RayLost):
        assert caught.value.who == ["10.0.0.2" if "b" in nodes else "10.0.0.3"]
    with pytest.raises(ValueError, match=r"^y$"), told_of_ray(nodes):
        raise ValueError("y")


def test_a_node_that_the_run_has_survived_is_no_cause_of_what_fails_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group, which has left it; what Ray misses may have been there."""
    monkeypatch.setattr(ray_lost, "_dead_processes", lambda: ("", []))
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    survived = set[str]()
    with pytest.raises(GroupError, match="NaN"), told_of_ray({"a", "b"}, survived):
        survived.add("b")
        raise GroupError("policy[0].update: NaN")
    with pytest.raises(RayLost, match=r"^node 10\.0\.0\.3 "), told_of_ray({"a", "b", "c"}, survived):
        raise GroupError("policy[0].update: NaN")
    with pytest.raises(RayLost, match=r"^node 10\.0\.0\.2 "), told_of_ray({"a", "b"}, survived):
        raise RaySystemError("x")


def test_a_head_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_lost, "_dead_processes", lambda: ("", []))
    monkeypatch.setattr(ray_lost, "_PATIENCE_S", 0.2)

    def silent() -> list[Any]:
        time.sleep(30)
        return []

    monkeypatch.setattr(ray, "nodes", silent)
    began = time.monotonic()
    with pytest.raises(GroupError, match=r"^x$"), told_of_ray({"a"}):
        raise GroupError("x")
    assert time.monotonic() - began < 5
