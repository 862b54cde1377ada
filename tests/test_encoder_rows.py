"""Rows of embedding and reranker data: known by their columns' names, and refused with row, column and nearest name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.encoder.rows import (
    Graded,
    Ranking,
    Scored,
    describe,
    gradeds,
    load_named_rows,
    rankings,
    scored_pairs,
)

TRAIN = "data.train"
FLAG = {
    "query": "法国的首都是哪里",
    "pos": ["巴黎", "巴黎是法国首都。"],
    "neg": ["罗马", "柏林", "里昂"],
    "pos_scores": [0.9, 1],
    "neg_scores": [0.1, 0.2, -0.3],
    "prompt": "为这个句子生成表示",
    "type": "normal",
}


def data(**values: Any) -> DataConfig:
    return DataConfig(**{"train": "rows.jsonl"} | values)


def complaint(function: Any, *args: Any, **keywords: Any) -> str:
    """The one line that a user reads."""
    with pytest.raises(UserError) as error:
        function(*args, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(*rows: dict[str, Any], **values: Any) -> str:
    """Why `rankings` refuses the rows, without the field."""
    scores = values.pop("scores", False)
    problem = complaint(rankings, list(rows), data(**values), TRAIN, scores=scores)
    return problem.removeprefix("data.train: ")


def ranking(*positives: str, negatives: tuple[str, ...] = (), **values: Any) -> Ranking:
    filled = {"query": "q", "positive_scores": None, "negative_scores": None, "prompt": None} | values
    return Ranking(positives=positives, negatives=negatives, **filled)


def graded(*passages: str, labels: tuple[float, ...], prompt: str | None = None) -> Graded:
    return Graded(query="q", passages=passages, labels=labels, prompt=prompt)


def test_flag_embedding_rows() -> None:
    """Lists of positives and negatives, Chinese as any text, scores only when asked for, type ignored."""
    expected = {
        "query": FLAG["query"],
        "positives": ("巴黎", "巴黎是法国首都。"),
        "negatives": ("罗马", "柏林", "里昂"),
        "prompt": "为这个句子生成表示",
    }
    plain = Ranking(**expected, positive_scores=None, negative_scores=None)
    scored = Ranking(**expected, positive_scores=(0.9, 1.0), negative_scores=(0.1, 0.2, -0.3))
    assert rankings([FLAG], data(), TRAIN) == [plain]
    assert rankings([FLAG], data(), TRAIN, scores=True) == [scored]


@pytest.mark.parametrize("query", ["query", "anchor", "text1"])
@pytest.mark.parametrize("positive", ["pos", "positive", "positives", "positive_1"])
@pytest.mark.parametrize("negative", ["neg", "negative", "negatives", "negative_3"])
def test_names_combine_freely(query: str, positive: str, negative: str) -> None:
    """In any order of columns, each a text or a list."""
    one = {negative: "n", positive: "p", query: "q", "id": 7}
    lists = {positive: ["p"], query: "q", "id": 8, negative: ["n", "m"]}
    found = rankings([one, lists], data(), TRAIN)
    assert found == [ranking("p", negatives=("n",)), ranking("p", negatives=("n", "m"))]


def test_numbered_columns_are_in_the_order_of_their_numbers() -> None:
    """negative_10 comes after negative_2, and teacher's scores follow."""
    row = {"anchor": "q", "negative_10": "c", "negative_2": "b", "negative_1": "a", "positive": "p"}
    assert rankings([row], data(), TRAIN) == [ranking("p", negatives=("a", "b", "c"))]
    [found] = rankings([row | {"label": [4, 3, 2, 1]}], data(), TRAIN, scores=True)
    assert (found.positive_scores, found.negative_scores) == ((4.0,), (3.0, 2.0, 1.0))


@pytest.mark.parametrize("name", ["scores", "score", "labels", "label", "teacher_scores"])
def test_scores_of_all_texts_in_one_list(name: str) -> None:
    """First of the positives, then of the negatives."""
    row = {"query": "q", "positives": ["p", "r"], "negative": ["n", "m"], name: [3, 2.5, True, -1]}
    [found] = rankings([row], data(), TRAIN, scores=True)
    assert found == ranking("p", "r", negatives=("n", "m"), positive_scores=(3, 2.5), negative_scores=(1, -1))


