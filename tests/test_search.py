"""`tandem search`: the best passages of an embedding model or a reranker, in order, for a query or lines of a pipe."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.verbs import search
from tests.encoder_models import CORPUS, MODEL, PAIRS, load_model, needs_model, save_reranker

pytestmark = needs_model
ANSWERS = [text for _, text in PAIRS]


@pytest.fixture(scope="module")
def rerankers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the rerankers `plain` and `saved`."""
    directory = tmp_path_factory.mktemp("rerankers")
    save_reranker(directory)
    return directory


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a corpus in it."""
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("\n".join([*ANSWERS, *ANSWERS[:3]]), encoding="utf-8")
    yield tmp_path


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model()


def lines(printed: str) -> list[tuple[float, str]]:
    """Scores and passages."""
    return [(float(line.split("  ", 1)[0]), line.split("  ", 1)[1]) for line in printed.splitlines()]


def assert_best(printed: str, scores: Any, texts: list[str], top: int) -> None:
    """What is printed are the `top` texts with the highest scores, in order."""
    found = lines(printed)
    expected = sorted(zip(map(float, scores), texts, strict=True), reverse=True)[:top]
    assert [text for _, text in found] == [text for _, text in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=0.00051)


def test_an_embedding_model_finds_passages(project: Path, model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Distinct passages by the cosine of query and passage, as sentence-transformers gives it."""
    query = "what is the capital of Egypt?"
    assert main(["search", MODEL, "--corpus", "corpus.txt", "--query", query, "--top", "4"]) == 0
    printed = capsys.readouterr().out
    assert_best(printed, model.similarity(model.encode([query]), model.encode(ANSWERS))[0], ANSWERS, 4)
    assert lines(printed)[0][1] == "Cairo is the capital of Egypt."


