"""What a group keeps of its processes, around a Ray that starts none."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.util.placement_group import PlacementGroup

from actors import group as module
from actors.group import CONTROL, ActorGroup, GroupError, Slot
from actors.pulse import Pulse


class FakeHandle:
    """An actor: it remembers how it was started, and answers with references that name it."""

    def __init__(
        self, number: int, groups: dict[str, int], options: dict[str, Any], arguments: tuple[Any, ...]
    ) -> None:
        self._actor_id = number
        self.groups, self.options, self.arguments = groups, options, arguments
        self.alive = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        owner = SimpleNamespace(actor_id=lambda: self._actor_id)
        reference = SimpleNamespace(task_id=lambda: owner, name=name, handle=self, group="")

        def options(*, concurrency_group: str) -> Any:
            reference.group = concurrency_group
            return SimpleNamespace(remote=lambda *_: reference)

        return SimpleNamespace(remote=lambda *_: reference, options=options)


class FakeRay:
    """Starts nothing; `late` are the numbers of actors that do not answer."""

    def __init__(self) -> None:
        self.started: list[FakeHandle] = []
        self.late: set[int] = set()

    def remote(self, concurrency_groups: dict[str, int]) -> Any:
        def start(options: dict[str, Any], *arguments: Any) -> FakeHandle:
            self.started.append(FakeHandle(len(self.started), concurrency_groups, options, arguments))
            return self.started[-1]

        def options(**given: Any) -> Any:
            return SimpleNamespace(remote=lambda *arguments: start(given, *arguments))

        return lambda worker: SimpleNamespace(options=options)

    def kill(self, handle: FakeHandle) -> None:
        handle.alive = False

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        done = [ref for ref in refs if ref.handle._actor_id not in self.late]
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref: Any, timeout: float) -> Pulse:
        assert (ref.name, ref.group) == ("pulse", CONTROL)
        return Pulse(pid=ref.handle._actor_id, method=None, seconds=0.0, done=0)


class Worker:
    def work(self) -> None:
        pass


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(module, "ray", fake)
    return fake


def slot(bundle: int, node: str = "") -> Slot:
    return Slot(placement=PlacementGroup.empty(), bundle=bundle, cpus=0.5, gpus=0, threads=2, node=node)


def started(**options: Any) -> ActorGroup[Any]:
    group: ActorGroup[Any] = ActorGroup(
        "policy", Worker, [slot(0), slot(1)], timeout_s=9, log_directory="logs", **options
    )
    group.spawn("model", 1)
    return group


def test_a_replaced_rank_starts_as_it_did(ray: FakeRay) -> None:
    """The same arguments, log and slot; the other rank is left alone."""
    group = started()
    group.replace(1)
    kept, old, new = ray.started
    assert [handle.alive for handle in ray.started] == [True, False, True]
    assert group.handles == [kept, new]
    assert new.arguments == old.arguments == (1, 2, "model", 1)
    assert new.options["runtime_env"] == old.options["runtime_env"]
    assert new.options["scheduling_strategy"].placement_group_bundle_index == 1
    assert (group.generations, group.version) == ([0, 1], 1)


def test_a_rank_can_go_elsewhere_and_stays_there(ray: FakeRay) -> None:
    group = started()
    for _ in range(2):
        group.replace(0, slot(5, node="10.0.0.2") if group.version == 0 else None)
        assert ray.started[-1].options["scheduling_strategy"].placement_group_bundle_index == 5
    assert group.nodes == ["10.0.0.2", ""]
    assert (group.generations, group.version) == ([2, 0], 2)


def test_a_reference_tells_of_which_process_it_is(ray: FakeRay) -> None:
    """Also of one that is gone: its answer is of another generation."""
    group = started()
    before = [group.submit(rank, Worker.work) for rank in range(2)]
    group.replace(1)
    after = [group.submit(rank, Worker.work) for rank in range(2)]
    assert [group.origin(ref) for ref in before] == [(0, 0), (1, 0)]
    assert [group.origin(ref) for ref in after] == [(0, 0), (1, 1)]


def test_a_process_is_fresh_until_it_is_called(ray: FakeRay) -> None:
    """What it has met by then is nothing; a pulse is no call."""
    group = started()
    group.submit(0, Worker.work)
    group.pulses(1.0)
    assert [group.is_fresh(rank) for rank in range(2)] == [False, True]
    group.replace(0)
    assert [group.is_fresh(rank) for rank in range(2)] == [True, True]


def test_pulses_are_of_all_ranks_within_one_deadline(ray: FakeRay) -> None:
    group = started()
    ray.late = {1}
    first, second = group.pulses(2.5)
    assert isinstance(first, Pulse) and first.pid == 0
    assert isinstance(second, GroupError)
    assert str(second) == "policy.pulse: no answer from rank(s) [1] within 2.5 s"
    group.shutdown()
    assert group.pulses(2.5) == []


def test_every_actor_has_the_control_group_beside_its_own(ray: FakeRay) -> None:
    started(), started(concurrency={"generate": 7, CONTROL: 3})
    assert [ray.started[number].groups for number in (0, 2)] == [{CONTROL: 2}, {"generate": 7, CONTROL: 3}]
