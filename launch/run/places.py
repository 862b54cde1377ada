"""Where rollout engines are, and where there is room for others: nodes that go are left for other ones."""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import ray
from ray._private import state as ray_state
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from actors.group import Slot
from launch.config import RunConfig
from launch.run.reserve import ask_ray, living_nodes, node_addresses, others_nodes, release, slots_in, where_is
from launch.run.reserved import Placement
from launch.run.shortage import have_room
from launch.sizes.placement import demands, reservation_of

_GROUP = "rollout"
_MOMENT_S, _MOMENTS = 2, 5
"""A wait for a bundle, and how many of them there are where room for it can be seen."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Those of the cluster."""

    alive: Mapping[str, str]
    """Id -> address."""
    leaving: Mapping[str, float] = field(default_factory=dict)
    """Id of one that is about to go -> when, in seconds since 1970; 0: nobody says."""


def nodes_now() -> Nodes:
    """What Ray says of them."""
    alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    # Not public; Ray's own Train learns of it in the same way.
    leaving = ray_state.state.get_draining_nodes()
    return Nodes(alive, {node: deadline / 1000 for node, deadline in leaving.items()})


def fill(config: RunConfig, placement: Placement) -> None:
    """Reserve bundles for more engines than there must be, as many as have room; the next one stays asked for."""
    try:
        for _ in range(config.rollout.fewest, config.rollout.most):
            asked = Asked(config, placement, ask_for_engine(config, placement, set()))
            placement.pending = asked.group
            if (slot := _soon(asked)) is None:
                return
            placement.pending = None
            placement.reserved.append(slot.placement)
            placement.slots[_GROUP].append(slot)
            placement.nodes.add(slot.node_id)
    except BaseException:  # Ctrl-C too, as in `reserve.place`
        release(placement)
        raise


def _soon(asked: "Asked") -> Slot | None:
    """The slot of a bundle that there is room for now."""
    for _ in range(_MOMENTS):
        slot = asked.slot(_MOMENT_S)
        # What others have just given back, Ray may be late to give again.
        if slot is not None or not have_room_for_engine(asked.config, asked.placement, set()):
            return slot
    return None


def ask_for_engine(config: RunConfig, placement: Placement, avoid: set[str]) -> PlacementGroup:
    """Ask Ray for a bundle for one more engine, on none of these nodes, without waiting for it."""
    wanted = reservation_of(config, _GROUP, 1)
    # For no other strategy does Ray take a bundle that is alone to be one.
    return ask_ray(wanted.bundles, "STRICT_PACK", wanted, avoid | others_nodes(config, placement, _GROUP))


def have_room_for_engine(config: RunConfig, placement: Placement, avoid: set[str]) -> bool:
    """Whether a bundle for one more engine would find room now, on none of these nodes."""
    wanted = reservation_of(config, _GROUP, 1)
    avoid = avoid | others_nodes(config, placement, _GROUP)
    return have_room(wanted, living_nodes({}, wanted.bundles[0]), avoid)


@dataclass(frozen=True, slots=True)
class Asked:
    """A bundle that Ray is asked for; while it has no room, it is demand that an autoscaler sees."""

    config: RunConfig
    placement: Placement
    group: PlacementGroup
    lost: frozenset[str] = frozenset()
    """Ids of the nodes that were held for lost then."""

    def slot(self, within_s: int) -> Slot | None:
        """The engine's, once there is room; waits so many whole seconds for it."""
        # Of half a second Ray makes none, and of none it waits for ever.
        there = self.group.wait(timeout_seconds=within_s) if within_s else self._is_there()
        if not there:
            return None
        wanted = reservation_of(self.config, _GROUP, 1)
        by_name = {demand.group: demand for demand in demands(self.config)}
        [slot] = slots_in(wanted, by_name, where_is(self.group), node_addresses())[_GROUP]
        return slot

    def _is_there(self) -> bool:
        return placement_group_table(self.group)["state"] == "CREATED"

    def give_up(self) -> None:
        """Ask no more."""
        remove_placement_group(self.group)


