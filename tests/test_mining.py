"""Hard negatives are those of sentence-transformers for every option, and what no negative may be is none."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.encoder.mining import EXCLUSIONS, MiningRules, choose_negatives, mining_task, top_passages
from algorithms.encoder.rows import Ranking, rankings
from launch.verbs.mine import MineOptions, mining_rules
from launch.verbs.miner import Mined, Miner
from launch.verbs.mining_parts import mining_parts
from tests.encoder_models import CAPITALS, CORPUS, MODEL, PAIRS, load_model, needs_model, save_reranker

pytestmark = needs_model
Negatives = dict[str, tuple[list[str], list[float]]]
"""Texts and scores by query, best first."""


def grouped(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """One row for each query."""
    queries = dict.fromkeys(query for query, _ in pairs)
    return [{"query": query, "pos": [text for asked, text in pairs if asked == query]} for query in queries]


def ranked(rows: list[dict[str, Any]]) -> list[Ranking]:
    return rankings(rows, DataConfig(train="rows"), "--data")


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model()


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cross-encoder with random weights."""
    from sentence_transformers import CrossEncoder

    directory = tmp_path_factory.mktemp("reranker")
    save_reranker(directory)
    return CrossEncoder(str(directory / "saved"), device="cpu")


def options(**given: Any) -> MineOptions:
    return MineOptions(model=MODEL, data="rows.jsonl", output="mined.jsonl", **given)


def mined(
    directory: Path, model: Any, reranker: Any = None, *, rows: Any = None, corpus: Any = None, **given: Any
) -> tuple[Negatives, Mined]:
    """What Tandem mines, by default for PAIRS and CORPUS."""
    asked = options(**given, **({"reranker": "reranker"} if reranker else {}))
    task = mining_task(ranked(rows or grouped(PAIRS)), corpus or CORPUS)
    miner = Miner(
        task=task,
        rules=mining_rules(asked, task),
        model=model,
        reranker=reranker,
        rescores=asked.rescores,
        rank=asked.rank,
        batch_size=4,
        seed=asked.seed,
        query_prompt=asked.query_prompt,
        passage_prompt=asked.passage_prompt,
        told=lambda *_: None,
    )
    with mining_parts(directory / "mined.jsonl", {}) as parts:
        found = miner.run(parts)
    negatives = {}
    for (_, query), ids, scores in zip(task.queries, found.ids, found.scores, strict=True):
        texts = [task.passages[item] for item in ids if item >= 0]
        negatives[query] = texts, scores[: len(texts)].tolist()
    return negatives, found


