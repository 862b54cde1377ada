"""What a run has reserved on the cluster: its bundles, and the slots of every group in them."""

from collections import Counter
from dataclasses import dataclass, field

from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.group import Slot


@dataclass(slots=True)
class Placement:
    """Reserved bundles, and the slots of every group in them."""

    reserved: list[PlacementGroup] = field(default_factory=list)
    slots: dict[str, list[Slot]] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    """Ids of the nodes that the run ends with when they go: those that the bundles are on, until engines may move."""
    pending: PlacementGroup | None = None
    """Of one more engine, for which there was no room when the run began."""
    lost: set[str] = field(default_factory=set)
    """Ids of nodes that are held for lost, perhaps before Ray does; the watch follows them."""

    def where(self) -> str:
        """Which groups are where; empty when there is only one node. Example: policy on 10.0.0.2 (4), 10.0.0.3 (4)"""
        counts = {group: Counter(slot.node for slot in slots if slot.node) for group, slots in self.slots.items()}
        return "; ".join(
            f"{group} on {', '.join(f'{node} ({count})' for node, count in found.items())}"
            for group, found in counts.items()
            if found
        )

    def move(self, group: str, rank: int, slot: Slot) -> None:
        """A process of a group is in another slot: what nobody uses any more is given back."""
        before, self.slots[group][rank] = self.slots[group][rank], slot
        if all(before.placement.id != each.placement.id for slots in self.slots.values() for each in slots):
            self.give_back(before)

    def give_back(self, slot: Slot) -> None:
        """Give all bundles back that were reserved with a slot's; what runs in them ends."""
        self.reserved = [group for group in self.reserved if group.id != slot.placement.id]
        remove_placement_group(slot.placement)
