"""Engines come to nodes with room and leave those that go: by the fleet, with nodes and bundles that a script has."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RaySystemError

from actors.group import GroupError
from algorithms.rollouts.membership import Membership
from launch.run import elastic as elastic_module
from launch.run import fleet as fleet_module
from launch.run import places as places_module
from launch.run.elastic import Elastic
from launch.run.fleet import Fleet
from launch.run.places import Nodes, Places, drain_s
from launch.run.reserved import Placement
from launch.tracking.events import Events, read_events
from launch.tracking.lost_time import LostTime
from tests.test_fleet import FakeGroup, until
from tests.test_placement import config_for


class Group(FakeGroup):
    """One that takes more engines, each ready at once unless `starts` says otherwise."""

    def __init__(self, count: int) -> None:
        super().__init__(**{f"engine{engine}": ["ready"] * 9 for engine in range(9)})
        self.count, self.retired = count, list[int]()
        self.where: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.count

    def replace(self, rank: int, slot: Any = None) -> None:
        super().replace(rank)
        if slot is not None:
            self.where[rank] = slot.node_id

    def add(self, slot: Any) -> int:
        self.count += 1
        self.where[self.count - 1] = slot.node_id
        return self.count - 1

    def retire(self, rank: int) -> None:
        self.retired.append(rank)


class Cluster:
    """Nodes by name, each with room for so many bundles; what is asked for gets a place in the order of the nodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **room: int) -> None:
        self.room, self.leaving = room, dict[str, float]()
        self.asked: list[SimpleNamespace] = []
        self.removed: list[SimpleNamespace] = []
        for module, name in ((places_module, "nodes_now"), (places_module, "ask_for_engine")):
            monkeypatch.setattr(module, name, getattr(self, name))
        monkeypatch.setattr(places_module, "have_room_for_engine", self.have_room)
        monkeypatch.setattr(places_module, "remove_placement_group", self.remove)
        monkeypatch.setattr("launch.run.reserved.remove_placement_group", self.remove)
        monkeypatch.setattr(places_module.Asked, "slot", lambda asked, _: self.slot(asked.group))
        runtime = SimpleNamespace(get_node_id=lambda: "head")
        monkeypatch.setattr(places_module.ray, "get_runtime_context", lambda: runtime)

    def nodes_now(self) -> Nodes:
        return Nodes({name: f"10.0.0.{number}" for number, name in enumerate(self.room)}, dict(self.leaving))

    def ask_for_engine(self, _config: Any, _placement: Any, avoid: set[str]) -> SimpleNamespace:
        given_back = [group.id for group in self.removed]
        self.asked.append(SimpleNamespace(id=len(self.asked), avoid=avoid, node=None, given_back=given_back))
        return self.asked[-1]

    def have_room(self, _config: Any, _placement: Any, avoid: set[str]) -> bool:
        return any(room for name, room in self.room.items() if name not in avoid)

    def slot(self, group: SimpleNamespace) -> Any:
        for name, room in self.room.items():
            if group.node is None and room and name not in group.avoid | self.leaving.keys():
                self.room[name] -= 1
                group.node = name
        time.sleep(0.005)
        return group.node and slot(group.node, group)

    def remove(self, group: SimpleNamespace) -> None:
        self.removed.append(group)
        if group.node in self.room:
            self.room[group.node] += 1
        group.node = None


def slot(node: str, group: Any = None) -> Any:
    return SimpleNamespace(node_id=node, node="", placement=group or SimpleNamespace(id=f"first on {node}", node=node))


