"""Losses of embedding models and rerankers: sentence-transformers' own, given outputs that are already computed.

They expect a model, which they call on texts. Here they get one that answers with known vectors or scores, so that the
texts can be read by whichever rank, and in whichever micro-batch, has room for them.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder import losses as reranking
from sentence_transformers.sentence_transformer import losses as embedding
from sentence_transformers.util import pairwise_cos_sim
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedTokenizerFast

from algorithms.config_encoder import EmbeddingTask, RerankerConfig

Columns = list[torch.Tensor]
"""Vectors of queries, positives, first negatives, ...: [B, D] each."""
_ABSENT = -1e16
"""Score of a passage that is not there: its probability is 0, and so is its gradient."""


class _OfVectors(Protocol):
    """A loss of sentence-transformers that takes embeddings which are there already, and labels, or None."""

    def compute_loss_from_embeddings(self, embeddings: Columns, labels: Any) -> torch.Tensor: ...


class KnownVectors(torch.nn.Sequential):
    """Stands where a loss expects an embedding model, which is not called: its vectors are known."""

    # gist compares it, and the tokenizers, with the guide's, to see whether texts are to be tokenised anew.
    max_seq_length = 1

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity())  # a loss looks at what kind of module comes first
        self.tokenizer = _no_tokenizer()


class KnownScores(CrossEncoder):
    """Stands where a loss expects a reranker: a pair's passage is the number of its score in `scores` [N]."""

    def __init__(self, scores: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)  # its own would load a model
        self.scores = scores

    @property
    def num_labels(self) -> int:
        """One score a pair."""
        return 1

    @property
    def device(self) -> torch.device:
        """Where the scores are."""
        return self.scores.device

    def preprocess(
        self, inputs: Sequence[tuple[int, int]], prompt: str | None = None, **_: object
    ) -> dict[str, torch.Tensor]:
        """Numbers of the pairs' scores."""
        return {"places": torch.tensor([place for _, place in inputs])}

    def forward(self, input: dict[str, torch.Tensor], **_: object) -> dict[str, torch.Tensor]:
        """{scores: [B, 1]}."""
        return {"scores": self.scores[input["places"]].unsqueeze(1)}


class _GuidedLoss(embedding.CachedGISTEmbedLoss):
    def sim_matrix(self, embed1: torch.Tensor, embed2: torch.Tensor) -> torch.Tensor:
        # The original's cosine of every pair holds all pairs of vectors at one time.
        return normalize(embed1, dim=-1) @ normalize(embed2, dim=-1).T


@cache
def _no_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"": 0}, unk_token="")))


def embedding_loss(
    task: EmbeddingTask, columns: Columns, guide: Columns | None, targets: torch.Tensor | None
) -> torch.Tensor:
    """Weighted sum of a task's losses, over its Matryoshka sizes.

    Args:
        task: says which.
        columns: vectors of queries, positives and negatives; or of first and second texts.
        guide: the guide's vectors of the same texts, for gist.
        targets: a teacher's scores [B, positive and negatives], or the scores of pairs [B].
    """
    whole = columns[0].shape[-1]
    total = columns[0].new_zeros(())
    for size in task.matryoshka or [whole]:
        # Cut vectors are used at length 1 again: so are they compared here.
        cut = [normalize(column[:, :size], dim=-1) for column in columns] if size < whole else columns
        for item in task.loss:
            # Sizes are added up and not averaged, as sentence-transformers does.
            total = total + item.weight * _of_vectors(task, item.name, cut, guide, targets)
    return total


def _of_vectors(
    task: EmbeddingTask, name: str, columns: Columns, guide: Columns | None, targets: torch.Tensor | None
) -> torch.Tensor:
    model: Any = KnownVectors()
    if name == "gist":
        assert guide is not None, "EmbeddingTask guarantees a guide for gist"
        loss = _GuidedLoss(
            model,
            KnownVectors(),  # type: ignore[arg-type]
            temperature=task.temperature,
            mini_batch_size=len(columns[0]),  # one: nothing is encoded here
            margin_strategy=task.guide_margin_strategy,
            margin=task.guide_margin,
        )
        return loss.calculate_loss([[column] for column in columns], [[column] for column in guide])
    if name == "triplet":
        columns = columns[:3]  # query, positive, one negative
    if name in ("contrastive", "online_contrastive"):
        assert targets is not None
        targets = targets.int()
    return _EMBEDDING[name](model, task).compute_loss_from_embeddings(columns, targets)


