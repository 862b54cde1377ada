"""What overlap and tail batching give: the same job in several ways, alternating in one run, and the build before.

    python -m benchmarks.compare_overlap --workload tail --ways n=0 n=2 tail --tree CHECKOUT --rounds 3

A way is some settings: `n=2` is algorithm.max_staleness 2, `tail` is rollout.tail postpone, on-policy; with `/1` behind
it, engine and policy compute with one thread each. `before` is n=0 in the other checkout.

Timed from outside, by the arrival of each step's line, from the end of step WARM to that of the last but MARGIN: that
more is made ahead in the first steps, and nothing in the last ones, is in neither. The mean counts, as with tail
batching steps differ.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import load, results
from benchmarks.compare_builds import _commit
from benchmarks.compare_trl import CACHE, ROOT, BenchmarkError, _end, follow
from benchmarks.workloads import WORKLOADS

STEPS = {"short": 60, "long": 16, "tail": 30}
WARM, MARGIN = 3, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
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


def settings(way: str) -> list[str]:
    """Overrides of a way."""
    name, _, threads = way.partition("/")
    found = [f"policy.threads_per_rank={threads}", f"rollout.threads_per_engine={threads}"] if threads else []
    if name.startswith("n="):
        return found + ([f"algorithm.max_staleness={name[2:]}"] if name != "n=0" else [])
    if name in ("tail", "before"):
        return found + (["rollout.tail=postpone"] if name == "tail" else [])
    raise BenchmarkError(f"--ways: must be before, tail or n=NUMBER, perhaps with /THREADS, got {way}")


def measured(way: str, tree: Path, name: str, seed: int, steps: int, deadline_s: float) -> Way:
    """One run of a way; raises BenchmarkError."""
    workload, made = WORKLOADS[name], (CACHE / name).resolve()
    output = Path(tempfile.mkdtemp(prefix="compare-overlap-"))
    # The configuration is this checkout's for all: only the code and the way differ.
    command = [sys.executable, "-m", "launch", "run", str((ROOT / "benchmarks" / f"{name}.yaml").resolve())]
    command += [f"model.path={made / 'model'}", f"data.train={made / 'prompts.jsonl'}"]
    command += [f"algorithm.steps={steps}", f"run.seed={seed}", "run.name=run", f"run.output={output}", *settings(way)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "OMP_"))}
    environment = load.marked(kept | {"PYTHONPATH": str(tree)})
    with (output / "stdout").open("w") as out, (output / "stderr").open("w") as err:
        process = subprocess.Popen(command, cwd=tree, stdout=out, stderr=err, env=environment)
        foreign = load.ForeignLoad()
        try:
            seen = list(follow(process, output / "run" / "metrics.jsonl", time.monotonic() + deadline_s, foreign))
        finally:
            _end(process)
    if process.returncode or len(seen) != steps:
        raise BenchmarkError(f"{way}: exit status {process.returncode} after {len(seen)} of {steps}, see {output}")
    lines: list[dict[str, Any]] = [line for _, line in seen]
    kept_lines = lines[WARM : steps - MARGIN]
    seconds = (seen[steps - MARGIN - 1][0] - seen[WARM - 1][0]) / len(kept_lines)
    accounts = sorted({key for line in kept_lines for key in line if key.startswith("bubble/")})
    return Way(
        name=way,
        step_seconds=seconds,
        samples_per_second=workload.samples_per_step / seconds,
        response_tokens=mean(line["tokens/generated"] for line in kept_lines) / workload.samples_per_step,
        staleness=mean(line["staleness/mean"] for line in kept_lines),
        accounts={key.removeprefix("bubble/"): mean(line.get(key, 0.0) for line in kept_lines) for key in accounts},
        left_out=sum(len(names) for line in lines for names in line.get("left_out", {}).values()),
        foreign_cores=foreign.cores(),
    )


def report(name: str, commits: dict[str, str], rounds: Sequence[dict[str, Way]], options: str) -> str:
    """Markdown section: each way against the first, and what it measured."""
    ways = list(rounds[0])
    first = ways[0]
    lines = [f"## {name}.yaml in several ways", ""]
    for way in ways[1:]:
        ratios = [found[first].step_seconds / found[way].step_seconds for found in rounds]
        told = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(f"- **{way}: {median(ratios):.3f}x the speed of {first}** (by round: {told})")
    header = [
        "round",
        "way",
        "s/step",
        "samples/s",
        "response tokens",
        "staleness",
        "left out",
        "foreign cores",
        "account",
    ]
    table = [_row(number + 1, found[way]) for number, found in enumerate(rounds) for way in ways]
    command = f"`python -m benchmarks.compare_overlap --workload {name} {options}`"
    trees = ", ".join(f"{key} {value}" for key, value in commits.items())
    lines += ["", f"{command}, {datetime.date.today()}, {trees}, on {results.machine()}", ""]
    lines += [results.table([*header, "account"], table), ""]
    if (busy := max(found[way].foreign_cores for found in rounds for way in ways)) > load.QUIET_CORES:
        lines.append(f"NOT COMPARABLE: other processes kept up to {busy:.2f} cores busy.")
    return "\n".join(lines)


def _row(number: int, found: Way) -> list[str]:
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
    parser = argparse.ArgumentParser(description="Overlap and tail batching, alternating in one run.")
    parser.add_argument("--workload", choices=STEPS, default="tail")
    parser.add_argument("--ways", nargs="+", default=["n=0", "n=2", "tail"], help="the first is compared with")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout of `before`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--deadline-s", type=float, default=1200, help="longest time of one process")
    parser.add_argument("--quiet-wait-s", type=float, default=60, help="longest wait for other processes to rest")
    arguments = parser.parse_args()
    name, steps = arguments.workload, arguments.steps or STEPS[arguments.workload]
    subprocess.run([sys.executable, "-m", "benchmarks.workloads", name, str(CACHE / name)], cwd=ROOT, check=True)
    rounds: list[dict[str, Way]] = []
    for number in range(arguments.rounds):
        found: dict[str, Way] = {}
        for way in arguments.ways[:: -1 if number % 2 else 1]:
            tree = arguments.tree.resolve() if way.startswith("before") else ROOT.resolve()
            load.wait_until_quiet(arguments.quiet_wait_s)
            found[way] = measured(way, tree, name, number, steps, arguments.deadline_s)
            print(" | ".join(_row(number + 1, found[way])), flush=True)
        rounds.append({way: found[way] for way in arguments.ways})
    commits = {"this is": _commit(ROOT)} | (
        {"before is": _commit(arguments.tree)} if "before" in arguments.ways else {}
    )
    text = report(
        name, commits, rounds, f"--ways {' '.join(arguments.ways)} --rounds {arguments.rounds} --steps {steps}"
    )
    print(text)
    results.write_section(f"overlap-{name}", text)


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(str(error))