def theirs(model: Any, reranker: Any = None, **given: Any) -> Negatives:
    """What sentence-transformers mines."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    data = Dataset.from_dict({"query": [query for query, _ in PAIRS], "positive": [text for _, text in PAIRS]})
    form: Any = {"output_format": "labeled-list", "output_scores": True, "verbose": False}
    found: Any = mine_hard_negatives(data, model, corpus=CORPUS, cross_encoder=reranker, **form, **given)
    return {row["query"]: (row["positive"][1:], row["scores"][1:]) for row in found}


def assert_same(ours: Negatives, others: Negatives) -> None:
    """Sentence-transformers leaves out queries without negatives."""
    assert {query: found[0] for query, found in ours.items() if found[0]} == {
        q: found[0] for q, found in others.items()
    }
    for query, (_, scores) in others.items():
        assert ours[query][1] == pytest.approx(scores, abs=1e-5)


def excluded(found: Mined) -> dict[str, int]:
    return dict(zip(EXCLUSIONS, found.excluded.tolist(), strict=True))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "top": ({}, {}, ()),
    "range": ({"window": (3, 12)}, {"range_min": 3, "range_max": 12}, ("skipped by --range",)),
    "max score": ({"max_score": 0.5}, {"max_score": 0.5}, ("--max-score",)),
    "min score": ({"min_score": 0.45}, {"min_score": 0.45}, ("--min-score",)),
    "absolute margin": ({"absolute_margin": 0.2}, {"absolute_margin": 0.2}, ("--absolute-margin",)),
    "relative margin": ({"relative_margin": 0.3}, {"relative_margin": 0.3}, ("--relative-margin",)),
    "prompts": (
        {"query_prompt": "question: ", "passage_prompt": "answer: "},
        {"query_prompt": "question: ", "corpus_prompt": "answer: "},
        (),
    ),
    "all": (
        {"window": (1, 30), "max_score": 0.6, "min_score": 0.3, "absolute_margin": 0.1, "relative_margin": 0.2},
        {
            **{"range_min": 1, "range_max": 30, "max_score": 0.6, "min_score": 0.3},
            **{"absolute_margin": 0.1, "relative_margin": 0.2},
        },
        ("--absolute-margin", "--relative-margin", "--min-score", "skipped by --range"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_negatives_are_those_of_sentence_transformers(tmp_path: Path, model: Any, case: str) -> None:
    """Every rule excludes something, and what is left is the same, in the same order, with the same scores."""
    given, equivalent, excluding = CASES[case]
    ours, found = mined(tmp_path, model, negatives=5, **given)
    assert_same(ours, theirs(model, num_negatives=5, **equivalent))
    counts = excluded(found)
    assert all(counts[name] > 0 for name in excluding), counts
    assert counts["positives of the query"] >= len(CAPITALS)
    if case == "all":
        assert any(len(texts) < 5 for texts, _ in ours.values())


def test_random_negatives_are_drawn_from_the_same_candidates(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With our draws in its place of the global generator, sentence-transformers draws the same."""
    from sentence_transformers.util import hard_negatives

    class Draws:
        def __init__(self) -> None:
            self.query = 0

        def sample(self, population: range, k: int) -> list[int]:
            self.query += 1
            return random.Random(f"3 {self.query - 1}").sample(population, k)

    monkeypatch.setattr(hard_negatives, "random", Draws())
    given = {"window": (2, 9), "sampling": "random", "seed": 3}
    ours, _ = mined(tmp_path / "a", model, negatives=4, **given)
    assert_same(
        ours,
        theirs(model, num_negatives=4, range_min=2, range_max=9, sampling_strategy="random"),
    )
    others, _ = mined(tmp_path / "b", model, negatives=4, **(given | {"seed": 4}))
    assert ours != others


@pytest.mark.parametrize("limit", [{"max_score": 0.6}, {"min_score": 0.4}, {"relative_margin": 0.1}])
def test_a_reranker_judges_as_in_sentence_transformers(
    tmp_path: Path, model: Any, reranker: Any, limit: dict[str, float]
) -> None:
    """With a limit, the reranker's scores exclude and order candidates."""
    ours, _ = mined(tmp_path / "limited", model, reranker, negatives=3, **limit)
    assert_same(ours, theirs(model, reranker, num_negatives=3, **limit))


def test_a_reranker_without_limits_scores_what_was_chosen(tmp_path: Path, model: Any, reranker: Any) -> None:
    """And with --rescore it chooses: the best three of all 3 x 10 + 2 candidates that are no positives."""
    plain, _ = mined(tmp_path / "a", model, negatives=3)
    scored, found = mined(tmp_path / "b", model, reranker, negatives=3)
    assert {query: texts for query, (texts, _) in scored.items()} == {
        query: texts for query, (texts, _) in plain.items()
    }
    for query, (texts, scores) in scored.items():
        assert scores == pytest.approx(reranker.predict([(query, text) for text in texts]), abs=1e-5)
    pairs = [(row["query"], text) for row in grouped(PAIRS) for text in row["pos"]]
    assert found.positive_scores == pytest.approx(reranker.predict(pairs), abs=1e-5)

    chosen, _ = mined(tmp_path / "c", model, reranker, negatives=3, rescore=True)
    wide, _ = mined(tmp_path / "d", model, negatives=32, window=(0, 32))
    query = "where is Oslo?"
    judged = dict(zip(wide[query][0], reranker.predict([(query, text) for text in wide[query][0]]), strict=True))
    assert len(judged) == 32
    assert chosen[query][0] == sorted(judged, key=lambda text: -judged[text])[:3]


