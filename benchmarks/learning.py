"""Whether what is faster learns as well: the demo that reverses words, in several ways and with several seeds.

    python -m benchmarks.learning --ways n=0 n=1 n=2 n=4 n=4-off tail --seeds 0 1 2

A way is `n=NUMBER`, algorithm.max_staleness, or `tail`, rollout.tail postpone on-policy, or `early`,
algorithm.overlap_gradients; `-off` is algorithm.importance_correction null. All start from one model that
`configs/demo-sft.yaml` has made, and take the same samples: configs/demo-grpo.yaml, from its first step to its
last. Nothing is timed, and other work may run beside it, but what is made ahead depends on how quick both sides are.
"""

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import results
from benchmarks.compare_builds import commit
from benchmarks.compare_trl import ROOT, BenchmarkError

AGREE = 0.03
"""Difference of final accuracies that counts as none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One run."""

    way: str
    seed: int
    accuracies: dict[int, float]
    """Held-out accuracy by step."""
    staleness: float
    """Mean over steps."""
    oldest: float
    weights: tuple[float, float]
    """Means over steps of the importance weights' 1 % and 99 % quantiles."""
    sampler_kl: float
    left_out: int

    @property
    def final(self) -> float:
        """Accuracy after the last step."""
        return self.accuracies[max(self.accuracies)]


def settings(way: str) -> list[str]:
    """Overrides of a way; raises BenchmarkError."""
    name, off, rest = way.partition("-off")
    found = ["algorithm.importance_correction=null"] if off else []
    if name == "tail" and not rest:
        return [*found, "rollout.tail=postpone"]
    if name == "early" and not rest:
        return [*found, "algorithm.overlap_gradients=true"]
    if name.startswith("n=") and name[2:].isdigit() and not rest:
        return [*found, f"algorithm.max_staleness={name[2:]}"]
    raise BenchmarkError(f"--ways: must be tail, early or n=NUMBER, perhaps with -off, got {way}")


def run(config: str, output: Path, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The metrics of a run in `output`, line by line; raises BenchmarkError."""
    command = [sys.executable, "-m", "launch", "run", f"configs/{config}.yaml"]
    command += ["run.name=run", f"run.output={output}", "tracking.wandb=false", *overrides]
    output.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "OMP_"))}
    with (output / "log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=kept, check=False)
    if done.returncode:
        raise BenchmarkError(f"{config}: exit status {done.returncode}, see {output / 'log'}")
    lines = (output / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def curve(way: str, seed: int, lines: Sequence[dict[str, Any]]) -> Curve:
    """What a run's metrics say."""
    steps = [line for line in lines if line["step"]]

    def average(name: str) -> float:
        found = [line[name] for line in steps if name in line]
        return mean(found) if found else float("nan")

    return Curve(
        way=way,
        seed=seed,
        accuracies={line["step"]: line["eval/reward/mean"] for line in lines if "eval/reward/mean" in line},
        staleness=average("staleness/mean"),
        oldest=max(line["staleness/max"] for line in steps),
        weights=(average("policy/importance_weight_p01"), average("policy/importance_weight_p99")),
        sampler_kl=average("policy/sampler_kl"),
        left_out=sum(len(names) for line in steps for names in line.get("left_out", {}).values()),
    )


def report(curves: Sequence[Curve], command: str) -> str:
    """Markdown section: final accuracies of each way, against the first way's of the same seeds."""
    ways = list(dict.fromkeys(found.way for found in curves))
    first = {found.seed: found.final for found in curves if found.way == ways[0]}
    rows, lines = [], ["## Learning in several ways", ""]
    for way in ways:
        own = [found for found in curves if found.way == way]
        difference = round(mean(found.final - first[found.seed] for found in own), 6)
        if way != ways[0]:
            # NaN is none of the first two.
            told = "as well as" if abs(difference) <= AGREE else "better than" if difference > 0 else "NOT as well as"
            lines.append(f"- **{way} learns {told} {ways[0]}**: {difference:+.3f} in the mean of {len(own)} seeds")
        rows.append(_row(way, own))
    header = ["way", "final accuracy by seed", "mean", "at steps", "mean age", "oldest", "weights", "KL", "left out"]
    lines += ["", f"{command}, {datetime.date.today()}, at {commit(ROOT)} on {results.machine()}", ""]
    lines += [results.table(header, rows), ""]
    lines.append("Weights: means of the 1 % and 99 % quantiles of importance weights; KL: of sampler and policy.")
    return "\n".join(lines)


def _row(way: str, own: Sequence[Curve]) -> list[str]:
    by_step = {step: mean(found.accuracies[step] for found in own) for step in own[0].accuracies}
    return [
        way,
        ", ".join(f"{found.final:.3f}" for found in own),
        f"{mean(found.final for found in own):.3f}",
        ", ".join(f"{step}: {value:.2f}" for step, value in by_step.items()),
        f"{mean(found.staleness for found in own):.2f}",
        f"{max(found.oldest for found in own):g}",
        _where_told([found.weights[0] for found in own], [found.weights[1] for found in own], form=".3f"),
        _where_told([found.sampler_kl for found in own], form=".2g"),
        str(sum(found.left_out for found in own)),
    ]


def _where_told(*ends: Sequence[float], form: str) -> str:
    """Means of a range's ends, or of one value; on-policy, nothing is told of what is corrected."""
    found = [mean(values) for values in ends]
    return "-" if any(map(math.isnan, found)) else " to ".join(f"{value:{form}}" for value in found)


def main() -> None:
    """Run all and write a section of RESULTS.md."""
    parser = argparse.ArgumentParser(description="Learning curves in several ways.")
    parser.add_argument("--ways", nargs="+", default=["n=0", "n=1", "n=2", "n=4", "n=4-off", "tail"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--overrides", nargs="*", default=[], help="further settings of all runs")
    parser.add_argument("--section", default="learning", help="section of RESULTS.md that is written")
    arguments = parser.parse_args()
    overrides = {way: settings(way) for way in arguments.ways}
    output, curves = Path(tempfile.mkdtemp(prefix="learning-")), list[Curve]()
    run("demo-sft", output / "warm", ["checkpoint.resume=false"])
    for seed in arguments.seeds:
        for way in arguments.ways:
            shared = [f"model.path={output / 'warm' / 'run' / 'export'}", f"run.seed={seed}", *arguments.overrides]
            lines = run("demo-grpo", output / f"{way}-{seed}", [*shared, *overrides[way]])
            curves.append(curve(way, seed, lines))
            print(way, seed, f"{curves[-1].final:.3f}", flush=True)
    seeds, ways = " ".join(map(str, arguments.seeds)), " ".join(arguments.ways)
    text = report(curves, f"`python -m benchmarks.learning --ways {ways} --seeds {seeds}`")
    print(text)
    results.write_section(arguments.section, text)


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(str(error))
