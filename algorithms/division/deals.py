"""Who gets what: every rank the episodes and fields of its own samples, and no others.

    episodes -> read (reference, policy, critic) -> fields -> estimate -> fields -> update

Each stage deals the samples to its ranks anew, as what they cost differs from stage to stage: an update leaves out
those without advantage. Whoever takes fields is known before they are computed, as a deal depends on nothing but
lengths and scores. So a rank that computes fields returns one object for each rank that goes on with some of them, of
just its samples. Episodes come from the engines a group at a time; one that a deal divides is split where it is, unless
that spares the ranks few tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import ObjectRef

from actors.episodes import Episode, Place, TokenFields
from actors.group import ActorGroup
from actors.group_errors import RankLost
from actors.train.worker import Held, Share, Totals
from algorithms.division.work import RankWork
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.membership import Membership

Episodes = ObjectRef[list[Episode]]
Split = Callable[[list[tuple[Episodes, list[list[int]]]]], list[list[Episodes]]]
"""(per group: reference to list[Episode], the numbers of the episodes of each share) -> per group: a reference to each
share."""

_SPARE = 1.05
"""Tokens that a rank may get for one that it needs: a group is split where it holds more that is not for this rank."""
_FEW_TOKENS = 16_384
"""So many a step it may get in any case: 128 KiB, which no network takes as long for as engines for a split."""


@dataclass(frozen=True, kw_only=True)
class Taker:
    """A stage that goes on with fields that others compute."""

    name: str
    fields: frozenset[str]
    """What it reads."""
    ranks: dict[Place, list[int]]
    """Which of its ranks need those of an episode."""

    @classmethod
    def of(cls, name: str, fields: Iterable[str], places: Sequence[Iterable[Place]]) -> "Taker":
        """A stage whose ranks work on these `places` each."""
        ranks: dict[Place, list[int]] = {}
        for rank, own in enumerate(places):
            for place in own:
                ranks.setdefault(place, []).append(rank)
        return cls(name=name, fields=frozenset(fields), ranks=ranks)

    def shares(self, found: Iterable[Place]) -> dict[int, list[Place]]:
        """Rank -> which of the episodes `found` by a rank of another stage it needs; of the ranks that need one."""
        shares: dict[int, list[Place]] = {}
        for place in found:
            for rank in self.ranks.get(place, ()):
                shares.setdefault(rank, []).append(place)
        return shares


@dataclass(frozen=True)
class Parts:
    """References to TokenFields, by the stage and the rank that go on with them."""

    references: dict[tuple[str, int], list[ObjectRef[TokenFields]]] = field(default_factory=dict)

    def of(self, taker: Taker, rank: int) -> list[ObjectRef[TokenFields]]:
        """What a rank of a stage gets."""
        return self.references.get((taker.name, rank), [])

    def __add__(self, other: "Parts") -> "Parts":
        both = [*self.references, *other.references]
        return Parts({key: [*self.references.get(key, []), *other.references.get(key, [])] for key in both})


@dataclass(frozen=True, kw_only=True)
class Updates:
    """The optimizer updates that a group will make in a step."""

    group: ActorGroup[Any]
    name: str
    """policy or critic."""
    totals: list[Totals]
    """Of each update."""
    work: list[RankWork]
    """Of each rank."""
    taker: Taker

    @classmethod
    def of(
        cls, group: ActorGroup[Any], name: str, totals: list[Totals], work: list[RankWork], fields: Iterable[str]
    ) -> "Updates":
        """Updates whose loss reads `fields`."""
        taker = Taker.of(name, fields, [share.places for share in work])
        return cls(group=group, name=name, totals=totals, work=work, taker=taker)


def submit_finding(
    group: ActorGroup[Any],
    rank: int,
    method: Callable[..., object],
    *arguments: object,
    fields: Iterable[str],
    places: Iterable[Place],
    takers: Sequence[Taker],
) -> tuple[Any, Parts]:
    """Let a rank compute `fields` at `places`; returns references to what it tells and to what each taker gets.

    `method` gets the list of shares, then `arguments`.
    """
    found, owners, shares = list(places), list[tuple[str, int]](), list[Share]()
    for taker in takers:
        if names := sorted(taker.fields.intersection(fields)):  # a set has another order in every process
            for to, own in taker.shares(found).items():
                owners.append((taker.name, to))
                shares.append((names, own))
    # An object for each: a rank fetches its own samples only, and each is gone when its rank has used it.
    answer = group.submit(rank, method, shares, *arguments, num_returns=1 + len(shares))
    told, *references = answer if shares else [answer]
    return told, Parts({owner: [part] for owner, part in zip(owners, references, strict=True)})


def hand_episodes(
    groups: Sequence[ScoredGroup], work: Sequence[RankWork], split: Split
) -> list[tuple[Held, list[Episodes]]]:
    """For every rank: which episodes it gets, and references to lists of them."""
    held: list[dict[int, list[int]]] = [share.held for share in work]
    divided: dict[int, list[int]] = {}
    for rank, own in enumerate(held):
        needed = {number: sum(groups[number].infos[index].tokens for index in own[number]) for number in own}
        whole = {number: sum(info.tokens for info in groups[number].infos) for number in own}
        few = sum(whole.values()) - sum(needed.values()) <= _FEW_TOKENS
        for number in own:
            # Splitting is a call and a copy: for a few tokens less it does not pay.
            if few or needed[number] * _SPARE >= whole[number]:
                own[number] = list(range(len(groups[number].infos)))  # of what is handed over as a whole, all of it
            else:
                divided.setdefault(number, []).append(rank)
    asked = [(groups[number].rollouts, [held[rank][number] for rank in ranks]) for number, ranks in divided.items()]
    shares = split(asked) if asked else []
    parts = {
        (number, rank): part
        for (number, ranks), own in zip(divided.items(), shares, strict=True)
        for rank, part in zip(ranks, own, strict=True)
    }
    return [
        (list(own.items()), [parts.get((number, rank), groups[number].rollouts) for number in own])
        for rank, own in enumerate(held)
    ]


def split_by(
    engines: ActorGroup[Any], method: Callable[..., object], members: Membership, restart_s: float = 0.0
) -> Split:
    """Lets rollout engines split groups, each some of them; the wait for that has the engines' deadline. What one was
    to split that is lost, others split; where there is none, one is waited for up to `restart_s` seconds."""

    def split(asked: list[tuple[Episodes, list[list[int]]]]) -> list[list[Episodes]]:
        while True:
            there, losses = members.wait_for_one(restart_s)
            try:
                return _split(engines, method, there, asked)
            except RankLost as error:
                generation = members.generation(error.rank)
                if members.losses[error.rank] == losses[error.rank]:  # else that is known
                    members.lose(error.rank, error, generation)

    return split


def _split(
    engines: ActorGroup[Any],
    method: Callable[..., object],
    there: Sequence[int],
    asked: list[tuple[Episodes, list[list[int]]]],
) -> list[list[Episodes]]:
    parts: list[list[Episodes]] = [[] for _ in asked]
    told = []
    # All at one time: any engine can split any group, wherever it was sampled.
    ranks = there[: len(asked)]
    for place, engine in enumerate(ranks):
        own = range(place, len(asked), len(ranks))
        shares, groups = [asked[number][1] for number in own], [asked[number][0] for number in own]
        count = 1 + sum(map(len, shares))
        first, *others = engines.submit(engine, method, shares, *groups, num_returns=count)
        told.append(first)
        for number, of_group in zip(own, shares, strict=True):
            parts[number], others = others[: len(of_group)], others[len(of_group) :]
    # The first object of each call comes with the others: who waits for it hears of a failure.
    engines.gather(told, "split", ranks=ranks)
    return parts
