"""Reads of finished groups while others are generated (`algorithm.overlap_reads`): no barrier after the rollout.

    rollouts --group is ready--> waits --all that wait, in one call per rank--> ranks read and keep
    loop     --a step's groups--> ranks hand out what they keep, and read the rest

A rank keeps what it has read, as nobody knows who goes on with it before the step's samples are dealt; then it hands
out the same objects as if it had read just now. On-policy, models that learn are read too: they are at rest from one
step's update to the next, and reads are sent only while the loop waits for a step's groups. Beside updates only what
is frozen is read, at any time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Lock
from typing import Any

from ray import ObjectRef

from actors.group import ActorGroup
from actors.train.worker import Worker
from algorithms.division.deals import Episodes, Parts, Split, Taker, submit_finding
from algorithms.rl.read_passes import Calls, Outstanding, Pending, ReadPass, begin_keeping, begin_reading
from algorithms.rollouts.groups import ScoredGroup


@dataclass(frozen=True, slots=True)
class _Kept:
    """A group that ranks have been told to read."""

    key: int
    """Under which they keep it."""
    ranks: dict[int, list[int]]
    """Rank -> which episodes it reads."""


class _Reader:
    """One field, and who reads it."""

    def __init__(self, what: ReadPass) -> None:
        self.what = what
        self.waiting: dict[Episodes, ScoredGroup] = {}
        """By the reference to the responses, which a group has from its end on."""
        self.kept: dict[Episodes, _Kept] = {}
        self.calls: list[Calls] = []
        """What ranks have to do, before they get more."""
        self.pending = Outstanding()
        """Those of it that have not ended."""

    def send(self, ranks: ActorGroup[Any], keys: Iterator[int], split: Split) -> None:
        """Give the ranks all that waits, if they have nothing to do. Raises GroupError."""
        self.pending.look()
        if self.pending or not self.waiting:
            return
        groups, self.waiting = list(self.waiting.values()), {}
        own = [next(keys) for _ in groups]
        calls, shares = begin_keeping(self.what, ranks, groups, own[0], split)
        for number, group in enumerate(groups):
            reads = {rank: share[number] for rank, share in enumerate(shares) if number in share}
            self.kept[group.rollouts] = _Kept(own[number], reads)
        self.calls = []
        self._await(ranks, calls)

    def read(
        self, ranks: ActorGroup[Any], groups: Sequence[ScoredGroup], split: Split, takers: Sequence[Taker]
    ) -> Pending:
        """Let the ranks hand out what they keep of a step's groups, and read the others."""
        before = self.calls
        kept = {n: self.kept.pop(each.rollouts) for n, each in enumerate(groups) if each.rollouts in self.kept}
        for group in groups:
            self.waiting.pop(group.rollouts, None)
        late = [number for number in range(len(groups)) if number not in kept]
        found, self.calls = Parts(), []
        if kept:
            calls, found = self._hand_out(ranks, kept, takers)
            self._await(ranks, calls)
        if late:
            calls, parts = begin_reading(self.what, ranks, groups, late, split, takers)
            self._await(ranks, calls)
            found += parts
        return partial(_found, self.what, ranks, [*before, *self.calls], found)

    def _hand_out(
        self, ranks: ActorGroup[Any], kept: Mapping[int, _Kept], takers: Sequence[Taker]
    ) -> tuple[Calls, Parts]:
        later, calls = [each.key for each in self.kept.values()], []
        for rank in range(len(ranks)):
            own = {number: each.ranks[rank] for number, each in kept.items() if rank in each.ranks}
            arguments = (self.what.field, {kept[number].key: number for number in own}, later)
            places = [(number, index) for number, indices in own.items() for index in indices]
            fields = [self.what.field]
            calls.append(
                submit_finding(ranks, rank, Worker.hand_kept, *arguments, fields=fields, places=places, takers=takers)
            )
        return [told for told, _ in calls], sum((parts for _, parts in calls), Parts())

    def _await(self, ranks: ActorGroup[Any], calls: Calls) -> None:
        self.calls.append(calls)
        self.pending.add(ranks, calls, self.what.method.__name__)


