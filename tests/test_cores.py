"""How engines and what learns share cores: threads of engines, and who goes behind, by what is asked and there is."""

import os
from typing import Any

import pytest
import torch

from actors.group import NICENESS as VARIABLE
from actors.group import Slot, _environment
from actors.train.worker import Worker
from launch.config import validate
from launch.settings import cores
from launch.settings.cores import NICENESS
from launch.sizes.placement import demands

CORES = 8
BESIDE: dict[str, Any] = {"algorithm": {"name": "grpo", "max_staleness": 1}}
EARLY: dict[str, Any] = {"algorithm": {"name": "grpo", "overlap_gradients": True}}
READ: dict[str, Any] = {"algorithm": {"name": "grpo", "overlap_gradients": True, "kl_coef": 0.1, "kl_in": "loss"}}
FROM_POLICY: dict[str, Any] = {"model": {"path": "m", "lora": {}}, "reference": {"from_policy": True}}
PPO: dict[str, Any] = {"algorithm": {"name": "ppo", "max_staleness": 2}, "critic": {}}
GPUS: dict[str, Any] = {"rollout": {"gpus_per_engine": 1}, "policy": {"gpus_per_rank": 1}}
FITS: dict[str, Any] = {"policy": {"threads_per_rank": 5}, "rollout": {"threads_per_engine": 3}}

NODES: dict[str, Any] = {
    "policy": {"ranks": 4, "ranks_per_node": 2, "threads_per_rank": 3},
    "rollout": {"engines": 4, "engines_per_node": 2, "threads_per_engine": 1},
}
LABELS: dict[str, Any] = {"policy": {"node_labels": {"pool": "a"}}, "rollout": {"node_labels": {"pool": "b"}}}
OTHERS = {"critic": (8, NICENESS), "reference": (8, 0)}


def shared(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Threads and niceness of each group on a machine with so many cores."""
    monkeypatch.setattr("launch.config.machine_cpus", lambda: CORES)
    monkeypatch.setattr(cores, "machine_cpus", lambda: CORES)
    config = validate(
        {"model": {"path": "m"}, "data": {"train": "d.jsonl"}, "reward": {"functions": ["exact_match"]}} | values
    )
    return {each.group: (each.threads, each.niceness) for each in demands(config) if each.group != "reward"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # In turns, everybody has all.
        ({"algorithm": {"name": "grpo"}}, {"policy": (8, 0), "rollout": (8, 0)}),
        (BESIDE, {"policy": (8, NICENESS), "rollout": (4, 0)}),
        (BESIDE | {"rollout": {"engines": 3}}, {"policy": (8, NICENESS), "rollout": (1, 0)}),
        (BESIDE | {"rollout": {"engines": 2, "engines_per_node": 1}}, {"policy": (8, NICENESS), "rollout": (4, 0)}),
        (BESIDE | {"rollout": {"threads_per_engine": 8}}, {"policy": (8, NICENESS), "rollout": (8, 0)}),
        (BESIDE | FITS, {"policy": (5, 0), "rollout": (3, 0)}),
        (BESIDE | FITS | {"cluster": {"cpus": 7}}, {"policy": (5, NICENESS), "rollout": (3, 0)}),
        (BESIDE | {"rollout": {"engines": 1, "tensor_parallel": 2}}, {"policy": (8, NICENESS), "rollout": (2, 0)}),
        # Of each node: two ranks of three threads beside two engines of one.
        (BESIDE | NODES, {"policy": (3, 0), "rollout": (1, 0)}),
        (BESIDE | LABELS, {"policy": (8, 0), "rollout": (8, 0)}),
        (PPO | {"policy": {"threads_per_rank": 4}}, {"policy": (4, 0), "rollout": (4, 0)} | OTHERS),
        # Frozen groups are read in turn with what learns, and engines may go on meanwhile.
        (PPO, {"policy": (8, NICENESS), "rollout": (4, 0)} | OTHERS),
        (BESIDE | {"cluster": {"placement": "separate"}}, {"policy": (8, 0), "rollout": (8, 0)}),
        (BESIDE | GPUS, {"policy": (8, 0), "rollout": (8, 0)}),
        # Beside generation the policy has fewer, so that nobody goes behind.
        (EARLY, {"policy": (8, 0), "rollout": (4, 0)}),
        (EARLY | {"rollout": {"threads_per_engine": 8}}, {"policy": (8, NICENESS), "rollout": (8, 0)}),
        (EARLY | LABELS, {"policy": (8, 0), "rollout": (8, 0)}),
        # Groups are read there, too, with all threads.
        (READ, {"policy": (8, 0), "rollout": (4, 0), "reference": (8, NICENESS)}),
        (READ | {"reference": {"threads_per_rank": 4}}, {"policy": (8, 0), "rollout": (4, 0), "reference": (4, 0)}),
        (READ | FROM_POLICY, {"policy": (8, NICENESS), "rollout": (4, 0)}),
    ],
)
def test_threads_and_who_goes_behind(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], expected: dict[str, tuple[int, int]]
) -> None:
    assert shared(monkeypatch, values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (EARLY, 4),
        (EARLY | {"rollout": {"threads_per_engine": 6}}, 2),
        (EARLY | {"rollout": {"threads_per_engine": 6}, "policy": {"ranks": 2}}, 1),
        (EARLY | {"rollout": {"threads_per_engine": 8}}, 1),
        (EARLY | {"policy": {"threads_per_rank": 4}}, None),
        (EARLY | LABELS, None),
        (EARLY | GPUS, None),
        ({"algorithm": {"name": "grpo"}}, None),
        (BESIDE, None),
        (PPO, None),
    ],
)
def test_gradients_beside_generation_take_the_cores_that_engines_leave(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], expected: int | None
) -> None:
    monkeypatch.setattr("launch.config.machine_cpus", lambda: CORES)
    monkeypatch.setattr(cores, "machine_cpus", lambda: CORES)
    given = {"model": {"path": "m"}, "data": {"train": "d.jsonl"}, "reward": {"functions": ["exact_match"]}}
    assert cores.early_threads(validate(given | values)) == expected


def test_what_learns_without_sampling_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.config.machine_cpus", lambda: CORES)
    config = validate({"algorithm": {"name": "sft", "steps": 2}, "model": {"path": "m"}, "data": {"train": "d.jsonl"}})
    assert [(each.group, each.threads, each.niceness) for each in demands(config)] == [("policy", 8, 0)]


def test_a_slot_tells_its_process_and_a_user_cannot() -> None:
    slot: dict[str, Any] = {"placement": None, "bundle": 0, "cpus": 1, "gpus": 0, "threads": 2, "env": {VARIABLE: "3"}}
    assert _environment(Slot(**slot, niceness=7), "log")[VARIABLE] == "7"
    assert VARIABLE not in _environment(Slot(**slot | {"env": {}}), "log")


def test_a_worker_lets_others_go_first_before_it_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which each would keep its own."""
    given: list[object] = []
    monkeypatch.setattr(os, "nice", given.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: given.append("threads"))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: given.append("torch"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("write_output_to_log", "load_data_only", "meet_on_node_address", "without_science"):
        monkeypatch.setattr(f"actors.train.worker.{name}", lambda: None)
    for variable in (None, "10"):
        monkeypatch.setenv(VARIABLE, variable) if variable else monkeypatch.delenv(VARIABLE, raising=False)
        Worker(0, 1, 0)
    assert given == [0, "torch", "threads", 10, "torch", "threads"]