class Run:
    """Engines on nodes `where`, one each; the driver and the policy are on `head`."""

    def __init__(self, directory: Path, where: list[str], engines: Any) -> None:
        config: Any = config_for(rollout={"engines": engines})
        self.group, self.members = Group(len(where)), Membership(len(where))
        self.placement = Placement([], {"rollout": [slot(node) for node in where], "policy": [slot("head")]})
        self.events, self.lost = Events(directory), LostTime()
        self.places = Places(config, self.placement)
        now: Any = SimpleNamespace(events=self.events, lost=self.lost)
        any_group: Any = self.group
        self.fleet = Fleet(
            any_group, self.members, now, start_timeout_s=7.0, max_restarts=2, had=lambda _: [], places=self.places
        )
        self.told: list[str] = []
        self.elastic = Elastic(self.fleet, self.members, self.places, self.told.append)
        self.places.look()

    def serve(self, engine: int) -> None:
        """Give an engine weights, once it is there."""
        until(lambda: len(self.members) > engine and self.members.state(engine) == "stale")
        self.members.serve([engine], 1, list(self.members.losses))

    def note(self, engine: int) -> None:
        """What `RayEngines` does once an engine parts."""
        until(lambda: self.members.state(engine) == "parting")
        self.members.noted(engine)

    def lines(self) -> list[tuple[str, str]]:
        path = self.events._path
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line["event"], line["who"]) for line in map(json.loads, lines)]


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(fleet_module, "_LONGEST_PAUSE_S", 0.01)
    runs: list[Run] = []

    def started(where: list[str], engines: Any) -> Run:
        runs.append(Run(tmp_path, where, engines))
        return runs[-1]

    yield started
    for run in runs:
        run.elastic.close()
        run.fleet.close()


RANGE = {"min": 1, "max": 3}


def test_engines_come_where_there_is_room_one_after_the_other(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there may be; what is asked for next stays asked for, and is given back at the end."""
    cluster = Cluster(monkeypatch, head=0)
    run = start(["head"], RANGE)
    for _ in range(3):
        run.elastic.look()
    assert len(cluster.asked) == 1 and len(run.members) == 1, "the demand is there, once"
    cluster.room["new"] = 5
    run.elastic.look()
    assert run.members.state(1) in ("restarting", "stale") and run.members.counts() == (1, 1)
    run.serve(1)
    for _ in range(4):
        run.elastic.look()
    run.serve(2)
    assert len(run.members) == 3 and run.group.where == {1: "new", 2: "new"} and run.group.replaced == []
    assert run.lines() == [("joined", "rollout[1]"), ("joined", "rollout[2]")] and run.members.counts() == (3, 3)
    assert cluster.room["new"] == 3 and read_events(run.events._path) == [], "that is no fault"
    assert (
        len(run.placement.reserved) == 2
        and [each.node_id for each in run.placement.slots["rollout"][1:]] == ["new"] * 2
    )


def test_who_is_on_a_node_that_goes_hands_over_and_leaves_and_its_number_is_free(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, head=0, spot=0)
    run = start(["head", "spot"], RANGE)
    cluster.leaving["spot"] = time.time() + 100
    for _ in range(3):
        run.elastic.look()
    until(lambda: run.members.state(1) == "parting")
    assert run.group.retired == [] and run.lines() == [], "it is asked of what it has before"
    run.note(1)
    until(lambda: run.members.state(1) == "absent")
    assert run.group.retired == [1] and run.members.counts() == (1, 1) and run.members.streaks == [0, 0]
    until(lambda: run.lines() == [("drained", "rollout[1]"), ("left", "rollout[1]")])
    assert read_events(run.events._path) == []
    del cluster.room["spot"], cluster.leaving["spot"]
    cluster.room["other"] = 1
    for _ in range(2):
        run.elastic.look()
    run.serve(1)
    assert run.group.replaced == [1] and run.group.where == {1: "other"} and len(run.members) == 2
    assert run.lines()[2:] == [("joined", "rollout[1]")] and run.members.generation(1) == 2


def test_the_last_one_moves_and_the_run_waits_for_room(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does each one of a number; nothing else asks for the room meanwhile."""
    cluster = Cluster(monkeypatch, head=0, spot=0)
    run = start(["spot"], RANGE)
    run.elastic.look()
    assert len(cluster.asked) == 1
    del cluster.room["spot"]
    run.elastic.look()
    until(lambda: run.fleet.waits_for_room)
    assert run.members.state(0) == "lost" and run.group.retired == [0]
    until(lambda: len(cluster.asked) == 2)
    run.elastic.look()
    assert cluster.asked[0] in cluster.removed and len(run.members) == 1 and len(cluster.asked) == 2
    assert "first on spot" in cluster.asked[1].given_back, "else Ray would move it to the room that there is"
    cluster.room["other"] = 1
    until(lambda: run.members.state(0) == "stale")
    assert run.group.where == {0: "other"} and run.group.replaced == [0]
    run.serve(0)
    assert [event for event, _ in run.lines()] == ["noticed", "restarting", "stale", "recovered"]
    assert read_events(run.events._path)[0]["cause"] == "rollout[0]: its node spot is gone"
    assert run.placement.slots["rollout"][0].node_id == "other" and len(run.placement.reserved) == 1


def test_one_of_two_that_are_to_be_there_moves_from_a_node_that_goes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, head=0, spot=0, spare=1)
    run = start(["head", "spot"], 2)
    run.elastic.look()
    assert cluster.asked == [], "there are as many as there shall be"
    cluster.leaving["spot"] = 0.0
    run.elastic.look()
    run.note(1)
    run.serve(1)
    assert run.group.where == {1: "spare"} and cluster.asked[0].avoid == {"spot"}
    assert run.lines() == [("drained", "rollout[1]"), ("joined", "rollout[1]")]


