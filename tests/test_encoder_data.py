"""What the rows of embedding models and rerankers must be for their losses, and what an update draws of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.config_encoder import EmbeddingConfig, RerankerConfig
from algorithms.encoder.batches import Example, TaskRows
from algorithms.encoder.data import training_tasks

Rows = list[dict[str, Any]]
TRAIN = "data.train"

MINED: Rows = [
    {"query": "q1", "pos": ["p1", "r1"], "neg": ["n1", "m1", "o1"], "prompt": None},
    {"query": "q2", "pos": "p2", "neg": ["n2", "m2"], "prompt": "find: "},
    {"query": "q3", "pos": "p3", "neg": ["n3", "m3", "o3", "k3"], "prompt": ""},
]
EVEN: Rows = [row | {"neg": row["neg"][:2]} for row in MINED]
TAUGHT: Rows = [
    {"query": "q1", "pos": ["p1", "r1"], "neg": ["n1"], "pos_scores": [9, 7.5], "neg_scores": [2]},
    {"query": "q2", "pos": ["p2"], "neg": ["n2", "m2"], "pos_scores": [8], "neg_scores": [1, -0.5]},
]
TEACHER = {"p1": 9, "r1": 7.5, "n1": 2, "p2": 8, "n2": 1, "m2": -0.5}
LISTS: Rows = [
    {"query": "q1", "documents": ["a1", "b1", "c1"], "labels": [0, 1, 0]},
    {"query": "q2", "documents": ["a2", "b2"], "labels": [1, 0]},
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(rows: Rows, name: str = "rows") -> str:
    """A file of the working directory."""
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{name}.jsonl"


def embedding(rows: Rows | dict[str, Rows], *, at_most: int | None = None, **settings: Any) -> list[TaskRows]:
    """The tasks of an embedding model; several sets of rows are named."""
    algorithm = EmbeddingConfig.model_validate({"name": "embedding", "steps": 1} | settings)
    train = {name: saved(each, name) for name, each in rows.items()} if isinstance(rows, dict) else saved(rows)
    return training_tasks(algorithm, DataConfig(train=train), at_most=at_most)


def reranker(rows: Rows, *, at_most: int | None = None, **settings: Any) -> list[TaskRows]:
    """The only task of a reranker."""
    algorithm = RerankerConfig.model_validate({"name": "reranker", "steps": 1} | settings)
    return training_tasks(algorithm, DataConfig(train=saved(rows)), at_most=at_most)


def draws(task: TaskRows, row: int, times: int = 30) -> Iterator[Example]:
    """What different updates draw of a row."""
    return (task.draw(task.rows[row], np.random.default_rng(seed)) for seed in range(times))


def complaint(function: Any, *args: Any, **settings: Any) -> str:
    """The one line that a user reads."""
    with pytest.raises(UserError) as error:
        function(*args, **settings)
    [line] = error.value.problems
    assert "\n" not in line
    return line


def pairs(*scores: float) -> Rows:
    return [{"sentence1": f"a{index}", "sentence2": f"b{index}", "score": score} for index, score in enumerate(scores)]


def without(rows: Rows, row: int, **values: Any) -> Rows:
    """The rows, with other values in one of them."""
    return [each | values if number == row else each for number, each in enumerate(rows, start=1)]


EMBEDDING_MISTAKES: list[tuple[dict[str, Any], Rows, str]] = [
    ({}, without(MINED, 2, pos=[]), "data.train: row 2: pos must hold a positive, got an empty list"),
    (
        {"loss": "triplet"},
        without(MINED, 3, neg=[]),
        "data.train: row 3: must have a negative for loss triplet, got none",
    ),
    (
        {"loss": ["infonce", "margin_mse", "distill_kl"]},
        [{"query": "q", "pos": "p", "score": 1}],
        "data.train: row 1: must have a negative for loss margin_mse, distill_kl, got none",
    ),
    (
        {"negatives": 3},
        MINED,
        "algorithm.negatives: must not exceed the negatives of every row (data.train row 2 has 2), got 3",
    ),
    (
        {"loss": "distill_kl"},
        without(TAUGHT, 2, neg_scores=[1]),
        "data.train: row 2: neg_scores must have one number for each of the 2 negatives, got 1",
    ),
    (
        {"loss": "contrastive"},
        pairs(1, 0, 0.5),
        "data.train: row 3: score must be 0 or 1 for loss contrastive, got 0.5",
    ),
    (
        {"loss": ["cosent", "online_contrastive"]},
        pairs(1, -1),
        "data.train: row 2: score must be 0 or 1 for loss cosent, online_contrastive, got -1",
    ),
    ({"loss": "cosine"}, pairs(-1, 4.5), "data.train: row 2: score must be from -1 to 1 for loss cosine, got 4.5"),
    (
        {"loss": "angle"},
        without(pairs(1, 2), 2, score="high"),
        "data.train: row 2: score must be a number, got text 'high'",
    ),
]
RERANKER_MISTAKES: list[tuple[dict[str, Any], Rows, str]] = [
    (
        {},
        without(LISTS, 2, labels=[3, 0]),
        "data.train: row 2: labels must be from 0 to 1 for loss bce (mse takes any), got 3",
    ),
    (
        {"loss": ["lambda", "bce"], "targets": "scores"},
        TAUGHT[1:],
        "data.train: row 1: scores must be from 0 to 1 for loss bce (mse takes any), got 8",
    ),
    (
        {"loss": ["bce", "lambda"]},
        without(LISTS, 2, documents=["a2"], labels=[1]),
        "data.train: row 2: must have at least 2 passages for loss bce, lambda, got 1",
    ),
    (
        {"loss": "listnet"},
        without(LISTS, 1, labels=[0, 0, -1]),
        "data.train: row 1: must have a passage with a label above 0 for loss listnet, got none",
    ),
    (
        {"loss": "margin_mse", "targets": "scores"},
        [TAUGHT[1], TAUGHT[1] | {"neg": ["n"], "neg_scores": [1]}],
        "algorithm.negatives: must be given for loss margin_mse where rows have different numbers of passages "
        "(data.train: row 2 has 2, row 1 3), got nothing",
    ),
    (
        {"loss": ["cross_entropy", "bce"]},
        [MINED[1], MINED[0]],
        "algorithm.negatives: must be given for loss cross_entropy, which tells one positive from negatives, where a "
        "row has several positives (data.train: row 2 has 2), got nothing",
    ),
    (
        {"negatives": 2},
        LISTS,
        "algorithm.negatives: must not exceed the negatives of every row (data.train row 2 has 1), got 2",
    ),
    (
        {},
        [{"query": f"q{index}", "positive": f"p{index}"} for index in range(3)],
        "data.train: labels must differ for a reranker, got 1 for all passages (of rows with positives alone, `tandem "
        "mine` finds negatives)",
    ),
    (
        {"loss": "listmle", "targets": "scores"},
        [{"query": "q", "documents": ["a", "b"], "scores": [0.5, 0.5]}],
        "data.train: scores must differ for a reranker, got 0.5 for all passages (of rows with positives alone, "
        "`tandem mine` finds negatives)",
    ),
]


@pytest.mark.parametrize(("settings", "rows", "line"), EMBEDDING_MISTAKES)
def test_rows_that_an_embedding_loss_cannot_learn(settings: dict[str, Any], rows: Rows, line: str) -> None:
    """One line with the row, or the setting, and the rule."""
    assert complaint(embedding, rows, **settings) == line


@pytest.mark.parametrize(("settings", "rows", "line"), RERANKER_MISTAKES)
def test_rows_that_a_reranker_loss_cannot_learn(settings: dict[str, Any], rows: Rows, line: str) -> None:
    """One line with the row, or the setting, and the rule."""
    assert complaint(reranker, rows, **settings) == line


def test_mistakes_in_one_of_several_data_sets_name_it() -> None:
    """In the field of the data, and of the task."""
    tasks = {"web": {"loss": "triplet"}, "faq": {"negatives": 3}, "sts": {"loss": "cosine"}}
    rows = {"web": MINED, "faq": MINED[2:], "sts": pairs(0.5)}
    [web, faq, sts] = embedding(rows, tasks=tasks)
    assert [task.field for task in (web, faq, sts)] == ["data.train.web", "data.train.faq", "data.train.sts"]
    wrong = without(MINED, 1, neg=[])
    assert complaint(embedding, rows | {"web": wrong}, tasks=tasks) == (
        "data.train.web: row 1: must have a negative for loss triplet, got none"
    )
    assert complaint(embedding, rows | {"faq": MINED}, tasks=tasks) == (
        "algorithm.tasks.faq.negatives: must not exceed the negatives of every row (data.train.faq row 2 has 2), got 3"
    )
    assert complaint(embedding, rows | {"sts": pairs(2)}, tasks=tasks) == (
        "data.train.sts: row 1: score must be from -1 to 1 for loss cosine, got 2"
    )


def test_tasks_and_data_have_the_same_names() -> None:
    """Known before any file is read."""
    tasks = {"faq": {}, "sts": {"loss": "cosent"}}
    algorithm = EmbeddingConfig.model_validate({"name": "embedding", "steps": 1, "tasks": tasks})
    given = {"faq": "missing.jsonl", "web": "missing.jsonl"}
    assert complaint(training_tasks, algorithm, DataConfig(train=given)) == (
        "algorithm.tasks: must have the names of data.train (faq, web), got faq, sts"
    )
    assert complaint(training_tasks, algorithm, DataConfig(train="missing.jsonl")) == (
        "data.train: must name a source for each of algorithm.tasks (faq, sts), got missing.jsonl"
    )
    found = embedding({"sts": pairs(0, 1), "faq": EVEN}, tasks=tasks)  # in another order
    assert [(task.name, task.distinct) for task in found] == [("faq", True), ("sts", False)]


def test_shares_of_several_data_sets() -> None:
    """The number of rows, unless a weight says otherwise."""
    rows = {"a": EVEN, "b": MINED[:1], "c": pairs(0, 1)}
    tasks: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "c": {"loss": "cosent"}}
    assert {task.name: task.share for task in embedding(rows, tasks=tasks)} == {"a": 3, "b": 1, "c": 2}
    assert {task.name: task.share for task in embedding(rows, tasks=tasks, at_most=1)} == {"a": 1, "b": 1, "c": 1}
    weights = {"a": 1, "b": 0.5, "c": 2}
    weighted = {name: task | {"weight": weights[name]} for name, task in tasks.items()}
    assert {task.name: task.share for task in embedding(rows, tasks=weighted)} == weights


@pytest.mark.parametrize(
    ("settings", "negatives"),
    [
        ({"negatives": 2}, 2),
        ({"negatives": 1}, 1),
        ({"negatives": 0}, 0),
        ({"loss": "triplet"}, 1),
        ({"loss": "triplet", "negatives": 1}, 1),
        ({"loss": ["triplet", "infonce"], "negatives": 2}, 2),
        ({"loss": ["triplet", "infonce"], "negatives": 1}, 1),
    ],
)
def test_negatives_of_an_update(settings: dict[str, Any], negatives: int) -> None:
    """As many as are asked for; one for triplet alone; the row's own, in their order, of which all are drawn."""
    [task] = embedding(MINED, **settings)
    for number, row in enumerate(MINED):
        found = list(draws(task, number))
        positives = row["pos"] if isinstance(row["pos"], list) else [row["pos"]]
        assert {example.texts[1] for example in found} == set(positives)
        for example in found:
            drawn = list(example.texts[2:])
            assert drawn == [text for text in row["neg"] if text in drawn]
            assert len(drawn) == negatives
        assert {text for example in found for text in example.texts[2:]} == (set(row["neg"]) if negatives else set())
        assert {example.prompt for example in found} == {row["prompt"]}
        assert {example.targets for example in found} == {()}


