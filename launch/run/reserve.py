"""Reserve bundles for every group of a run: wait for them with a deadline, and say what is missing meanwhile."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial

import ray
from ray._private import state as ray_state
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from actors.config import UserError
from actors.group import Slot
from launch.config import RunConfig
from launch.run.reserved import Placement
from launch.run.shortage import Node, lacking, shortage
from launch.settings.environment import with_token_kept
from launch.sizes.placement import (
    Demand,
    Reservation,
    demands,
    policy_alone,
    reservation_of,
    reservations,
    reward_processes,
)

Notify = Callable[[str], None]
_LOOK_S = 2
"""Seconds between two looks at what is missing."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one bundle of a reservation is."""

    group: PlacementGroup
    bundle: int
    """Its number in the placement group."""
    node: str
    """Id of the node."""


def place(config: RunConfig, notify: Notify) -> Placement:
    """Reserve the bundles of all groups, with as few engines as there may be.

    Raises:
        UserError: when `cluster.wait_s` passes, naming what is missing; nothing stays reserved.
    """
    wanted, last = reservations(config, fewest=True), reward_processes(config)
    # Reward processes take what the groups leave, so they are asked for once these are placed.
    behind = [[last]] if last else []
    deadline = Deadline(config.cluster.wait_s)  # one for all that follows, a second try included
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
                waiting = _Waiting(reservation, deadline, avoided, notify, give_up)
                places = _places(waiting, placement.reserved)
                (of_engines if engines else of_others).update(place.node for place in places)
                placement.slots |= slots_in(reservation, by_name, places, node_addresses())
    # Ctrl-C too: on a cluster that was joined, the bundles would stay reserved.
    except BaseException:
        release(placement)
        raise
    placement.nodes = of_engines | of_others
    # Known only once all are placed: whether anything is on another node. Engines that come later may be.
    if len(placement.nodes) == 1 and not config.rollout.grows:
        placement.slots = {
            name: [replace(slot, alone=True) for slot in slots] for name, slots in placement.slots.items()
        }
    return placement


def reserve_elsewhere(
    config: RunConfig, placement: Placement, group: str, *, avoid: Set[str], within_s: float, notify: Notify
) -> list[Slot]:
    """Reserve the bundles of a group once more, on other nodes; waits for them.

    Nothing else changes: `Placement.move` puts a process of the group into its new slot, and gives the old one back.

    Args:
        config: of the run.
        placement: what it has reserved, to which the new bundles are added.
        group: of which all processes move; one that shares its bundles with others cannot.
        avoid: ids of nodes that are lost, or about to go.
        within_s: longest wait, in seconds.
        notify: hears what is missing.

    Raises:
        NoRoom: the nodes that there are without the avoided ones would not do, and did with them.
        UserError: `within_s` has passed.

    Example:
        for rank, slot in enumerate(reserve_elsewhere(config, placement, "policy", avoid={node}, within_s=20.0, ...)):
            roster["policy"].replace(rank, slot)
            placement.move("policy", rank, slot)
    """
    # Engines are as many as there are, which may be fewer than the configuration allows.
    wanted = reservation_of(config, group, len(placement.slots[group]))
    found = Placement()
    try:
        waiting = _Waiting(wanted, Deadline(within_s), {*avoid, *others_nodes(config, placement, group)}, notify, True)
        places = _places(waiting, found.reserved)
    except BaseException:
        release(found)
        raise
    placement.reserved += found.reserved
    by_name = {demand.group: demand for demand in demands(config)}
    return slots_in(wanted, by_name, places, node_addresses())[group]


def others_nodes(config: RunConfig, placement: Placement, group: str) -> set[str]:
    """Ids of the nodes that a group may not be on, as others are: with placement separate."""
    if config.cluster.placement != "separate":
        return set()
    engines = group == "rollout"
    return {
        slot.node_id
        for name, slots in placement.slots.items()
        for slot in slots
        # As when the run begins: reward processes are among the others.
        if (name == "rollout") != engines
    }


