"""Reserve bundles for every group of a run: wait for them with a deadline, and say what is missing meanwhile."""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import ray
from ray._private import state as ray_state
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from actors.config import UserError
from actors.group import Slot
from launch.config import RunConfig
from launch.run.placement import Demand, Reservation, demands, policy_alone, reservations, reward_processes
from launch.run.shortage import Node, lacking, shortage
from launch.settings.environment import with_token_kept

Notify = Callable[[str], None]
_LOOK_S = 2.0
"""Seconds between two looks at what is missing."""


@dataclass(slots=True)
class Placement:
    """Reserved bundles, and the slots of every group in them."""

    reserved: list[PlacementGroup] = field(default_factory=list)
    slots: dict[str, list[Slot]] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    """Ids of the nodes that the bundles are on."""

    def where(self) -> str:
        """Which groups are where; empty when there is only one node. Example: policy on 10.0.0.2 (4), 10.0.0.3 (4)"""
        counts = {group: Counter(slot.node for slot in slots if slot.node) for group, slots in self.slots.items()}
        return "; ".join(
            f"{group} on {', '.join(f'{node} ({count})' for node, count in found.items())}"
            for group, found in counts.items()
            if found
        )


def place(config: RunConfig, notify: Notify) -> Placement:
    """Reserve the bundles of all groups.

    Raises:
        UserError: when `cluster.wait_s` passes, naming what is missing; nothing stays reserved.
    """
    wanted, last = reservations(config), reward_processes(config)
    # Reward processes take what the groups leave, so they are asked for once these are placed.
    behind = [[last]] if last else []
    deadline = Deadline(config.cluster.wait_s)
    if config.cluster.placement != "separate":
        return _placed([wanted, *behind], config, deadline, notify)
    engines, others = wanted[:1], wanted[1:]
    try:
        return _placed([engines, others, *behind], config, deadline, notify, give_up=True)
    except NoRoom:
        # Ray has put the engines on nodes that the others need: these choose first.
        return _placed([others, engines, *behind], config, deadline, notify)


def place_policy(config: RunConfig, notify: Notify) -> Placement:
    """Reserve the bundles of the policy alone; raises as `place` does."""
    return _placed([[policy_alone(config)]], config, Deadline(config.cluster.wait_s), notify)


class NoRoom(Exception):
    """The nodes that are left can never hold what is asked for."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Of waiting for resources."""

    wait_s: float
    started: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until it passes."""
        return self.started + self.wait_s - time.monotonic()


def _placed(
    stages: list[list[Reservation]], config: RunConfig, deadline: Deadline, notify: Notify, *, give_up: bool = False
) -> Placement:
    """Reserve stage after stage; with placement separate, engines and other groups avoid each other's nodes.

    Raises:
        UserError: the deadline has passed.
        NoRoom: with `give_up`, as soon as nodes that must be avoided are what is missing.
    """
    placement, by_name = Placement(), {demand.group: demand for demand in demands(config)}
    of_engines: set[str] = set()
    of_others: set[str] = set()
    separate = config.cluster.placement == "separate"
    try:
        for stage in stages:
            engines = separate and stage[0].name == "rollout"
            avoided = (of_others if engines else of_engines) if separate else set()
            # One after the other: where nodes join one by one, a small bundle must not take the place of a large one.
            for reservation in stage:
                group = _ask(reservation, avoided)
                placement.reserved.append(group)
                _wait(reservation, group, deadline, avoided, notify, give_up=give_up)
                nodes: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
                (of_engines if engines else of_others).update(nodes.values())
                placement.slots |= _slots(reservation, by_name, group, nodes, _addresses())
    except BaseException:
        release(placement)
        raise
    placement.nodes = of_engines | of_others
    if len(placement.nodes) == 1:
        placement.slots = {
            name: [replace(slot, alone=True) for slot in slots] for name, slots in placement.slots.items()
        }
    return placement


def release(placement: Placement) -> None:
    """Give the bundles back."""
    for group in placement.reserved:
        remove_placement_group(group)


def _ask(wanted: Reservation, avoided: set[str]) -> PlacementGroup:
    labels = dict(wanted.labels)
    if avoided:
        labels["ray.io/node-id"] = f"!in({', '.join(sorted(avoided))})"
    strategy = "STRICT_SPREAD" if wanted.apart else "PACK"
    return placement_group(wanted.bundles, strategy, bundle_label_selector=[labels] * len(wanted.bundles))


def _wait(
    wanted: Reservation, group: PlacementGroup, deadline: Deadline, avoided: set[str], notify: Notify, *, give_up: bool
) -> None:
    while not group.wait(timeout_seconds=_LOOK_S):
        nodes = _nodes()
        if give_up and avoided and lacking(wanted, nodes, avoided) and not lacking(wanted, nodes):
            raise NoRoom
        missing = shortage(wanted, nodes, avoided)
        if deadline.left_s < 0:
            raise UserError(f"cluster.wait_s: resources did not come within {deadline.wait_s:g} s: {missing}")
        notify(f"{missing} ({deadline.left_s:.0f} of {deadline.wait_s:.0f} s left)")


def _addresses() -> dict[str, str]:
    """Id -> address of every node; empty when there is only one."""
    found = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    return found if len(found) > 1 else {}


def _nodes() -> list[Node]:
    free = ray_state.available_resources_per_node()
    return [
        Node(node["NodeID"], node["Labels"], node["Resources"], free.get(node["NodeID"], {}))
        for node in ray.nodes()
        if node["Alive"]
    ]


def _slots(
    reservation: Reservation,
    wanted: dict[str, Demand],
    group: PlacementGroup,
    nodes: dict[int, str],
    addresses: dict[str, str],
) -> dict[str, list[Slot]]:
    """Slots of the groups in a reservation, the ranks of one node side by side."""
    # Groups with as many ranks share all their bundles, others only the first ones.
    on_gpu = Counter(
        bundle for name, bundles in reservation.ranks.items() if wanted[name].gpus for bundle in set(bundles)
    )
    order = _by_node(reservation.bundles, nodes)
    return {
        name: [
            _slot(wanted[name], group, order[bundle], max(1, on_gpu[bundle]), addresses.get(nodes[order[bundle]], ""))
            for bundle in bundles
        ]
        for name, bundles in reservation.ranks.items()
    }


def _by_node(bundles: list[dict[str, float]], nodes: dict[int, str]) -> dict[int, int]:
    """Bundle as planned -> bundle as reserved, among bundles of the same size: neighbours are on one node where that is
    possible, as ranks that follow each other talk most, and fastest within a node."""
    first_seen = {node: place for place, node in enumerate(dict.fromkeys(nodes[bundle] for bundle in sorted(nodes)))}
    order: dict[int, int] = {}
    for size in bundles:
        alike = [bundle for bundle, other in enumerate(bundles) if other == size]
        order |= dict(zip(alike, sorted(alike, key=lambda bundle: first_seen[nodes[bundle]]), strict=True))
    return order


def _slot(demand: Demand, group: PlacementGroup, bundle: int, sharing: int, node: str) -> Slot:
    return Slot(
        placement=group,
        bundle=bundle,
        cpus=demand.cpus,
        gpus=demand.gpus / sharing,
        threads=demand.threads,
        resources=dict(demand.resources),
        env=with_token_kept(demand.env, os.environ),
        node=node,
    )