class Places:
    """The slots of a run's engines. One thread looks at nodes, any may ask."""

    def __init__(self, config: RunConfig, placement: Placement) -> None:
        """`placement`: of the run, with bundles of their own for engines; it follows what changes."""
        self._config, self._placement = config, placement
        self._slots = placement.slots[_GROUP]
        self._driver = ray.get_runtime_context().get_node_id()
        self._lock = threading.Lock()
        self._nodes: Nodes | None = None

    def look(self) -> None:
        """Ask Ray which nodes there are; where its head does not answer, this waits for it."""
        self._nodes = nodes_now()

    def bound(self) -> set[str]:
        """Ids of nodes that the run cannot do without: with the driver, or with processes of other groups."""
        others = (slots for name, slots in self._placement.slots.items() if name != _GROUP)
        return {self._driver, *(slot.node_id for slots in others for slot in slots)}

    @property
    def can_change(self) -> bool:
        """Whether an engine is, or may come to be, on a node that the run can do without."""
        return self._config.rollout.grows or any(slot.node_id not in self.bound() for slot in self._slots)

    def where(self, engine: int) -> str:
        """Address of an engine's node; its id where there is only one."""
        slot = self._slots[engine]
        return slot.node or slot.node_id

    def is_gone(self, engine: int) -> bool:
        """Whether an engine's node is no more, or is held for lost."""
        node = self._slots[engine].node_id
        return node in self._placement.lost or (self._nodes is not None and node not in self._nodes.alive)

    def goes_at(self, engine: int) -> float | None:
        """When an engine's node is about to go, in seconds since 1970, 0 where nobody knows; None where it stays, or
        the run ends with it."""
        node = self._slots[engine].node_id
        found = self._nodes.leaving.get(node) if self._nodes else None
        return None if found is None or node in self.bound() | self._placement.nodes else found

    def ends_with(self, engine: int, others: Iterable[int]) -> bool:
        """Whether the run cannot do without an engine's node, which is about to go, as none of the `others` stays and
        no other node has room; it then ends with a checkpoint while it can. One that may grow waits for nodes."""
        stays = any(self.goes_at(other) is None and not self.is_gone(other) for other in others if other != engine)
        if stays or self._config.rollout.grows or have_room_for_engine(self._config, self._placement, self._leaving()):
            return False
        self._placement.nodes.add(self._slots[engine].node_id)
        return True

    def _leaving(self) -> set[str]:
        """Ids of nodes that have no room for anything, whatever Ray says of them."""
        return self._placement.lost | set(self._nodes.leaving if self._nodes else ())

    def must_move(self, engine: int) -> bool:
        """Whether an engine cannot be restarted where it was."""
        return self.is_gone(engine) or self.goes_at(engine) is not None

    def may_grow(self, present: int) -> bool:
        """Whether there may be more engines than so many."""
        return self._config.rollout.grows and present < self._config.rollout.most

    def may_shrink(self, alive: int) -> bool:
        """Whether so many engines are enough."""
        return self._config.rollout.grows and alive >= self._config.rollout.fewest

    def ask(self) -> Asked:
        """Ask Ray for a bundle for an engine, on a node that stays."""
        with self._lock:
            pending, self._placement.pending = self._placement.pending, None
        if pending is None:
            pending = ask_for_engine(self._config, self._placement, self._leaving())
        return Asked(self._config, self._placement, pending, frozenset(self._placement.lost))

    def is_outdated(self, asked: Asked) -> bool:
        """Whether other nodes are lost by now than when a bundle was asked for: one that is back may have room."""
        return asked.lost != self._placement.lost

    def vacate(self, engine: int) -> None:
        """Give an engine's bundle back: of a node that is gone, Ray would reserve it elsewhere, where there is room for
        the one that is asked for."""
        with self._lock:
            self._placement.give_back(self._slots[engine])

    def settle(self, engine: int, slot: Slot) -> None:
        """An engine is in a slot that was asked for: one that had another, or a new one with the next number."""
        with self._lock:
            self._placement.reserved.append(slot.placement)
            if engine < len(self._slots):
                self._slots[engine] = slot
            else:
                self._slots.append(slot)


def drain_s(at: float, most_s: float, spare_s: float, now: float | None = None) -> float:
    """Seconds that there are until a node goes, without some to spare, at most so many, and at least 1.

    Args:
        at: when it goes, in seconds since 1970; 0 where nobody knows.
    """
    left_s = at - (time.time() if now is None else now) - spare_s if at else most_s
    return min(most_s, max(1.0, left_s))
