"""A group that has lost a node moves as a whole, waits for room, and says so; where there is none, that is told."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.config import UserError
from actors.group import Slot
from launch.config import RunConfig, load
from launch.run import elsewhere as module
from launch.run.elsewhere import Elsewhere
from launch.run.reserve import NoRoom
from launch.run.reserved import Placement

ROOT = Path(__file__).resolve().parent.parent


def slot(bundle: int, node: str, of: str) -> Slot:
    made: Any = SimpleNamespace(id=of)
    return Slot(placement=made, bundle=bundle, cpus=1, gpus=0, threads=1, node=f"address of {node}", node_id=node)


@dataclass
class Group:
    """Notes where its ranks are put."""

    name: str = "policy"
    replaced: list[tuple[int, Slot]] = field(default_factory=list)

    def replace(self, rank: int, slot: Slot) -> None:
        """A new process there."""
        self.replaced.append((rank, slot))


@dataclass
class Ray:
    """Gives room once it has been asked so often."""

    after: int = 0
    avoided: list[set[str]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    slept: float = 0.0

    def reserve(self, config: RunConfig, placement: Placement, group: str, **options: Any) -> list[Slot]:
        """`reserve_elsewhere`."""
        self.avoided.append(options["avoid"])
        if len(self.avoided) <= self.after:
            raise NoRoom if self.after % 2 else UserError("policy needs 2 CPU, free now are 1")
        return [slot(0, "c", "new"), slot(1, "c", "new")]

    def sleep(self, seconds: float) -> None:
        """Time goes on."""
        self.slept += seconds


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    made = Ray()
    monkeypatch.setattr(module, "reserve_elsewhere", made.reserve)
    monkeypatch.setattr(module, "remove_placement_group", lambda group: made.removed.append(group.id))
    clock = SimpleNamespace(monotonic=lambda: made.slept, sleep=made.sleep)
    monkeypatch.setattr(module, "time", clock)
    return made


@pytest.fixture
def placement() -> Placement:
    slots = {"policy": [slot(0, "a", "old"), slot(1, "b", "old")], "critic": [slot(0, "a", "other")]}
    reserved: list[Any] = [SimpleNamespace(id="old"), SimpleNamespace(id="other")]
    return Placement(reserved=reserved, slots=slots, nodes={"a", "b"}, lost={"b"})


def config(*changes: str) -> RunConfig:
    return load(str(ROOT / "configs/grpo.yaml"), ["cluster.wait_s=30", *changes])


def test_a_group_leaves_a_lost_node_with_all_its_ranks(ray: Ray, placement: Placement) -> None:
    said: list[str] = []
    elsewhere, group = Elsewhere(config(), placement, said.append), Group()
    assert [elsewhere.must_move(name) for name in ("policy", "critic", "reference")] == [True, False, False]
    made: Any = group
    assert elsewhere.move(made)
    assert [(rank, each.node_id) for rank, each in group.replaced] == [(0, "c"), (1, "c")]
    assert (ray.removed, ray.avoided) == (["old"], [{"b"}])
    assert placement.slots["policy"] == [each for _, each in group.replaced] and "c" in placement.nodes
    assert [each.id for each in placement.reserved] == ["other"] and not elsewhere.must_move("policy")
    assert said == ["policy moves to address of c"]


@pytest.mark.parametrize("after", [1, 2])
def test_it_waits_for_room_and_takes_a_node_that_is_back(ray: Ray, placement: Placement, after: int) -> None:
    said: list[str] = []
    ray.after = after

    def tell_of(text: str) -> None:
        said.append(text)
        placement.lost.clear()  # the node answers again

    made: Any = Group()
    assert Elsewhere(config(), placement, tell_of).move(made)
    assert ray.avoided[0] == {"b"} and ray.avoided[-1] == set()
    assert said[0].startswith("waiting for room: ") and said[-1].startswith("policy moves to ")


def test_no_room_within_the_deadline_is_told(ray: Ray, placement: Placement) -> None:
    ray.after, made = 10**6, Group()
    group: Any = made
    said: list[str] = []
    assert not Elsewhere(config(), placement, said.append).move(group)
    assert said[-1].startswith("policy: no room elsewhere within 30 s (cluster.wait_s): policy needs 2 CPU")
    assert 30 < ray.slept < 40 and made.replaced == []


def test_groups_that_share_their_places_do_not_move_alone(ray: Ray, placement: Placement) -> None:
    shared = config("cluster.placement=shared")
    group: Any = Group()
    said: list[str] = []
    assert not Elsewhere(shared, placement, said.append).move(group)
    assert ray.removed == [] and "shared" in said[0], "nothing is given back"
