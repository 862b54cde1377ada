"""The work of `tandem mine`: passages and queries become vectors, vectors candidates, and candidates negatives.

Parts have fixed bounds, so that one made again is the same to the bit, whatever was interrupted.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from actors.config import UserError
from algorithms.encoder.mining import (
    EXCLUSIONS,
    MiningRules,
    MiningTask,
    choose_negatives,
    top_passages,
    without_answers,
)
from launch.verbs.mining_parts import MinedPart, MiningParts

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

# Passages of a shard, in batches, and at most; queries of a part, in batches: an interruption costs no more.
_SHARD_BATCHES, _LONGEST_SHARD = 128, 8192
_CHUNK_BATCHES = 4

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Mined:
    """What was found for queries, in their order."""

    ids: Ids
    """[Q, negatives] passages, best first; -1 where there are fewer."""
    scores: Scores
    """[Q, negatives] of the passages."""
    positive_scores: Scores
    """Of all positives of the first query, then of the second one, and so on."""
    excluded: Ids
    """[len(EXCLUSIONS)] candidates excluded, over all queries."""


@dataclass(kw_only=True)
class Miner:
    """Models, data and rules; `run` mines."""

    task: MiningTask
    rules: MiningRules
    model: "SentenceTransformer"
    reranker: "CrossEncoder | None"
    rescores: bool
    """Whether the reranker's scores choose, not the model's."""
    rank: bool
    """Whether passages are only ranked, positives among them."""
    batch_size: int
    seed: int
    query_prompt: str | None
    passage_prompt: str | None
    told: Callable[[str, int, int, str], None]
    """Hears what is being done, how much of it is, of how much, and of what."""

    @property
    def width(self) -> int:
        """Passages looked at for a query, its positives among them."""
        # Positives rank high, and are taken out only afterwards: room for those of any query.
        most = self.rules.negatives if self.rank else self.rules.last + self.task.most_positives
        return min(most, len(self.task.passages))

    def run(self, parts: MiningParts) -> Mined:
        """Mine what `parts` does not hold yet."""
        shards = self._passages(parts)
        chunk, block = _CHUNK_BATCHES * self.batch_size, self._shard
        found = []
        for number, start in enumerate(range(0, len(self.task.queries), block)):
            numbers = range(start, min(start + block, len(self.task.queries)))
            chunks = [numbers[at : at + chunk] for at in range(0, len(numbers), chunk)]
            first = number * -(-block // chunk)  # rounded up: the last part of a block may be a small one
            done = [parts.load("mined", first + at) for at in range(len(chunks))]
            if any(part is None for part in done):
                done = self._block(numbers, chunks, first, shards, parts)
            found += done
        return Mined(
            ids=np.concatenate([part["ids"] for part in found]),
            scores=np.concatenate([part["scores"] for part in found]),
            positive_scores=np.concatenate([part["positive_scores"] for part in found]),
            excluded=np.sum([part["excluded"] for part in found], axis=0),
        )

    @property
    def _shard(self) -> int:
        return min(_SHARD_BATCHES * self.batch_size, _LONGEST_SHARD)

    def _passages(self, parts: MiningParts) -> list[Scores]:
        """Vectors of all passages, [*, D] each."""
        texts, shards = self.task.passages, []
        for number, start in enumerate(range(0, len(texts), self._shard)):
            self.told("encoding", start, len(texts), "passages")
            if (shard := parts.shard("passages", number)) is None:
                shard = self.model.encode_document(
                    list(texts[start : start + self._shard]),
                    prompt=self.passage_prompt,
                    batch_size=self.batch_size,
                    normalize_embeddings=True,
                )
                parts.save_shard("passages", number, _finite(shard))
                shard = parts.shard("passages", number)  # read back: it lies on the disk then, not in memory
                assert shard is not None
            shards.append(shard)
        return shards

    def _queries(self, numbers: range, parts: MiningParts) -> Scores:
        """Vectors of queries, [Q, D]."""
        if (found := parts.shard("queries", numbers.start // self._shard)) is not None:
            return np.array(found)
        queries = [self.task.queries[number] for number in numbers]
        vectors: list[Scores] = [np.empty(0, np.float32)] * len(queries)
        # encode_query takes one prompt for all of its texts.
        for prompt in dict.fromkeys(prompt for prompt, _ in queries):
            places = [place for place, query in enumerate(queries) if query[0] == prompt]
            encoded = self.model.encode_query(
                [queries[place][1] for place in places],
                prompt=self.query_prompt if prompt is None else prompt,
                batch_size=self.batch_size,
                normalize_embeddings=True,
            )
            for place, vector in zip(places, encoded, strict=True):
                vectors[place] = vector
        found = _finite(np.stack(vectors))
        parts.save_shard("queries", numbers.start // self._shard, found)
        return found

    def _block(
        self, numbers: range, chunks: list[range], first: int, shards: list[Scores], parts: MiningParts
    ) -> list[MinedPart]:
        """The parts of a block of queries, whose candidates are searched at once."""
        self.told("mining", numbers.start, len(self.task.queries), "queries")
        queries = self._queries(numbers, parts)
        # One more than is looked at: the query itself may be among them.
        vectors = torch.from_numpy(queries).to(self.model.device)
        ids, scores = top_passages(vectors, shards, self.width + 1, self.model.similarity)
        made = []
        for number, chunk in enumerate(chunks, start=first):
            part = parts.load("mined", number)
            if part is None:
                inside = slice(chunk.start - numbers.start, chunk.stop - numbers.start)
                positives = self._positive_scores(chunk, queries[inside], shards)
                part = self._chunk(chunk, ids[inside], scores[inside], positives)
                parts.save("mined", number, part)
            made.append(part)
            self.told("mining", chunk.stop, len(self.task.queries), "queries")
        return made

    def _positive_scores(self, numbers: range, queries: Scores, shards: list[Scores]) -> list[Scores]:
        """The model's scores of each query's positives."""
        ids = [self.task.positives[number] for number in numbers]
        passages = np.stack([shards[item // self._shard][item % self._shard] for found in ids for item in found])
        repeated = np.repeat(queries, [len(found) for found in ids], axis=0)
        scores = self.model.similarity_pairwise(torch.from_numpy(repeated), torch.from_numpy(passages))
        return np.split(scores.float().numpy(), np.cumsum([len(found) for found in ids])[:-1])

    def _chunk(self, numbers: range, ids: Ids, scores: Scores, positives: list[Scores]) -> MinedPart:
        """A part: what Mined has of these queries."""
        excluded = np.zeros(len(EXCLUSIONS), np.int64)
        candidates: list[Ids] = []
        judged: list[Scores] = []
        for place, number in enumerate(numbers):
            kept, out = without_answers(ids[place], self.task, number, self.width, keep_positives=self.rank)
            candidates.append(ids[place][kept])
            judged.append(scores[place][kept])
            excluded += out
        if self.rescores:
            judged, positives = self._judged(numbers, candidates)
        chosen = np.full((len(numbers), self.rules.negatives), -1, np.int64)
        for place, number in enumerate(numbers):
            # One for each query: the draw does not depend on which parts were there already.
            generator = random.Random(f"{self.seed} {number}")
            best, out = choose_negatives(judged[place], positives[place].min(), self.rules, generator)
            chosen[place, : len(best)] = candidates[place][best]
            candidates[place], judged[place] = candidates[place][best], judged[place][best]
            excluded += out
        # Its scores are only written: for what was chosen, not for all candidates.
        if self.reranker is not None and not self.rescores:
            judged, positives = self._judged(numbers, candidates)
        # Parts have one shape; where `ids` is -1, the score means nothing.
        padded = np.zeros(chosen.shape, np.float32)
        for place, found in enumerate(judged):
            padded[place, : len(found)] = found
        return {"ids": chosen, "scores": padded, "positive_scores": np.concatenate(positives), "excluded": excluded}

    def _judged(self, numbers: range, candidates: list[Ids]) -> tuple[list[Scores], list[Scores]]:
        """The reranker's scores of the candidates and of the positives of each query."""
        assert self.reranker is not None
        lists = [[*ids, *self.task.positives[number]] for number, ids in zip(numbers, candidates, strict=True)]
        queries = [self.task.queries[number] for number, found in zip(numbers, lists, strict=True) for _ in found]
        items = [item for found in lists for item in found]
        scores = np.zeros(len(items), np.float32)
        for own in dict.fromkeys(prompt for prompt, _ in queries):
            places = [place for place, (prompt, _) in enumerate(queries) if prompt == own]
            pairs = [(queries[place][1], self.task.passages[items[place]]) for place in places]
            # Without an instruction of their own, queries have the one that the reranker keeps.
            scores[places] = _finite(self.reranker.predict(pairs, prompt=own, batch_size=self.batch_size), "--reranker")
        parts = np.split(scores, np.cumsum([len(found) for found in lists])[:-1])
        counts = [len(ids) for ids in candidates]
        return (
            [part[:count] for part, count in zip(parts, counts, strict=True)],
            [part[count:] for part, count in zip(parts, counts, strict=True)],
        )


def _finite(values: NDArray, field: str = "MODEL") -> Scores:
    if not np.isfinite(values).all():
        raise UserError(f"{field}: must give finite numbers, got NaN or infinity")
    return values.astype(np.float32)
