"""The groups of one purpose, training or an evaluation: from prompts that may start to groups that can be taken."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from ray import ObjectRef

from actors.episodes import Episode, Prompt
from actors.rollout.types import RolloutInfo, Sampling
from algorithms.rewards.scores import Score
from algorithms.rollouts.admission import capacity
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup

_SHOW_S = 0.1
"""Seconds between two looks of whoever waits for groups, as long as there are too few."""


@dataclass(slots=True)
class Running:
    """A group on an engine, or being scored."""

    id: int
    """Of its request."""
    order: int
    """Of its prompt, among all that were drawn."""
    lane: "Lane"
    prompt: Prompt
    engine: int
    given: float
    """When its engine got the prompt, by the clock."""
    attempts: int = 1
    """Engines that have had it."""
    infos: list[RolloutInfo] = field(default_factory=list)
    rollouts: ObjectRef[list[Episode]] | None = None

    def scored(self, scores: list[Score]) -> ScoredGroup:
        """The finished group."""
        assert self.rollouts is not None, "they are collected before they are scored"
        return ScoredGroup(prompt=self.prompt, rollouts=self.rollouts, infos=self.infos, scores=scores)


class Lane:
    """Counts what has been asked for, is on its way, is ready and has been taken."""

    def __init__(self, prompts: Iterator[Prompt], sampling: Sampling, failures: Failures, *, ahead: int = 0) -> None:
        """`ahead`: groups that may be made before somebody asks for them."""
        self.sampling = sampling
        self.failures = failures
        self.ahead = ahead
        self.asked = 0
        self.samples_asked = 0
        """Samples of the step, which failures are a share of."""
        self.seed: int | None = None
        """For the next prompts that start; each engine starts its sampler anew from it."""
        self.on_the_way = 0
        self.ready: dict[int, ScoredGroup] = {}
        """By the order in which their prompts were drawn."""
        self.taken = 0
        self.stale = 0
        """Groups that were too old to be trained on, and were left out."""
        self.ended = False
        """No prompt is left."""
        self._prompts = prompts
        self._looked_for: int | None = None
        """Version that `drop_older_than` was asked for last."""
        self._not_looked_at: list[int] = []
        """Of those that are ready: since then."""

    @property
    def room(self) -> int:
        """How many prompts may start now."""
        waiting = self.on_the_way + len(self.ready)
        return 0 if self.ended else max(0, capacity(self.asked, self.ahead, self.taken, waiting))

    def draw(self) -> list[Prompt]:
        """The prompts that may start now."""
        room = self.room
        drawn = list(islice(self._prompts, room))
        self.ended = len(drawn) < room  # only an iterator that has ended gives fewer
        self.on_the_way += len(drawn)
        return drawn

    def accept(self, order: int, group: ScoredGroup) -> None:
        """A group is no longer on its way, but ready."""
        self.on_the_way -= 1
        self.ready[order] = group
        self._not_looked_at.append(order)

    def can_give(self, groups: int) -> bool:
        """Whether so many are ready, or as many as there will ever be."""
        return len(self.ready) >= groups or (self.ended and not self.on_the_way)

    def take(self, groups: int) -> list[ScoredGroup]:
        """The first of those that are ready, at most so many."""
        # In the order of their prompts: by when they ended, steps would be of short responses first.
        numbers = sorted(self.ready)[:groups]
        self.taken += len(numbers)
        return [self.ready.pop(number) for number in numbers]

    def give_back(self, groups: list[ScoredGroup], again: list[Prompt], taken: int) -> None:
        """Go on from what a lane before has had: groups that are ready, and prompts that are to start before others."""
        # Below 0, and so before all that are drawn from now on.
        self.ready = {order - len(groups): group for order, group in enumerate(groups)}
        self._looked_for = None
        self._prompts = chain(again, self._prompts)
        self.taken = taken
        # What was asked for was given; what is ready, or was running, has been made ahead.
        self.asked = taken

    def drop_older_than(self, version: int) -> None:
        """Leave out ready groups of which a token was sampled by weights older than this."""
        # Asked after every event: those that were young enough for this version still are.
        new = [number for number in self._not_looked_at if number in self.ready]
        for number in new if version == self._looked_for else list(self.ready):
            oldest = self.ready[number].oldest_version
            if oldest is not None and oldest < version:
                del self.ready[number]
                self.stale += 1
        self._looked_for, self._not_looked_at = version, []


@dataclass(slots=True)
class Wanted:
    """What somebody waits for."""

    lane: Lane
    groups: int
    least: int | None
    """Oldest version that they may have; None: any."""
    _shown: float = 0.0

    def drop_older(self) -> None:
        """Leave out what is too old."""
        if self.least is not None:
            self.lane.drop_older_than(self.least)

    def is_news(self) -> bool:
        """Whether to wake who waits: all is there, or no progress has been shown for a while."""
        # After every group, waking would take as long as all else that is done for it.
        now = time.monotonic()
        if now < self._shown + _SHOW_S and not self.lane.can_give(self.groups):
            return False
        self._shown = now
        return True