def test_choosing_on_hand_made_scores() -> None:
    """Limits first, then the order, then the range; a candidate is counted by the first rule that excludes it."""
    scores = np.array([0.125, 0.875, 0.5, 0.75, 0.25, 0.625], np.float32)
    rules = MiningRules(negatives=2, first=1, last=4, max_score=0.625, min_score=0.25, absolute_margin=0.25)
    chosen, counts = choose_negatives(scores, np.float32(1.0), rules, random.Random(0))
    assert chosen.tolist() == [2, 4]  # 0.875 is within the margin, 0.75 at it, but too high; 0.625 is skipped
    expected = {"--absolute-margin": 1, "--max-score": 1, "--min-score": 1, "skipped by --range": 1}
    assert {name: count for name, count in zip(EXCLUSIONS, counts.tolist(), strict=True) if count} == expected
    # The positive's score is negative: the margin is a share of its size, down from it.
    below = MiningRules(negatives=6, first=0, last=6, relative_margin=0.25)
    chosen, _ = choose_negatives(-scores, np.float32(-0.5), below, random.Random(0))
    assert chosen.tolist() == [5, 3, 1]


def test_search_in_blocks_is_one_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the blocks, and however the passages are spread over files."""
    monkeypatch.setattr("algorithms.encoder.mining._SCORES_AT_ONCE", 100)
    generator = np.random.default_rng(0)
    passages, queries = (generator.normal(size=(count, 8)).astype(np.float32) for count in (50, 13))
    scores = queries @ passages.T
    shards = [passages[:20], passages[20:21], passages[21:]]
    for count in (1, 7, 80):
        ids, found = top_passages(torch.from_numpy(queries), shards, count, lambda a, b: a @ b.T)
        assert ids.tolist() == np.argsort(-scores, axis=1)[:, :count].tolist()
        assert found == pytest.approx(-np.sort(-scores, axis=1)[:, :count], abs=1e-5)


def test_positives_and_the_query_are_never_negatives(tmp_path: Path, model: Any) -> None:
    """Nor are copies of them that differ in white space, nor the positives of another row with the same query."""
    query, answer = PAIRS[0]
    other = "Paris, the capital of France."
    rows = [
        {"query": query, "pos": [answer], "neg": ["Lyon is in France."]},
        {"query": f" {query}", "pos": [other], "neg": ["Nice is in France."]},
    ]
    corpus = [query, f"{answer} ", answer.replace(" ", "  "), f"{other}\n", "Rome is in Italy.", "巴黎　是首都"]
    task = mining_task(ranked(rows), corpus)
    assert len(task.passages) == 7
    negatives, found = mined(tmp_path, model, rows=rows, corpus=corpus, negatives=4)
    others = {"Lyon is in France.", "Nice is in France.", "Rome is in Italy.", "巴黎　是首都"}
    assert [set(texts) for texts, _ in negatives.values()] == [others, others]
    assert excluded(found)["the query itself"] == 2
    with pytest.raises(UserError, match="--negatives: must not exceed the 5 passages that are no positives of a query"):
        mining_rules(options(negatives=6), task)


def test_a_rows_own_prompt_takes_the_place_of_the_others(tmp_path: Path, model: Any) -> None:
    """Each query is encoded with its own prompt, and the same question with two prompts is two queries."""
    rows = [row | {"prompt": "river: " if number % 2 else None} for number, row in enumerate(grouped(PAIRS))]
    mixed, _ = mined(tmp_path / "a", model, rows=rows, query_prompt="city: ")
    city, _ = mined(tmp_path / "b", model, query_prompt="city: ")
    river, _ = mined(tmp_path / "c", model, query_prompt="river: ")
    for number, query in enumerate(mixed):
        assert mixed[query] == (river if number % 2 else city)[query]
    assert city != river
    twice = mining_task(ranked([rows[0], rows[0] | {"prompt": "river: "}, rows[0]]), CORPUS)
    assert (len(twice.queries), twice.query_of_row) == (2, [0, 1, 0])