def test_rows_with_different_numbers_of_negatives_need_a_number() -> None:
    """One row without any shall not take those of all others away; all of them are taken where rows are alike."""
    [task] = embedding(EVEN)
    assert {len(example.texts) for number in range(3) for example in draws(task, number)} == {4}
    assert task.distinct
    rule = "algorithm.negatives: must be given where rows of data.train have different numbers of negatives"
    assert complaint(embedding, without(MINED, 2, neg=[])) == f"{rule} (row 2 has 0, row 3 has 4), got nothing"
    [task] = embedding(without(MINED, 2, neg=[]), negatives=0)
    assert {len(example.texts) for number in range(3) for example in draws(task, number)} == {2}


@pytest.mark.parametrize("loss", ["margin_mse", "distill_kl", ["infonce", "distill_kl"]])
def test_a_teachers_scores_follow_the_texts(loss: Any) -> None:
    """Of the positive that was drawn and of the negatives."""
    [task] = embedding(TAUGHT, loss=loss, negatives=1)
    assert task.distinct == (loss == ["infonce", "distill_kl"])
    found = [example for number in (0, 1) for example in draws(task, number)]
    assert {example.texts for example in found} >= {("q1", "p1", "n1"), ("q1", "r1", "n1"), ("q2", "p2", "m2")}
    for example in found:
        assert example.targets == tuple(TEACHER[text] for text in example.texts[1:])


