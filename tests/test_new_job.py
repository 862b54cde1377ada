"""`tandem init` for data of one's own: which jobs columns fit, the file that it writes, and what it asks."""

import contextlib
import json
import os
import pty
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.config import ModelInit
from launch.checks.check import examine
from launch.cli import INTERRUPTED, main
from launch.config import load
from launch.sizes.machine import Machine
from launch.verbs import new_job
from launch.verbs.data_fit import fits, likeliest, reward_of
from launch.verbs.new_job import JOBS
from tests.fake_models import fake_model

TALK = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": TALK},
    "words": {"question": "ab", "answer": "cd"},
    "renamed": {"problem": "ab", "solution": "12 #### 12"},
    "pairs": {"question": "ab", "preferred": "cd", "worse": "ef"},
    "judged": {"prompt": "ab", "completion": "cd", "good": True},
    "found": {"query": "ab", "positive": "cd", "negative": "ef"},
    "labelled": {"query": "ab", "document": "cd", "label": 1},
    "alike": {"premise": "ab", "hypothesis": "cd", "similarity": 0.5},
    "several": {"messages": TALK, "prompt": "ab", "completion": "cd"},
}
"""Columns of data sets as they are met, with a row."""


def rows_of(name: str, count: int = 4) -> list[dict[str, Any]]:
    """Rows that differ, as no set has the same row many times."""
    rows = []
    for number in range(count):
        texts = {column: value for column, value in ROWS[name].items() if isinstance(value, str) and column != "answer"}
        row = ROWS[name] | {column: f"{number} {value}" for column, value in texts.items()}
        switched = {column: number % 2 for column in ("label", "good") if column in row}
        rows.append(row | {column: bool(value) if column == "good" else value for column, value in switched.items()})
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    init = ModelInit(hidden_size=64, layers=1, heads=2, max_positions=256)
    return fake_model(tmp_path_factory.mktemp("model") / "decoder", init=init)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def written(directory: Path, rows: Sequence[Mapping[str, Any]], name: str = "rows.jsonl") -> str:
    path = directory / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.mark.parametrize(
    ("name", "job", "columns", "loss"),
    [
        ("messages", "sft", {}, None),
        ("words", "sft", {"prompt": "question", "completion": "answer"}, None),
        ("words", "grpo", {}, None),
        ("words", "embedding", {"query": "question", "pos": "answer"}, None),
        ("renamed", "ppo", {"prompt": "problem"}, None),
        ("pairs", "dpo", {"prompt": "question", "chosen": "preferred", "rejected": "worse"}, None),
        ("pairs", "reward", {"prompt": "question", "chosen": "preferred", "rejected": "worse"}, None),
        ("judged", "dpo", {"label": "good"}, "kto"),
        ("found", "embedding", {}, None),
        ("found", "reranker", {}, "cross_entropy"),
        ("labelled", "reranker", {}, None),
        ("alike", "embedding", {"sentence1": "premise", "sentence2": "hypothesis", "score": "similarity"}, "cosent"),
        ("several", "sft", {"messages": "messages"}, None),
    ],
)
def test_columns_say_how_a_job_reads_rows(name: str, job: str, columns: dict[str, str], loss: str | None) -> None:
    fit = fits(rows_of(name))[job]
    assert (fit.columns, fit.loss) == (columns, loss)


def test_rows_fit_only_jobs_that_can_read_their_values() -> None:
    assert list(fits(rows_of("messages"))) == ["sft"]  # they end with the assistant: nothing is left to sample
    assert fits([{"prompt": 1, "chosen": 2, "rejected": 3}]) == {}
    one_label: list[dict[str, object]] = [{**row, "label": 1} for row in rows_of("labelled")]
    assert "reranker" not in fits(one_label)
    alike: dict[str, object] = {"prompt": "a", "chosen": "same", "rejected": "same"}
    assert fits([alike] * 3).keys() == {"grpo", "ppo"}


