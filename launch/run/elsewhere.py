"""New places for groups of ranks of which a node is lost: all ranks of a group move, as its bundles belong together."""

import time
from collections.abc import Callable
from typing import Any

from ray.util.placement_group import remove_placement_group

from actors.config import UserError
from actors.group import ActorGroup
from launch.config import RunConfig
from launch.run.reserve import NoRoom, reserve_elsewhere
from launch.run.reserved import Placement

_TRY_S, _PAUSE_S = 10.0, 2.0
"""Longest wait with the nodes that are lost at the moment, as one may be back; and the least between two tries."""


class Elsewhere:
    """Moves groups away from nodes that are lost.

    Example:
        elsewhere = Elsewhere(config, placement, print)
        if elsewhere.must_move("policy"):
            elsewhere.move(roster["policy"])
    """

    def __init__(self, config: RunConfig, placement: Placement, tell_of: Callable[[str], None]) -> None:
        """`placement`: of the run, which follows what changes; `tell_of` shows a line."""
        self._config, self._placement, self._tell_of = config, placement, tell_of

    def must_move(self, name: str) -> bool:
        """Whether a rank of a group was on a node that is lost."""
        return any(slot.node_id in self._placement.lost for slot in self._placement.slots.get(name, ()))

    def move(self, group: ActorGroup[Any]) -> bool:
        """Give a group new slots and new processes there, of which nothing was asked; waits for room.

        Returns whether it has moved; tells why not: there is no room within `cluster.wait_s`, or groups share places.
        """
        name, wait_s = group.name, self._config.cluster.wait_s
        if self._config.cluster.placement == "shared":
            self._tell_of(f"{name}: with cluster.placement shared, no group can leave a node that is lost alone")
            return False
        # What is left of it goes first: there may be room only where it was.
        self._give_back(name)
        until, missing = time.monotonic() + wait_s, ""
        while True:
            try:
                slots = reserve_elsewhere(
                    self._config, self._placement, name,
                    avoid=set(self._placement.lost), within_s=_TRY_S, notify=self._say,
                )  # fmt: skip
                break
            except (NoRoom, UserError) as error:
                missing = str(error) or "no node that is left has room"
            if time.monotonic() > until:
                self._tell_of(f"{name}: no room elsewhere within {wait_s:g} s (cluster.wait_s): {missing}")
                return False
            self._say(missing)
            time.sleep(_PAUSE_S)
        self._placement.slots[name] = slots
        # In place: who looks at them has this very set. Of one that the run has left, nobody need hear any more.
        self._placement.nodes.update(slot.node_id for slot in slots)
        used = {slot.node_id for slots in self._placement.slots.values() for slot in slots}
        self._placement.nodes.difference_update(self._placement.lost - used)
        for rank, slot in enumerate(slots):
            group.replace(rank, slot)
        self._tell_of(f"{name} moves to {', '.join(dict.fromkeys(slot.node or slot.node_id for slot in slots))}")
        return True

    def _give_back(self, name: str) -> None:
        """Give a group's bundles back; what runs in them ends."""
        for group in {slot.placement.id: slot.placement for slot in self._placement.slots[name]}.values():
            self._placement.reserved = [each for each in self._placement.reserved if each.id != group.id]
            remove_placement_group(group)

    def _say(self, text: str) -> None:
        self._tell_of(f"waiting for room: {text}")
