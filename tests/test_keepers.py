"""A copy in memory is of one step, of all ranks, or it does not count; who keeps it may be lost, and so may a node.

Ray is a script that does everything at once; keepers, and what ranks copy and load, are real.
"""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayError

from actors.files.pieces import Contents, pieces_of
from actors.group_errors import DataLost, RankLost
from actors.train import kept
from actors.train.kept import KeptWorker
from launch.run import keepers as module
from launch.run.keeper import Keeper, Of
from launch.run.keepers import Keepers, NoMemory, NotKept, Unfinished, nodes_of_copies


class Ref:
    """What a call has given."""

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...], *, answers: bool = True) -> None:
        self.answers, self.error, self.value = answers, None, None
        try:
            self.value = call(*(argument.get() if isinstance(argument, Ref) else argument for argument in arguments))
        except (RayError, LookupError) as error:
            self.error = error

    def task_id(self) -> Any:
        return SimpleNamespace(actor_id=lambda: b"keeper")

    def get(self) -> Any:
        if self.error:
            raise self.error if isinstance(self.error, RayError) else RayError(str(self.error))
        return self.value


class Handle:
    """Of a keeper, which may die, and may be silent."""

    def __init__(self, node: str, free: dict[str, int | None]) -> None:
        self.node, self.keeper, self.dead, self.silent = node, Keeper(), False, False
        self.keeper.free = lambda: free.get(node, 10**9)
        self.gives = 99
        """So many pieces before it dies."""

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Ref:
            def call(*given: Any) -> Any:
                self.gives -= name == "piece"
                self.dead |= self.gives < 0
                if self.dead:
                    raise RayActorError
                return getattr(self.keeper, name)(*given)

            return Ref(call, arguments, answers=not self.silent)

        return SimpleNamespace(remote=remote)

    @property
    def copies(self) -> set[int]:
        return set(self.keeper._copies)


class Rank(KeptWorker):
    """Whose state is the number of its step."""

    def __init__(self, name: str, rank: int) -> None:
        self.name, self.rank, self.step, self.dies_after = f"{name}{rank}", rank, 0, 99
        self.loaded: dict[str, str] = {}

    def captured_files(self) -> Contents:
        return deque([(self.name, deque([f"{self.name} {self.step} ".encode() * 3]))])

    def load(self, directory: Path, saved: object = None) -> None:
        self.loaded = {path.name: path.read_text() for path in directory.iterdir()}

    def next_piece(self) -> Any:
        self.dies_after -= 1
        if self.dies_after < 0:
            raise RayError(f"{self.name} died")
        return super().next_piece()


class Group:
    """Ranks on nodes."""

    timeout_s = 5.0
    dies = False

    def __init__(self, name: str, nodes: str) -> None:
        self.name, self.slots = name, [SimpleNamespace(node_id=node) for node in nodes]
        self.replace()

    def replace(self) -> None:
        self.ranks = [Rank(self.name, rank) for rank in range(len(self.slots))]

    def __len__(self) -> int:
        return len(self.slots)

    def submit(self, rank: int, method: Callable[..., object], *arguments: Any) -> Ref:
        return Ref(getattr(self.ranks[rank], method.__name__), arguments)

    def gather(self, refs: list[Ref], what: str, ranks: Any) -> list[Any]:
        if self.dies:
            self.dies = False
            raise RankLost(what, self.name, 0)
        if any(ref.error for ref in refs):
            raise DataLost(what)
        return [ref.value for ref in refs]

    def call(self, method: Callable[..., object]) -> list[Any]:
        return [getattr(rank, method.__name__)() for rank in self.ranks]


