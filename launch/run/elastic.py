"""Follows the cluster's nodes: engines leave those that go, and come to those that have room."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from algorithms.rollouts.membership import Membership
from launch.config import RunConfig
from launch.run.fleet import Fleet
from launch.run.places import Asked, Places, drain_s
from launch.run.reserved import Placement

if TYPE_CHECKING:
    from launch.run.roster import Roster

_LOOK_S = 2.0
_CLOSE_S = 10.0
_HAND_OVER_S, _SPARE_S = 10.0, 5.0
"""Longest wait for what an engine has to be noted, and what is left of its node's time then."""


def supervise(
    config: RunConfig, roster: "Roster", placement: Placement, members: Membership, warn: Callable[[str], None]
) -> None:
    """Let the engines of a run, which are all there, be brought back when they are lost, and follow its nodes."""
    assert roster.now and roster.rollouts, "of a run that survives"
    places = _places(config, placement)
    roster.fleet = Fleet(
        roster["rollout"],
        members,
        roster.now,
        start_timeout_s=config.rollout.start_timeout_s,
        max_restarts=config.run.max_restarts,
        had=roster.rollouts.had,
        places=places,
    )
    if places:
        roster.elastic = Elastic(roster.fleet, members, places, warn)
        roster.elastic.start()


def _places(config: RunConfig, placement: Placement) -> Places | None:
    """Where engines may be; None where that cannot change."""
    # Shared, an engine is where the other groups are.
    places = None if config.cluster.placement == "shared" else Places(config, placement)
    if places is None or not places.can_change:
        return None
    # The run goes on without nodes of engines alone. In place: whoever looks at them has this very set.
    placement.nodes.intersection_update(places.bound())
    return places


class Elastic:
    """Looks every two seconds, from `start` to `close`.

    Example:
        elastic = Elastic(fleet, members, places, warn=print)
        elastic.start()
        ...
        elastic.close()  # before the fleet
    """

    def __init__(self, fleet: Fleet, members: Membership, places: Places, warn: Callable[[str], None]) -> None:
        """`warn` shows a line."""
        self._fleet, self._members, self._places, self._warn = fleet, members, places, warn
        self._asked: Asked | None = None
        self._told = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="elastic", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def close(self) -> None:
        """Look no more, and ask for nothing."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        self._ask_no_more()

    def look(self) -> None:
        """Look once at all nodes."""
        self._places.look()
        for engine in self._members.alive():
            at = self._places.goes_at(engine)
            if self._places.is_gone(engine):
                text = f"rollout[{engine}]: its node {self._places.where(engine)} is gone"
                self._fleet.hear(engine, self._members.generation(engine), text)
            elif at is not None and not self._places.ends_with(engine, self._members.alive()):
                self._fleet.drain(engine, drain_s(at, _HAND_OVER_S, _SPARE_S))
        self._grow()

    def _grow(self) -> None:
        """Ask for one more engine, where there may be one; one that was lost asks for itself."""
        if self._fleet.waits_for_room or not self._places.may_grow(len(self._members.present())):
            self._ask_no_more()
            return
        self._asked = self._asked or self._places.ask()
        if slot := self._asked.slot(0):
            self._asked = None
            self._fleet.join(slot)

    def _ask_no_more(self) -> None:
        asked, self._asked = self._asked, None
        if asked:
            asked.give_up()

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_S):
            try:
                self.look()
            except Exception as error:  # Whatever it is: the run goes on with the engines that it has.
                text = f"looking for nodes failed: {type(error).__name__}: {error}"
                if text != self._told and not self._ended.is_set():
                    self._told = text
                    self._warn(text)
