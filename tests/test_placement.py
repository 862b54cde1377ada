"""What a run reserves on which nodes, and what it says when that is not there."""

from typing import Any

import pytest
from ray.util.placement_group import PlacementGroup

import launch.config as config_module
from actors.config import UserError
from launch.checks.capacity import check_nodes
from launch.config import RunConfig, validate
from launch.run.reserve import Place, Placement, _by_node, slots_in
from launch.run.shortage import Node, matches, shortage
from launch.sizes.machine import Machine
from launch.sizes.placement import Reservation, demands, policy_alone, reservations, reward_processes, section_of

MACHINE = Machine(cpus=2, gpus=0, memory=None)


def config_for(**sections: Any) -> RunConfig:
    values: dict[str, Any] = {
        "algorithm": {"name": "grpo", "steps": 1, "kl_coef": 0.1},
        "model": {"init": {}},
        "data": {"train": "rows.jsonl"},
        "reward": {"functions": ["exact_match"]},
    }
    return validate(values | sections)


def reserved(config: RunConfig) -> dict[str, Reservation]:
    return {item.name: item for item in reservations(config)}


def test_split_groups_have_bundles_of_their_own() -> None:
    config = config_for(policy={"ranks": 2, "cpus_per_rank": 0.5}, rollout={"engines": 3, "cpus_per_engine": 1})
    found = reserved(config)
    assert list(found) == ["rollout", "policy", "reference"]
    assert found["policy"].bundles == [{"CPU": 0.5}] * 2
    assert found["rollout"].ranks == {"rollout": [0, 1, 2]}
    assert [name for name, item in found.items() if item.each] == ["rollout"]
    assert not any(item.apart for item in found.values())


def test_ranks_per_node_are_one_bundle_on_each_node() -> None:
    config = config_for(
        policy={
            "ranks": 4,
            "ranks_per_node": 2,
            "gpus_per_rank": 1,
            "resources": {"fabric": 1},
            "node_labels": {"a": "b"},
        }
    )
    policy = reserved(config)["policy"]
    assert policy.bundles == [{"CPU": 0.5, "GPU": 2, "fabric": 2}] * 2
    assert policy.ranks == {"policy": [0, 0, 1, 1]}
    assert (policy.apart, policy.nodes, policy.labels) == (True, 2, {"a": "b"})


def test_the_largest_bundles_are_placed_first_and_engines_that_others_avoid_before_them() -> None:
    groups = {
        "policy": {"gpus_per_rank": 1},
        "reference": {"ranks": 4, "ranks_per_node": 4, "gpus_per_rank": 1},
        "rollout": {"gpus_per_engine": 1},
    }
    assert list(reserved(config_for(**groups))) == ["reference", "rollout", "policy"]
    separate = config_for(**groups, cluster={"placement": "separate"})
    assert list(reserved(separate)) == ["rollout", "reference", "policy"]


def test_groups_divide_the_gpu_of_the_bundles_they_share() -> None:
    config = config_for(
        policy={"ranks": 3, "gpus_per_rank": 1},
        reference={"ranks": 1, "gpus_per_rank": 1},
        rollout={"engines": 2, "gpus_per_engine": 1},
        cluster={"placement": "shared"},
    )
    (shared,) = reservations(config)
    assert (shared.name, shared.each) == ("all groups", False)
    assert [bundle["GPU"] for bundle in shared.bundles] == [1, 1, 1]
    wanted = {demand.group: demand for demand in demands(config)}
    slots = slots_in(shared, wanted, [Place(PlacementGroup.empty(), bundle, "x") for bundle in range(3)], {})
    shares = {group: [slot.gpus for slot in found] for group, found in slots.items()}
    assert shares == {"policy": [1 / 3, 1 / 2, 1], "rollout": [1 / 3, 1 / 2], "reference": [1 / 3]}


def test_neighbouring_ranks_are_on_one_node() -> None:
    alike = [{"CPU": 1.0}] * 4
    assert _by_node(alike, {0: "x", 1: "y", 2: "x", 3: "y"}) == {0: 0, 1: 2, 2: 1, 3: 3}
    # Only bundles of one size change places: a rank must find what it asks for.
    sizes = [{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 1.0}, {"CPU": 1.0}]
    assert _by_node(sizes, {0: "y", 1: "x", 2: "x", 3: "y"}) == {0: 0, 1: 1, 2: 3, 3: 2}


def test_processes_get_their_groups_environment_and_resources() -> None:
    config = config_for(policy={"env": {"NCCL_DEBUG": "INFO"}, "resources": {"fabric": 0.5}})
    wanted = {demand.group: demand for demand in demands(config)}
    policy = reserved(config)["policy"]
    (slot,) = slots_in(policy, wanted, [Place(PlacementGroup.empty(), 0, "x")], {"x": "10.0.0.2"})["policy"]
    assert (slot.env, slot.resources) == ({"NCCL_DEBUG": "INFO"}, {"fabric": 0.5})
    assert Placement(slots={"policy": [slot, slot]}).where() == "policy on 10.0.0.2 (2)"


