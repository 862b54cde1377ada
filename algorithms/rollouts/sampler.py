"""From prompts to scored groups: dispatch to the least loaded engine, score as groups finish, replace what failed.

    prompts --admit--> engines --infos--> reward pool --scores--> groups
                 ^---------- failed groups are replaced ----------'

No barrier inside a step: a group is scored while others are still being generated. The driver sees lengths, statuses
and rewards; tokens stay behind object references.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import ray

from actors.batch import Prompt
from actors.group import ActorGroup, GroupError
from actors.rollout.types import RolloutInfo, Sampling
from algorithms.rewards.pool import RewardPool
from algorithms.rewards.scores import Score, empty_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """All responses to one prompt, with their rewards."""

    prompt: Prompt
    rollouts: Any
    """Reference to list[Episode]."""
    infos: list[RolloutInfo]
    scores: list[Score]

    @property
    def rewards(self) -> np.ndarray:
        """float64 [N]"""
        return np.array([score.reward for score in self.scores])

    @property
    def compared(self) -> np.ndarray:
        """What says whether the responses differ: the rewards as they are, float64 [N]."""
        return self.rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapedGroup(ScoredGroup):
    """A group with what advantages are computed from: what decides about it is what trains."""

    shaped: np.ndarray
    """Rewards normalised, clipped and less penalties for length, float64 [N]."""
    counted: np.ndarray
    """Whether the loss counts the response, bool [N]."""

    @property
    def compared(self) -> np.ndarray:
        """The scores that are compared with each other: of the responses that the loss counts, float64 [up to N]."""
        return self.shaped[self.counted]


@dataclass(slots=True)
class _Running:
    number: int
    prompt: Prompt
    engine: int
    rollouts: Any
    infos: list[RolloutInfo]
    given: float
    """When its engine got the prompt, by `time.monotonic`."""


def capacity(max_staleness: int, version: int, groups_per_step: int, accepted: int, running: int) -> int:
    """How many more groups may start now so that none is ever older than `max_staleness` versions when trained on.

    (max_staleness + version + 1) x groups_per_step - (accepted + running), as in arXiv 2505.24298; `version` is the
    number of steps trained. With max_staleness 0 exactly one step's groups run at a time: on-policy.
    """
    return (max_staleness + version + 1) * groups_per_step - (accepted + running)


class Sampler:
    """Keeps the engines and the reward pool busy until a step's groups are complete."""

    def __init__(
        self,
        rollout: ActorGroup[Any],
        start: Callable[..., Any],
        generated: Callable[..., Any],
        pool: RewardPool | None,
        *,
        max_failed: float,
        max_staleness: int,
        prompt_timeout_s: float | None = None,
    ) -> None:
        self.rollout = rollout
        self.start = start
        self.generated = generated
        self.pool = pool
        self.max_failed = max_failed
        self.max_staleness = max_staleness
        self.prompt_timeout_s = prompt_timeout_s
        self.failed = 0
        self._unfinished = 0
        """Of `failed`, those that the engines did not finish."""
        self._asked = 0
        """Samples of the step that failures are a share of."""
        self._load = [0] * len(rollout)
        self._starting: dict[Any, int] = {}
        self._heard = [0.0] * len(rollout)

    def collect(
        self,
        prompts: Iterator[Prompt],
        count: int,
        sampling: Sampling,
        seed: int,
        *,
        step_samples: int | None = None,
        goes_on: bool = False,
        told: Callable[[int], None] | None = None,
    ) -> list[ScoredGroup]:
        """Complete groups, in the order in which their prompts were drawn; `seed` decides what is sampled.

        Failures, of engines and rewards together, are compared with `step_samples` (default: the samples asked for);
        `goes_on` says that this is a further part of the same step, whose failures so far count, and its samples too;
        `told` hears how many groups are complete.
        A group with a failed rollout or reward is replaced by that of the next prompt, so there are `count` groups
        unless the prompts end first. Raises RewardFailure when too many samples fail, GroupError when an engine dies or
        is silent beyond its deadline.
        """
        self._asked = self._asked + count * sampling.samples if goes_on else step_samples or count * sampling.samples
        samples = self._asked
        if not goes_on:
            self.failed = self._unfinished = 0
            if self.pool:
                self.pool.begin_step()
        self._heard = [time.monotonic()] * len(self.rollout)
        running: dict[Any, _Running] = {}
        scoring: dict[int, _Running] = {}
        done: dict[int, ScoredGroup] = {}
        numbered = enumerate(prompts)
        first: int | None = seed
        while True:
            may_start = capacity(self.max_staleness, 0, count, len(done), len(running) + len(scoring))
            self._start(running, list(islice(numbered, may_start)), sampling, first)
            first = None
            if not running and not scoring:
                return [done[number] for number in sorted(done)]
            self._receive(running, scoring, samples)
            for group, scores in self._answers(scoring):
                if all(score.status != "failed" for score in scores):
                    done[group.number] = _scored(group, scores)
                elif self.pool:
                    self.failed += sum(score.status == "failed" for score in scores)
                    self.pool.check_failures(samples, beside=self._unfinished)
            if told:
                told(len(done))

    @property
    def errors(self) -> list[str]:
        """Why samples of the last collection could not be scored, a line for each of the first few causes."""
        return self.pool.errors if self.pool else []

    def _answers(self, scoring: dict[int, _Running]) -> Iterator[tuple[_Running, list[Score]]]:
        """Groups that the pool has scored; without a pool all of them, with nothing said yet."""
        if self.pool:
            for ticket, scores in self.pool.ready(0):
                yield scoring.pop(ticket), scores
            return
        for number in list(scoring):
            group = scoring.pop(number)
            yield group, empty_scores(len(group.infos))

    def _start(
        self, running: dict[Any, _Running], prompts: list[tuple[int, Prompt]], sampling: Sampling, seed: int | None
    ) -> None:
        """Give each prompt to the engine with the least to do; an engine gets its share in one call."""
        shares: list[list[tuple[int, Prompt]]] = [[] for _ in range(len(self.rollout))]
        for number, prompt in prompts:
            engine = self._load.index(min(self._load))
            self._load[engine] += 1
            shares[engine].append((number, prompt))
        for engine, share in enumerate(shares):
            if not share:
                continue
            tokens = [(number, prompt.token_ids) for number, prompt in share]
            own_seed = None if seed is None else seed + engine
            self._starting[self.rollout.submit(engine, self.start, tokens, sampling, own_seed)] = engine
            for number, prompt in share:
                infos, rollouts = self.rollout.submit(engine, self.generated, number, num_returns=2)
                running[infos] = _Running(
                    number=number, prompt=prompt, engine=engine, rollouts=rollouts, infos=[], given=time.monotonic()
                )

    def _receive(self, running: dict[Any, _Running], scoring: dict[int, _Running], wanted: int) -> None:
        """Wait for the next event, and hand finished rollouts to the reward pool."""
        ray.wait([*running, *(self.pool.refs() if self.pool else ())], num_returns=1, timeout=1.0)
        self._check_starts()
        finished = ray.wait(list(running), num_returns=len(running), timeout=0)[0] if running else []
        groups = [running.pop(reference) for reference in finished]
        found = self.rollout.gather(finished, "generated", ranks=[group.engine for group in groups])
        for group, group.infos in zip(groups, found, strict=True):
            self._load[group.engine] -= 1
            self._heard[group.engine] = time.monotonic()
            if all(info.status != "failed" for info in group.infos):
                samples = len(group.infos)
                ticket = self.pool.submit(group.prompt, group.rollouts, samples) if self.pool else group.number
                scoring[ticket] = group
            else:
                self._count_failed(sum(info.status == "failed" for info in group.infos), wanted)
        self._check_deadlines(running)

    def _check_starts(self) -> None:
        """Raise what kept an engine from starting its prompts: nothing would ever be generated from them."""
        calls = list(self._starting)
        started = ray.wait(calls, num_returns=len(calls), timeout=0)[0] if calls else []
        self.rollout.gather(started, "start", ranks=[self._starting.pop(call) for call in started])

    def _count_failed(self, failed: int, samples: int) -> None:
        self.failed += failed
        self._unfinished += failed
        if self.failed > self.max_failed * samples:
            scoring = self.failed - self._unfinished
            raise GroupError(
                f"{self._unfinished} of {samples} rollouts of a step failed in the engines"
                + (f", and {scoring} more could not be scored" if scoring else "")
                + f" (reward.max_failed_fraction {self.max_failed:g} allows {int(self.max_failed * samples)})"
            )

    def _check_deadlines(self, running: dict[Any, _Running]) -> None:
        # An engine may have many groups queued: late is one that has finished none of them for so long.
        now = time.monotonic()
        for group in running.values():
            if now > self._heard[group.engine] + self.rollout.timeout_s:
                raise GroupError(
                    f"rollout[{group.engine}].generated: nothing heard, while data row {group.prompt.index} waits, "
                    f"for {self.rollout.timeout_s:g} s (rollout.timeout_s)"
                )
            if self.prompt_timeout_s is not None and now > group.given + self.prompt_timeout_s:
                raise GroupError(
                    f"rollout[{group.engine}].generated: the responses to data row {group.prompt.index} took more than "
                    f"{self.prompt_timeout_s:g} s (rollout.prompt_timeout_s)"
                )


def _scored(group: _Running, scores: list[Score]) -> ScoredGroup:
    return ScoredGroup(prompt=group.prompt, rollouts=group.rollouts, infos=group.infos, scores=scores)