@pytest.mark.parametrize(
    ("answers", "reward"),
    [
        ([7, 8.5], "math"),
        (["12 rolls: 3 * 4\n#### 12", r"so it is \boxed{\frac{1}{2}}"], "math"),
        (["12", r"\pi"], "math"),
        (["yes", "no", "1"], "exact_match"),  # words are products of letters to a parser of mathematics
        (["12", "it cannot be told from what is given"], "exact_match"),
        (["12", "so long a text that nobody can be asked to say it to the letter"], None),
    ],
)
def test_answers_say_which_reward(answers: list[object], reward: str | None) -> None:
    rows: list[dict[str, object]] = [{"prompt": "ab", "answer": answer} for answer in answers]
    assert reward_of(rows, fits(rows)["grpo"])[0] == reward


def test_what_holds_the_answers_is_named_for_the_reward() -> None:
    rows = rows_of("renamed")
    reward, fit = reward_of(rows, fits(rows)["grpo"])
    assert (reward, fit.columns) == ("math", {"prompt": "problem", "answer": "solution"})
    assert fit.reads == ("problem", "solution")


@pytest.mark.parametrize(
    ("name", "job"),
    [("pairs", "dpo"), ("renamed", "grpo"), ("words", "sft"), ("found", "embedding"), ("labelled", "reranker")],
)
def test_the_likeliest_job_uses_most_of_the_columns(name: str, job: str) -> None:
    rows = rows_of(name)
    assert likeliest(rows, fits(rows)) == job


