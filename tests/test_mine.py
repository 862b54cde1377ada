"""`tandem mine` as a user meets it: what it writes, that an interruption changes nothing, and one line per mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.config import ModelInit
from algorithms.config import DataConfig
from algorithms.encoder.rows import rankings
from launch.cli import main
from launch.screen.display import Display
from launch.verbs import mine, mining_parts
from tests.encoder_models import CORPUS, MODEL, PAIRS, load_model, needs_model, save_reranker
from tests.fake_models import fake_model

ROOT = Path(__file__).resolve().parent.parent
pytestmark = needs_model
MINE = ["mine", MODEL, "--data", "pairs.jsonl", "--corpus", "corpus.txt", "--output"]


@pytest.fixture(scope="module")
def rerankers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the rerankers `plain` and `saved`."""
    directory = tmp_path_factory.mktemp("rerankers")
    save_reranker(directory)
    return directory


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with data in it."""
    monkeypatch.chdir(tmp_path)
    write("pairs.jsonl", [{"query": query, "positive": text} for query, text in PAIRS])
    Path("corpus.txt").write_text("\n\n".join(CORPUS) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model()


@pytest.fixture
def loaded(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model, which is not loaded again."""
    monkeypatch.setattr(mine, "load_embedding_model", lambda directory: model)
    return model


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_rows_can_be_learned_from(project: Path, rerankers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each of the data, with the reranker's scores, which are read back as a teacher's."""
    reranker = str(rerankers / "plain")
    assert main([*MINE, "mined.jsonl", "--reranker", reranker, "--min-score", "0.9", "--negatives", "4"]) == 0
    rows = read("mined.jsonl")
    counts = [len(row["neg"]) for row in rows]
    given = [[query, [text]] for query, text in PAIRS]
    assert [[row["query"], row["pos"]] for row in rows] == [
        item for item in given if item[0] in {r["query"] for r in rows}
    ]
    assert all(len(row["pos_scores"]) == 1 and len(row["neg_scores"]) == len(row["neg"]) for row in rows)
    assert all(row["neg_scores"] == sorted(row["neg_scores"], reverse=True) for row in rows)
    assert all(score >= 0.9 for row in rows for score in row["neg_scores"])
    assert rankings(rows, DataConfig(train="x"), "x", scores=True)[0].negative_scores == tuple(rows[0]["neg_scores"])
    printed = capsys.readouterr().out
    assert 0 < len(rows) < len(PAIRS) and min(counts) < 4  # the limit leaves rows out, and rows with fewer
    assert f"fewer than 4 negatives {sum(count < 4 for count in counts)} rows" in printed
    assert f"no negative            {len(PAIRS) - len(rows)} rows, left out" in printed
    assert "rows                   27, of 18 distinct queries" in printed
    assert not Path("mined.jsonl.partial").exists()


def test_a_ranking_is_the_first_stage_of_a_reranker(project: Path, loaded: Any) -> None:
    """All positives of a query, and its best passages in order, positives among them, but not the query itself."""
    from sentence_transformers.util import semantic_search

    query = PAIRS[-1][0]
    Path("corpus.txt").write_text("\n".join([*CORPUS, query]), encoding="utf-8")
    assert main([*MINE, "ranked.jsonl", "--rank", "--negatives", "10"]) == 0
    rows = read("ranked.jsonl")
    texts = [*CORPUS, query, *(text for _, text in PAIRS)]
    hits: Any = semantic_search(loaded.encode([row["query"] for row in rows]), loaded.encode(texts), top_k=11)
    found = [[texts[hit["corpus_id"]] for hit in best] for best in hits]
    assert query in found[-1]
    expected = [[text for text in best if text != row["query"]][:10] for row, best in zip(rows, found, strict=True)]
    assert [row["documents"] for row in rows] == expected
    assert rows[-1]["positive"] == [text for asked, text in PAIRS if asked == query]
    assert all(set(row["positive"]) & set(row["documents"]) for row in rows)


def test_an_interruption_anywhere_changes_nothing(
    project: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C at each of the moments when a file is put in place, and before it; then the same command again."""
    command = ["--batch-size", "1", "--sampling", "random", "--range", "0", "20"]
    assert main([*MINE, "whole.jsonl", *command]) == 0
    monkeypatch.setattr("launch.verbs.miner._SHARD_BATCHES", 12)
    moments = 0
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        nonlocal moments, left
        left -= 1
        if left == 0 and moments % 2:
            raise KeyboardInterrupt
        replace(source, target)
        if left == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(mining_parts.os, "replace", interrupted)
    code = 130
    while code == 130:
        left = 1 + moments % 3
        code = main([*MINE, "mined.jsonl", *command])
        moments += 1
    assert code == 0 and moments > 8
    assert "keeps what is done: the same command continues" in capsys.readouterr().err
    assert [row["query"] for row in read("mined.jsonl")] == [query for query, _ in PAIRS]
    assert Path("mined.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert not Path("mined.jsonl.partial").exists()


def test_parts_that_are_being_removed_are_not_read(
    project: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted when the result is in place, a run leaves parts that one with other settings must not take."""

    def interrupted(directory: Path) -> None:
        raise KeyboardInterrupt

    drawn = [*MINE, "mined.jsonl", "--sampling", "random", "--range", "0", "20", "--seed"]
    with monkeypatch.context() as patch:
        patch.setattr(mining_parts.shutil, "rmtree", interrupted)
        assert main([*drawn, "1"]) == 130
    assert list(Path("mined.jsonl.partial").glob("mined-*"))
    assert main([*drawn, "1"]) == 2
    assert capsys.readouterr().err.endswith("error: --output: must not exist yet, got mined.jsonl\n")
    Path("mined.jsonl").rename("first.jsonl")
    assert main([*drawn, "2"]) == 0
    Path("mined.jsonl").rename("second.jsonl")
    assert main([*drawn, "2"]) == 0
    assert Path("mined.jsonl").read_bytes() == Path("second.jsonl").read_bytes() != Path("first.jsonl").read_bytes()


def test_how_far_it_is_is_told(project: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int, str]] = []

    def progress(self: Display, done: int, total: int, what: str) -> None:
        told.append((self._phase, done, total, what))

    monkeypatch.setattr(Display, "progress", progress)
    assert main([*MINE, "mined.jsonl", "--batch-size", "1", "--negatives", "2"]) == 0
    passages, queries = len({*CORPUS, *(text for _, text in PAIRS)}), len({query for query, _ in PAIRS})
    assert [each for each in told if each[0] == "encoding"] == [("encoding", 0, passages, "passages")]
    mined = [each for each in told if each[0] == "mining"]
    assert mined[0] == ("mining", 0, queries, "queries") and mined[-1] == ("mining", queries, queries, "queries")
    assert len(mined) > 2 and mined == sorted(mined)


def test_a_killed_process_is_continued(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL after the first part: the same command makes the others, and not that one again."""
    write("corpus.jsonl", [{"text": f"{text} ({number})", "id": number} for number in range(6) for text in CORPUS])
    command = [MODEL, "--data", "pairs.jsonl", "--corpus", "corpus.jsonl", "--batch-size", "1", "--output"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-m", "launch", "mine", *command, "mined.jsonl"]
    process = subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first, deadline = Path("mined.jsonl.partial/passages-000000.npy"), time.monotonic() + 100
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()

    from sentence_transformers import SentenceTransformer

    encoded = []
    encode = SentenceTransformer.encode_document

    def counted(self: Any, texts: list[str], **options: Any) -> Any:
        encoded.append(len(texts))
        return encode(self, texts, **options)

    monkeypatch.setattr(SentenceTransformer, "encode_document", counted)
    assert main(["mine", *command, "mined.jsonl"]) == 0
    again, encoded = sum(encoded), []
    assert main(["mine", *command, "whole.jsonl"]) == 0
    assert again <= sum(encoded) - 128
    assert Path("mined.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_work_begun_otherwise_is_not_continued(
    project: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other data or settings, an output that is there, and another process at work are one line each."""

    def fails(*arguments: Any, **options: Any) -> np.ndarray:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loaded, "encode_query", fails)
        assert main([*MINE, "mined.jsonl"]) == 130
    kept = sorted(Path("mined.jsonl.partial").iterdir())

    def error(*more: str) -> str:
        capsys.readouterr()
        assert main([*MINE, "mined.jsonl", *more]) == 2
        return capsys.readouterr().err

    advice = "remove the directory or choose another output, got mined.jsonl"
    begun = "error: --output: mined.jsonl.partial was begun with other"
    assert error("--seed", "1") == f"{begun} settings; {advice}\n"
    Path("corpus.txt").write_text("Paris is old.\n", encoding="utf-8")
    assert error("--max-score", "0.9", "--negatives", "2") == f"{begun} data, settings; {advice}\n"
    assert sorted(Path("mined.jsonl.partial").iterdir()) == kept
    with mining_parts.mining_parts(Path("other.jsonl"), {}):
        assert main([*MINE, "other.jsonl"]) == 2
    assert capsys.readouterr().err == "error: --output: another process is writing it, got other.jsonl\n"
    Path("there.jsonl").write_text("precious")
    assert main([*MINE, "there.jsonl"]) == 2
    assert capsys.readouterr().err == "error: --output: must not exist yet, got there.jsonl\n"
    assert Path("there.jsonl").read_text() == "precious"
    Path("new.jsonl.partial").mkdir()
    Path("new.jsonl.partial/letter.txt").write_text("precious")
    assert main([*MINE, "new.jsonl"]) == 2
    assert "error: --output: new.jsonl.partial holds other files (letter.txt); remove" in capsys.readouterr().err


MISTAKES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no such corpus": (
        lambda rerankers: ["--corpus", "corpus.text"],
        "--corpus: no such file (did you mean corpus.txt?), got corpus.text",
    ),
    "empty corpus": (
        lambda rerankers: ["--corpus", "empty.txt"],
        "--corpus: must hold at least one passage, got none in empty.txt",
    ),
    "corpus without text": (
        lambda rerankers: ["--corpus", "pairs.jsonl"],
        "--corpus: row 1: must have column text or passage, got query, positive",
    ),
    "rows without a positive": (
        lambda rerankers: ["--data", "empty.jsonl"],
        "--data: row 2: pos ",
    ),
    "no pooling": (lambda rerankers: ["none"], "MODEL: must say how it pools (modules.json), got none"),
    "a model that generates": (
        lambda rerankers: ["causal"],
        "MODEL: must be an embedding model or a reranker, got Qwen2ForCausalLM, which generates text (`tandem chat "
        "causal`), in causal",
    ),
    "a reranker": (
        lambda rerankers: [str(rerankers / "saved")],
        "MODEL: must be an embedding model, a reranker goes to --reranker, got {rerankers}/saved",
    ),
    "no model": (
        lambda rerankers: ["corpus.txt"],
        "MODEL: must be a directory with a config.json, not a file, got corpus.txt",
    ),
    "an embedding model as reranker": (
        lambda rerankers: ["--reranker", MODEL],
        f"--reranker: must be a reranker, which scores pairs, got an embedding model in {MODEL}",
    ),
    "several scores": (
        lambda rerankers: ["--reranker", "three"],
        "--reranker: must give one score, got BertForSequenceClassification with 3 in three",
    ),
    "range": (lambda rerankers: ["--range", "5", "5"], "--range: A must be smaller than B, got 5 5"),
    "range of a word": (
        lambda rerankers: ["--range", "5", "all"],
        "--range: must be a whole number from 0, got all (see tandem mine --help)",
    ),
    "range smaller than the negatives": (
        lambda rerankers: ["--range", "2", "5"],
        "--negatives: must not exceed the 3 candidates of --range, got 7",
    ),
    "more negatives than passages": (
        lambda rerankers: ["--negatives", "60"],
        "--negatives: must not exceed the 53 passages that are no positives of a query, got 60",
    ),
    "no negative at all": (
        lambda rerankers: ["--max-score", "-0.9"],
        "mined.jsonl: no row has a negative (27 positives of the query, 945 --max-score)",
    ),
    "relative margin in percent": (
        lambda rerankers: ["--relative-margin", "5"],
        "--relative-margin: must be a number from 0 to 1, got 5 (see tandem mine --help)",
    ),
    "rescoring with nothing": (lambda rerankers: ["--rescore"], "--rescore: needs --reranker, got none"),
    "ranking with a limit": (
        lambda rerankers: ["--rank", "--max-score", "0.5"],
        "--rank: writes the passages as they are ranked, without choosing, got --max-score",
    ),
    "output of another kind": (
        lambda rerankers: ["--output", "mined.parquet"],
        "--output: must end in .jsonl, got mined.parquet",
    ),
    "output below a file": (
        lambda rerankers: ["--output", "corpus.txt/mined.jsonl"],
        "--output: must be a file that can be written ([Errno 20] Not a directory: 'corpus.txt/mined.jsonl.partial'), "
        "got corpus.txt/mined.jsonl",
    ),
}


def _instead(more: list[str]) -> list[str]:
    """The usual arguments with others in their place: a model, or an option."""
    if not more[0].startswith("-"):
        return [more[0], *MINE[2:], "mined.jsonl"]
    usual = [*MINE[1:], "mined.jsonl"]
    if more[0] in usual:
        place = usual.index(more[0])
        del usual[place : place + 2]
    return [*usual, *more]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    project: Path, loaded: Any, rerankers: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    """Exit code 2, and no output."""
    Path("empty.txt").write_text("\n \n")
    write("empty.jsonl", [{"query": "a", "pos": ["b"]}, {"query": "c", "pos": []}])
    small = ModelInit(family="bert", hidden_size=16, heads=2, layers=1, alphabet="ab", max_positions=32)
    fake_model(Path("none"), init=small)
    fake_model(Path("causal"))
    labels = {"0": "a", "1": "b", "2": "c"}
    fake_model(Path("three"), init=small, architectures=["BertForSequenceClassification"], id2label=labels)
    more, expected = MISTAKES[mistake][0](rerankers), MISTAKES[mistake][1]
    code = main(["mine", *_instead(more)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    line = f"error: {expected.format(rerankers=rerankers)}"
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(line) if line.endswith(" ") else lines[0] == line
    assert not list(project.glob("mined*"))
