"""What a group keeps of its processes, around a Ray that starts none."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, ObjectLostError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from actors import group as module
from actors.group import CONTROL, ActorGroup, GroupError, Slot
from actors.group_errors import RankLost
from actors.pulse import ProcessId, Pulse


class Reference(SimpleNamespace):
    """What a call returns at once; no two are equal."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


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
        reference = Reference(task_id=lambda: owner, name=name, handle=self, group="")

        def options(*, concurrency_group: str) -> Any:
            reference.group = concurrency_group
            return SimpleNamespace(remote=lambda *_: reference)

        return SimpleNamespace(remote=lambda *_: reference, options=options)


class FakeRay:
    """Starts nothing; `late` are the numbers of actors that do not answer. Each wait takes `wait_s`, each get as long
    as it may, of a clock of its own."""

    def __init__(self) -> None:
        self.started: list[FakeHandle] = []
        self.late: set[int] = set()
        self.wait_s = 0.0
        self.now = 100.0
        self.fails: RayError | None = None
        """What every get raises."""

    def remote(self, concurrency_groups: dict[str, int]) -> Any:
        def start(options: dict[str, Any], *arguments: Any) -> FakeHandle:
            self.started.append(FakeHandle(len(self.started), concurrency_groups, options, arguments))
            return self.started[-1]

        def options(**given: Any) -> Any:
            return SimpleNamespace(remote=lambda *arguments: start(given, *arguments))

        return lambda worker: SimpleNamespace(options=options)

    def kill(self, handle: FakeHandle) -> None:
        handle.alive = False

    def wait(self, refs: list[Any], timeout: float, num_returns: int = 1) -> tuple[list[Any], list[Any]]:
        assert timeout >= 0, "an error for Ray"
        self.now += min(timeout, self.wait_s)
        done = [ref for ref in refs if ref.handle._actor_id not in self.late][:num_returns]
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref: Any, timeout: float) -> Any:
        if self.fails:
            self.now += timeout
            raise self.fails
        if ref.name != "pulse":
            return ref.handle._actor_id
        assert ref.group == CONTROL
        return Pulse(process=ProcessId(ref.handle._actor_id, 0, ""), method=None, seconds=0.0, done=0)

    def monotonic(self) -> float:
        return self.now


class Worker:
    def work(self) -> None:
        pass


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(module, "time", fake)
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


def test_who_sees_that_a_rank_is_replaced_sees_where_it_goes(ray: FakeRay) -> None:
    """A thread that looks at generations and nodes keeps what it has seen with the first look."""
    group, seen = started(), list[str]()

    class Generations(list[int]):
        def __setitem__(self, rank: Any, generation: Any) -> None:
            super().__setitem__(rank, generation)
            seen.append(group.nodes[rank])

    group.generations = Generations(group.generations)
    group.replace(0, slot(5, node="10.0.0.2"))
    assert seen == ["10.0.0.2"]


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
    started(), started(concurrency={"generate": 7, CONTROL: 5})
    assert [ray.started[number].groups for number in (0, 2)] == [{CONTROL: 4}, {"generate": 7, CONTROL: 5}]


def called(group: ActorGroup[Any]) -> list[Any]:
    return [group.submit(rank, Worker.work) for rank in range(2)]


def test_a_call_has_one_deadline_for_its_waits_and_its_answers(ray: FakeRay) -> None:
    """Nine seconds, of which the wait for an answer has taken six: it may come for three more."""
    group = started()
    ray.wait_s, ray.fails = 6, GetTimeoutError()
    with pytest.raises(GroupError, match=r"^policy\.work: no answer from rank\(s\) \[0\] within 9 s$") as caught:
        group.gather(called(group), "work")
    assert isinstance(caught.value.__cause__, GetTimeoutError)
    assert ray.now == 109


def test_pulses_that_are_told_of_and_do_not_come_have_the_same_deadline(ray: FakeRay) -> None:
    group = started()
    ray.wait_s, ray.fails = 1, GetTimeoutError()
    assert [str(pulse) for pulse in group.pulses(2.5)] == [
        f"policy.pulse: no answer from rank(s) [{rank}] within 2.5 s" for rank in range(2)
    ]
    assert ray.now == 102.5


def test_an_answer_that_is_lost_is_an_error_of_its_rank(ray: FakeRay) -> None:
    group = started()
    ray.fails = ObjectLostError("7", None, "")
    for wait in (group.gather, group.notice):
        with pytest.raises(GroupError, match=r"^policy\[0\]\.work: ObjectLostError: ") as caught:
            wait(called(group), "work")
        assert caught.value.__cause__ is ray.fails


def test_a_process_that_does_not_start_is_not_lost(ray: FakeRay) -> None:
    """What its first call raises, the next process would raise, too: an attempt more is of no use."""
    group = started()
    raised = ModuleNotFoundError("No module named 'vllm'")
    ray.fails = ActorDiedError(
        RayTaskError("Worker.__init__", f"ray::Worker\n{raised}", raised, "", 1, "", actor_id="")
    )
    with pytest.raises(GroupError, match=r"^policy\[0\]\.work: the process did not start \(.*vllm") as caught:
        group.gather(called(group), "work")
    assert type(caught.value) is GroupError
    ray.fails = ActorDiedError()
    with pytest.raises(RankLost, match=r"^policy\[0\]\.work: the process died \("):
        group.gather(called(group), "work")


def test_a_deadline_of_0_is_one(ray: FakeRay) -> None:
    """What is there is given; what is not is not waited for."""
    group = started()
    ray.wait_s = 1
    assert group.gather(called(group), "work", timeout_s=0) == [0, 1]
    ray.late = {1}
    with pytest.raises(GroupError, match=r"^policy\.work: no answer from rank\(s\) \[1\] within 0 s$"):
        group.gather(called(group), "work", timeout_s=0)
    assert ray.now == 100


def test_references_to_no_rank_are_no_one_elses(ray: FakeRay) -> None:
    assert started().gather([], "work", ranks=[]) == []
