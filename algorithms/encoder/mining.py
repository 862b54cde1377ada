"""Hard negatives: which passages a model takes for an answer of a query, and which of them count as wrong answers.

The rules are those of sentence_transformers.util.mine_hard_negatives. A query's candidates are the passages most like
it, without its positives and without the query itself. Limits and margins exclude candidates by their scores; a margin
is kept from the worst positive of the query. Of those that are left, in the order of their scores, the first are
skipped, and negatives are the top of the rest, or drawn from it.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from algorithms.encoder.rows import Ranking

EXCLUSIONS = (
    "positives of the query",
    "the query itself",
    "--absolute-margin",
    "--relative-margin",
    "--max-score",
    "--min-score",
    "skipped by --range",
)
"""Why a candidate is no negative, in the order in which they are asked."""
_SCORES_AT_ONCE = 2**26

Similarity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""[Q, D] queries and [P, D] passages to [Q, P] scores."""


@dataclass(frozen=True, kw_only=True)
class MiningRules:
    """Which candidates become negatives."""

    negatives: int
    """Negatives of a query."""
    first: int
    """Candidates skipped, of those that limits and margins leave."""
    last: int
    """Where the candidates end from which negatives are taken, counted as `first`."""
    max_score: float | None = None
    """Largest score of a negative."""
    min_score: float | None = None
    """Smallest score of a negative."""
    absolute_margin: float | None = None
    """How much lower than the worst positive's its score must be."""
    relative_margin: float | None = None
    """The same as a share of the positive's score."""
    sampling: Literal["top", "random"] = "top"
    """The best of the candidates, or any of them."""


@dataclass(frozen=True, kw_only=True)
class MiningTask:
    """Rows, and their distinct queries and passages, by number."""

    rows: Sequence[Ranking]
    query_of_row: Sequence[int]
    queries: Sequence[tuple[str | None, str]]
    """(prompt, text), distinct. Example: [(None, "capital of France")]."""
    passages: Sequence[str]
    """Distinct, white space aside: the corpus, then positives and negatives of the rows."""
    positives: Sequence[tuple[int, ...]]
    """For each query, the positives of all rows that ask it."""
    itself: Sequence[int]
    """For each query, the passage that is the same text and no positive of it; -1 where there is none."""

    @property
    def most_positives(self) -> int:
        """Of a query."""
        return max(map(len, self.positives))


def same_text(text: str) -> str:
    """What two texts have in common that differ in white space only."""
    return " ".join(text.split())


def mining_task(rows: Sequence[Ranking], corpus: Sequence[str]) -> MiningTask:
    """Number the distinct queries and passages of `rows`, and the passages of `corpus`."""
    numbers: dict[str, int] = {}
    passages: list[str] = []
    positives, negatives = (text for row in rows for text in row.positives), (t for row in rows for t in row.negatives)
    for text in chain(corpus, positives, negatives):
        if numbers.setdefault(same_text(text), len(passages)) == len(passages):
            passages.append(text)
    # By the query's text alone, whatever prompt it has: what answers it does not depend on the prompt.
    answers: dict[str, dict[int, None]] = {}
    for row in rows:
        found = answers.setdefault(same_text(row.query), {})
        found.update((numbers[same_text(text)], None) for text in row.positives)
    queries: dict[tuple[str | None, str], int] = {}
    query_of_row = [queries.setdefault((row.prompt, row.query), len(queries)) for row in rows]
    keys = [same_text(query) for _, query in queries]
    return MiningTask(
        rows=rows,
        query_of_row=query_of_row,
        queries=list(queries),
        passages=passages,
        positives=[tuple(answers[key]) for key in keys],
        itself=[-1 if (found := numbers.get(key, -1)) in answers[key] else found for key in keys],
    )