def test_pairs_with_scores() -> None:
    """Any number for cosent and angle, the border for the others."""
    [task] = embedding(pairs(5, -3), loss=["cosent", "angle"])
    assert next(draws(task, 1)) == Example(texts=("a1", "b1"), targets=(-3.0,), prompt=None)
    assert not task.distinct
    [task] = embedding(pairs(-1, 0.5, 1), loss="cosine")
    assert len(task.rows) == 3
    [task] = embedding(pairs(1, 0), loss="contrastive")
    assert next(draws(task, 0)).targets == (1.0,)


def test_a_rerankers_positives_are_1_and_negatives_0() -> None:
    """All passages of a row, or a positive and so many negatives."""
    [task] = reranker(MINED, loss=["bce", "lambda"])
    for example in draws(task, 0):
        assert sorted(example.texts[1:]) == sorted(["p1", "r1", "n1", "m1", "o1"])
        assert [label == 1 for label in example.targets] == [text in ("p1", "r1") for text in example.texts[1:]]
    [task] = reranker(MINED, loss="cross_entropy", negatives=2)
    found = list(draws(task, 0))
    assert {example.texts[1] for example in found} == {"p1", "r1"}
    assert {text for example in found for text in example.texts[2:]} == {"n1", "m1", "o1"}
    assert {example.targets for example in found} == {(1.0, 0.0, 0.0)}


