"""GRPO against TRL: same model, prompts, batch, lengths, precision and threads, alternating in one run.

    python -m benchmarks.compare_trl --workload all

Both sides are timed from outside and alike: every step ends when its JSON line appears in the process's file. The first
step of a process is warm-up and dropped.
"""

import argparse
import datetime
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import load, results, trl_env, workloads
from benchmarks.workloads import WORKLOADS, Workload

ROOT = Path(__file__).parent.parent
CACHE = Path(__file__).parent / ".cache"
DEFAULT_STEPS = {"long": 3, "short": 30, "tail": 6}
POLL_S = 0.005
LENGTHS_AGREE = 0.1
NO_PHASES = ("time/step", "time/lost", "time/effective", "time/elapsed")


class BenchmarkError(Exception):
    """A side failed, hung, or reported what cannot be; the message says which and where its log is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One process of one side, warm-up dropped."""

    side: str
    samples_per_second: float
    """Samples of a step over the median step time."""
    step_seconds: list[float]
    response_tokens: float
    """Mean length of a response."""
    padding: float
    """Share of padding among the tokens trained on."""
    reward: float
    phases: dict[str, float]
    """Mean seconds of each verb of the step, as the side reports them."""
    foreign_cores: float
    """Cores that other processes kept busy meanwhile."""


def main() -> None:
    """Compare on the chosen workloads and write RESULTS.md."""
    parser = argparse.ArgumentParser(description="GRPO against TRL, alternating in one run.")
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes")
    parser.add_argument("--steps", type=int, help="measured steps of a process (default: 3 long, 30 short, 6 tail)")
    parser.add_argument("--deadline-s", type=float, default=1800, help="longest time of one process")
    parser.add_argument("--quiet-wait-s", type=float, default=120, help="longest wait for other processes to rest")
    arguments = parser.parse_args()
    python = trl_env.ensure()
    for name in WORKLOADS if arguments.workload == "all" else [arguments.workload]:
        workload, steps = WORKLOADS[name], arguments.steps or DEFAULT_STEPS[name]
        subprocess.run([sys.executable, "-m", "benchmarks.workloads", name, str(CACHE / name)], cwd=ROOT, check=True)
        pairs = []
        for number in range(arguments.rounds):
            pair = []
            for side, command in commands(workload, python, steps + 1, number).items():
                load.wait_until_quiet(arguments.quiet_wait_s)
                pair.append(measure(side, command, workload, steps + 1, arguments.deadline_s))
                print(" | ".join(row(number + 1, pair[-1])), flush=True)
            pairs.append((pair[0], pair[1]))
        text = report(workload, pairs, f"--workload {name} --rounds {arguments.rounds} --steps {steps}", python)
        print(text)
        results.write_section(f"trl-{name}", text)


def commands(workload: Workload, python: Path, steps: int, seed: int) -> dict[str, list[str]]:
    """Command of each side; `{lines}` and `{output}` stand for the process's files."""
    ours = [sys.executable, "-m", "launch", "run", f"benchmarks/{workload.name}.yaml"]
    overrides = [f"algorithm.steps={steps}", f"run.seed={seed}", "run.output={directory}", "run.name=ours"]
    theirs = [str(python), "-m", "benchmarks.trl_grpo", workload.name, str(CACHE / workload.name)]
    return {"Tandem": ours + overrides, "TRL": [*theirs, f"--steps={steps}", f"--seed={seed}"]}


def measure(
    side: str,
    command: list[str],
    workload: Workload,
    steps: int,
    deadline_s: float,
    *,
    lines: Path | None = None,
    tree: Path = ROOT,
    environment: dict[str, str] | None = None,
) -> Measurement:
    """What `run` saw of one process of one side, in figures; the arguments and errors are those of `run`."""
    seen, foreign_cores = run(side, command, steps, deadline_s, lines=lines, tree=tree, environment=environment)
    return _measurement(side, seen, workload, foreign_cores)


def run(
    side: str,
    command: list[str],
    steps: int,
    deadline_s: float,
    *,
    lines: Path | None = None,
    tree: Path = ROOT,
    environment: dict[str, str] | None = None,
    watch: Callable[[int], None] = lambda _: None,
) -> tuple[list[tuple[float, dict[str, Any]]], float]:
    """Run one process of one side to its end, in `tree`; its steps are the JSON lines of `lines`, else of its output.

    Args:
        side: its name in messages.
        command: `{directory}` stands for a new directory.
        steps: lines that it is to write.
        deadline_s: seconds that it may take.
        lines: a file that it writes; None: for Tandem metrics.jsonl of the run `ours`, else its output.
        tree: the checkout whose code it is.
        environment: None for this process's own.
        watch: called with its process id about once a second.

    Returns:
        Arrival time and content of each line, and the cores that other processes kept busy meanwhile.

    Raises:
        BenchmarkError: when it fails, or takes longer than `deadline_s`, or reports too few steps.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"compare-{side.lower().replace('/', '-')}-"))
    standard_output = directory / "stdout"
    if lines is None:
        lines = directory / "ours" / "metrics.jsonl" if side == "Tandem" else standard_output
    filled = [part.format(directory=directory) for part in command]
    with standard_output.open("w") as out, (directory / "stderr").open("w") as err:
        marked = load.marked_environment() if environment is None else load.marked(environment)
        process = subprocess.Popen(filled, cwd=tree, stdout=out, stderr=err, env=marked)
        foreign = load.ForeignLoad()

        def sample() -> None:
            foreign.sample()
            watch(process.pid)

        try:
            seen = list(follow(process, lines, time.monotonic() + deadline_s, sample))
        finally:
            _end(process)
    if process.returncode or len(seen) != steps:
        raise BenchmarkError(
            f"{side}: exit status {process.returncode} after {len(seen)} of {steps} steps, see {directory}"
        )
    return seen, foreign.cores()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, if it still runs, and insist after a minute."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def follow(
    process: subprocess.Popen[bytes], path: Path, deadline: float, sample: Callable[[], None]
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Arrival time and content of every JSON line of a growing file, until the process ends.

    `sample` is called about once a second, and as soon as the process has started.

    Raises:
        BenchmarkError: when the process still runs at `deadline` (time.monotonic()).
    """
    position, sampled = 0, 0.0
    while True:
        ended = process.poll() is not None
        content = path.read_bytes()[position:] if path.is_file() else b""
        now = time.monotonic()
        complete = content[: content.rfind(b"\n") + 1]
        position += len(complete)
        yield from ((now, json.loads(line)) for line in complete.splitlines() if line.startswith(b"{"))
        if ended:
            return
        if now > deadline:
            raise BenchmarkError(f"{process.args} still runs at its deadline, see {path}")
        if now - sampled > 1:
            sample()
            sampled = now
        time.sleep(POLL_S)


