"""What rollouts promise whatever engines do: how old samples are; each prompt is trained on once, and none is lost.

The engines are in virtual time (`benchmarks.virtual`), up to 64, of random speeds.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.episodes import Prompt
from actors.rollout.types import Request, Sampling
from algorithms.rollouts.discards import LeftOut
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from algorithms.rollouts.tail import Tail
from benchmarks.lengths import Lengths
from benchmarks.virtual import Speed, VirtualEngines

SLOWEST_S = 0.05
"""Of a token that no other sample makes slower."""
MARK = -7
"""Last token of prompts that are trained on."""
HELD_OUT = [Prompt(index=-1 - number, token_ids=[number], text="", row={}) for number in range(3)]


@dataclass
class Reads:
    """What is ready, by what those hear who read it: each group comes once, and goes once if it is not trained on."""

    ready: dict[int, ScoredGroup] = field(default_factory=dict)
    """By id()."""
    certain: set[int] = field(default_factory=set)
    """Those of them that the step that is waited for trains on."""
    busy: bool = False

    def submit(self, group: ScoredGroup, *, certain: bool) -> None:
        assert group.prompt.index >= 0, "one of an evaluation is not read"
        assert self.ready.setdefault(id(group), group) is group
        if certain:
            self.certain.add(id(group))

    def forget(self, group: ScoredGroup) -> None:
        assert id(group) not in self.certain
        del self.ready[id(group)]

    def send(self) -> None:
        pass

    def refs(self) -> list[Any]:
        return []


@dataclass
class Trainer:
    """Trains on what rollouts give, and checks it."""

    engines: VirtualEngines
    groups: int
    samples: int
    staleness: int
    starts: int
    tail: Tail | None = None
    version: int = 0
    at_once: bool = False
    """Whether every sample has a token before the step ends in which its engine gets it."""
    waits: bool = False
    """Whether steps wait for what would be too old, instead of letting it start again."""
    most_each: int | None = None
    """Samples with which an engine has enough."""
    most_step: int | None = None
    """Tokens of a response that one version samples before it is held."""
    held: int = 0
    """Responses that were."""
    drawn: dict[int, int] = field(default_factory=dict)
    """Row -> version of the policy when it was drawn."""
    started: Counter[int] = field(default_factory=Counter)
    """Row -> how often an engine got it."""
    most_waiting: int = 0
    """Most prompts at one time that were drawn, and neither trained on nor left out."""
    trained: list[int] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    reads: Reads = field(default_factory=Reads)

    def __post_init__(self) -> None:
        self.engines.heard = self._count
        self.rollouts = Rollouts(
            self.engines,
            None,
            self._prompts(),
            Sampling(samples=self.samples, temperature=1.0, max_tokens=400, max_step_tokens=self.most_step),
            Limits(silence_s=1e9, starts=self.starts),
            groups_per_step=self.groups,
            max_staleness=self.staleness,
            tail=self.tail,
            most_each=self.most_each,
            waits=self.waits,
            clock=self.engines.clock,
            reads=self.reads,
        )
        self.engines.watch(self.rollouts)

    def step(self, train_s: float, evaluates: bool) -> None:
        """One, with an evaluation before its publish or without."""
        taken = self.rollouts.take(self.groups, self.version, seed=self.version)
        assert len(taken) == self.groups
        assert self.reads.certain == (set() if self.staleness else set(map(id, taken)))
        self.reads.certain.clear()
        for group in taken:
            self._check(group)
            self.reads.forget(group)
        self.trained += [group.prompt.index for group in taken]
        self.engines.train(train_s)
        if evaluates:
            sampling = Sampling(samples=2, temperature=1.0, max_tokens=50)
            found, failures = self.rollouts.evaluate(HELD_OUT, sampling, seed=None)
            assert [group.prompt.index for group in found] == [-1, -2, -3] and not failures.samples
        self.version += 1
        self.engines.use(self.version)
        self.rollouts.published(self.version)
        discards = self.rollouts.report()[1]
        self.left_out += discards.left_out
        self.held += discards.held or 0

    def check_all(self) -> None:
        """After the last step: every prompt that was drawn is in one place."""
        self.rollouts.close()
        lane = self.rollouts.training
        places = [*self.trained, *(each.prompt.index for each in self.left_out)]
        places += [each.prompt.index for each in lane.ready.values()]
        places += [each.prompt.index for each in self.rollouts._flow.of(lane)]
        places += [each.prompt.index for each in lane.again]
        assert {*lane.held} <= {*self.rollouts._flow.of(lane)}
        places += [each.index for each in self.tail.postponed] if self.tail else []
        assert sorted(places) == sorted(self.drawn), "none is lost, none is twice anywhere"
        assert set(self.drawn) == set(range(len(self.drawn)))
        assert self.reads.ready.keys() == set(map(id, lane.ready.values())), "nobody reads what is not trained on"
        assert not self.waits or (not lane.stale and not self.left_out), "what is waited for is never too old"
        assert self.tail or max(self.started.values()) <= self.starts
        if self.tail:
            assert self.engines.most_open <= self.groups + ceil(self.tail.share * self.groups) + len(HELD_OUT)
        else:
            assert self.most_waiting <= (self.staleness + 1) * self.groups

    def _count(self, request: Request) -> None:
        if request.token_ids[-1] == MARK:
            self.started[request.token_ids[0]] += 1

    def _prompts(self) -> Iterator[Prompt]:
        for number in count():
            self.drawn[number] = self.version
            gone = len(self.trained) + len(self.left_out) + len(self.rollouts.training.discards.left_out)
            self.most_waiting = max(self.most_waiting, len(self.drawn) - gone)
            yield Prompt(index=number, token_ids=[number, MARK], text="", row={})

    def _check(self, group: ScoredGroup) -> None:
        spans: Any = group.rollouts  # in place of a reference
        for info, own in zip(group.infos, spans, strict=True):
            assert info.sampled_tokens == own[-1].end and own[0].start == 0
            assert [span.end for span in own[:-1]] == [span.start for span in own[1:]]
            assert info.oldest_version == own[0].version
            assert 0 <= self.version - own[0].version <= self.staleness
        waited = self.version - self.drawn[group.prompt.index]
        # One without a token is not too old. Where it waits for a slot of one engine, it does so as long as that takes;
        # where for the first that any has, no longer than others take that were there before.
        if not self.tail and self.at_once:
            queued = 0 if self.most_each is None else self.starts * (self.staleness + 1)
            assert waited <= self.staleness + (self.starts - 1) * (self.staleness + 1) + queued


def engines_of(random_: random.Random, engines: int, at_once: bool) -> VirtualEngines:
    speeds = [
        Speed(
            step_s=random_.choice([0.002, 0.01, SLOWEST_S]),
            sample_s=0.0 if at_once else random_.choice([0.0, 1e-4, 2e-3]),
            slots=10**6 if at_once else random_.randint(1, 40),
        )
        for _ in range(engines)
    ]
    sigma = random_.choice([0.0, 0.7, 1.5])
    return VirtualEngines(speeds, Lengths.lognormal(median=30, sigma=sigma, seed=random_.randrange(2**20)))


def trained(
    draw: int, engines: int, groups: int, samples: int, staleness: int, starts: int, tail: Tail | None = None
) -> Trainer:
    """After some steps of random length."""
    random_ = random.Random(draw)
    at_once = random_.random() < 0.5
    most_each = random_.choice([None, 1, 2, 9]) if staleness else None
    made = engines_of(random_, engines, at_once)
    waits = staleness > 0 and random_.random() < 0.5
    # What is held waits on purpose, so that more versions may pass before it has its first token.
    most_step = random_.choice([None, 1, 7, 40, 150]) if staleness else None
    more = {"at_once": at_once and most_step is None, "most_each": most_each, "waits": waits, "most_step": most_step}
    trainer = Trainer(made, groups, samples, staleness, starts, tail, **more)
    evaluates, train_s = random_.choice([0, 2, 3]), random_.choice([0.0, 0.1, 1.0, 10.0])
    for number in range(2 * staleness + 5):
        trainer.step(at_once * SLOWEST_S + train_s * random_.random(), evaluates > 0 and number % evaluates == 0)
    trainer.check_all()
    return trainer


@settings(max_examples=100, deadline=None)
@given(
    staleness=st.integers(0, 8),
    engines=st.integers(1, 64),
    groups=st.integers(1, 64),
    samples=st.integers(1, 4),
    starts=st.integers(1, 3),
    draw=st.integers(0, 2**20),
)
def test_no_sample_is_too_old_none_comes_twice_none_is_lost_and_no_more_start_than_may(
    staleness: int, engines: int, groups: int, samples: int, starts: int, draw: int
) -> None:
    """At each update no token is more than `staleness` versions old; each prompt that was drawn is trained on once, or
    waits, or is named as left out; (staleness + 1) steps' groups are there at most; none starts more often than
    `starts`, and where engines begin at once, none waits longer than that allows. With responses that are held, or
    without."""
    trained(draw, engines, groups, samples, staleness, starts)


@settings(max_examples=30, deadline=None)
@given(
    engines=st.integers(1, 64),
    groups=st.integers(1, 64),
    samples=st.integers(1, 4),
    share=st.sampled_from([0.1, 0.25, 1.0]),
    draw=st.integers(0, 2**20),
)
def test_tail_batching_keeps_the_promises_on_policy(
    engines: int, groups: int, samples: int, share: float, draw: int
) -> None:
    trainer = trained(draw, engines, groups, samples, 0, 1, Tail(share, lambda: None, None))
    assert not trainer.left_out


def test_bounds_are_reached() -> None:
    """Else the properties above would hold of rollouts that never run ahead."""
    found = [trained(draw, 8, 16, 2, staleness, 2) for draw in range(12) for staleness in (2, 4)]
    assert any(each.left_out for each in found)
    assert any(each.most_waiting == (each.staleness + 1) * each.groups for each in found)
    assert any(each.held > each.groups * each.samples for each in found)