def test_prompts_that_the_model_keeps_are_used(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The query's before queries, the passage's before passages."""
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "Query about rivers: ", "document": "Passage: "}
    SentenceTransformer(MODEL, prompts=prompts, device="cpu").save_pretrained("prompted")
    capsys.readouterr()
    assert main(["search", "prompted", "--corpus", "corpus.txt", "--query", "Cairo", "--top", "3"]) == 0
    plain = SentenceTransformer(MODEL, device="cpu")
    passages = plain.encode([f"Passage: {text}" for text in ANSWERS])
    scores = plain.similarity(plain.encode(["Query about rivers: Cairo"]), passages)[0]
    assert_best(capsys.readouterr().out, scores, ANSWERS, 3)


def test_queries_come_from_a_pipe(
    project: Path, model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line is shown as a person would have typed it; blank ones are left out, and the end is no error."""
    monkeypatch.setattr(search, "load_embedding_model", lambda directory, field: model)
    monkeypatch.setattr("sys.stdin", io.StringIO("capital of Peru\n\n秘鲁 Lima"))
    Path("corpus.jsonl").write_text(
        "".join(
            json.dumps({"id": n, "title": "On cities", "text": f"{text}\n" + "x" * 400}) + "\n"
            for n, text in enumerate(CORPUS)
        )
    )
    assert main(["search", MODEL, "--corpus", "corpus.jsonl", "--top", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{MODEL}: {len(CORPUS)} passages"
    assert [printed[1], printed[4], len(printed)] == ["> capital of Peru", "> 秘鲁 Lima", 7]
    assert printed[2].partition("  ")[2].startswith("On cities Lima has ")
    assert printed[2].endswith("x ...") and len(printed[2]) < 320


@pytest.mark.parametrize("kind", ["plain", "saved"])
def test_a_reranker_orders_all_passages(
    project: Path, rerankers: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As transformers or sentence-transformers saves one, by the scores that it predicts."""
    from sentence_transformers import CrossEncoder

    query = "where is Rome?"
    assert main(["search", str(rerankers / kind), "--corpus", "corpus.txt", "--query", query]) == 0
    scores = CrossEncoder(str(rerankers / kind), device="cpu").predict([(query, text) for text in ANSWERS])
    assert_best(capsys.readouterr().out, scores, ANSWERS, 5)


def test_a_reranker_orders_what_a_first_stage_finds(
    project: Path, rerankers: Path, model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A corpus too large for it alone is one line; with an embedding model, the candidates are that model's best."""
    from sentence_transformers import CrossEncoder

    texts = [f"{text} ({number})" for number in range(10) for text in CORPUS]
    Path("large.txt").write_text("\n".join(texts), encoding="utf-8")
    reranker, query = str(rerankers / "saved"), "rivers of Norway"
    command = ["search", reranker, "--corpus", "large.txt", "--query", query, "--top", "3"]
    assert main(command) == 2
    rule = "--corpus: must have at most 200 passages for a reranker alone; a corpus this large needs an embedding model"
    assert capsys.readouterr().err == f"error: {rule} first, with --first-stage DIR, got 270\n"
    assert main([*command, "--first-stage", reranker]) == 2
    rule = f"--first-stage: must be an embedding model, which gives vectors, got a reranker in {reranker}"
    assert capsys.readouterr().err == f"error: {rule}\n"
    assert main([*command, "--first-stage", MODEL, "--candidates", "6"]) == 0
    scores = model.similarity(model.encode([query]), model.encode(texts))[0]
    candidates = [texts[place] for place in scores.argsort(descending=True)[:6]]
    judged = CrossEncoder(reranker, device="cpu").predict([(query, text) for text in candidates])
    assert_best(capsys.readouterr().out, judged, candidates, 3)


def test_a_run_is_searched_in_its_own_data(
    project: Path, model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The passages of held-out rows, of the corpus, and of training rows of any form, at most 10,000 in that order."""
    monkeypatch.setattr(search, "load_embedding_model", lambda directory, field: model)
    run = Path("outputs/first")
    shutil.copytree(MODEL, run / "export")
    files: dict[str, list[dict[str, Any]]] = {
        "eval.jsonl": [{"query": "a?", "pos": ["held out", "both"], "neg": ["wrong"]}],
        "pairs.jsonl": [{"sentence1": "one text", "sentence2": "another", "score": 0.5}],
        "train.jsonl": [{"anchor": "b?", "positive": "learned", "negative": "both"}],
        "corpus.jsonl": [{"id": "1", "text": "in the corpus"}],
    }
    for name, rows in files.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "algorithm": {"name": "embedding", "steps": 1, "tasks": {"rank": {}, "pair": {"loss": "cosent"}}},
        "model": {"path": MODEL},
        "data": {
            "train": {"rank": "train.jsonl", "pair": "pairs.jsonl"},
            "eval": "eval.jsonl",
            "corpus": "corpus.jsonl",
        },
    }
    (run / "config.json").write_text(json.dumps(config))
    expected = ["held out", "both", "wrong", "in the corpus", "learned", "one text", "another"]
    assert search.own_passages(run) == expected
    monkeypatch.setattr(search, "_MOST_OWN", 4)
    assert search.own_passages(run) == expected[:4]
    assert main(["search", str(run), "--query", "held out", "--top", "1"]) == 0
    assert capsys.readouterr().out == "1.000  held out\n"


MISTAKES = {
    "candidates of nothing": (["--candidates", "5"], "--candidates: needs --first-stage, got 5"),
    "first stage of an embedding model": (
        ["--first-stage", "x"],
        f"--first-stage: is for a reranker, got an embedding model in {MODEL}",
    ),
    "no run": ([], f"--corpus: required for a model that is no run directory, got {MODEL}"),
    "no corpus": (["--corpus", "corpus.tx"], "--corpus: no such file (did you mean corpus.txt?), got corpus.tx"),
    "no text": (["--corpus", "none.txt"], "--corpus: cannot be read (No such file or directory), got none.txt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(project: Path, mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, before a model is loaded."""
    more, expected = MISTAKES[mistake]
    assert main(["search", MODEL, *more, "--query", "a"]) == 2
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_chat_names_the_verb(rerankers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An embedding model or a reranker does not chat."""
    for directory in (MODEL, str(rerankers / "saved"), str(rerankers / "plain")):
        assert main(["chat", directory, "--prompt", "hello"]) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: MODEL: must generate text, and ") and line.count("\n") == 1
        assert f"`tandem search {directory}`" in line