def test_a_machine_alone_is_one_node_without_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(
        policy={"ranks": 2, "ranks_per_node": 1, "node_labels": {"a": "b"}},
        rollout={"engines": 2, "engines_per_node": 2, "resources": {"fast": 1}},
        cluster={"placement": "separate", "driver_labels": {"role": "driver"}},
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError) as caught:
        check_nodes(config, MACHINE)
    fields = [line.partition(":")[0] for line in caught.value.problems]
    assert fields[:2] == ["cluster.placement", "cluster.driver_labels"]
    assert fields[2:] == ["policy.ranks_per_node", "policy.node_labels", "rollout.resources"]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_nodes(config, MACHINE)


@pytest.mark.parametrize(
    ("expression", "value", "fits"),
    [
        ("H100", "H100", True),
        ("H100", None, False),
        ("!H100", "A100", True),
        ("!H100", None, True),
        ("!H100", "H100", False),
        ("in(H100, H200)", "H200", True),
        ("in(H100, H200)", "A100", False),
        ("!in(H100,H200)", "H200", False),
        ("!in(H100,H200)", None, True),
    ],
)
def test_label_expressions(expression: str, value: str | None, fits: bool) -> None:
    assert matches(expression, value) is fits


def node(name: str, total: dict[str, float], free: dict[str, float] | None = None, **labels: str) -> Node:
    return Node(name, labels, total, total if free is None else free)


BIG, SMALL = {"CPU": 8.0, "GPU": 8.0}, {"CPU": 2.0}


@pytest.mark.parametrize(
    ("wanted", "nodes", "avoided", "line"),
    [
        ({}, [], set(), "policy needs a node, the cluster has none"),
        (
            {"labels": {"kind": "H100"}},
            [node("a", BIG, kind="A100"), node("b", SMALL)],
            set(),
            "policy needs nodes with label kind=H100, but its nodes have A100",
        ),
        (
            {"labels": {"kind": "H100"}},
            [node("b", SMALL)],
            set(),
            "policy needs nodes with label kind=H100, but no node has that label",
        ),
        ({"count": 3}, [node("a", BIG)], set(), "policy needs 12 GPU, the cluster has 8"),
        (
            {"count": 2, "labels": {"kind": "x"}},
            [node("a", BIG), node("b", {"GPU": 4.0, "CPU": 9}, kind="x")],
            set(),
            "policy needs 8 GPU, nodes with kind=x have 4",
        ),
        (
            {"count": 2, "apart": True},
            [node("a", BIG), node("b", SMALL)],
            set(),
            "policy needs 2 nodes with 1 CPU + 4 GPU, the cluster has 1 such node",
        ),
        (
            {"count": 2},
            [node("a", {"CPU": 8, "GPU": 2}), node("b", {"CPU": 8, "GPU": 6})],
            set(),
            "policy needs 2 bundles with 1 CPU + 4 GPU, each on one node, the cluster has room for 1 of them",
        ),
        ({"count": 2}, [node("a", BIG, {"CPU": 8, "GPU": 4})], set(), "policy needs 8 GPU, free now are 4"),
        (
            {},
            [node("a", BIG), node("b", SMALL)],
            {"a"},
            "policy needs 4 GPU, nodes without rollout engines (cluster.placement separate) have 0",
        ),
        ({}, [node("a", BIG)], set(), "policy waits for Ray to reserve 1 bundle with 1 CPU + 4 GPU"),
    ],
)
def test_a_shortage_says_what_is_missing(
    wanted: dict[str, Any], nodes: list[Node], avoided: set[str], line: str
) -> None:
    count = wanted.get("count", 1)
    others = {name: value for name, value in wanted.items() if name != "count"}
    item = Reservation(
        name="policy", bundles=[{"CPU": 1.0, "GPU": 4.0}] * count, ranks={"policy": list(range(count))}, **others
    )
    assert shortage(item, nodes, avoided) == line


