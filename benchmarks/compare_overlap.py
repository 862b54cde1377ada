"""What overlap and tail batching give: the same job in several ways, alternating in one run, and TRL beside it.

    python -m benchmarks.compare_overlap --workload tail --ways n=0 n=2 tail --rounds 3
    python -m benchmarks.compare_overlap --workload long --ways trl before n=0 n=1 n=0/pin n=1/pin --tree CHECKOUT

A way is some settings, and where they compute:

    n=2          algorithm.max_staleness 2
    tail         rollout.tail postpone, on-policy
    early        algorithm.overlap_gradients, on-policy
    tail+early   both
    before       n=0 in the other checkout
    trl          TRL on the same model and prompts, as `benchmarks.compare_trl` runs it
    n=2/1        one thread for the engine and one for the policy
    n=2/2+1      two threads for the engine, one for the policy
    n=2/pin      one thread each, engine and policy on a core of their own (`benchmarks.pinned`)

Each is compared with those of trl, before and n=0 that are among the ways, and one with a suffix with n=0 of that
suffix, too. Timed from outside, by the arrival of each step's line, from the end of step WARM to that of the last but
MARGIN: that more is made ahead in the first steps, and nothing in the last ones, is in neither. The mean counts, as
with tail batching steps differ. TRL makes nothing ahead: only its first step is left out.
"""

import argparse
import datetime
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import load, results, trl_env
from benchmarks.compare_builds import commit, environment_of, job, lines_of
from benchmarks.compare_trl import CACHE, DEFAULT_STEPS, ROOT, BenchmarkError, commands, run, warnings
from benchmarks.pinned import Pinned
from benchmarks.workloads import WORKLOADS

STEPS = {"short": 60, "long": 16, "tail": 30}
WARM, MARGIN = 3, 3
REFERENCES = ("trl", "before", "n=0")
"""What others are compared with, if it is among the ways: these in turn, each with those before it."""
_WAY = re.compile(
    r"(?P<base>n=(?P<staleness>0|[1-9]\d*)|tail\+early|tail|early|before|trl)"
    r"(?:/(?P<suffix>pin|[1-9]\d*(?:\+[1-9]\d*)?))?"
)
HEADER = (
    "round", "way", "s/step", "samples/s", "response tokens", "staleness", "left out", "foreign cores", "account",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Settings, and where they compute."""

    name: str
    base: str
    suffix: str
    """Behind the slash."""
    settings: tuple[str, ...]
    """Overrides."""

    @classmethod
    def of(cls, name: str) -> "Way":
        """Raises BenchmarkError when it is none."""
        found = _WAY.fullmatch(name)
        if not found or (found["base"] == "trl" and found["suffix"]):
            raise BenchmarkError(
                "--ways: must be before, tail, early, tail+early or n=NUMBER, perhaps with /THREADS, /ENGINE+POLICY or "
                f"/pin behind it, or trl, got {name}"
            )
        suffix, settings = found["suffix"] or "", list[str]()
        if suffix:
            engine, _, policy = ("1" if suffix == "pin" else suffix).partition("+")
            settings += [f"rollout.threads_per_engine={engine}", f"policy.threads_per_rank={policy or engine}"]
        if found["staleness"] and int(found["staleness"]):
            settings.append(f"algorithm.max_staleness={int(found['staleness'])}")
        if found["base"].startswith("tail"):
            settings.append("rollout.tail=postpone")
        if found["base"].endswith("early"):
            settings.append("algorithm.overlap_gradients=true")
        return cls(name=name, base=found["base"], suffix=suffix, settings=tuple(settings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One process."""

    name: str
    step_seconds: float
    """Mean."""
    samples_per_second: float
    response_tokens: float
    staleness: float
    accounts: dict[str, float]
    """Mean of each bubble/*, where the build tells them."""
    left_out: int
    foreign_cores: float
    broken: list[str]
    """Why engines and trainer were not apart, where they were to be."""


def measured(way: Way, tree: Path, name: str, seed: int, steps: int, deadline_s: float) -> Measured:
    """One run of a way, `tree` being the checkout of `before`; raises BenchmarkError."""
    if way.base == "trl":
        command = commands(WORKLOADS[name], trl_env.ensure(), steps, seed)["TRL"]
        return figures(way, name, *run(way.name, command, steps, deadline_s), warm=1, margin=0)
    output, pinned = Path(tempfile.mkdtemp(prefix="compare-overlap-")), Pinned() if way.suffix == "pin" else None
    code = tree if way.base == "before" else ROOT.resolve()
    seen, foreign_cores = run(
        way.name,
        [*job(name, name, steps, seed, output), *way.settings],
        steps,
        deadline_s,
        lines=lines_of(output),
        tree=code,
        environment=environment_of(code),
        watch=pinned.look if pinned else lambda _: None,
    )
    return figures(way, name, seen, foreign_cores, broken=pinned.broken() if pinned else [])


def figures(
    way: Way,
    name: str,
    seen: Sequence[tuple[float, Mapping[str, Any]]],
    foreign_cores: float,
    *,
    warm: int = WARM,
    margin: int = MARGIN,
    broken: Sequence[str] = (),
) -> Measured:
    """Of the lines of a process, without the first and the last ones."""
    samples, last = WORKLOADS[name].samples_per_step, len(seen) - margin
    lines = [line for _, line in seen[warm:last]]
    if not lines:
        raise BenchmarkError(f"--steps: must be above {warm + margin} for {way.name}, got {len(seen)}")
    seconds = (seen[last - 1][0] - seen[warm - 1][0]) / len(lines)
    accounts = sorted({key for line in lines for key in line if key.startswith("bubble/")})
    return Measured(
        name=way.name,
        step_seconds=seconds,
        samples_per_second=samples / seconds,
        response_tokens=mean(line["tokens/generated"] for line in lines) / samples,
        staleness=mean(line.get("staleness/mean", 0.0) for line in lines),
        accounts={key.removeprefix("bubble/"): mean(line.get(key, 0.0) for line in lines) for key in accounts},
        left_out=sum(len(names) for _, line in seen for names in line.get("left_out", {}).values()),
        foreign_cores=foreign_cores,
        broken=list(broken),
    )


def references(way: Way, ways: Sequence[Way]) -> list[str]:
    """Names of the ways that one is compared with; the first of all, where none of REFERENCES is there."""
    suffixes = ["", f"/{way.suffix}"] if way.suffix else [""]
    order = [f"{base}{suffix}" for suffix in suffixes for base in REFERENCES]
    before = order[: order.index(way.name)] if way.name in order else order
    names = [each.name for each in ways]
    found = [name for name in before if name in names]
    return found or ([names[0]] if names[0] != way.name and way.name not in order else [])


def ratios(rounds: Sequence[Mapping[str, Measured]], way: str, reference: str) -> list[float]:
    """How many times as fast a way is as another one, by round."""
    return [found[reference].step_seconds / found[way].step_seconds for found in rounds]


def report(name: str, told: str, rounds: Sequence[Mapping[str, Measured]], ways: Sequence[Way]) -> str:
    """Markdown section: each way against others, what it measured, and what makes that doubtful.

    `told`: the command, and of which commits.
    """
    lines = [f"## {name}.yaml in several ways", ""]
    for way in ways:
        for reference in references(way, ways):
            by_round = ratios(rounds, way.name, reference)
            each = ", ".join(f"{ratio:.3f}" for ratio in by_round)
            lines.append(f"- **{way.name}: {median(by_round):.3f}x the speed of {reference}** (by round: {each})")
    table = [_row(number + 1, found[way.name]) for number, found in enumerate(rounds) for way in ways]
    lengths = [mean(found[way.name].response_tokens for found in rounds) for way in ways]
    every = [found[way.name] for found in rounds for way in ways]
    broken = dict.fromkeys(f"{found.name}: {reason}" for found in every for reason in found.broken)
    doubtful = [*broken, *warnings(lengths, [found.foreign_cores for found in every])]
    return "\n".join([*lines, "", told, "", results.table(HEADER, table), "", *doubtful])


def _row(number: int, found: Measured) -> list[str]:
    account = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in found.accounts.items())
    return [
        str(number),
        found.name,
        f"{found.step_seconds:.2f}",
        f"{found.samples_per_second:.2f}",
        f"{found.response_tokens:.1f}",
        f"{found.staleness:.2f}",
        str(found.left_out),
        f"{found.foreign_cores:.2f}",
        account,
    ]


