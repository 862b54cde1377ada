"""Rollouts at a scale that no machine here has: python -m benchmarks.scale [--steps 4] [--ray-actors] [--out FILE]

The driver's own code over a thousand engines in virtual time (`benchmarks.virtual`): its processor time and memory per
sample, for 100, 300 and 1,000 engines; and step, utilisation and age of samples by `algorithm.max_staleness`, beside
closed formulas (`benchmarks.expected`). What Ray does for a driver is not in it: `--ray-actors` measures that, with as
many real actors as fit (`benchmarks.ray_actors`).
"""

import argparse
import gc
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import mean, median
from threading import Condition, Thread
from types import FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

from actors.episodes import Prompt, VersionSpan
from actors.rollout.types import Sampling
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from algorithms.rollouts.tail import Tail
from benchmarks import ray_actors, results
from benchmarks.driver import own_threads_s
from benchmarks.expected import Expected, expected, tail_batched
from benchmarks.lengths import Lengths
from benchmarks.virtual import Speed, VirtualEngines

SAMPLES, GROUPS, STARTS = 16, 4096, 3
"""65,536 samples a step; a prompt starts at most three times (rollout.max_attempts)."""
ENGINES, STALENESS = (100, 300, 1000), (0, 1, 2, 4, 8)
TAIL_ENGINES, TAIL_SHARES, TAIL_STEPS = 128, (0.125, 0.25, 0.5), 30
"""RollPacker's largest cluster, and shares around its 0.25; steps, so that there are enough long ones."""
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
TARGET_MS, TARGET_KB = 0.3, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a step is."""

    engines: int
    groups: int = GROUPS
    samples: int = SAMPLES
    speed: Speed = SPEED
    train_s: float = TRAIN_S

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
    driver_s: float
    """Processor time of the driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The steps after the warm-up, and what engines did in them."""

    steps: list[Step]
    busy: float
    running: float
    dropped: float
    """Requests beyond those of groups that were taken, for one of these."""
    held_bytes: int
    """What the driver holds at the end, with the last step's groups."""

    @property
    def step_s(self) -> float:
        """Mean of the steps."""
        return mean(step.seconds for step in self.steps)

    @property
    def ages(self) -> list[int]:
        """Of all samples."""
        return [age for step in self.steps for age in step.ages]


def simulated(workload: Workload, staleness: int, steps: int, **options: Any) -> Run:
    """Train so many steps, after a warm-up; `options` go to the rollouts."""
    engines = VirtualEngines([workload.speed] * workload.engines, workload.lengths)
    rollouts = Rollouts(
        engines,
        None,
        prompts(),
        Sampling(samples=workload.samples, temperature=1.0, max_tokens=MAX_TOKENS),
        Limits(silence_s=1e9, starts=STARTS),
        groups_per_step=workload.groups,
        max_staleness=staleness,
        clock=engines.clock,
        **options,
    )
    engines.watch(rollouts)
    warm_up = STARTS * (staleness + 1)  # until prompts are among the running ones that start for the last time
    found, marks, groups = list[Step](), list[list[float]](), list[ScoredGroup]()
    for version in range(warm_up + steps):
        if version >= warm_up:
            marks.append(_mark(engines))
        step, groups = _step(engines, rollouts, workload, version)
        found.append(step)
    marks.append(_mark(engines))
    held = held_bytes(rollouts, groups)
    rollouts.close()
    seconds, busy_s, filled_s, requests = (last - first for first, last in zip(marks[0], marks[-1], strict=True))
    return Run(
        steps=found[warm_up:],
        busy=busy_s / seconds / workload.engines,
        running=filled_s / seconds / workload.engines,
        dropped=requests / (steps * workload.groups) - 1,
        held_bytes=held,
    )


def _step(
    engines: VirtualEngines, rollouts: Rollouts, workload: Workload, version: int
) -> tuple[Step, list[ScoredGroup]]:
    began, cpu = engines.now, own_threads_s() - engines.cpu_s
    groups = rollouts.take(workload.groups, version, seed=version)
    engines.train(workload.train_s)
    engines.use(version + 1)
    rollouts.published(version + 1)
    cpu = own_threads_s() - engines.cpu_s - cpu
    ages = [version - info.oldest_version for group in groups for info in group.infos]
    return Step(seconds=engines.now - began, ages=ages, driver_s=cpu), groups


def _mark(engines: VirtualEngines) -> list[float]:
    """Virtual seconds, of engines with something to do, of samples on them, and requests, so far."""
    with engines.looked_at():
        own = engines.engines
        return [engines.now, sum(e.busy_s for e in own), sum(e.filled_s for e in own), engines.requests]


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


def driver_table(steps: int) -> str:
    """By number of engines."""
    rows = []
    for engines in ENGINES:
        run = simulated(Workload(engines=engines), 2, steps)
        samples = GROUPS * SAMPLES
        milliseconds = 1e3 * median(step.driver_s for step in run.steps) / samples
        kilobytes = run.held_bytes / samples / 1000
        within = milliseconds <= TARGET_MS and kilobytes <= TARGET_KB
        rows.append([engines, samples, f"{milliseconds:.4f}", f"{kilobytes:.2f}", "yes" if within else "NO"])
        print(results.table(DRIVER_HEADER, rows[-1:]), flush=True)
    return results.table(DRIVER_HEADER, rows)