class Run:
    """Keepers of groups on these nodes, which the test may lose."""

    def __init__(self, nodes: str = "aa", others: str = "a") -> None:
        self.groups: Any = {"policy": Group("policy", nodes), "critic": Group("critic", nodes[0])}
        self.free: dict[str, int | None] = {}
        self.handles: list[Handle] = []
        self.placement: Any = SimpleNamespace(
            slots={
                "policy": self.groups["policy"].slots,
                "rollout": [SimpleNamespace(node_id=node) for node in others],
            },
            lost=set(),
        )
        self.keepers = Keepers(self.placement, self._start, lambda: "a")
        self.copy = 0

    def _start(self, node: str) -> Handle:
        self.handles.append(Handle(node, self.free))
        return self.handles[-1]

    def learn(self, step: int) -> None:
        for group in self.groups.values():
            for rank in group.ranks:
                rank.step = step

    def take(self, step: int, wanted: Callable[[], bool] = lambda: True) -> None:
        self.learn(step)
        sizes: dict[Of, int] = {
            (name, rank): size
            for name, group in self.groups.items()
            for rank, size in enumerate(group.call(KeptWorker.begin_copy))
        }
        self.learn(99)  # before any of it is taken in
        self.keepers.prepare(self.groups)
        self.copy += 1
        self.keepers.take_in(self.groups, self.copy, sizes, wanted)

    def steps_given_back(self) -> set[str]:
        """Of what new ranks have loaded, each of which has its own files, and those of rank 0."""
        for group in self.groups.values():
            group.replace()
        self.keepers.give_back(self.groups)
        found = set[str]()
        for group in self.groups.values():
            for rank in group.ranks:
                assert {*rank.loaded} == {f"{group.name}0", rank.name}
                for name, text in rank.loaded.items():
                    step = text.split()[1]
                    assert text == f"{name} {step} " * 3
                    found.add(step)
        return found


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wait(refs: list[Ref], num_returns: int = 1, timeout: float = 0, fetch_local: bool = True) -> Any:
        assert len(set(refs)) == len(refs), "as Ray itself requires"
        return [ref for ref in refs if ref.answers], [ref for ref in refs if not ref.answers]

    fake = SimpleNamespace(wait=wait, get=lambda ref: ref.get(), kill=lambda handle: setattr(handle, "dead", True))
    monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(module, "end_actors", lambda handles: [setattr(handle, "dead", True) for handle in handles])
    monkeypatch.setattr(kept, "pieces_of", lambda files: pieces_of(files, 10))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_ranks_get_back_what_they_had_and_leave_nothing(tmp_path: Path) -> None:
    run = Run()
    assert run.keepers.whole is None
    run.take(3)
    assert run.keepers.whole == 1 and run.steps_given_back() == {"3"}
    run.take(5)
    assert run.keepers.whole == 2 and run.steps_given_back() == {"5"}
    [handle] = run.handles
    assert handle.copies == {2}, "the one before is forgotten"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["a rank is lost", "it is given up"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_is_not_whole_never_counts(how: str, after: int) -> None:
    """However much of it has arrived: all ranks go back to the one before."""
    run = Run()
    run.take(3)
    asked = iter(range(99))
    if how == "a rank is lost":
        run.groups["policy"].ranks[1].dies_after = after
    with pytest.raises(Unfinished):
        run.take(5, lambda: how == "a rank is lost" or next(asked) < after)
    assert run.keepers.whole == 1 and run.handles[0].copies == {1}
    assert run.steps_given_back() == {"3"}
    run.take(6)
    assert run.steps_given_back() == {"6"}


def test_a_keeper_that_is_lost_is_replaced() -> None:
    """What it had does not count any more; a look tells, without waiting."""
    run = Run()
    run.take(3)
    run.keepers.look()
    run.keepers.look()
    assert run.keepers.whole == 1
    run.handles[0].dead = True
    run.keepers.look()
    run.keepers.look()
    assert run.keepers.whole is None
    with pytest.raises(NotKept, match="lost"):
        run.keepers.give_back(run.groups)
    run.take(4)
    assert len(run.handles) == 2 and run.keepers.whole == 2 and run.steps_given_back() == {"4"}


def test_a_keeper_that_is_lost_while_it_takes_in_or_gives_back(tmp_path: Path) -> None:
    run = Run()
    run.take(3)

    def dies() -> bool:
        run.handles[0].dead = True
        return True

    with pytest.raises(NotKept, match="its keeper is lost"):
        run.take(4, dies)
    assert run.keepers.whole is None
    run.take(5)
    run.handles[1].gives = 4
    with pytest.raises(NotKept, match=r"the share of policy\[1\] is lost"):
        run.keepers.give_back(run.groups)
    assert list(tmp_path.iterdir()) == [], "or the next copy would be added to it"


def test_a_rank_that_is_lost_while_it_takes_one_in(tmp_path: Path) -> None:
    """The others remove what they have: all ranks are then started anew."""
    run = Run()
    run.take(3)
    run.groups["critic"].dies = True
    with pytest.raises(RankLost):
        run.keepers.give_back(run.groups)
    assert list(tmp_path.iterdir()) == []
    assert run.steps_given_back() == {"3"}


def test_one_that_does_not_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_S", 0.0)
    run = Run()
    run.take(3)
    run.handles[0].silent = True
    run.take(4)
    assert run.keepers.whole == 2 and run.handles[0].dead and run.steps_given_back() == {"4"}


@pytest.mark.parametrize(("less", "taken"), [(1, False), (0, True)])
def test_without_room_on_the_host_none_is_taken(less: int, taken: bool) -> None:
    """For the next one: what counts is there already."""
    run = Run()
    run.take(3)
    run.free["a"] = 3 * (len("policy0 5 ") + len("policy1 5 ") + len("critic0 5 ")) - less
    if taken:
        run.take(5)
    else:
        with pytest.raises(NoMemory, match="it has 0 MiB, and 0 MiB of memory are free"):
            run.take(5)
    assert run.steps_given_back() == {"5" if taken else "3"}
    run.free["a"] = None  # where nobody says
    run.take(6)
    assert run.steps_given_back() == {"6"}


@pytest.mark.parametrize(("nodes", "others", "lost"), [("ab", "a", "a"), ("ab", "a", "b"), ("bb", "a", "b"),
                                                      ("bc", "abc", "c"), ("bc", "de", "b")])  # fmt: skip
def test_a_node_may_be_lost_with_all_that_is_on_it(nodes: str, others: str, lost: str) -> None:
    """Its ranks have their copies elsewhere, and so have those that stay, which go back, too."""
    run = Run(nodes, others)
    run.take(3)
    run.placement.lost.add(lost)
    for handle in run.handles:
        handle.silent = handle.node == lost
    run.keepers.look()
    assert run.keepers.whole == 1
    for group in run.groups.values():
        for slot in group.slots:
            slot.node_id = "z" if slot.node_id == lost else slot.node_id
    assert run.steps_given_back() == {"3"}
    run.take(4)
    assert run.steps_given_back() == {"4"}
    assert not any(handle.copies & {2} for handle in run.handles if handle.node == lost)


def test_nobody_waits_for_a_keeper_whose_node_is_lost() -> None:
    """Ray may say so a minute later."""
    run = Run("b", "a")
    run.take(3)
    [handle] = run.handles

    def vanishes() -> bool:
        handle.silent = True
        run.placement.lost.add("a")
        return True

    with pytest.raises(NotKept, match="the node of its keeper is lost"):
        run.take(4, vanishes)
    assert run.keepers.whole is None and handle.dead


def test_where_copies_are_kept() -> None:
    """On a node without ranks that go back, if there is one; else on two; where there is one node, there."""
    ranks: list[Of] = [("policy", 0), ("policy", 1), ("critic", 0)]
    homes = dict(zip(ranks, "bcb", strict=True))
    assert nodes_of_copies(homes, {*"abcd"}, "a") == dict(zip(ranks, [("a",), ("d",), ("a",)], strict=True))
    assert nodes_of_copies(homes, {*"abc"}, "a") == dict.fromkeys(ranks, ("a",))
    two = [("b", "c"), ("c", "b"), ("b", "c")]
    assert nodes_of_copies(homes, {*"bc"}, "b") == dict(zip(ranks, two, strict=True))
    assert nodes_of_copies(dict.fromkeys(ranks, "a"), {"a"}, "a") == dict.fromkeys(ranks, ("a",))