def release(placement: Placement) -> None:
    """Give the bundles back."""
    for group in [*placement.reserved, *filter(None, [placement.pending])]:
        remove_placement_group(group)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """For the bundles of one reservation."""

    wanted: Reservation
    deadline: Deadline
    avoided: set[str]
    notify: Notify
    give_up: bool

    def until_reserved(self, group: PlacementGroup, before: Sequence[Place]) -> None:
        """Wait for a placement group; `before`: places of the bundles that are reserved already.

        What is told is about the reservation as a whole: what it has already counts as free for it.
        """
        # Not `ray.get(group.ready())`, which says nothing while it waits. Ray 2.60 takes half a second as none.
        while not group.wait(timeout_seconds=_LOOK_S):
            nodes = living_nodes(Counter(place.node for place in before), self.wanted.bundles[0])
            lacks = partial(lacking, self.wanted, nodes)
            if self.give_up and self.avoided and lacks(self.avoided) and not lacks():
                raise NoRoom
            missing, left_s = shortage(self.wanted, nodes, self.avoided), self.deadline.left_s
            if left_s < 0:
                wait_s = self.deadline.wait_s
                raise UserError(f"cluster.wait_s: resources did not come within {wait_s:g} s: {missing}")
            self.notify(f"{missing} ({left_s:.0f} of {self.deadline.wait_s:.0f} s left)")


def _places(waiting: _Waiting, reserved: list[PlacementGroup]) -> list[Place]:
    """Reserve the bundles of a reservation, in one placement group or in one each, which are added to `reserved`."""
    wanted = waiting.wanted
    if not wanted.each:
        # PACK goes to further nodes where one has no room; STRICT_SPREAD waits for as many nodes as bundles.
        reserved.append(ask_ray(wanted.bundles, "STRICT_SPREAD" if wanted.apart else "PACK", wanted, waiting.avoided))
        waiting.until_reserved(reserved[-1], [])
        return where_is(reserved[-1])
    found: list[Place] = []
    for bundle in wanted.bundles:
        # One after the other, as each one's node depends on those before: not there, or, as PACK has it, there too.
        used = {place.node for place in found} if wanted.apart else set[str]()
        near = found[-1].node if found and not wanted.apart else None
        # For no other strategy does Ray take a node to be near.
        reserved.append(ask_ray([bundle], "STRICT_PACK", wanted, waiting.avoided | used, near))
        waiting.until_reserved(reserved[-1], found)
        found += where_is(reserved[-1])
    return found


def where_is(group: PlacementGroup) -> list[Place]:
    nodes: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return [Place(group, bundle, nodes[bundle]) for bundle in sorted(nodes)]


def ask_ray(
    bundles: list[dict[str, float]], strategy: str, wanted: Reservation, avoided: set[str], near: str | None = None
) -> PlacementGroup:
    """`near`: id of the node to be on if it has room, for STRICT_PACK alone."""
    # Ray 2.60 takes a space in a list of values as a part of the next one: "in(a, b)" would be a, or " b".
    labels = {name: "".join(value.split()) for name, value in wanted.labels.items()}
    if avoided:
        labels["ray.io/node-id"] = f"!in({','.join(sorted(avoided))})"
    selector = [labels] * len(bundles)
    return placement_group(bundles, strategy, bundle_label_selector=selector, _soft_target_node_id=near)


def node_addresses() -> dict[str, str]:
    """Id -> address of every node; empty when there is only one."""
    found = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    return found if len(found) > 1 else {}


def living_nodes(held: Mapping[str, int], bundle: Mapping[str, float]) -> list[Node]:
    """The living nodes; what is in bundles of this size, so many on each node as `held` says, counts as free."""
    available = ray_state.available_resources_per_node()
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            name = node["NodeID"]
            ours = {resource: amount * held.get(name, 0) for resource, amount in bundle.items()}
            left = available.get(name, {})
            free = {resource: left.get(resource, 0.0) + ours.get(resource, 0.0) for resource in {*left, *ours}}
            found.append(Node(name, node["Labels"], node["Resources"], free))
    return found


def slots_in(
    reservation: Reservation, wanted: dict[str, Demand], places: Sequence[Place], addresses: dict[str, str]
) -> dict[str, list[Slot]]:
    """Slots of the groups in a reservation, the ranks of one node side by side."""
    # Groups with as many ranks share all their bundles, others only the first ones.
    on_gpu = Counter(
        bundle for name, bundles in reservation.ranks.items() if wanted[name].gpus for bundle in set(bundles)
    )
    order = _by_node(reservation.bundles, {index: place.node for index, place in enumerate(places)})
    return {
        name: [_slot(wanted[name], places[order[bundle]], max(1, on_gpu[bundle]), addresses) for bundle in bundles]
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


def _slot(demand: Demand, place: Place, sharing: int, addresses: dict[str, str]) -> Slot:
    return Slot(
        placement=place.group,
        bundle=place.bundle,
        cpus=demand.cpus,
        gpus=demand.gpus / sharing,  # groups in one bundle ask Ray for parts of its GPU, which together are one
        threads=demand.threads,
        niceness=demand.niceness,
        resources=dict(demand.resources),
        env=with_token_kept(demand.env, os.environ),
        node=addresses.get(place.node, ""),
        node_id=place.node,
    )