def _measurement(
    side: str, seen: list[tuple[float, dict[str, Any]]], workload: Workload, foreign_cores: float
) -> Measurement:
    seconds = [after - before for (before, _), (after, _) in itertools.pairwise(seen)]
    kept = [record for _, record in seen[1:]]
    told = sum(record["time/step"] for record in kept)
    if told > 1.1 * sum(seconds) + 0.1:
        raise BenchmarkError(f"{side}: reports {told:.1f} s for steps seen in {sum(seconds):.1f} s: lines came late")
    samples = workload.samples_per_step
    verbs = sorted({key for record in kept for key in record if key.startswith("time/") and key not in NO_PHASES})
    return Measurement(
        side=side,
        samples_per_second=samples / median(seconds),
        step_seconds=seconds,
        response_tokens=mean(record["tokens/generated"] for record in kept) / samples,
        padding=mean(record["tokens/padding_fraction"] for record in kept),
        reward=mean(record["reward/mean"] for record in kept),
        phases={verb.removeprefix("time/"): mean(record.get(verb, 0.0) for record in kept) for verb in verbs},
        foreign_cores=foreign_cores,
    )


def row(number: int, found: Measurement) -> list[str]:
    """Table cells of one measurement."""
    phases = ", ".join(f"{verb} {seconds:.2f}" for verb, seconds in found.phases.items() if seconds >= 0.005)
    step, fastest, slowest = median(found.step_seconds), min(found.step_seconds), max(found.step_seconds)
    return [
        str(number),
        found.side,
        f"{step:.2f} ({fastest:.2f} to {slowest:.2f})",
        f"{found.samples_per_second:.2f}",
        f"{found.response_tokens:.1f}",
        f"{found.padding:.1%}",
        f"{found.reward:.3f}",
        f"{found.foreign_cores:.2f}",
        phases,
    ]


def report(workload: Workload, pairs: list[tuple[Measurement, Measurement]], options: str, python: Path) -> str:
    """Markdown section: table, ratios, conditions, and warnings where the comparison is not a fair one."""
    ratios = [ours.samples_per_second / theirs.samples_per_second for ours, theirs in pairs]
    lengths = [mean(pair[side].response_tokens for pair in pairs) for side in (0, 1)]
    rates = [median(pair[side].samples_per_second for pair in pairs) for side in (0, 1)]
    header = ["round", "side", "s/step (range)", "samples/s", "response tokens", "padding", "reward", "foreign cores"]
    have, had = trl_env.versions(sys.executable), trl_env.versions(python)
    lines = [
        f"## GRPO against TRL, {workload.name} responses",
        "",
        f"**{median(ratios):.2f}x TRL's samples/s** ({rates[0]:.2f} against {rates[1]:.2f}; "
        f"ratio by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)})",
        "",
        f"`python -m benchmarks.compare_trl {options}`, {datetime.date.today()}, on {results.machine()}. "
        f"{workload.samples_per_step} samples a step ({workload.samples_per_prompt} a prompt), at most "
        f"{workload.max_response_tokens} tokens, fp32, {workloads.THREADS} threads, one update a step. TRL "
        f"{had['trl']} with torch {had['torch']}, transformers {had['transformers']}; here torch {have['torch']}, "
        f"transformers {have['transformers']}.",
        "",
        results.table(
            [*header, "seconds by verb"], [row(i + 1, found) for i, pair in enumerate(pairs) for found in pair]
        ),
        "",
        *warnings(lengths, [found.foreign_cores for pair in pairs for found in pair]),
    ]
    return "\n".join(lines)


def warnings(lengths: Sequence[float], foreign_cores: Iterable[float]) -> list[str]:
    """What makes a comparison doubtful, one line each: mean lengths of responses, by side, and cores kept busy."""
    found = []
    if max(lengths) - min(lengths) > LENGTHS_AGREE * min(lengths):
        told = " against ".join(f"{length:.1f}" for length in lengths)
        found.append(f"NOT COMPARABLE: mean response lengths differ, {told} tokens.")
    if (busiest := max(foreign_cores)) > load.QUIET_CORES:
        found.append(f"NOT COMPARABLE: other processes kept up to {busiest:.2f} cores busy.")
    return found


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(str(error))
