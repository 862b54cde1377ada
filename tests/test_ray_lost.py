"""A run whose Ray dies says so, instead of the process that it took along."""

import time
from typing import Any

import pytest
import ray
from ray.exceptions import RaySystemError

from actors.group import GroupError
from launch.run import ray_lost
from launch.run.ray_lost import RayLost, told_of_ray

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
