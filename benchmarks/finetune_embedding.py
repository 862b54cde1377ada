"""A pretrained encoder fine-tuned on real text by the embedding job: held-out search before and after.

    python -m benchmarks.finetune_embedding DATA_DIRECTORY

Pairs of `benchmarks.embedding_pairs` (GSM8K: which calculations solve a word problem); one short run, dropout and all.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import embedding_pairs, results
from benchmarks.compare_st import CACHE, MODEL, ROOT

SHOWN = ("recall@1", "recall@10", "mrr@10", "ndcg@10")


def main() -> None:
    """Fine-tune, and write RESULTS.md."""
    parser = argparse.ArgumentParser(description="Fine-tune a pretrained encoder on real text.")
    parser.add_argument("data_dir", type=Path, help="directory with GSM8K, see benchmarks.embedding_pairs")
    parser.add_argument("--steps", type=int, default=24)
    arguments = parser.parse_args()
    embedding_pairs.main(arguments.data_dir, CACHE)
    if not (CACHE / "train.jsonl").is_file():
        return
    held_out = len((CACHE / "eval.jsonl").read_text(encoding="utf-8").splitlines())
    directory = Path(tempfile.mkdtemp(prefix="finetune-"))
    command = [sys.executable, "-m", "launch", "run", "benchmarks/embedding.yaml", f"model.path={MODEL}"]
    command += [f"data.train={CACHE / 'train.jsonl'}", f"data.eval={CACHE / 'eval.jsonl'}"]
    command += [f"algorithm.steps={arguments.steps}", "algorithm.samples_per_update=64", "algorithm.eval_every=12"]
    command += [f"run.output={directory}", "run.name=finetuned"]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, timeout=3600)
    seconds = time.monotonic() - started
    lines = (directory / "finetuned/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "eval/ndcg@10" in row]
    table = [[row["step"], *(f"{row[f'eval/{name}']:.3f}" for name in SHOWN)] for row in rows]
    text = "\n".join(
        [
            "## A pretrained encoder on real text",
            "",
            f"**recall@1 {table[0][1]} to {table[-1][1]}, nDCG@10 {table[0][4]} to {table[-1][4]}** on held-out pairs",
            "",
            results.table(["update", *SHOWN], table),
            "",
            f"all-MiniLM-L6-v2; pairs of `benchmarks.embedding_pairs` (GSM8K: question and calculations, {held_out} "
            f"held out); {arguments.steps} updates of 64 pairs, {seconds:.0f} s in all; {results.machine()}; "
            f"{datetime.date.today()}; `python -m benchmarks.finetune_embedding DATA_DIRECTORY "
            f"--steps {arguments.steps}`",
        ]
    )
    print(text)
    results.write_section("embedding-finetune", text)


if __name__ == "__main__":
    main()