def test_rows_without_negatives() -> None:
    """No column, an empty list, or a positive's score alone."""
    assert rankings([{"query": "q", "pos": "p"}], data(), TRAIN) == [ranking("p")]
    assert rankings([{"query": "q", "pos": "p", "neg": []}], data(), TRAIN) == [ranking("p")]
    expected = ranking("p", positive_scores=(2.0,), negative_scores=())
    assert rankings([{"query": "q", "pos": "p", "score": 2}], data(), TRAIN, scores=True) == [expected]
    assert rankings([{"query": "q", "pos": ["p"], "pos_scores": [2]}], data(), TRAIN, scores=True) == [expected]


def test_a_prompt_may_be_null_or_empty() -> None:
    """Null is none of its own, an empty one is one."""
    rows = [{"query": "q", "pos": "p", "prompt": prompt} for prompt in ("say: ", None, "")]
    assert [row.prompt for row in rankings(rows, data(), TRAIN)] == ["say: ", None, ""]
    assert refused(rows[0] | {"prompt": 3}) == "row 1: prompt must be text (or null for none), got a number 3"


def test_data_columns_rename_and_choose() -> None:
    """A rename counts before what is also there; the old name stays usable."""
    row = {"question": "q", "query": "other", "answer": "p", "hard": ["n"]}
    columns = {"anchor": "question", "positive": "answer", "neg": "hard"}
    assert rankings([row], data(columns=columns), TRAIN) == [ranking("p", negatives=("n",))]
    both = {"query": "q", "anchor": "other", "pos": "p"}
    assert rankings([both], data(columns={"query": "query"}), TRAIN) == [ranking("p")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "q", "anchor": "r", "pos": "p"}, "columns query and anchor could both be the query"),
        ({"query": "q", "pos": "p", "positive": "p"}, "columns pos and positive could both be the positives"),
        ({"query": "q", "pos": "p", "neg": "n", "negative_1": "m"}, "columns neg and negative_1 could both be the neg"),
    ],
)
def test_two_names_of_one_thing_are_ambiguous(row: dict[str, Any], problem: str) -> None:
    """Also of columns that are optional, and of scores."""
    assert problem in refused(row)
    assert "choose with data.columns, for example {" in refused(row)
    scored = {"query": "q", "pos": "p", "scores": [1], "label": [1]}
    assert "could both be the teacher scores" in refused(scored, scores=True)


def test_columns_that_fit_nothing() -> None:
    """The line lists what would fit, and the nearest name."""
    assert refused({"query": "q", "pso": ["p"]}) == (
        "row 1: has columns query, pso (should pso be pos?), needs query (query, anchor or text1) and "
        "positives (pos, positive, positives or positive_1, positive_2, ...); "
        "rename with data.columns, for example {pos: pso}"
    )
    assert refused({"sentence1": "a", "sentence2": "b"}).endswith("for example {query: sentence1}")
    assert "teacher scores (pos_scores + neg_scores, scores" in refused({"query": "q", "pos": "p"}, scores=True)
    assert refused({}).startswith("row 1: has columns none, needs query")


def test_a_rename_of_a_missing_column() -> None:
    """Names the rename, the row and the nearest column."""
    rows = [{"question": "q", "pos": "p"}, {"questoin": "q", "pos": "p"}]
    assert complaint(rankings, rows, data(columns={"query": "question"}), "data.eval.faq") == (
        "data.columns.query: data.eval.faq row 2 has no column 'question' (did you mean questoin?), "
        "its columns are questoin, pos"
    )


