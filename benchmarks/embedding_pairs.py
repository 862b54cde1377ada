"""Real text for embedding models: which calculation solves a word problem, from GSM8K (arXiv 2110.14168).

    python -m benchmarks.embedding_pairs DATA_DIRECTORY OUTPUT_DIRECTORY

A query is a question; its passage is the calculations that annotate its solution, without any of the solution's words:

    Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes ...    12/60=0.2 ; 0.2*50=10

Rows of `train.jsonl` come from gsm8k_train.jsonl, those of `eval.jsonl` from gsm8k_test.jsonl. No question and no
passage is there twice, in one file or in both, and no training question is a held-out one with other numbers.
"""

import argparse
import json
import random
import re
from pathlib import Path

SOURCES = {"train": "gsm8k_train.jsonl", "eval": "gsm8k_test.jsonl"}
"""Split -> file of GSM8K, one JSON object with `question` and `answer` a line."""
_CALCULATION = re.compile(r"<<([^<>]+)>>")
_NUMBER = re.compile(r"\d[\d,.]*")

Pair = tuple[str, str]
"""Question and passage."""


def build(data_dir: Path, output_dir: Path, *, longest_question: int = 40, seed: int = 0) -> dict[str, int]:
    """Write `train.jsonl` and `eval.jsonl`, each row {query, pos: [passage]}; the same bytes every time.

    Args:
        longest_question: words; longer questions are left out, since the time of a step grows with the longest text.
        seed: of the order of the rows.

    Returns:
        Number of rows of each split.

    Raises:
        FileNotFoundError: when data_dir lacks a file of SOURCES.
    """
    held_out = _unique(_read(data_dir / SOURCES["eval"], longest_question), [])
    splits = {"train": _unique(_read(data_dir / SOURCES["train"], longest_question), held_out), "eval": held_out}
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.items():
        random.Random(seed).shuffle(pairs)
        rows = (json.dumps({"query": question, "pos": [passage]}, ensure_ascii=False) for question, passage in pairs)
        (output_dir / f"{name}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return {name: len(pairs) for name, pairs in splits.items()}


def _read(file: Path, longest_question: int) -> list[Pair]:
    """Questions and their calculations, in the file's order; solutions of fewer than two are left out."""
    pairs: list[Pair] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = " ".join(row["question"].split())
        calculations = [calculation.strip() for calculation in _CALCULATION.findall(row["answer"])]
        # A single one is often a bare result, `<<9=9>>`, which fits many questions.
        if len(calculations) > 1 and len(question.split()) <= longest_question:
            pairs.append((question, " ; ".join(calculations)))
    return pairs


def _unique(pairs: list[Pair], others: list[Pair]) -> list[Pair]:
    """Pairs of which neither the question, whatever its numbers, nor the passage was there before or is in others."""
    questions = {_without_numbers(question) for question, _ in others}
    passages = {passage for _, passage in others}
    kept: list[Pair] = []
    for question, passage in pairs:
        form = _without_numbers(question)
        if form not in questions and passage not in passages:
            questions.add(form)
            passages.add(passage)
            kept.append((question, passage))
    return kept


def _without_numbers(question: str) -> str:
    return _NUMBER.sub("#", question.lower())


def main(data_dir: Path, output_dir: Path) -> None:
    """Write both files and say how many rows they have, or which files are missing."""
    missing = [name for name in SOURCES.values() if not (data_dir / name).is_file()]
    if missing:
        print(f"skipped: {data_dir} has no {', '.join(missing)}")
        return
    counts = build(data_dir, output_dir)
    print(", ".join(f"{output_dir / name}.jsonl: {count} rows" for name, count in counts.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write pairs of questions and calculations from GSM8K.")
    parser.add_argument("data_dir", type=Path, help="directory with gsm8k_train.jsonl and gsm8k_test.jsonl")
    parser.add_argument("output_dir", type=Path)
    arguments = parser.parse_args()
    main(arguments.data_dir, arguments.output_dir)
