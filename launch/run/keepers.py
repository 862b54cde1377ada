"""The processes that keep copies of the state of groups that learn, as the driver sees them: where, and whether all
of a copy is still there.

    ranks --piece by piece--> keepers on other nodes    all have it: whole, and the copy before is forgotten
          <--piece by piece--                           somebody is lost: nothing of it counts
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.group import ActorGroup, Countdown, first_line
from actors.group_errors import DataLost, GroupError
from launch.run.keeper import Keeper, Of
from launch.run.reserved import Placement
from launch.run.wardens import end_actors

if TYPE_CHECKING:
    from actors.train.trainer import TrainedWorker

    Groups = Mapping[str, ActorGroup[TrainedWorker]]

_LOOK_S = 1.0
"""Between two looks whether the node of a keeper that is waited for is lost, which Ray may say a minute later."""
_ANSWER_S, _TAKE_S, _START_S = 10.0, 60.0, 120.0
"""For a keeper to answer, beyond which it is replaced; to take in what ranks have handed out; and for a new one."""


class NotKept(RuntimeError):
    """A copy was not taken, or is not there any more; the message says why, in one line."""


class NoMemory(NotKept):
    """A host has no room for it."""


class Unfinished(NotKept):
    """A rank is lost that had not handed out its share, or nobody wants it any more."""


@dataclass(eq=False, slots=True)
class _Post:
    """A keeper, and what is known of it."""

    node: str
    handle: Any
    is_lost: bool = False
    asked: "ObjectRef[int | None] | None" = None


@dataclass(frozen=True, slots=True)
class _Whole:
    """A copy of which all ranks' shares were kept."""

    number: int
    kept: dict[Of, list[_Post]]
    """Who keeps what of it."""
    pieces: dict[Of, int]
    """Of each rank."""

    @property
    def is_there(self) -> bool:
        """Whether they still are."""
        return all(any(not post.is_lost for post in posts) for posts in self.kept.values())