def test_every_row_has_the_columns_of_the_first() -> None:
    """A missing column and an additional one, with the row's number."""
    good = {"query": "q", "pos": ["p"], "neg": ["n"]}
    assert refused(good, good, {"query": "q", "pos": ["p"], "ngs": ["n"]}) == (
        "row 3: lacks column 'neg' (did you mean ngs?), its columns are query, pos, ngs"
    )
    assert "row 2: lacks column 'query'" in refused(good, {"anchor": "q", "pos": ["p"], "neg": ["n"]})
    added = "row 2: has column 'neg', which row 1 lacks; all rows must have the same"
    assert refused({"query": "q", "pos": ["p"]}, good) == added
    tuples = [{"query": "q", "positive": "p", "negative_1": "n"}]
    assert "'negative_2', which row 1 lacks" in refused(*tuples, tuples[0] | {"negative_2": "m"})
    assert "could both be the query" in refused(good, good | {"anchor": "q"})
    reordered = dict(reversed(good.items())) | {"source": "web"}
    assert len(rankings([good, reordered], data(), TRAIN)) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pos": []}, "pos must hold a positive, got an empty list"),
        ({"pos": ""}, "pos must not be empty, got empty text"),
        ({"pos": ["p", " \n"]}, "pos must not be empty, got blank text ' \\n' as text 2"),
        ({"pos": None}, "pos must be text or a list of texts, got null"),
        ({"pos": ["p", 3]}, "pos must hold texts only, number 2 is a number 3"),
        ({"query": "\u3000"}, "query must not be empty, got blank text '\\u3000'"),
        ({"query": ["q"]}, "query must be text, got a list ['q']"),
        ({"neg": [""]}, "neg must not be empty, got empty text as text 1"),
        ({"neg": {"a": 1}}, "neg must be text or a list of texts, got a mapping {'a': 1}"),
        ({"neg": ["n", "巴黎"]}, "a negative must not be one of the positives, got text '巴黎' as both"),
        ({"neg_scores": [1, 2]}, "neg_scores must have one number for each of the 3 negatives, got 2"),
        ({"pos_scores": []}, "pos_scores must have one number for each of the 2 positives, got 0"),
        ({"pos_scores": 1}, "pos_scores must be a list of one number for each of the 2 positives, got a number 1"),
        ({"neg_scores": [1, 2, "3"]}, "neg_scores must be a number, got text '3'"),
        ({"neg_scores": [1, math.nan, 3]}, "neg_scores must be a finite number, got nan"),
        ({"pos_scores": [1, -math.inf]}, "pos_scores must be a finite number, got -inf"),
        ({"pos_scores": [1, 10**400]}, "pos_scores must be a finite number, got inf"),
    ],
)
def test_bad_values(change: dict[str, Any], problem: str) -> None:
    """One line each, with the row's number."""
    assert refused(FLAG, FLAG | change, scores=True) == f"row 2: {problem}"


def test_scores_of_the_wrong_form() -> None:
    """One list for all texts, half of a pair of columns, scores of negatives that are not there."""
    row = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}
    assert refused(row | {"scores": [1, 2]}, scores=True) == (
        "row 1: scores must have one number for each of the 3 texts (1 positives, then the negatives), got 2"
    )
    assert "lacks column 'neg_scores'" in refused(row | {"pos_scores": [1]}, scores=True)
    alone = {"query": "q", "pos": ["p"], "pos_scores": [1], "neg_scores": [1]}
    assert "neg_scores must have one number for each of the 0 negatives, got 1" in refused(alone, scores=True)


@pytest.mark.parametrize("labels", [{"label": 0}, {"label": False}, {"labels": [1, 0]}])
def test_a_passage_with_label_0_is_no_positive(labels: dict[str, Any]) -> None:
    """Labelled pairs and lists call any passage positive: a loss that reads positives must not learn them."""
    row = {"query": "q", "positive": ["p", "r"]} | labels
    assert "must be above 0 for a positive" in refused(row)
    assert len(rankings([row | {"label": 1, "labels": "x"}], data(), TRAIN)) == 1


