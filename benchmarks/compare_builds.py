"""Speed of this checkout against another one: the same jobs, alternating in one run.

    python -m benchmarks.compare_builds --tree CHECKOUT --workload short --rounds 4

Both are timed as `benchmarks.compare_trl` times its sides: from outside, by the arrival of each step's line. One after
the other in each round, the first of them in turn: a machine that becomes slower meanwhile favours neither.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import load, results
from benchmarks.compare_trl import CACHE, ROOT, BenchmarkError, Measurement, measure, row, warnings
from benchmarks.workloads import WORKLOADS

MODELS = {"short": "short", "long": "long", "ppo": "long"}
"""Configuration benchmarks/NAME.yaml -> the workload whose model and prompts it reads."""
STEPS = {"short": 40, "long": 3, "ppo": 6}


def main() -> None:
    """Compare on the chosen workloads and write a section of RESULTS.md for each."""
    parser = argparse.ArgumentParser(description="Speed of this checkout against another one, alternating in one run.")
    parser.add_argument("--tree", type=Path, required=True, help="the other checkout of Tandem")
    parser.add_argument("--workload", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes")
    parser.add_argument("--deadline-s", type=float, default=900, help="longest time of one process")
    parser.add_argument("--quiet-wait-s", type=float, default=60, help="longest wait for other processes to rest")
    arguments = parser.parse_args()
    trees = {"this": ROOT.resolve(), "other": arguments.tree.resolve()}
    for name in MODELS if arguments.workload == "all" else [arguments.workload]:
        made = CACHE / MODELS[name]
        subprocess.run([sys.executable, "-m", "benchmarks.workloads", MODELS[name], str(made)], cwd=ROOT, check=True)
        rounds = []
        for number in range(arguments.rounds):
            found: dict[str, Measurement] = {}
            for side in sorted(trees, reverse=number % 2 == 1):
                load.wait_until_quiet(arguments.quiet_wait_s)
                found[side] = measured(side, trees[side], name, number, arguments.deadline_s)
                print(" | ".join(row(number + 1, found[side])), flush=True)
            rounds.append((found["this"], found["other"]))
        text = report(name, trees, rounds)
        print(text)
        results.write_section(f"builds-{name}", text)


def measured(side: str, tree: Path, name: str, seed: int, deadline_s: float) -> Measurement:
    """One run of the code in `tree`, in its directory; raises BenchmarkError."""
    output = Path(tempfile.mkdtemp(prefix=f"compare-{side}-"))
    return measure(
        side,
        job(name, MODELS[name], STEPS[name] + 1, seed, output),
        WORKLOADS[MODELS[name]],
        STEPS[name] + 1,
        deadline_s,
        lines=lines_of(output),
        tree=tree,
        environment=environment_of(tree),
    )


def job(name: str, model: str, steps: int, seed: int, output: Path) -> list[str]:
    """Command of benchmarks/NAME.yaml on model and prompts of a workload, which any checkout's code may run.

    The configuration is this checkout's for all: only the code differs.
    """
    made = (CACHE / model).resolve()
    command = [sys.executable, "-m", "launch", "run", str((ROOT / "benchmarks" / f"{name}.yaml").resolve())]
    command += [f"model.path={made / 'model'}", f"data.train={made / 'prompts.jsonl'}"]
    return [*command, f"algorithm.steps={steps}", f"run.seed={seed}", "run.name=run", f"run.output={output}"]


def lines_of(output: Path) -> Path:
    """Where a `job` writes a line for each step."""
    return output / "run" / "metrics.jsonl"


def environment_of(tree: Path) -> dict[str, str]:
    """Environment of a `job` with the code of `tree`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_"))}
    return kept | {"PYTHONPATH": str(tree)}


def report(name: str, trees: dict[str, Path], rounds: list[tuple[Measurement, Measurement]]) -> str:
    """Markdown section: ratio, table, and warnings where the comparison is not a fair one."""
    ratios = [median(other.step_seconds) / median(this.step_seconds) for this, other in rounds]
    lengths = [sum(pair[side].response_tokens for pair in rounds) / len(rounds) for side in (0, 1)]
    commits = {side: commit(tree) for side, tree in trees.items()}
    header = ["round", "side", "s/step (range)", "samples/s", "response tokens", "padding", "reward", "foreign cores"]
    rows = [row(number + 1, found) for number, pair in enumerate(rounds) for found in pair]
    return "\n".join(
        [
            f"## {name}.yaml against an earlier build",
            "",
            f"**{median(ratios):.3f}x the speed of {commits['other']}** "
            f"(ratio by round: {', '.join(f'{ratio:.3f}' for ratio in ratios)})",
            "",
            f"`python -m benchmarks.compare_builds --tree CHECKOUT --workload {name} --rounds {len(rounds)}`, "
            f"{datetime.date.today()}, at {commits['this']} on {results.machine()}",
            "",
            results.table([*header, "seconds by verb"], rows),
            "",
            *warnings(lengths, [found.foreign_cores for pair in rounds for found in pair]),
        ]
    )


def commit(tree: Path) -> str:
    """Of a checkout, with -dirty where files differ from it."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "an unknown commit"


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(str(error))