def top_passages(
    queries: torch.Tensor, shards: Sequence[NDArray[np.float32]], count: int, similarity: Similarity
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The passages with the highest scores, exactly: numbers and scores, both [Q, min(count, passages)], best first.

    Holds a bounded block of scores at a time, so that `shards`, [*, D] each and in order, may be files on disk.
    """
    longest = max(len(shard) for shard in shards)
    block = max(1, _SCORES_AT_ONCE // (longest + count))
    found = [_search(queries[at : at + block], shards, count, similarity) for at in range(0, len(queries), block)]
    return np.concatenate([ids for ids, _ in found]), np.concatenate([scores for _, scores in found])


def _search(
    queries: torch.Tensor, shards: Sequence[NDArray[np.float32]], count: int, similarity: Similarity
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    best = torch.empty(len(queries), 0, device=queries.device)
    numbers = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    start = 0
    for shard in shards:
        scores = similarity(queries, torch.tensor(shard, device=queries.device)).float()
        scores, found = scores.topk(min(count, len(shard)), dim=1)
        best, numbers = torch.cat([best, scores], dim=1), torch.cat([numbers, found + start], dim=1)
        best, order = best.topk(min(count, best.shape[1]), dim=1)
        numbers = numbers.gather(1, order)
        start += len(shard)
    return numbers.cpu().numpy(), best.cpu().numpy()


def without_answers(
    ids: NDArray[np.int64], task: MiningTask, query: int, width: int, *, keep_positives: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Which of the found passages are candidates, as positions in `ids`, and how many are not, [len(EXCLUSIONS)].

    Args:
        ids: [K] passages found for `query`, best first.
        width: passages looked at, the query itself aside.
        keep_positives: whether positives are candidates too.
    """
    excluded = np.zeros(len(EXCLUSIONS), np.int64)
    others = np.flatnonzero(ids != task.itself[query])
    # The query itself takes no place: as many others are looked at with it as without.
    looked_at = others[:width]
    answers = np.isin(ids[looked_at], () if keep_positives else task.positives[query])
    excluded[:2] = answers.sum(), len(ids) - len(others)  # the first two of EXCLUSIONS
    return looked_at[~answers], excluded


def choose_negatives(
    scores: NDArray[np.float32], worst_positive: np.float32, rules: MiningRules, generator: random.Random
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Which candidates of a query are its negatives, best first, and how many are excluded, [len(EXCLUSIONS)].

    Args:
        scores: [K] of candidates, in any order.
        worst_positive: lowest score of the query's positives, on the same scale.

    Raises:
        FloatingPointError: a score is NaN, which no rule would exclude.
    """
    if np.isnan(scores).any() or np.isnan(worst_positive):
        raise FloatingPointError("scores of passages are not numbers: the model that gives them is lost")
    excluded = np.zeros(len(EXCLUSIONS), np.int64)
    alive = np.ones(len(scores), bool)
    for place, broken in _broken(scores, worst_positive, rules):
        excluded[place] = (alive & broken).sum()
        alive &= ~broken
    left = np.argsort(-scores, kind="stable")  # equal scores keep their order
    left = left[alive[left]]
    excluded[6] = min(rules.first, len(left))  # skipped by --range
    left = left[rules.first : rules.last]
    if rules.sampling == "random" and len(left) > rules.negatives:
        left = left[sorted(generator.sample(range(len(left)), rules.negatives))]  # best first, also of those drawn
    return left[: rules.negatives], excluded


def _broken(
    scores: NDArray[np.float32], worst_positive: np.float32, rules: MiningRules
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Which scores break each rule, with the rule's place in EXCLUSIONS."""
    # float32 throughout, as in sentence-transformers: a score at the very limit is judged alike.
    if rules.absolute_margin is not None:
        yield 2, scores + np.float32(rules.absolute_margin) > worst_positive
    if rules.relative_margin is not None:
        yield 3, scores > worst_positive - abs(worst_positive) * np.float32(rules.relative_margin)
    if rules.max_score is not None:
        yield 4, scores > np.float32(rules.max_score)
    if rules.min_score is not None:
        yield 5, scores < np.float32(rules.min_score)