def test_a_loss_may_be_the_first_that_is_heard_of_a_node(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started where it was, the engine would wait for the node."""
    cluster = Cluster(monkeypatch, head=0, spot=0, spare=1)
    run = start(["head", "spot"], 2)
    del cluster.room["spot"]
    run.members.lose(1, GroupError("rollout[1].poll: the process died"), 0)
    run.serve(1)
    assert run.group.where == {1: "spare"} and run.group.replaced == [1]


def test_who_has_given_its_place_back_gets_another_one_whatever_ray_says_meanwhile(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its node is back by then: its bundle there is no more."""
    cluster = Cluster(monkeypatch, head=1, spot=0)
    run = start(["spot"], 1)
    run.placement.lost.add("spot")
    ask = run.places.ask

    def unheard() -> Any:
        monkeypatch.setattr(run.places, "ask", ask)
        run.placement.lost.clear()
        raise RaySystemError("its head is away")

    monkeypatch.setattr(run.places, "ask", unheard)
    run.fleet.hear(0, 0, "nobody there answers")
    until(lambda: run.members.state(0) == "stale")
    assert run.group.where == {0: "head"} and [each.id for each in cluster.asked] == [0]


def test_who_waits_for_room_leaves_once_there_are_enough(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fault is over then."""
    cluster = Cluster(monkeypatch, head=0, spot=0, gone=0)
    run = start(["gone", "spot"], {"min": 2, "max": 3})
    del cluster.room["gone"]
    run.elastic.look()
    until(lambda: run.fleet.waits_for_room)
    run.fleet.join(slot("head", SimpleNamespace(id="by hand", node=None)))
    until(lambda: run.members.state(0) == "absent")
    until(lambda: ("left", "rollout[0]") in run.lines())
    [*_, over] = read_events(run.events._path)
    assert (over["event"], over["did"]) == ("recovered", "left") and run.events.open() == []


def test_nodes_of_others_and_of_the_driver_are_left_to_the_run(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, head=0, spot=0)
    run = start(["head", "spot"], 2)
    assert run.places.bound() == {"head"} and run.places.can_change
    cluster.leaving["head"] = time.time() + 30
    run.elastic.look()
    assert run.places.goes_at(0) is None and not run.places.must_move(0) and run.members.serving() == [0, 1]
    assert not start(["head", "head"], 2).places.can_change
    assert start(["head"], RANGE).places.can_change


def test_the_run_ends_with_the_node_of_its_last_engine_where_there_is_no_other(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it can save what it has: none would sample. With room elsewhere, or where it may grow, it goes on."""
    cluster = Cluster(monkeypatch, head=0, spot=0, other=0)
    run = start(["spot", "other"], 2)
    cluster.leaving |= {"spot": 0.0, "other": 0.0}
    run.elastic.look()
    until(lambda: run.members.state(1) == "parting")
    assert run.placement.nodes == {"spot"}, "of the first, which serves as long as it can"
    for _ in range(2):
        run.elastic.look()
    assert run.members.serving() == [0] and not run.places.must_move(0)
    for engines, room in ((1, 1), (RANGE, 0)):
        cluster.room["head"] = room
        run = start(["spot"], engines)
        run.elastic.look()
        until(lambda run=run: run.members.state(0) == "parting")
        assert run.placement.nodes == set()


def test_a_new_one_that_does_not_start_is_started_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other; one that never does ends the run."""
    Cluster(monkeypatch, head=2)
    run = start(["head"], RANGE)
    run.group.starts[1] = ["no memory", "ready"]
    run.elastic.look()
    run.serve(1)
    assert run.group.replaced == [1] and run.members.counts() == (2, 2)
    assert [event for event, _ in run.lines()] == ["noticed", "restarting", "stale", "recovered", "joined"]
    run.group.starts[2] = ["no memory"] * 3
    run.elastic.look()
    until(lambda: run.members.failure is not None)
    assert "was lost 3 times in a row" in str(run.members.failure)


def test_nothing_starts_once_all_is_closed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for is given back, also by who waits for room."""
    cluster = Cluster(monkeypatch, head=0, spot=0)
    run = start(["spot"], 1)
    del cluster.room["spot"]
    run.elastic.look()
    until(lambda: run.fleet.waits_for_room)
    run.fleet.close()
    assert not run.fleet.waits_for_room
    cluster.room["other"] = 1
    run.fleet.join(slot("other"))
    assert len(run.members) == 1 and run.group.replaced == []
    assert cluster.asked[0] in cluster.removed
    other = start(["head"], RANGE)
    cluster.room["other"] = 0
    other.elastic.look()
    other.elastic.close()
    assert cluster.removed[-1] is cluster.asked[-1], "the demand ends with the run"


def test_a_look_that_fails_is_told_once_and_the_next_one_comes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_module, "_LOOK_S", 0.01)
    Cluster(monkeypatch, head=0)
    run, looks = start(["head"], RANGE), list[int]()

    def look() -> None:
        looks.append(1)
        raise GroupError("the head is away")

    monkeypatch.setattr(run.places, "look", look)
    run.elastic.start()
    until(lambda: len(looks) > 3)
    run.elastic.close()
    assert run.told == ["looking for nodes failed: GroupError: the head is away"]
    assert not [thread for thread in threading.enumerate() if thread.name == "elastic"]


def test_a_node_that_goes_soon_has_little_time() -> None:
    assert drain_s(0.0, 10.0, 5.0, now=1000.0) == 10.0
    assert [drain_s(1000.0 + left, 10.0, 5.0, now=1000.0) for left in (100, 12, 6, 1, -50)] == [
        10.0,
        7.0,
        1.0,
        1.0,
        1.0,
    ]


def test_an_engine_of_a_node_held_for_lost_moves_or_is_there_again_when_it_is_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray holds the node for alive all the time."""
    cluster = Cluster(monkeypatch, head=0, cut=0)
    run = start(["cut"], 1)
    run.placement.lost.add("cut")
    run.fleet.hear(0, 0, "nobody there answers")
    until(lambda: run.fleet.waits_for_room and len(cluster.asked) == 1)
    assert cluster.asked[0].avoid == {"cut"} and cluster.room["cut"] == 1, "its bundle is given back"
    run.placement.lost.discard("cut")
    until(lambda: run.members.state(0) == "stale")
    assert run.group.where == {0: "cut"} and [each.avoid for each in cluster.asked] == [{"cut"}, set()]
