"""What ranks read of episodes before advantages and updates: reference logprobs, old logprobs, values.

A read is a pass of a model over all episodes of a step, without gradient, which gives a field. What it finds stays with
the ranks, as references to TokenFields, one for each rank that goes on with some of it (`algorithms.division.deals`).
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import ObjectRef

from actors.group import ActorGroup, no_answer
from algorithms.division.deals import Parts, Split, Taker, hand_episodes, submit_finding
from algorithms.division.work import Sample, divide, samples_of
from algorithms.rollouts.groups import ScoredGroup

Pending = Callable[[], Parts]
"""Waits for groups that read, and gives what they have found."""
Calls = list[ObjectRef]
"""One for each rank, in order."""


class Outstanding:
    """Calls to the ranks of groups that have not ended, as far as is known."""

    def __init__(self) -> None:
        self._calls: dict[ObjectRef, tuple[ActorGroup[Any], int, str]] = {}
        """-> whose, rank, name of the method."""
        self._began = 0.0

    def add(self, ranks: ActorGroup[Any], calls: Calls, method: str) -> None:
        """Wait for one call of each rank, too."""
        self._calls |= {ref: (ranks, rank, method) for rank, ref in enumerate(calls)}
        self._began = time.monotonic()

    def begin(self) -> None:
        """Count the time of their groups from now on: what ranks had before these has ended."""
        self._began = time.monotonic()

    def look(self) -> None:
        """Note what has ended; raises GroupError where a call has failed, or is late."""
        for ranks in {id(ranks): ranks for ranks, _, _ in self._calls.values()}.values():
            for ref in ranks.ended([ref for ref, (whose, _, _) in self._calls.items() if whose is ranks]):
                _, rank, method = self._calls[ref]
                ranks.answer(rank, ref, method)
                del self._calls[ref]  # not of one that has failed: whoever waits for all hears of it, too
        for ranks, _, method in self._calls.values():
            if time.monotonic() > self._began + ranks.timeout_s:
                late = sorted(rank for whose, rank, of in self._calls.values() if (whose, of) == (ranks, method))
                raise no_answer(ranks.name, late, method, ranks.timeout_s, ranks.nodes)

    def finish(self) -> None:
        """Wait for all of them; raises GroupError."""
        while self._calls:
            ranks, _, method = next(iter(self._calls.values()))
            own = {ref: rank for ref, (whose, rank, of) in self._calls.items() if (whose, of) == (ranks, method)}
            ranks.gather(list(own), method, ranks=list(own.values()))
            self._calls = {ref: call for ref, call in self._calls.items() if ref not in own}

    @property
    def refs(self) -> list[ObjectRef]:
        """Those that have not ended."""
        return list(self._calls)

    def __bool__(self) -> bool:
        return bool(self._calls)


@dataclass(frozen=True, kw_only=True)
class ReadPass:
    """A field that the ranks of a group read."""

    field: str
    group: str
    """Its name in the roster."""
    method: Callable[..., object]
    """Of a rank; see `ReferenceWorker.logprobs`."""
    micro_batch_tokens: int
    options: tuple[object, ...] = ()
    """Further arguments of the method."""


def begin_reading(
    what: ReadPass,
    ranks: ActorGroup[Any],
    groups: Sequence[ScoredGroup],
    numbers: Collection[int],
    split: Split,
    takers: Sequence[Taker],
) -> tuple[Calls, Parts]:
    """Let ranks begin to read the episodes of those of a step's `groups` that have these `numbers`, for `takers`."""
    work = divide([_samples(groups, numbers)], len(ranks), what.micro_batch_tokens)
    calls = []
    for rank, (share, (held, episodes)) in enumerate(zip(work, hand_episodes(groups, work, split), strict=True)):
        plan = [[(number, index) for number, index, _ in batch] for batch in share.plans[0]]
        arguments, fields = (plan, held, *what.options, *episodes), [what.field]
        calls.append(
            submit_finding(ranks, rank, what.method, *arguments, fields=fields, places=share.places, takers=takers)
        )
    return [told for told, _ in calls], sum((parts for _, parts in calls), Parts())


def begin_keeping(
    what: ReadPass, ranks: ActorGroup[Any], groups: Sequence[ScoredGroup], first: int, split: Split
) -> tuple[Calls, list[dict[int, list[int]]]]:
    """Let ranks begin to read episodes, and keep what they find until `Worker.hand_kept` asks for it.

    `first`: key of the first of the `groups`; the others count on from it. Returns also what each rank reads: number in
    `groups` -> episodes.
    """
    work = divide([_samples(groups, range(len(groups)))], len(ranks), what.micro_batch_tokens)
    calls, nobody = [], None
    for rank, (share, (held, episodes)) in enumerate(zip(work, hand_episodes(groups, work, split), strict=True)):
        plan = [[(first + number, index) for number, index, _ in batch] for batch in share.plans[0]]
        keys = [(first + number, indices) for number, indices in held]
        calls.append(ranks.submit(rank, what.method, nobody, plan, keys, *what.options, *episodes))
    return calls, [share.held for share in work]


def _samples(groups: Sequence[ScoredGroup], numbers: Collection[int]) -> list[Sample]:
    # Advantages come later, and nothing here reads them.
    found = samples_of(groups, [np.zeros(len(each.infos)) for each in groups])
    return found if len(numbers) == len(groups) else [each for each in found if each.group in numbers]