@pytest.mark.parametrize(
    ("job", "name", "gpus"),
    [
        ("sft", "messages", 0),
        ("grpo", "words", 0),
        ("ppo", "words", 1),
        ("dpo", "judged", 1),
        ("reward", "pairs", 0),
        ("embedding", "alike", 0),
        ("reranker", "found", 0),
    ],
)
def test_a_file_of_few_lines_that_check_accepts(
    job: str, name: str, gpus: int, here: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    machine = Machine(cpus=4, gpus=gpus, memory=None)
    for module in (new_job, sys.modules["launch.checks.check"]):
        monkeypatch.setattr(module, "this_machine", lambda **_: machine)
    data = written(here, rows_of(name, 120))
    assert main(["init", "--job", job, "--model", str(model), "--data", data, "--output", "my first.yaml"]) == 0
    text = (here / "my first.yaml").read_text()
    assert len(text.splitlines()) <= 12
    config = load("my first.yaml", [])
    assert (config.algorithm.name, config.run.name, config.model.path) == (job, "my-first", str(model))
    assert bool(config.policy.gpus_per_rank) == bool(gpus)
    assert examine(config).rows
    out = capfd.readouterr().out
    assert out.startswith("my first.yaml: 120 rows of ")
    assert out.splitlines()[-1] == "next: tandem run 'my first.yaml'"


def test_what_the_model_is_too_short_for_is_in_the_file(here: Path, model: Path) -> None:
    rows = rows_of("words", 4)
    rows[2]["answer"] = "x " * 500
    data = written(here, rows)
    assert main(["init", "--job", "sft", "--model", str(model), "--data", data]) == 0
    found = load("sft.yaml", []).data
    assert (found.max_length, found.overlong) == (256, "drop")


@pytest.mark.parametrize(
    "text", ["1e-5", "yes", "a: b", "#", "'", '"', "null", "01", "a\nb", "答案", "{x}", "0o17", "+1e5"]
)
def test_what_yaml_could_misread_is_quoted(text: str, here: Path) -> None:
    fit = fits(rows_of("messages"))["sft"]
    written_text = new_job.as_text("sft", {"data": {"train": text, "columns": {text: text}}, "x": {"lr": 1e-6}}, fit)
    (here / "x.yaml").write_text(written_text, encoding="utf-8")
    from launch.settings.file import read_yaml

    assert read_yaml("x.yaml") == {"data": {"train": text, "columns": {text: text}}, "x": {"lr": 1e-6}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"--data": "odd.jsonl"}, "--data: must have the columns of a job (sft: messages, "),
        ({"--data": "pairs.jsonl"}, "--data: must have the columns of sft (messages, conversations, "),
        ({"--data": "none.jsonl"}, "--data: "),
        ({"--output": "taken.yaml"}, "--output: must not be there yet, got taken.yaml"),
        ({"--output": "no/x"}, "--output: must be a file that can be made (No such file or directory), got no/x"),
        ({"--reward": "math"}, "--reward: must be left out for sft, which has none, got math"),
        ({"--job": "grpo", "--data": "long.jsonl"}, "--reward: required where no column of short answers tells it ("),
        ({"--model": "nowhere/at all"}, "init: nothing is written, as check refuses it: model.path: "),
        ({"--job": "bogus"}, "--job: must be one of sft, grpo, ppo, "),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    changes: dict[str, str], line: str, here: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(here, rows_of("messages"))
    written(here, [{"foo": 1, "bar": "2"}], "odd.jsonl")
    written(here, rows_of("pairs"), "pairs.jsonl")
    written(here, [{"question": "a", "answer": "word " * 50}], "long.jsonl")
    (here / "taken.yaml").write_text("mine")
    before = sorted(here.iterdir())
    options = {"--job": "sft", "--model": str(model), "--data": "rows.jsonl"} | changes
    assert main(["init", *(word for option in options.items() for word in option)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {line}")
    assert "Traceback" not in err
    assert sorted(here.iterdir()) == before
    assert (here / "taken.yaml").read_text() == "mine"


def test_a_wrong_job_says_which_ones_the_columns_fit(
    here: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(here, rows_of("pairs"))
    assert main(["init", "--job", "sft", "--model", str(model), "--data", data]) == 2
    assert ", got question, preferred, worse, which fit grpo, ppo, dpo, reward\n" in capsys.readouterr().err


def test_without_a_terminal_nothing_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 2
    assert capsys.readouterr().err == (
        "error: DIR, or --job, --model and --data: required, got nothing (see tandem init --help)\n"
    )
    assert main(["init", "--job", "sft", "--data", "x"]) == 2
    assert capsys.readouterr().err == "error: --model: required, got nothing (see tandem init --help)\n"
    assert main(["init", "there", "--job", "sft"]) == 2
    assert capsys.readouterr().err == "error: DIR: must be left out with --job, got there\n"


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """Standard input and output are a terminal; what is typed there is written to the descriptor."""
    outer, inner = pty.openpty()
    before = sys.stdin, sys.stdout
    # Within the test: pytest sets both anew before it.
    with open(inner) as sys.stdin, open(inner, "w", closefd=False) as sys.stdout:
        yield outer
        sys.stdin, sys.stdout = before
    os.close(outer)


def test_on_a_terminal_it_asks_and_asks_again(here: Path, model: Path) -> None:
    written(here, rows_of("renamed"))
    (here / "grpo.yaml").write_text("mine")
    typed = ["none.jsonl", "rows.jsonl", "dpo", "", "exact_match", "nothing at all", str(model), "", "second.yaml"]
    with terminal() as outer:
        os.write(outer, "".join(f"{line}\n" for line in typed).encode())
        assert main(["init"]) == 0
        sys.stdout.flush()
        seen = os.read(outer, 2**16).decode()
    assert "job: must be one of sft, grpo, ppo, got dpo" in seen
    assert "job [grpo]: " in seen
    assert "reward (math, exact_match or file.py:function) [math]: " in seen
    assert "model: must be a directory or OWNER/NAME of the hub, got nothing at all" in seen
    assert "write to: must not be there yet, got grpo.yaml" in seen
    config = load("second.yaml", [])
    assert (config.algorithm.name, config.reward.functions[0].name) == ("grpo", "exact_match")
    assert (here / "grpo.yaml").read_text() == "mine"


def test_who_leaves_in_the_middle_has_written_nothing(here: Path) -> None:
    data = written(here, rows_of("pairs"))
    with terminal() as outer:
        os.write(outer, f"{data}\n\x04".encode())  # Ctrl-D
        assert main(["init"]) == INTERRUPTED
    assert [path.name for path in here.iterdir()] == [data]


def test_every_job_has_a_place_in_init() -> None:
    from launch.settings.tree import jobs

    assert set(JOBS) == set(jobs())