@pytest.mark.parametrize("first", ["sentence1", "text1", "query", "anchor"])
@pytest.mark.parametrize("second", ["sentence2", "text2", "document", "passage", "text", "positive"])
@pytest.mark.parametrize(("score", "value"), [("score", 0.25), ("label", True), ("label", 3)])
def test_pairs(first: str, second: str, score: str, value: float) -> None:
    """Two texts and a number, whatever their order."""
    row = {score: value, second: "二", first: "one"}
    assert scored_pairs([row], data(), TRAIN) == [Scored(first="one", second="二", score=float(value))]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"sentence1": "a", "sentence2": "b"}, "score (score or label)"),
        ({"sentence1": "a", "sentence2": "b", "scores": 1}, "(should scores be score?)"),
        ({"sentence1": "a", "sentence2": "b", "score": 1, "label": 1}, "score and label could both be the score"),
        ({"sentence1": "a", "sentence2": "b", "score": "0.5"}, "score must be a number, got text '0.5'"),
        ({"sentence1": "a", "sentence2": "b", "score": None}, "score must be a number, got null"),
        ({"sentence1": "a", "sentence2": "b", "score": math.inf}, "score must be a finite number, got inf"),
        ({"sentence1": "a", "sentence2": ["b"], "score": 1}, "sentence2 must be text, got a list ['b']"),
        ({"sentence1": " ", "sentence2": "b", "score": 1}, "sentence1 must not be empty, got blank text ' '"),
    ],
)
def test_bad_pairs(row: dict[str, Any], problem: str) -> None:
    """One line each."""
    assert problem in complaint(scored_pairs, [row], data(), TRAIN)
    assert complaint(scored_pairs, [row], data(), TRAIN).startswith("data.train: row 1: ")


def test_graded_rows_of_positives_and_negatives() -> None:
    """Labels 1 and 0, or a teacher's scores."""
    passages = (*FLAG["pos"], *FLAG["neg"])
    [labels] = gradeds([FLAG], data(), TRAIN, targets="labels")
    [scores] = gradeds([FLAG], data(), TRAIN, targets="scores")
    assert (labels.passages, labels.labels) == (passages, (1, 1, 0, 0, 0))
    assert (scores.passages, scores.labels) == (passages, (0.9, 1, 0.1, 0.2, -0.3))
    assert (labels.query, labels.prompt, scores.prompt) == (FLAG["query"], FLAG["prompt"], FLAG["prompt"])
    row = {"query": "q", "pos": "p", "neg": "n"}
    assert "teacher scores (pos_scores" in complaint(gradeds, [row], data(), TRAIN, targets="scores")
    assert gradeds([{"query": "q", "pos": ["p"]}], data(), TRAIN, targets="labels") == [graded("p", labels=(1.0,))]


@pytest.mark.parametrize("targets", ["labels", "scores"])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"query": "q", "document": "a", "label": False}, graded("a", labels=(0.0,))),
        ({"anchor": "q", "text": "a", "score": 0.5}, graded("a", labels=(0.5,))),
        ({"sentence1": "q", "sentence2": "a", "label": 1}, graded("a", labels=(1.0,))),
        ({"query": "q", "docs": ["a", "b"], "labels": [2, 0]}, graded("a", "b", labels=(2.0, 0.0))),
        ({"query": "q", "passages": ["a", "b"], "scores": [2, -1]}, graded("a", "b", labels=(2.0, -1.0))),
        ({"query": "q", "positive": ["a", "b"], "labels": [1, 0]}, graded("a", "b", labels=(1.0, 0.0))),
        ({"query": "q", "positive": "a", "label": 0}, graded("a", labels=(0.0,))),
        ({"query": "q", "documents": ["a"], "labels": [1], "prompt": "x"}, graded("a", labels=(1.0,), prompt="x")),
    ],
)
def test_graded_rows_with_labels(row: dict[str, Any], expected: Graded, targets: Any) -> None:
    """Pairs and lists; what is called positive may have any label where there are no negatives."""
    assert gradeds([row], data(), TRAIN, targets=targets) == [expected]