class Keepers:
    """Those of a run, driven by one thread at a time.

    Example:
        keepers = Keepers(placement)
        keepers.prepare(groups)
        keepers.take_in(groups, 7, {("policy", 0): 2**20, ("policy", 1): 2**20}, go_on=lambda: True)
        keepers.give_back(groups)
    """

    def __init__(
        self,
        placement: Placement,
        start: Callable[[str], Any] | None = None,
        own_node: Callable[[], str] = lambda: ray.get_runtime_context().get_node_id(),
    ) -> None:
        """`placement`: of the run; `start`: starts a keeper on a node (id); `own_node`: the driver's."""
        self._placement, self._start, self._own_node = placement, start or _started, own_node
        self._posts: dict[str, _Post] = {}
        """By the id of their node."""
        self._where: dict[Of, list[_Post]] = {}
        """Who takes in what comes of each rank."""
        self._whole: _Whole | None = None
        """The copy that counts."""

    @property
    def whole(self) -> int | None:
        """Number of the copy of which every rank's share is still kept by somebody; None: there is none."""
        return self._whole.number if self._whole and self._whole.is_there else None

    def prepare(self, groups: "Groups") -> None:
        """Have a living keeper wherever the next copy of these groups is to go; waits until they are started.

        Raises NotKept.
        """
        for post in self._living:
            try:
                self._answers([(post, post.handle.free.remote())], _ANSWER_S)
            except NotKept:
                self._is_lost(post)
        own, lost = self._own_node(), self._placement.lost
        homes = {
            (name, rank): slot.node_id or own for name, group in groups.items() for rank, slot in enumerate(group.slots)
        }
        used = {slot.node_id for slots in self._placement.slots.values() for slot in slots if slot.node_id}
        where = nodes_of_copies(homes, (used | {own}) - lost, own)
        for node in {node for nodes in where.values() for node in nodes}:
            if node not in self._posts or self._posts[node].is_lost:
                self._posts[node] = _Post(node, self._start(node))
        self._where = {of: [self._posts[node] for node in nodes] for of, nodes in where.items()}
        self._answers([(post, post.handle.free.remote()) for post in self._used], _START_S)

    def take_in(
        self,
        groups: "Groups",
        copy: int,
        sizes: Mapping[Of, int],
        go_on: Callable[[], bool],
    ) -> None:
        """Take in what all ranks have begun to copy, after `prepare`; from then on it is what counts.

        Args:
            groups: that go back together.
            copy: its number, which no other one has.
            sizes: bytes of each rank.
            go_on: whether it is still wanted, asked between pieces.

        Raises:
            NoMemory: a host has less free than its share takes.
            Unfinished: a rank is lost, or it is not wanted.
            NotKept: a keeper is lost. Nothing of it counts then, in no case.
        """
        self._require_room(sizes)
        waiting, pieces = set(self._where), dict.fromkeys(self._where, 0)
        try:
            while waiting:
                if not go_on():
                    raise Unfinished("it was given up")
                for of in waiting:
                    pieces[of] += 1
                waiting -= self._next_pieces(groups, copy, waiting)
        except NotKept:
            self._keep_only(self.whole)
            raise
        self._whole = _Whole(copy, dict(self._where), pieces)
        self._keep_only(copy)

    def give_back(self, groups: "Groups") -> None:
        """Let new ranks of the groups take in what counts, and load it.

        Raises:
            NotKept: not all of it is there any more; what has arrived is removed.
            GroupError: a rank is lost again, or cannot load it.
        """
        from actors.train.kept import KeptWorker

        whole = self._whole
        if whole is None:
            raise NotKept("there is none")
        try:
            for name, group in groups.items():
                for rank in range(len(group)):
                    self._hand_out(whole, (name, rank), group)
        except (NotKept, GroupError):
            # All of it, or another copy would be added to it; not by ranks that are lost.
            ranks = [(group, rank) for group in groups.values() for rank in range(len(group))]
            refs = [group.submit(rank, KeptWorker.forget_received) for group, rank in ranks]
            ray.wait(refs, num_returns=len(refs), timeout=_ANSWER_S)
            raise
        for group in groups.values():
            group.call(KeptWorker.load_kept)

    def look(self) -> None:
        """See who is lost; asks, and takes in what was answered to what was asked before, without waiting."""
        for post in self._living:
            if post.node in self._placement.lost:
                self._is_lost(post)
            elif post.asked is None:
                post.asked = post.handle.free.remote()
            elif ray.wait([post.asked], timeout=0)[0]:
                with contextlib.suppress(NotKept):
                    self._answer(post, post.asked)
                post.asked = None

    def close(self) -> None:
        """End them."""
        for post in list(self._posts.values()):  # a thread may still start some
            with contextlib.suppress(RayError):
                ray.kill(post.handle)

    @property
    def _living(self) -> list[_Post]:
        return [post for post in self._posts.values() if not post.is_lost]

    @property
    def _used(self) -> list[_Post]:
        """Those that the next copy goes to, each once."""
        return list(dict.fromkeys(post for posts in self._where.values() for post in posts))

    def _require_room(self, sizes: Mapping[Of, int]) -> None:
        used = self._used
        free = self._answers([(post, post.handle.free.remote()) for post in used], _ANSWER_S)
        for post, room in zip(used, free, strict=True):
            needed = sum(sizes[of] for of, posts in self._where.items() if post in posts)
            if room is not None and room < needed:
                raise NoMemory(f"it has {needed / 2**20:.0f} MiB, and {room / 2**20:.0f} MiB of memory are free")

    def _next_pieces(self, groups: "Groups", copy: int, waiting: Iterable[Of]) -> set[Of]:
        """Let one piece of each of these ranks be kept; returns those that have no more."""
        from actors.train.kept import KeptWorker

        pieces = {of: groups[of[0]].submit(of[1], KeptWorker.next_piece) for of in sorted(waiting)}
        asked = [(of, post, piece) for of, piece in pieces.items() for post in self._where[of]]
        # A rank may be slow to hand out what a keeper then only takes.
        self._wait([(post, piece) for _, post, piece in asked], max(group.timeout_s for group in groups.values()))
        kept = [(post, post.handle.add.remote(copy, of, piece)) for of, post, piece in asked]
        answers = self._answers(kept, _TAKE_S)
        return {of for (of, _, _), last in zip(asked, answers, strict=True) if last}

    def _hand_out(self, whole: _Whole, of: Of, group: "ActorGroup[TrainedWorker]") -> None:
        """Let the rank that has copied it take in its share; that of rank 0, which holds what all ranks have alike, let
        all."""
        from actors.train.kept import KeptWorker

        ranks, index = range(len(group)) if of[1] == 0 else [of[1]], 0
        while index < whole.pieces[of]:
            post = next((post for post in whole.kept[of] if not post.is_lost), None)
            if post is None:
                raise NotKept(f"the share of {of[0]}[{of[1]}] is lost")
            piece = post.handle.piece.remote(whole.number, of, index)
            try:
                self._wait([(post, piece)], group.timeout_s)
                group.gather([group.submit(rank, KeptWorker.receive, piece) for rank in ranks], "receive", ranks=ranks)
            except (NotKept, DataLost):  # the next one may have it, too
                self._is_lost(post)
            else:
                index += 1

    def _keep_only(self, copy: int | None) -> None:
        """Let all keepers forget every other copy; does not wait."""
        for post in self._living:
            post.handle.keep_only.remote(copy)

    def _answers(self, asked: "list[tuple[_Post, ObjectRef[Any]]]", within_s: float) -> list[Any]:
        """What keepers answer, in order; raises NotKept for the first failure."""
        self._wait(asked, within_s)
        return [self._answer(post, ref) for post, ref in asked]

    def _wait(self, asked: "list[tuple[_Post, ObjectRef[Any]]]", within_s: float) -> None:
        """Until keepers have answered, or failed; raises NotKept where one does neither."""
        deadline = Countdown(within_s)
        pending = list(dict.fromkeys(ref for _, ref in asked))  # two keepers may wait for the same one
        while pending:
            within = min(_LOOK_S, deadline.left_s)
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=within, fetch_local=False)
            for post, _ in asked if pending else ():
                if post.node in self._placement.lost:
                    self._is_lost(post)
                    raise NotKept("the node of its keeper is lost")
            if pending and not deadline.left_s:
                raise NotKept(f"no answer within {within_s:g} s")

    def _answer(self, post: _Post, ref: "ObjectRef[Any]") -> Any:
        """What a keeper has answered; raises NotKept."""
        try:
            return ray.get(ref)
        except RayError as error:
            if isinstance(error, RayActorError) and error.actor_id in (None, ref.task_id().actor_id().hex()):
                self._is_lost(post)
                raise NotKept("its keeper is lost") from error
            # An argument is gone: a rank has died that was to give it.
            raise Unfinished(first_line(str(error))) from error

    def _is_lost(self, post: _Post) -> None:
        post.is_lost = True
        end_actors([post.handle])  # what a node has that was cut off is of no use any more