def staleness_table(engines: int, steps: int) -> str:
    """By max_staleness, beside the formulas."""
    workload = Workload(engines=engines)
    lengths = workload.lengths.drawn(10 * workload.groups, STARTS, workload.samples, MAX_TOKENS, seed=1)
    rows = []
    for staleness in STALENESS:
        run = simulated(workload, staleness, steps, waits=False)
        found = expected(
            lengths, SPEED, engines=engines, groups=workload.groups, train_s=workload.train_s, staleness=staleness
        )
        rows.append([staleness, *_against(run, found), max(run.ages)])
        print(results.table(STALENESS_HEADER, rows[-1:]), flush=True)
    return results.table(STALENESS_HEADER, rows)


def tail_table(steps: int) -> str:
    """On-policy, with and without tail batching."""
    workload = Workload(engines=TAIL_ENGINES, groups=GROUPS * TAIL_ENGINES // ENGINES[-1])
    lengths = workload.lengths.drawn(40 * workload.groups, STARTS, workload.samples, MAX_TOKENS, seed=1)
    sizes = {"engines": workload.engines, "groups": workload.groups, "train_s": workload.train_s}
    plain, formula = simulated(workload, 0, steps), expected(lengths, SPEED, **sizes, staleness=0).step_s
    rows = [["no", _pair(plain.step_s, formula, "{:.1f}"), "1", "1"]]
    for share in TAIL_SHARES:
        run = simulated(workload, 0, steps, tail=Tail(share, lambda: None, None))
        batched = tail_batched(lengths, SPEED, **sizes, share=share)
        waits = (plain.step_s - workload.train_s) / (run.step_s - workload.train_s)
        gain = _pair(plain.step_s / run.step_s, formula / batched, "{:.2f}")
        rows.append([f"{share:g}", _pair(run.step_s, batched, "{:.1f}"), gain, f"{waits:.2f}"])
        print(results.table(TAIL_HEADER, rows[-1:]), flush=True)
    return results.table(TAIL_HEADER, rows)


def _against(run: Run, found: Expected) -> list[str]:
    return [
        _pair(run.step_s, found.step_s, "{:.1f}"),
        _pair(run.busy, found.busy, "{:.3f}"),
        _pair(run.running, found.running, "{:.1f}"),
        _pair(mean(run.ages), found.age, "{:.2f}"),
        _pair(run.dropped, found.dropped, "{:.3f}"),
    ]


def _pair(measured: float, formula: float, form: str) -> str:
    # Of shares and ages the difference, as these may be 0.
    off = f"{measured / formula - 1:+.1%}" if formula >= 1 else f"{measured - formula:+.3f}"
    return f"{form.format(measured)} / {form.format(formula)} ({off})"


DRIVER_HEADER = ("engines", "samples a step", "driver, ms per sample", "held, KB per sample", "within target")
STALENESS_HEADER = (
    "max_staleness", "step, s", "engines busy", "samples running on one", "mean age", "dropped per trained group",
    "largest age",
)  # fmt: skip
TAIL_HEADER = ("prompts more", "step, s", "times as fast", "rollouts times as fast")


def main() -> None:
    """Measure, print and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--ray-actors", action="store_true", help="real actors instead, as many as fit")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    arguments = parser.parse_args()
    if arguments.ray_actors:
        text = f"## Empty Ray actors\n\n`python -m benchmarks.scale --ray-actors` on {results.machine()}. "
        return results.write_section("ray-actors", text + ray_actors.measured(), arguments.out)
    driver, staleness = driver_table(arguments.steps), staleness_table(ENGINES[-1], arguments.steps)
    tail = tail_table(TAIL_STEPS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = (
        f"## Simulated scale\n\n`python -m benchmarks.scale --steps {arguments.steps}` on {results.machine()}. "
        f"{GROUPS} groups of {SAMPLES} samples a step, lognormal lengths (median {MEDIAN:.0f}, sigma {SIGMA:g}, at "
        f"most {MAX_TOKENS} tokens), a token in {1e3 * SPEED.step_s:g} ms + {1e3 * SPEED.sample_s:g} ms a running "
        f"sample, {SPEED.slots} slots, {TRAIN_S:g} s of training a step; {peak:.1f} GiB for all of it, "
        f"engines included.\n\n"
        f"The driver at max_staleness 2; targets {TARGET_MS:g} ms and {TARGET_KB:g} KB:\n\n{driver}\n\n"
        f"{ENGINES[-1]} engines, simulated / by formula (difference):\n\n{staleness}\n\n"
        f"Tail batching on-policy, {TAIL_ENGINES} engines with as much to do each. RollPacker has 2.03 to 2.56 times "
        f"the speed of verl end to end on 128 H800, by this and by what it does beside (arXiv 2509.21009):\n\n{tail}"
    )
    results.write_section("scale", text, arguments.out)


if __name__ == "__main__":
    main()