@pytest.mark.parametrize(
    ("sizes", "threads"),
    [
        ({"ranks": 8, "ranks_per_node": 2}, 8),
        ({"ranks": 8}, 2),
        ({"ranks": 5}, 3),
        ({"ranks": 17}, 1),
        ({"ranks": 8, "ranks_per_node": 2, "threads_per_rank": 3}, 3),
    ],
)
def test_ranks_divide_the_cores_of_their_node(
    sizes: dict[str, int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_module, "machine_cpus", lambda: 16)
    engines = {name.replace("ranks", "engines").replace("rank", "engine"): value for name, value in sizes.items()}
    config = config_for(policy=sizes, rollout=engines)
    assert [demand.threads for demand in demands(config) if demand.group in ("policy", "rollout")] == [threads] * 2


FULL: dict[str, Any] = {
    "algorithm": {"name": "ppo", "steps": 1, "kl_coef": 0.1},
    "policy": {"ranks": 2, "cpus_per_rank": 0.5, "gpus_per_rank": 0.25, "threads_per_rank": 1},
    "critic": {"cpus_per_rank": 3, "threads_per_rank": 2},
    "reference": {"cpus_per_rank": 4, "threads_per_rank": 3},
    "rollout": {"engines": 3, "cpus_per_engine": 2, "gpus_per_engine": 1, "threads_per_engine": 4},
    "reward": {
        "functions": ["exact_match"],
        "workers": 6,
        "models": [
            {"path": "a", "group": {"threads_per_rank": 5}},
            {"path": "b", "group": {"cpus_per_rank": 7, "threads_per_rank": 6}},
        ],
    },
}


def test_every_group_asks_for_its_own() -> None:
    found = [(d.group, d.count, d.cpus, d.gpus, d.threads) for d in demands(config_for(**FULL))]
    assert found == [
        ("policy", 2, 0.5, 0.25, 1), ("rollout", 3, 2, 1, 4), ("critic", 1, 3, 0, 2), ("reference", 1, 4, 0, 3),
        ("reward_model", 1, 0.25, 0, 5), ("reward_model_2", 1, 7, 0, 6), ("reward", 6, 0.1, 0, 1),
    ]  # fmt: skip


def test_groups_that_a_job_has_not_ask_for_nothing() -> None:
    only = config_for(algorithm={"name": "grpo", "steps": 1}, reward={"models": ["rm"]})
    assert [demand.group for demand in demands(only)] == ["policy", "rollout", "reward_model"]
    assert reward_processes(only) is None
    asked = config_for(reward={"endpoints": ["http://scores"]})
    assert reward_processes(asked) == reward_processes(config_for())
    rows = {"algorithm": {"name": "sft", "steps": 1}, "model": {"init": {}}, "data": {"train": "rows.jsonl"}}
    assert [demand.group for demand in demands(validate(rows))] == ["policy"]


def test_a_holder_of_weights_asks_for_little_and_only_where_there_is_one() -> None:
    assert "holder" not in {demand.group for demand in demands(config_for(**FULL))}
    config = config_for(rollout={"transfer": {"store": "holder"}})
    [holder] = [demand for demand in demands(config) if demand.group == "holder"]
    assert (holder.count, holder.cpus, holder.gpus, holder.threads) == (1, 0.1, 0, 1)
    assert section_of(config, "holder") == "rollout.transfer"
    assert reserved(config)["holder"].bundles == [{"CPU": 0.1}]


def test_reward_processes_are_reserved_apart_from_the_groups() -> None:
    config = config_for(**FULL)
    assert "reward" not in reserved(config)
    found = reward_processes(config)
    assert found is not None and found.bundles == [{"CPU": 0.1}] * 6
    assert (found.ranks, found.apart, found.nodes) == ({"reward": [0, 1, 2, 3, 4, 5]}, False, 1)


def test_the_policy_alone_is_reserved_as_in_the_run() -> None:
    config = config_for(**FULL)
    assert policy_alone(config) == reserved(config)["policy"]


def test_each_groups_section() -> None:
    config = config_for(**FULL)
    assert [section_of(config, demand.group) for demand in demands(config)] == [
        "policy", "rollout", "critic", "reference", "reward.models.0.group", "reward.models.1.group", "reward",
    ]  # fmt: skip


def test_bundles_with_gpus_come_before_those_with_more_cpus() -> None:
    assert list(reserved(config_for(**FULL))) == [
        "rollout", "policy", "reward_model_2", "reference", "critic", "reward_model",
    ]  # fmt: skip


def test_groups_that_share_add_their_cpus_and_resources_and_take_turns_on_a_gpu() -> None:
    config = config_for(
        policy={"ranks": 2, "cpus_per_rank": 0.5, "gpus_per_rank": 0.5, "resources": {"fabric": 1}},
        reference={"cpus_per_rank": 2, "resources": {"fabric": 0.5, "disk": 1}, "node_labels": {"a": "b"}},
        rollout={"engines": 3, "cpus_per_engine": 1, "node_labels": {"c": "d"}},
        cluster={"placement": "shared"},
    )
    (shared,) = reservations(config)
    assert shared.bundles == [
        {"CPU": 3.5, "GPU": 0.5, "fabric": 1.5, "disk": 1},
        {"CPU": 1.5, "GPU": 0.5, "fabric": 1},
        {"CPU": 1},
    ]
    assert shared.ranks == {"policy": [0, 1], "rollout": [0, 1, 2], "reference": [0]}
    assert (shared.labels, shared.apart, shared.nodes) == ({"a": "b", "c": "d"}, False, 1)