def nodes_of_copies(homes: Mapping[Of, str], nodes: Collection[str], own: str) -> dict[Of, tuple[str, ...]]:
    """Where the copy of each rank's state is kept, so that one node may be lost with all that is on it.

    Where some nodes have no rank of these, one of them: without it, all ranks are still there. Where every node has
    some, the rank's own and the next one: those that are left have lost no copy then. With one node, there.

    Args:
        homes: node of each rank.
        nodes: of the run, that are not lost.
        own: the driver's.

    Example: nodes_of_copies({("policy", 0): "a", ("policy", 1): "b"}, {"a", "b"}, "a")
        == {("policy", 0): ("a", "b"), ("policy", 1): ("b", "a")}
    """
    lived_in = sorted(set(homes.values()) & {*nodes})
    others = sorted({*nodes} - {*lived_in})
    found: dict[Of, tuple[str, ...]] = {}
    for of, home in homes.items():
        place = lived_in.index(home) if home in lived_in else 0
        if others:
            found[of] = (others[place % len(others)],)
        elif len(lived_in) > 1:
            found[of] = lived_in[place], lived_in[(place + 1) % len(lived_in)]
        else:
            found[of] = (own,)
    return found


def _started(node: str) -> Any:
    make: Any = ray.remote
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return make(num_cpus=0)(Keeper).options(scheduling_strategy=there).remote()