def main() -> None:
    """Measure the ways and write a section of RESULTS.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workload", choices=STEPS, default="tail")
    parser.add_argument("--ways", nargs="+", default=["n=0", "n=2", "tail"])
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout of `before`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument(
        "--trl-steps", type=int, help="of each run of TRL, beside the first (default: 3 long, 6 tail, 30 short)"
    )
    parser.add_argument("--deadline-s", type=float, default=1200, help="longest time of one process")
    parser.add_argument("--quiet-wait-s", type=float, default=60, help="longest wait for other processes to rest")
    parser.add_argument("--section", help="of RESULTS.md (default: overlap-WORKLOAD)")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    arguments = parser.parse_args()
    name, steps, tree = arguments.workload, arguments.steps or STEPS[arguments.workload], arguments.tree.resolve()
    trl_steps = arguments.trl_steps or DEFAULT_STEPS[name]
    ways = ways_of(arguments.ways)
    if steps <= WARM + MARGIN:
        raise BenchmarkError(f"--steps: must be above {WARM + MARGIN}, got {steps}")
    subprocess.run([sys.executable, "-m", "benchmarks.workloads", name, str(CACHE / name)], cwd=ROOT, check=True)
    rounds: list[dict[str, Measured]] = []
    for number in range(arguments.rounds):
        found: dict[str, Measured] = {}
        for way in ways[:: -1 if number % 2 else 1]:
            load.wait_until_quiet(arguments.quiet_wait_s)
            of_way = trl_steps + 1 if way.base == "trl" else steps
            found[way.name] = measured(way, tree, name, number, of_way, arguments.deadline_s)
            print(" | ".join(_row(number + 1, found[way.name])), flush=True)
        rounds.append(found)
    command = f"--workload {name} --ways {' '.join(arguments.ways)} --rounds {arguments.rounds} --steps {steps}"
    bases = {way.base for way in ways}
    told = (
        f"`python -m benchmarks.compare_overlap {command}{f' --trl-steps {trl_steps}' if 'trl' in bases else ''}`, "
        f"{datetime.date.today()}, this is {commit(ROOT)}{f', before is {commit(tree)}' if 'before' in bases else ''}, "
        f"on {results.machine()}"
    )
    text = report(name, told, rounds, ways)
    print(text)
    results.write_section(arguments.section or f"overlap-{name}", text, arguments.out)


def ways_of(names: Sequence[str]) -> list[Way]:
    """Raises BenchmarkError where one is none, comes twice, or needs more cores than there are."""
    ways = [Way.of(name) for name in names]
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise BenchmarkError(f"--ways: each once, got {', '.join(twice)} twice")
    if any(way.suffix == "pin" for way in ways):
        Pinned()
    return ways


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(str(error))
