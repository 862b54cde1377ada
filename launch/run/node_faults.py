"""What events.jsonl is told of nodes that are lost: when nobody there answers any more, and how that is over."""

from collections.abc import Container

from launch.run.signs import SILENT
from launch.tracking.events import WITHOUT, Events, Fault

_VANISHED = "vanished"


class NodeFaults:
    """Tells of nodes that are lost, and of how that is over."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._open: dict[str, int] = {}
        self._falls: dict[str, int] = {}

    def fell(self, address: str, silent_s: float) -> None:
        """Nobody on a node answers."""
        generation = self._falls[address] = self._falls.get(address, -1) + 1
        fault = Fault(
            who=address, what=_VANISHED, noticed_by=SILENT, noticed_s=round(silent_s, 3),
            generation=generation, node=address,
        )  # fmt: skip
        self._open[address] = self._events.noticed(fault)

    def over(self, address: str, did: str) -> None:
        """It is no fault any more."""
        if (number := self._open.pop(address, None)) is not None:
            self._events.recovered(number, did)

    def leave(self, waiting: Container[str]) -> None:
        """Addresses of nodes that have lost processes in whose places there are no others yet: the rest is over."""
        for address in [address for address in self._open if address not in waiting]:
            self.over(address, WITHOUT)
