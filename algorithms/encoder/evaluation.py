"""What held-out data says about an embedding model or a reranker.

The figures are those of sentence-transformers' evaluators. They are given embeddings and scores that the ranks of the
job computed, so that all of them share the work, also where none holds a whole model.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from algorithms.encoder.held_out import HeldOut, RankedSet, SimilaritySet

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]
TextKind = Literal["query", "passage"]
Encode = Callable[[list[str], TextKind, list[str | None] | None], Floats]
"""Texts, what they are and, where rows of queries have them, their own prompts -> embeddings [texts, D]."""
Text = tuple[TextKind, str, str | None]
"""What it is, the text, and the row's own prompt. Example: ("query", "capital of France", None)."""

_DEPTH = 10  # of ndcg@ and mrr@
_MAP_DEPTH = 100
_RECALL_DEPTHS = (1, 5, 10, 100)
_SCORES_AT_ONCE = 2**27


class PairScores(Protocol):
    """Scores pairs of a query and a passage."""

    def __call__(self, pairs: list[tuple[str, str]], prompts: list[str | None] | None = None, /) -> Floats:
        """[pairs]; `prompts` are those that rows have for their queries, given only where some have."""
        ...


def measure_embeddings(sets: Sequence[HeldOut], encode: Encode, *, truncate: Iterable[int] = ()) -> dict[str, float]:
    """How well the cosine similarity of embeddings finds and orders, by metric; NAME/metric for a set with a name.

    Retrieval: ndcg@10, mrr@10, map@100 and recall@1, 5, 10, 100 (as far as the corpus goes); where all rows have
    negatives or documents also rerank_map, rerank_mrr@10 and rerank_ndcg@10 among these (and rerank_base_map and so on
    of a first stage). A passage is right for a query if any row of that query (with that prompt) has it as a positive.
    Similarity: spearman, NaN (null in metrics.jsonl) where all similarities are the same. Its texts are all queries.
    The main metric is also measured with embeddings cut to each size of `truncate`, as dim64/ndcg@10 and so on.

    `encode` is called once for all queries and once for all passages of a set; each distinct text is there once.

    Raises:
        ValueError: wrong number of embeddings, or a size of `truncate` that exceeds theirs.
        FloatingPointError: an embedding is not finite.
    """
    found: dict[str, float] = {}
    for held in sets:
        if held.kind == "reranking":
            raise ValueError(f"set {held.name!r} is for rerankers")
        sizes = list(truncate)
        similar = isinstance(held, SimilaritySet)
        metrics = _similarity(held, encode, sizes) if similar else _retrieval(held, encode, sizes)
        found |= _named(held, metrics)
    return found


def measure_scores(sets: Sequence[HeldOut], score: PairScores) -> dict[str, float]:
    """How well a reranker's scores order the candidates of each row, by metric; NAME/metric for a set with a name.

    map, mrr@10 and ndcg@10; where rows have documents also base_map, base_mrr@10 and base_ndcg@10 of the first stage.
    `score` is called once for all distinct pairs of a set.

    Raises:
        ValueError: a set is none for rerankers, or there is a wrong number of scores.
        FloatingPointError: a score is not finite.
    """
    found: dict[str, float] = {}
    for held in sets:
        if not isinstance(held, RankedSet) or held.kind != "reranking":
            raise ValueError(f"set {held.name!r} is not for rerankers")
        pairs = [
            (number, (row.query, row.prompt, passage))
            for number, (row, passages) in enumerate(zip(held.rows, held.candidates, strict=True))
            for passage in passages
        ]
        distinct = list(dict.fromkeys(pair for _, pair in pairs))
        prompts = [prompt for _, prompt, _ in distinct]
        texts = [(query, passage) for query, _, passage in distinct]
        # Rows without prompts need no such parameter.
        given = score(texts) if set(prompts) <= {None} else score(texts, prompts)
        values = dict(zip(distinct, _checked(given, len(distinct), "scores").tolist(), strict=True))
        found |= _named(held, _reranking(held, {(number, pair[2]): values[pair] for number, pair in pairs}))
    return found


class _KnownEmbeddings:
    """A model to evaluators: gives the embeddings of texts that were computed before."""

    def __init__(self, texts: Iterable[Text], encode: Encode) -> None:
        import torch

        # Evaluators tell the model's card of their results: this object, which takes no notice.
        self.model_card_data = self
        self._places: dict[Text, int] = {}
        self._embeddings: dict[TextKind, torch.Tensor] = {}
        distinct = list(dict.fromkeys(texts))  # rows share passages: each is encoded once
        kinds: tuple[TextKind, ...] = ("query", "passage")
        for kind in kinds:
            mine = [text for text in distinct if text[0] == kind]
            if not mine:
                continue
            prompts = [prompt for _, _, prompt in mine]
            given = encode([text for _, text, _ in mine], kind, None if set(prompts) <= {None} else prompts)
            self._embeddings[kind] = torch.from_numpy(_checked(given, len(mine), "embeddings"))
            self._places |= {text: place for place, text in enumerate(mine)}

    def encode(self, texts: Sequence[Text], truncate_dim: int | None = None, **_: object) -> "torch.Tensor":
        """[texts, D or truncate_dim]; the texts are of one kind."""
        embeddings = self._embeddings[texts[0][0]]
        if truncate_dim is not None and truncate_dim > embeddings.shape[1]:
            raise ValueError(f"embeddings of size {embeddings.shape[1]} cannot be cut to {truncate_dim}")
        return embeddings[:, :truncate_dim][[self._places[text] for text in texts]]

    encode_query = encode_document = encode

    def set_evaluation_metrics(self, *_: object) -> None:
        """A model card's, of which there is none."""