def test_lists_that_a_reranker_can_learn() -> None:
    """Graded or negative labels, rows of one passage, rows without a positive, by losses that take them."""
    graded = without(LISTS, 1, labels=[3, 0, 1])
    for loss in ("mse", "ranknet", "lambda", "listnet", "listmle"):
        assert next(draws(reranker(graded, loss=loss)[0], 1)).targets == (1.0, 0.0)
    single = [{"query": "q", "passage": text, "label": label} for text, label in (("a", 0), ("b", 1), ("c", 0.3))]
    [task] = reranker(single)
    assert [next(draws(task, number)).targets for number in range(3)] == [(0.0,), (1.0,), (0.3,)]
    [task] = reranker(without(LISTS, 1, labels=[0, 0, 0]), loss="bce", negatives=1)
    assert {example.texts[1] for example in draws(task, 0)} == {"a1"}


def test_a_reranker_learns_a_teachers_scores() -> None:
    """Margins of lists of one length, or of so many passages drawn of each."""
    [task] = reranker([TAUGHT[1]] * 2, loss="margin_mse", targets="scores")
    assert next(draws(task, 1)) == Example(texts=("q2", "p2", "n2", "m2"), targets=(8.0, 1.0, -0.5), prompt=None)
    [task] = reranker(TAUGHT, loss="margin_mse", targets="scores", negatives=1)
    found = [example for number in (0, 1) for example in draws(task, number)]
    assert {len(example.texts) for example in found} == {3}
    assert all(example.targets == tuple(TEACHER[text] for text in example.texts[1:]) for example in found)


def test_a_part_of_the_rows_is_not_judged_as_a_whole() -> None:
    """Where only so many rows are read, those behind them may have other labels."""
    rows = [{"query": f"q{index}", "passage": "p", "label": int(index < 3)} for index in range(4)]
    [task] = reranker(rows, at_most=3)
    assert (len(task.rows), task.share) == (3, 3)
    assert complaint(reranker, rows[:3], at_most=9).startswith("data.train: labels must differ for a reranker")