class OverlappedReads:
    """What is read beside rollouts: the thread of the rollouts sends it, the loop asks for what was found.

    All calls of a reading group's ranks that may meet those of the thread are made here, with a lock: every rank gets
    them in the same order, as what ranks do together needs it.
    """

    def __init__(
        self,
        roster: Mapping[str, ActorGroup[Any]],
        split: Split,
        fields: frozenset[str] = frozenset(),
        *,
        beside_updates: bool = False,
    ) -> None:
        """
        Args:
            roster: has the groups that read, looked up at every use.
            split: splits groups of episodes that a deal divides.
            fields: that may be read beside rollouts; the others are read when the loop asks for them.
            beside_updates: whether groups are ready, and read, also while the policy learns: `fields` must then be of
                models that stay as they are.
        """
        self._roster = roster
        self._split = split
        self._fields = fields
        self._beside_updates = beside_updates
        self._readers: dict[str, _Reader] = {}
        """By field."""
        self._open = False
        """Whether what waits may be sent."""
        self._lock = Lock()
        self._keys = count()

    @contextmanager
    def overlapping(self, passes: Sequence[ReadPass]) -> Iterator[None]:
        """While the loop waits for groups of a step that has these passes."""
        asked = {each.field: each for each in passes if each.field in self._fields}
        with self._lock:
            # Of models that have learned since, nothing is of any use; of those that are frozen, all is.
            known = self._readers if self._beside_updates else {}
            self._readers = {name: known.get(name) or _Reader(each) for name, each in asked.items()}
            self._open = True
        try:
            yield
        finally:
            with self._lock:
                self._open = self._beside_updates

    def submit(self, group: ScoredGroup, *, certain: bool) -> None:
        """Take a group that is ready for training; one that is not `certain` to be trained on may be read in vain."""
        with self._lock:
            for reader in self._readers.values() if self._open else ():
                reader.waiting[group.rollouts] = group

    def forget(self, group: ScoredGroup) -> None:
        """A group is not trained on."""
        with self._lock:
            for reader in self._readers.values():
                reader.waiting.pop(group.rollouts, None)
                reader.kept.pop(group.rollouts, None)  # ranks hear of it when they hand out something

    def forget_all(self) -> None:
        """Ranks that had read something are new: groups are read when the loop asks for it."""
        with self._lock:
            self._readers = {name: _Reader(reader.what) for name, reader in self._readers.items()}

    @property
    def busy(self) -> bool:
        """Whether anything is to be sent, or waited for."""
        with self._lock:
            return self._open and any(reader.waiting or reader.pending for reader in self._readers.values())

    def send(self) -> None:
        """Let groups that have nothing to do read what waits. May wait for engines, which split groups for ranks.
        Raises GroupError."""
        with self._lock:
            for reader in self._readers.values() if self._open else ():
                reader.send(self._roster[reader.what.group], self._keys, self._split)

    def refs(self) -> list[ObjectRef]:
        """What is waited for."""
        with self._lock:
            return [ref for reader in self._readers.values() for ref in reader.pending.refs] if self._open else []

    def read(self, what: ReadPass, groups: Sequence[ScoredGroup], takers: Sequence[Taker]) -> Pending:
        """Let a group go on to read all episodes of a step; see `begin_reading`. Returns what waits for it."""
        ranks = self._roster[what.group]
        with self._lock:
            if reader := self._readers.get(what.field):
                return reader.read(ranks, groups, self._split, takers)
            calls, found = begin_reading(what, ranks, groups, range(len(groups)), self._split, takers)
            return partial(_found, what, ranks, [calls], found)


def _found(what: ReadPass, ranks: ActorGroup[Any], calls: Sequence[Calls], found: Parts) -> Parts:
    """What ranks have found, once they are through with all `calls`; raises GroupError."""
    for each in calls:
        ranks.gather(each, what.method.__name__)  # the fields themselves stay there
    return found