def test_targets_choose_between_labels_and_scores() -> None:
    """Where both are there."""
    row = {"query": "q", "documents": ["a", "b"], "labels": [1, 0], "scores": [5, 4]}
    assert gradeds([row], data(), TRAIN, targets="labels") == [graded("a", "b", labels=(1.0, 0.0))]
    assert gradeds([row], data(), TRAIN, targets="scores") == [graded("a", "b", labels=(5.0, 4.0))]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "q"}, "and either positives (pos, positive"),
        ({"query": "q", "documents": ["a"], "label5": [1]}, "(should label5 be labels?)"),
        ({"query": "q", "documents": ["a", "b"], "labels": [1]}, "one number for each of the 2 passages, got 1"),
        ({"query": "q", "documents": ["a", "b"], "labels": 1}, "must be a list of one number for each of the 2"),
        ({"query": "q", "documents": [], "labels": []}, "documents must hold at least one passage, got an empty list"),
        ({"query": "q", "document": "a", "label": "yes"}, "label must be a number, got text 'yes'"),
        ({"query": "q", "document": "a", "text": "b", "label": 1}, "document and text could both be the passages"),
        ({"query": "q", "pos": "a", "neg": "b", "text": "c", "label": 1}, "fit both positives with negatives and"),
    ],
)
def test_bad_graded_rows(row: dict[str, Any], problem: str) -> None:
    """One line each."""
    assert problem in complaint(gradeds, [row], data(), TRAIN, targets="labels")


def test_data_columns_choose_how_graded_rows_are_read() -> None:
    """Positives and negatives, or a passage with a label."""
    row = {"query": "q", "pos": "a", "neg": "b", "text": "c", "label": 1}
    ranked = gradeds([row], data(columns={"pos": "pos"}), TRAIN, targets="labels")
    listed = gradeds([row], data(columns={"text": "text"}), TRAIN, targets="labels")
    assert (ranked, listed) == ([graded("a", "b", labels=(1.0, 0.0))], [graded("c", labels=(1.0,))])


def test_describe() -> None:
    """What was read as what, by the data's own names, and what was not."""
    rows = [{"q": "q", "pos": ["p"], "neg": ["n"] * count, "type": "x"} for count in (7, 15, 8)]
    assert describe(rows, data(columns={"query": "q"}), TRAIN, "ranking") == (
        "query: q, positives: pos (1 a row), negatives: neg (7 to 15 a row), teacher scores: no, not read: type"
    )
    tuples = [
        {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m", "negative_3": "o", "label": [1] * 4}
    ]
    assert describe(tuples, data(), TRAIN, "ranking", scores=True) == (
        "query: anchor, positives: positive (1 a row), teacher scores: label, "
        "negatives: negative_1 to negative_3 (3 a row)"
    )
    assert describe([FLAG], data(), TRAIN, "graded", scores=True) == (
        "query: query, positives: pos, teacher scores: pos_scores + neg_scores, negatives: neg, prompt: prompt, "
        "passages a row: 5, not read: type"
    )
    pairs = [{"text1": "q", "text2": "a", "score": 1}]
    assert describe(pairs, data(), TRAIN, "pair") == "first text: text1, second text: text2, score: score"
    assert "row 1: lacks" not in describe([{"query": "q", "pos": "p"}], data(), TRAIN, "ranking")
    assert "negatives: none" in describe([{"query": "q", "pos": "p"}], data(), TRAIN, "ranking")


def test_sources_by_name(tmp_path: Path) -> None:
    """Rows of each, with its own limit; messages name the source."""
    for name in ("a", "b"):
        lines = [json.dumps({"query": f"{name}{i}"}) for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("a", "b")}
    several = data(train=paths, eval=paths, limit=2, eval_limit=1)
    assert load_named_rows(several, "data.train") == {
        name: [{"query": f"{name}0"}, {"query": f"{name}1"}] for name in paths
    }
    assert load_named_rows(several, "data.eval") == {name: [{"query": f"{name}0"}] for name in paths}
    assert load_named_rows(several, "data.train", at_most=1) == {name: [{"query": f"{name}0"}] for name in paths}
    single = data(train=paths["a"])
    assert list(load_named_rows(single, "data.train")) == [""]
    assert len(load_named_rows(single, "data.train")[""]) == 3
    assert load_named_rows(single, "data.eval") == {}
    missing = data(train={"faq": str(tmp_path / "c.jsonl")})
    assert complaint(load_named_rows, missing, "data.train").startswith("data.train.faq: no such file")
    assert complaint(load_named_rows, data(train={}), "data.train") == (
        "data.train: must name at least one source, got {}"
    )