class _KnownScores:
    """A cross-encoder to evaluators: gives the scores of pairs that were computed before, of others a lower one."""

    def __init__(self, scores: dict[tuple[int, str], float]) -> None:
        self.model_card_data = self  # as above
        self._scores, self._lowest = scores, min(scores.values()) - 1  # lost positives come behind all

    def predict(self, pairs: Sequence[tuple[int, str]], **_: object) -> NDArray[np.float64]:
        """[pairs], of the number of a row and a passage."""
        return np.array([self._scores.get((number, passage), self._lowest) for number, passage in pairs])

    def set_evaluation_metrics(self, *_: object) -> None:
        """A model card's, of which there is none."""


def _similarity(held: SimilaritySet, encode: Encode, sizes: list[int]) -> dict[str, float]:
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    first: Any = [("query", row.first, None) for row in held.rows]
    second: Any = [("query", row.second, None) for row in held.rows]
    model: Any = _KnownEmbeddings([*first, *second], encode)
    scores = [row.score for row in held.rows]
    found = {}
    for size in (None, *sizes):
        evaluator = EmbeddingSimilarityEvaluator(
            first, second, scores, main_similarity="cosine", write_csv=False, truncate_dim=size
        )
        with warnings.catch_warnings():  # of similarities that are all the same; the result, NaN, says it
            warnings.simplefilter("ignore")
            found[_cut("spearman", size)] = evaluator(model)["spearman_cosine"]
    return found


def _retrieval(held: RankedSet, encode: Encode, sizes: list[int]) -> dict[str, float]:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    relevant: dict[Text, set[str]] = {}
    for row in held.rows:
        relevant.setdefault(("query", row.query, row.prompt), set()).update(row.positives)
    # Passages are their own ids. Where similarities are equal, the order is that of the ids, which then says nothing
    # of what is a positive.
    corpus: dict[str, Text] = {text: ("passage", text, None) for text in held.corpus}
    model: Any = _KnownEmbeddings([*relevant, *corpus.values()], encode)
    # Beyond the corpus everything is found, by any model.
    depths = [depth for depth in _RECALL_DEPTHS if depth <= len(corpus)]
    arguments: Any = {
        "queries": {query: query for query in relevant},
        "corpus": corpus,
        "relevant_docs": relevant,
        # All queries against a chunk of the corpus: at most half a GiB of float32, but as deep as map looks.
        "corpus_chunk_size": max(_MAP_DEPTH, _SCORES_AT_ONCE // len(relevant)),
        "accuracy_at_k": [1],
        "precision_recall_at_k": depths,
        "map_at_k": [_MAP_DEPTH],
        "score_functions": {"cosine": cos_sim},
        "main_score_function": "cosine",
        "write_csv": False,
    }
    metrics = InformationRetrievalEvaluator(**arguments)(model)
    wanted = [f"ndcg@{_DEPTH}", f"mrr@{_DEPTH}", f"map@{_MAP_DEPTH}", *(f"recall@{depth}" for depth in depths)]
    found = {name: metrics[f"cosine_{name}"] for name in wanted}
    for size in sizes:
        found[_cut(wanted[0], size)] = InformationRetrievalEvaluator(**arguments, truncate_dim=size)(model)[
            f"cosine_{wanted[0]}"
        ]
    if held.can_rerank:
        found |= {f"rerank_{name}": value for name, value in _reranking(held, _cosines(held, model)).items()}
    return found


def _cosines(held: RankedSet, model: _KnownEmbeddings) -> dict[tuple[int, str], float]:
    """Similarity of each row's query, by its number, and each of its candidates."""
    from sentence_transformers.util import cos_sim

    found = {}
    for number, (row, passages) in enumerate(zip(held.rows, held.candidates, strict=True)):
        query = model.encode([("query", row.query, row.prompt)])
        values = cos_sim(query, model.encode([("passage", text, None) for text in passages]))[0].tolist()
        found |= {(number, text): value for text, value in zip(passages, values, strict=True)}
    return found


def _reranking(held: RankedSet, scores: dict[tuple[int, str], float]) -> dict[str, float]:
    """Metrics of an order by score, lost positives behind all; `scores`: of a row, by its number, and a candidate."""
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

    samples: list[Any] = []
    for number, row in enumerate(held.rows):
        positives = list(dict.fromkeys(row.positives))
        if held.documents:
            # The evaluator counts 0 for a row without positives: so shall one that lost all of them.
            left = positives if set(positives) & set(held.documents[number]) else []
            samples.append({"query": number, "positive": left, "documents": list(held.documents[number])})
        else:
            wrong = list(dict.fromkeys(row.negatives))
            samples.append({"query": number, "positive": positives, "negative": wrong})
    # Without always_rerank_positives the evaluator forgets lost positives, but not in its figures of the first stage:
    # these would then be worse than those of the same order.
    model: Any = _KnownScores(scores)
    return CrossEncoderRerankingEvaluator(samples, at_k=_DEPTH, always_rerank_positives=True, write_csv=False)(model)


def _checked(values: Floats, count: int, what: str) -> Floats:
    if len(values) != count:
        raise ValueError(f"there must be {count} {what}, got {len(values)}")
    if not np.isfinite(values).all():
        raise FloatingPointError(f"{what} of held-out texts are not finite: the model is lost, see the log")
    return np.ascontiguousarray(values, dtype=np.float32)


def _named(held: HeldOut, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{held.name}/{name}" if held.name else name: value for name, value in metrics.items()}


def _cut(name: str, size: int | None) -> str:
    return name if size is None else f"dim{size}/{name}"
