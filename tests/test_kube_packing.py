"""Packing on nodes, GPU by GPU: shares that fill one, whole ones, nodes of their own."""

from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from launch.config import validate
from launch.kube.packing import PackedNode, PodGroup, pack_nodes, pod_groups
from launch.sizes.placement import Reservation


def reserved(name: str, *gpus: float, apart: bool = False) -> Reservation:
    """A bundle for each, with one process."""
    bundles = [{"CPU": 0.5} | ({"GPU": share} if share else {}) for share in gpus]
    return Reservation(name=name, bundles=bundles, ranks={name: list(range(len(gpus)))}, apart=apart)


@pytest.mark.parametrize(
    ("shares", "nodes"),
    [
        ([0.9, 0.1], 1), ([0.7, 0.2, 0.1], 1), ([0.3, 0.3, 0.3, 0.1], 1), ([1 / 3, 1 / 3, 1 / 3], 1), ([0.9, 0.11], 2),
        ([0.5, 0.5, 0.5], 2), ([1, 0, 0], 1), ([0, 1], 1), ([1, 1], 2),
    ],
)  # fmt: skip
def test_shares_fill_a_gpu(shares: list[float], nodes: int) -> None:
    """Also those whose sum rounding makes more than 1."""
    found = pack_nodes([reserved("policy", *shares)], 1)
    assert len(found) == nodes and sum(node.processes["policy"] for node in found) == len(shares)


def test_a_share_lies_on_one_gpu_and_several_are_whole() -> None:
    node = PackedNode([1.0, 1.0, 1.0, 1.0])
    assert node.take(0.6) and node.take(0.6) and node.take(0.3)
    assert node.free == pytest.approx([0.1, 0.4, 1, 1]) and node.gpus == 2
    assert not node.take(3) and node.free == pytest.approx([0.1, 0.4, 1, 1]), "nothing is taken"
    assert node.take(1) and node.free == pytest.approx([0.1, 0.4, 0, 1])
    assert not node.take(2) and node.take(0.4) and node.take(1)
    assert node.free == pytest.approx([0.1, 0, 0, 0]) and node.gpus == 4
    assert not node.take(0.2) and node.take(0)
    part = PackedNode([1.0, 1.0])
    assert part.take(1.5) and part.free == [0, 0], "a part of the second one would be nobody else's"


def test_bundles_that_stay_apart_have_a_node_each_and_others_fill_them() -> None:
    wanted = [reserved("policy", 2, 2, apart=True), reserved("critic", 1, 1, apart=True), reserved("rollout", 1, 1, 1)]
    assert [dict(node.processes) for node in pack_nodes(wanted, 4)] == [
        {"policy": 1, "critic": 1, "rollout": 1}, {"policy": 1, "critic": 1, "rollout": 1}, {"rollout": 1},
    ]  # fmt: skip


def test_a_bundle_that_no_node_holds_is_refused() -> None:
    assert len(pack_nodes([reserved("policy", 4)], 4)) == 1
    with pytest.raises(UserError) as caught:
        pack_nodes([reserved("policy", 5)], 4)
    assert str(caught.value) == (
        "cluster.kubernetes.gpus_per_node: must hold what is on one node, of policy 5 GPUs, got 4"
    )


def test_equal_pods_have_what_the_fullest_node_needs() -> None:
    nodes = [PackedNode([0.5, 1.0, 1.0]), PackedNode([0.0, 0.0, 1.0])]
    nodes[0].reserved |= {"CPU": 9, "GPU": 1, "fabric": 2, "disk": 1}
    nodes[1].reserved |= {"CPU": 1, "GPU": 2, "fabric": 3}
    group = PodGroup("workers", nodes, {})
    assert (group.gpus, group.resources) == (2, {"disk": 1, "fabric": 3})


def configured(**sections: Any) -> Any:
    values: dict[str, Any] = {
        "algorithm": {"name": "grpo", "steps": 1},
        "model": {"path": "acme/model"},
        "data": {"train": "rows.jsonl"},
        "reward": {"functions": ["exact_match"], "workers": 4},
        "policy": {"gpus_per_rank": 1},
        "rollout": {"gpus_per_engine": 1},
        "checkpoint": {"every": 1},
    }
    return validate(values | sections)


def test_separate_engines_have_pods_of_their_own_and_rewards_are_with_the_others() -> None:
    [workers] = pod_groups(configured())
    assert (workers.name, workers.labels) == ("workers", {})
    assert [dict(node.processes) for node in workers.nodes] == [{"policy": 1, "rollout": 1, "reward": 4}]
    trainer, rollout = pod_groups(configured(cluster={"placement": "separate"}))
    assert (trainer.labels, rollout.labels) == ({"tandem-role": "trainer"}, {"tandem-role": "rollout"})
    [node] = trainer.nodes
    assert dict(node.processes) == {"policy": 1, "reward": 4}
    assert node.reserved["CPU"] == pytest.approx(0.25 + 4 * 0.1)
    assert [dict(node.processes) for node in rollout.nodes] == [{"rollout": 1}]


def test_pods_get_the_plain_labels_that_groups_ask_for() -> None:
    labels = {"acme/zone": "a", "ray.io/accelerator-type": "H100", "kind": "!slow"}
    [workers] = pod_groups(configured(policy={"gpus_per_rank": 1, "node_labels": labels}))
    assert workers.labels == {"acme/zone": "a"}
    for engine, line in (
        (
            {"acme/zone": "b"},
            "rollout.node_labels.acme/zone: must be a as another group's on the same pods (workers)",
        ),
        ({"acme/zone": "in(a, b)"}, "rollout.node_labels.acme/zone: must be a plain label on Kubernetes, where the"),
    ):
        groups: dict[str, Any] = {
            "policy": {"cpus_per_rank": 9, "node_labels": {"acme/zone": "a"}},
            "rollout": {"node_labels": engine},
        }
        with pytest.raises(UserError) as caught:
            pod_groups(configured(**groups))
        assert str(caught.value).startswith(line)
    separate = configured(
        policy={"node_labels": {"acme/zone": "a"}},
        rollout={"node_labels": {"acme/zone": "b"}},
        cluster={"placement": "separate"},
    )
    assert [group.labels["acme/zone"] for group in pod_groups(separate)] == ["a", "b"]


def test_an_error_of_rendering_is_the_only_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warnings are for manifests that are printed."""
    from launch.cli import main

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    Path("job.yaml").write_text(
        "{algorithm: {name: grpo}, model: {path: /shared/model}, data: {train: rows.jsonl}, run: {output: /shared/o},"
        " reward: {functions: [exact_match]}, rollout: {tensor_parallel: 4, gpus_per_engine: 4},"
        " policy: {gpus_per_rank: 1}, cluster: {kubernetes: {gpus_per_node: 2}}}"
    )
    assert main(["k8s", "job.yaml"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cluster.kubernetes.gpus_per_node: must hold what is on one node")