def _infonce(model: SentenceTransformer, task: EmbeddingTask) -> _OfVectors:
    both: Any = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    return embedding.MultipleNegativesRankingLoss(model, scale=1 / task.temperature, **(both if task.symmetric else {}))


def _triplet(model: SentenceTransformer, task: EmbeddingTask) -> _OfVectors:
    metric = {
        "cosine": embedding.TripletDistanceMetric.COSINE,
        "euclidean": embedding.TripletDistanceMetric.EUCLIDEAN,
    }[task.distance]
    return embedding.TripletLoss(model, distance_metric=metric, triplet_margin=task.margin)


def _distill(model: SentenceTransformer, task: EmbeddingTask) -> _OfVectors:
    return embedding.DistillKLDivLoss(
        model,
        similarity_fct=pairwise_cos_sim,
        student_temperature=task.temperature,
        teacher_temperature=task.teacher_temperature,
    )


_EMBEDDING: dict[str, Callable[[SentenceTransformer, EmbeddingTask], _OfVectors]] = {
    "infonce": _infonce,
    "triplet": _triplet,
    "distill_kl": _distill,
    "margin_mse": lambda model, task: embedding.MarginMSELoss(model),
    "cosent": lambda model, task: embedding.CoSENTLoss(model, scale=1 / task.temperature),
    "angle": lambda model, task: embedding.AnglELoss(model, scale=1 / task.temperature),
    "cosine": lambda model, task: embedding.CosineSimilarityLoss(model),
    "contrastive": lambda model, task: embedding.ContrastiveLoss(model, margin=task.margin),
    "online_contrastive": lambda model, task: embedding.OnlineContrastiveLoss(model, margin=task.margin),
}


def reranker_loss(config: RerankerConfig, scores: torch.Tensor, sizes: list[int], labels: torch.Tensor) -> torch.Tensor:
    """Weighted sum of a reranker's losses.

    Args:
        config: says which.
        scores: of every query's passages, query by query, [N].
        sizes: passages of each query; they add up to N.
        labels: of the passages, [N].
    """
    total = scores.new_zeros(())
    for item in config.loss:
        total = total + item.weight * _of_scores(item.name, scores, sizes, labels)
    return total


def _of_scores(name: str, scores: torch.Tensor, sizes: list[int], labels: torch.Tensor) -> torch.Tensor:
    if name == "cross_entropy":
        rows = torch.nn.utils.rnn.pad_sequence(list(scores.split(sizes)), batch_first=True, padding_value=_ABSENT)
        # The first is the positive.
        return cross_entropy(rows, torch.zeros(len(sizes), dtype=torch.long, device=scores.device))
    model = KnownScores(scores)
    places = [list(part) for part in torch.arange(len(scores)).split(sizes)]
    lists = [[int(place) for place in part] for part in places]
    queries = list(range(len(sizes)))
    if name in ("bce", "mse"):
        owners = [query for query, size in enumerate(sizes) for _ in range(size)]
        return _POINTWISE[name](model)([owners, list(range(len(scores)))], labels)
    if name == "margin_mse":
        columns = [list(column) for column in zip(*lists, strict=True)]
        return reranking.MarginMSELoss(model)([queries, *columns], list(labels.split(sizes)))
    if name == "listmle":
        # The right order is that of the labels, not the one in which the data has the passages.
        return reranking.ListMLELoss(model, respect_input_order=False)([queries, lists], list(labels.split(sizes)))
    return _LISTWISE[name](model)([queries, lists], list(labels.split(sizes)))


_OfScores = Callable[[CrossEncoder], torch.nn.Module]
_POINTWISE: dict[str, _OfScores] = {
    "bce": reranking.BinaryCrossEntropyLoss,
    "mse": reranking.MSELoss,
}
_LISTWISE: dict[str, _OfScores] = {
    "ranknet": reranking.RankNetLoss,
    "lambda": reranking.LambdaLoss,
    "listnet": reranking.ListNetLoss,
}
