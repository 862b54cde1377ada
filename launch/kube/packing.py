"""Groups of equal pods from the placement: what each node of a group must hold. Imports no Ray."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.config import UserError
from launch.config import RunConfig
from launch.kube.config_parts import LABEL_KEY, LABEL_VALUE
from launch.sizes.placement import Demand, Reservation, demands, reservations

ROLE = "tandem-role"
"""Ray label of the nodes, with placement separate: rollout, or trainer for everything else."""
DRIVER_RESOURCE = "tandem-driver"
"""Ray resource of the pods that have room for the driver, where it is not on the head."""
_EPSILON = 1e-9  # shares such as 0.1 add up to 1 only nearly


@dataclass(slots=True)
class PackedNode:
    """One node, and what was packed on it."""

    free: list[float]
    """Share of each GPU that is left."""
    processes: Counter[str] = field(default_factory=Counter)
    """Group -> its processes."""
    reserved: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Ray resources of all bundles."""

    @property
    def gpus(self) -> int:
        """GPUs of which something is used."""
        return sum(share < 1 for share in self.free)

    def take(self, gpus: float) -> bool:
        """Take whole GPUs, or a share of one; False, and nothing taken, when they are not there."""
        if not gpus:
            return True
        if gpus <= 1:
            found = [index for index, share in enumerate(self.free) if share >= gpus - _EPSILON][:1]
        else:
            # Several GPUs are whole ones, of which nothing is taken yet.
            found = [index for index, share in enumerate(self.free) if share == 1][: math.ceil(gpus)]
        if len(found) < math.ceil(gpus):
            return False
        for index in found:
            self.free[index] = max(0.0, self.free[index] - min(1.0, gpus))
        return True


@dataclass(frozen=True, slots=True)
class PodGroup:
    """Equal pods: a worker group of KubeRay."""

    name: str
    nodes: list[PackedNode]
    labels: dict[str, str]
    """Ray labels of its nodes."""

    @property
    def gpus(self) -> int:
        """GPUs of each pod: the most that a node uses."""
        return max(node.gpus for node in self.nodes)

    @property
    def resources(self) -> dict[str, float]:
        """Custom Ray resources of each pod."""
        # CPU and GPU are told to Ray by the container's resources.
        names = {name for node in self.nodes for name in node.reserved} - {"CPU", "GPU"}
        return {name: max(node.reserved[name] for node in self.nodes) for name in sorted(names)}


def pod_groups(config: RunConfig) -> list[PodGroup]:
    """`workers`, or with placement separate `trainer` and `rollout`.

    Raises:
        UserError: a bundle needs more GPUs than a node has, or groups need different labels of one node.
    """
    wanted, by_name = reservations(config), {demand.group: demand for demand in demands(config)}
    parts = {"workers": wanted}
    if config.cluster.placement == "separate" and "rollout" in by_name:
        parts = {
            # Two groups of pods, so that each can have nodes of its own kind.
            "trainer": [item for item in wanted if item.name != "rollout"],
            "rollout": [item for item in wanted if item.name == "rollout"],
        }
    groups = []
    for name, items in parts.items():
        nodes = pack_nodes(items, config.cluster.kubernetes.gpus_per_node)
        if name != "rollout" and "reward" in by_name:
            _add_reward_processes(nodes, by_name["reward"])
        labels = _labels((by_name[group] for item in items for group in item.ranks), name)
        groups.append(PodGroup(name, nodes, labels | ({ROLE: name} if len(parts) > 1 else {})))
    return groups


def pack_nodes(wanted: list[Reservation], gpus_per_node: int) -> list[PackedNode]:
    """First fit, in the order of the reservations; those whose bundles stay apart take a node for each.

    Raises:
        UserError: a bundle needs more GPUs than a node has.
    """
    nodes: list[PackedNode] = []
    full: defaultdict[float, int] = defaultdict(int)
    """GPUs of a bundle -> nodes, from the first on, that have no room for it: as none is ever freed, they stay full."""
    for reservation in wanted:
        used: set[int] = set()
        # A copy: a node that is passed over because it has one of these bundles has room for others.
        passed = full.copy() if reservation.apart else full
        processes = [Counter[str]() for _ in reservation.bundles]
        for group, bundles in reservation.ranks.items():
            for bundle in bundles:
                processes[bundle][group] += 1
        for bundle, inside in zip(reservation.bundles, processes, strict=True):
            gpus = bundle.get("GPU", 0.0)
            while passed[gpus] < len(nodes) and (passed[gpus] in used or not nodes[passed[gpus]].take(gpus)):
                passed[gpus] += 1
            if passed[gpus] < len(nodes):
                node = nodes[passed[gpus]]
            else:
                node = PackedNode([1.0] * gpus_per_node)
                if not node.take(gpus):
                    raise UserError(
                        f"cluster.kubernetes.gpus_per_node: must hold what is on one node, of {reservation.name} "
                        f"{gpus:g} GPUs, got {gpus_per_node}"
                    )
                nodes.append(node)
            if reservation.apart:
                used.add(passed[gpus])
            node.processes.update(inside)
            for name, amount in bundle.items():
                node.reserved[name] += amount
    return nodes


def _add_reward_processes(nodes: list[PackedNode], reward: Demand) -> None:
    """They have no bundles, and live where there is room: in equal pods, on any."""
    # All on the first one, as pods of a group are equal: their size is that of the largest node.
    nodes[0].processes[reward.group] += reward.count
    nodes[0].reserved["CPU"] += reward.count * reward.cpus


def _labels(wanted: Iterable[Demand], pods: str) -> dict[str, str]:
    """What nodes must say of themselves for the groups' `node_labels`; Ray itself sets those below ray.io/."""
    labels: dict[str, str] = {}
    for demand in wanted:
        for key, value in demand.labels.items():
            # `!value` asks for nodes without it: nothing that a pod could have.
            if key.startswith("ray.io/") or value.startswith("!"):
                continue
            field_name = f"{demand.group}.node_labels.{key}"
            if not (LABEL_KEY.fullmatch(key) and LABEL_VALUE.fullmatch(value)):
                raise UserError(
                    f"{field_name}: must be a plain label on Kubernetes, where the pods get it, got {value!r}"
                )
            if labels.setdefault(key, value) != value:
                raise UserError(
                    f"{field_name}: must be {labels[key]} as another group's on the same pods ({pods}), got {value} "
                    f"(cluster.placement separate gives rollout engines pods of their own)"
                )
    return labels
