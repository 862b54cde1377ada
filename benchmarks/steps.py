"""Steps of a loop beside a thousand engines in virtual time (`benchmarks.virtual`), by the driver's own code."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import mean
from threading import Condition, Thread
from types import FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

from actors.episodes import Prompt, VersionSpan
from actors.rollout.types import Request, Sampling
from algorithms.rollouts.engines import Ended, Lost
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from benchmarks.driver import own_threads_s
from benchmarks.lengths import Lengths
from benchmarks.virtual import Speed, VirtualEngines

SAMPLES, GROUPS, STARTS = 16, 4096, 3
"""65,536 samples a step; a prompt starts at most three times (rollout.max_attempts)."""
MAX_TOKENS = 8192
# A lognormal with a median of 500 and a 99th percentile of 5,000 tokens, "a typical reasoning run"
# (jiahuanglin.xyz, RL lessons 22b), has sigma = ln(10) / 2.33 = 1.0. RollPacker's artifact (arXiv 2509.21009) has
# limits of 4,096 and 8,192 tokens. A median of 600 makes 970 tokens on average.
MEDIAN, SIGMA = 600.0, 1.0
# An 8B model on an H100: 6.5 ms a token alone (vLLM 0.21, Llama 3.1 8B, yobitelcomm.github.io/bench/recipes). What a
# sample adds is assumed from the roofline: 128 KiB of cache a token x 1,000 at 3.35 TB/s, and 16 GFLOP at half of 989.
SPEED = Speed(step_s=0.0065, sample_s=72e-6, slots=256)
# Rollouts take 70 % of a step that waits for them, in RollPacker's motivation: what 58 s of rollout leave to training.
TRAIN_S = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a step is."""

    engines: int
    groups: int = GROUPS
    samples: int = SAMPLES
    speed: Speed = SPEED
    train_s: float = TRAIN_S
    max_tokens: int = MAX_TOKENS
    spare: int = 0
    """Responses that start to each prompt beyond `samples`."""

    @property
    def lengths(self) -> Lengths:
        """Anew, as drawing goes on from where it was."""
        return Lengths.lognormal(median=MEDIAN, sigma=SIGMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one took."""

    seconds: float
    """Virtual."""
    ages: list[int]
    """Of each sample: versions between its oldest token and the policy that trains on it."""
    tokens: float
    """Mean length of a response that is trained on."""
    ends: list[float]
    """When groups have ended in it, in seconds after its begin, ascending."""
    driver_s: float
    """Processor time of the driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The steps after the warm-up, and what engines did in them."""

    steps: list[Step]
    busy: float
    running: float
    dropped: float
    """Groups that became too old, for one that was taken."""
    held_bytes: int
    """What the driver holds at the end, with the last step's groups."""

    @property
    def step_s(self) -> float:
        """Mean of the steps."""
        return mean(step.seconds for step in self.steps)

    @property
    def tokens(self) -> float:
        """Mean length of a response that is trained on."""
        return mean(step.tokens for step in self.steps)

    @property
    def ages(self) -> list[int]:
        """Of all samples."""
        return [age for step in self.steps for age in step.ages]


class _TimedEngines(VirtualEngines):
    """Keeps when requests have ended that nobody has aborted."""

    def __init__(self, speeds: Sequence[Speed], lengths: Callable[[Request], list[int]]) -> None:
        super().__init__(speeds, lengths)
        self.ends: list[float] = []

    def wait(self, others: Sequence[Any], timeout_s: float) -> list[Ended | Lost]:
        """See `Engines`; it returns as soon as something has ended."""
        news = super().wait(others, timeout_s)
        self.ends += [self.now for each in news if isinstance(each, Ended) and not each.finished.aborted]
        return news


def simulated(
    workload: Workload,
    staleness: int,
    steps: int,
    *,
    lengths: Callable[[Request], list[int]] | None = None,
    **options: Any,
) -> Run:
    """Train so many steps, after a warm-up; `lengths` in place of the workload's, `options` go to the rollouts."""
    engines = _TimedEngines([workload.speed] * workload.engines, lengths or workload.lengths)
    rollouts = Rollouts(
        engines,
        None,
        prompts(),
        Sampling(samples=workload.samples + workload.spare, temperature=1.0, max_tokens=workload.max_tokens),
        Limits(silence_s=1e9, starts=STARTS),
        groups_per_step=workload.groups,
        max_staleness=staleness,
        clock=engines.clock,
        **options,
    )
    engines.watch(rollouts)
    warm_up = STARTS * (staleness + 1)  # until prompts are among the running ones that start for the last time
    found, mark, groups = list[Step](), list[float](), list[ScoredGroup]()
    for version in range(warm_up + steps):
        if version == warm_up:
            mark = _mark(engines)
            rollouts.report()  # what was dropped until now
        step, groups = _step(engines, rollouts, workload, version)
        found.append(step)
    seconds, busy_s, filled_s = (last - first for first, last in zip(mark, _mark(engines), strict=True))
    _, discards = rollouts.report()
    held = held_bytes(rollouts, groups)
    rollouts.close()
    return Run(
        steps=found[warm_up:],
        busy=busy_s / seconds / workload.engines,
        running=filled_s / seconds / workload.engines,
        dropped=(discards.dropped + discards.aborted) / (steps * workload.groups),
        held_bytes=held,
    )


def _step(
    engines: _TimedEngines, rollouts: Rollouts, workload: Workload, version: int
) -> tuple[Step, list[ScoredGroup]]:
    began, cpu = engines.now, own_threads_s() - engines.cpu_s
    engines.ends.clear()
    groups = rollouts.take(workload.groups, version, seed=version)
    engines.train(workload.train_s)
    engines.use(version + 1)
    rollouts.published(version + 1)
    cpu = own_threads_s() - engines.cpu_s - cpu
    ages = [version - info.oldest_version for group in groups for info in group.infos]
    tokens = mean(info.sampled_tokens for group in groups for info in group.infos[: workload.samples])
    ends = [end - began for end in engines.ends]
    return Step(seconds=engines.now - began, ages=ages, tokens=tokens, ends=ends, driver_s=cpu), groups


def _mark(engines: VirtualEngines) -> list[float]:
    """Virtual seconds, of engines with something to do, and of samples on them, so far."""
    with engines.looked_at():
        own = engines.engines
        return [engines.now, sum(e.busy_s for e in own), sum(e.filled_s for e in own)]


def held_bytes(rollouts: Rollouts, groups: list[ScoredGroup]) -> int:
    """What the driver holds for these groups and for those on their way, but for prompts, which the data has, and for
    references, which are Ray's."""
    skipped = (type, ModuleType, FunctionType, MethodType, GeneratorType, Thread, Condition)
    with rollouts._changed:
        seen, todo, total = set[int](), list[Any]([groups, rollouts]), 0
        while todo:
            each = todo.pop()
            if id(each) in seen or isinstance(each, (*skipped, Prompt, VersionSpan, VirtualEngines)):
                continue
            seen.add(id(each))
            total += each.__sizeof__() + 16 * gc.is_tracked(each)  # what the collector keeps before an object
            todo += gc.get_referents(each)
        return total


def prompts() -> Iterator[Prompt]:
    """Without an end."""
    for number in count():
        yield Prompt(index=number, token_ids=[number, 7], text="", row={})
