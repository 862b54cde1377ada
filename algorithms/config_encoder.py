"""Settings of the jobs that learn to compare texts: embedding models (bi-encoders) and rerankers (cross-encoders)."""

import json
from typing import Literal

from pydantic import field_validator, model_validator

from actors.config import Config, changed, refuse_unused
from actors.config_numbers import Batch, BatchOrNone, Factor, PositiveFactor, PositiveThreshold, Tokens, Width
from algorithms.config_offline import OfflineConfig

EmbeddingLossName = Literal[
    "infonce",
    "gist",
    "triplet",
    "margin_mse",
    "distill_kl",
    "cosent",
    "angle",
    "cosine",
    "contrastive",
    "online_contrastive",
]
RerankerLossName = Literal[
    "bce",
    "mse",
    "cross_entropy",
    "ranknet",
    "lambda",
    "listnet",
    "listmle",
    "margin_mse",
]
RowKind = Literal["ranking", "pair"]
"""What a loss reads: a query with positives and negatives, or two texts with a score."""

PAIR_LOSSES = ("cosent", "angle", "cosine", "contrastive", "online_contrastive")
"""Embedding losses of two texts with a score; all others read a query, a positive and negatives."""
IN_BATCH_LOSSES = ("infonce", "gist")
"""Embedding losses for which the passages of other queries are negatives, so that no text may be there twice."""
SCORED_LOSSES = ("margin_mse", "distill_kl")
"""Embedding losses that learn from a teacher's scores of positives and negatives."""
NEGATIVE_LOSSES = ("triplet", *SCORED_LOSSES)
"""Embedding losses that need negatives."""
_READ_BY: dict[str, tuple[str, ...]] = {
    "temperature": ("infonce", "gist", "distill_kl", "cosent", "angle"),
    "symmetric": ("infonce",),
    "margin": ("triplet", "contrastive", "online_contrastive"),
    "distance": ("triplet",),
    "teacher_temperature": ("distill_kl",),
    "guide": ("gist",),
    "guide_margin": ("gist",),
    "guide_margin_strategy": ("gist",),
}
"""Field of an embedding task -> the losses that read it."""


def _listed(value: object) -> object:
    # A name, a list of names and a list of {name, weight} are one form before pydantic checks it.
    items = value if isinstance(value, list) else [value]
    return [{"name": item} if isinstance(item, str) else item for item in items]


def _require_each_once(names: list[str]) -> None:
    if not names:
        raise ValueError("loss must name at least one loss, got []")
    if len(set(names)) < len(names):
        raise ValueError(f"loss must name each loss once, got {', '.join(names)}")


class Prompts(Config):
    """Instructions put before texts, in training and, kept in the model, when it is used."""

    query: str | None = None
    """Before queries, for example `query: ` (default: the model's own, if it keeps one); a row's own `prompt` takes its
    place."""
    passage: str | None = None
    """Before passages (default: the model's own, if it keeps one)."""


class EmbeddingLoss(Config):
    """One loss and its weight in the sum."""

    name: EmbeddingLossName
    """Which one; docs/embedding.md has the formulas."""
    weight: PositiveFactor = 1.0
    """Factor in the sum of losses."""


class EmbeddingTask(Config):
    """How one data set is learned."""

    loss: list[EmbeddingLoss] = [EmbeddingLoss(name="infonce")]
    """A name, or a list of {name, weight} whose weighted sum is minimised."""
    prompts: Prompts = Prompts()
    """Instructions put before texts."""
    negatives: BatchOrNone | None = None
    """Negatives drawn for a query in an update (default: all, where every row has as many)."""
    temperature: PositiveFactor = 0.05
    """Divisor of similarities (of infonce, gist, distill_kl, cosent, angle)."""
    symmetric: bool = False
    """Of infonce: also tell a passage's query from the other queries."""
    margin: PositiveFactor = 0.5
    """Distance that triplet, contrastive and online_contrastive want between what does not belong together."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """Distance of triplet."""
    teacher_temperature: PositiveFactor = 1.0
    """Divisor of the teacher's scores in distill_kl."""
    guide: str | None = None
    """Of gist: directory of an embedding model that tells which other passages are no negatives."""
    guide_margin: Factor = 0.0
    """Of gist: passages count as negatives only if the guide finds them worse than the positive by this much."""
    guide_margin_strategy: Literal["absolute", "relative"] = "absolute"
    """Of gist: whether guide_margin is a difference of similarities or a share of the positive's."""
    matryoshka: list[Width] = []
    """Sizes to which embeddings are cut for the loss, which is the sum over them (arXiv 2205.13147)."""

    @field_validator("loss", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return _listed(value)

    @property
    def losses(self) -> list[str]:
        """Names of the losses."""
        return [item.name for item in self.loss]

    @property
    def rows(self) -> RowKind:
        """What the losses read."""
        return "pair" if self.losses[0] in PAIR_LOSSES else "ranking"

    @property
    def in_batch(self) -> bool:
        """Whether the other texts of an update are negatives."""
        return any(name in IN_BATCH_LOSSES for name in self.losses)

    @property
    def scored(self) -> bool:
        """Whether a teacher's scores are needed."""
        return any(name in SCORED_LOSSES for name in self.losses)

    @model_validator(mode="after")
    def _losses_fit(self) -> "EmbeddingTask":
        names = self.losses
        _require_each_once(names)
        # An update has vectors of one kind of rows, which all losses of the sum are given.
        if len({name in PAIR_LOSSES for name in names}) > 1:
            raise ValueError(
                f"loss must name losses of one kind of rows: {', '.join(PAIR_LOSSES)} read two texts with a score, "
                f"the others a query with passages, got {', '.join(names)}"
            )
        if "gist" in names and self.guide is None:
            raise ValueError("guide must be the directory of an embedding model for loss gist, got none")
        needing = [name for name in names if name in NEGATIVE_LOSSES]  # infonce and gist have other rows' passages
        if needing and self.negatives == 0:
            raise ValueError(f"negatives must be at least 1 for loss {', '.join(needing)}, got 0")
        # Beside other losses there may be more, of which triplet reads the first.
        if names == ["triplet"] and (self.negatives or 1) > 1:
            raise ValueError(f"negatives must be 1 for loss triplet, which reads one, got {self.negatives}")
        if len(set(self.matryoshka)) < len(self.matryoshka):
            raise ValueError(f"matryoshka must name each size once, got {self.matryoshka}")
        return self

    @model_validator(mode="after")
    def _every_task_setting_has_an_effect(self) -> "EmbeddingTask":
        verb = "do" if len(self.losses) > 1 else "does"
        for field, losses in _READ_BY.items():
            if not set(losses) & set(self.losses):
                refuse_unused(self, field, why=f"for loss {', '.join(self.losses)}, which {verb} not read it")
        if self.rows == "pair":
            refuse_unused(self, "negatives", why="for losses of two texts with a score")
        return self


class MixedTask(EmbeddingTask):
    """One of several data sets, and how often it has its turn."""

    weight: PositiveThreshold | None = None
    """Share of the updates, relative to those of the other tasks (default: its number of rows)."""


class EncoderConfig(OfflineConfig):
    """What embedding models and rerankers share."""

    samples_per_update: Batch = 128
    """Rows in one optimizer update, over all ranks: the batch whose passages are each other's negatives."""
    max_tokens: Tokens | None = None
    """Tokens of a text (of query and passage together, for a reranker) that are read; the rest is cut off and counted
    (default: the model's own limit)."""
    eval_at_start: bool = True
    """Evaluate the model that training starts from, too (when data.eval is given)."""
    mteb: list[str] = []
    """Tasks of MTEB, by name, that the exported model is measured with in the end; needs the package mteb."""


class EmbeddingConfig(EncoderConfig, EmbeddingTask):
    """Embedding model (bi-encoder): texts to vectors whose similarity is learned."""

    name: Literal["embedding"]
    """Algorithm."""
    pooling: Literal["cls", "mean", "last", "max"] | None = None
    """How token vectors become one: the first, their mean, the last or their maximum (default: as the model says)."""
    normalize: bool | None = None
    """Whether embeddings have length 1 (default: as the model says; true for a model that says nothing)."""
    tasks: dict[str, MixedTask] = {}
    """With several data sets (`data.train` by name): how each is learned; an update has rows of one of them."""

    @property
    def by_name(self) -> dict[str, EmbeddingTask]:
        """The tasks; without `tasks`, the only one has no name."""
        return dict(self.tasks) or {"": self}

    @property
    def guides(self) -> dict[str, str]:
        return {
            f"tasks.{name}.guide" if name else "guide": task.guide
            for name, task in self.by_name.items()
            if task.guide is not None
        }

    @model_validator(mode="after")
    def _shares_are_comparable(self) -> "EmbeddingConfig":
        # These would get their numbers of rows.
        without = [name for name, task in self.tasks.items() if task.weight is None]
        if without and len(without) < len(self.tasks):
            raise ValueError(
                f"tasks.{without[0]}.weight must be given where other tasks have one (a share of rows is on another "
                f"scale), got nothing"
            )
        return self

    @model_validator(mode="after")
    def _tasks_say_how(self) -> "EmbeddingConfig":
        # The class is a task itself, for the usual job of one data set: with several, nobody would read its own fields.
        for name in changed(self, *EmbeddingTask.model_fields) if self.tasks else ():
            got = json.dumps(self.model_dump(mode="json", exclude_defaults=True)[name], ensure_ascii=False)
            raise ValueError(f"{name} must be left out with tasks, each of which says it for itself, got {got}")
        return self


class RerankerLoss(Config):
    """One loss and its weight in the sum."""

    name: RerankerLossName
    """Which one; docs/embedding.md has the formulas."""
    weight: PositiveFactor = 1.0
    """Factor in the sum of losses."""


class RerankerConfig(EncoderConfig):
    """Reranker (cross-encoder): one score for a query together with a passage."""

    name: Literal["reranker"]
    """Algorithm."""
    loss: list[RerankerLoss] = [RerankerLoss(name="bce")]
    """A name, or a list of {name, weight} whose weighted sum is minimised: bce and mse of single passages,
    cross_entropy of one positive among negatives, ranknet, lambda, listnet and listmle of lists."""
    targets: Literal["labels", "scores"] = "labels"
    """What is learned: that positives are 1 and negatives 0, or a teacher's scores (distillation)."""
    negatives: BatchOrNone | None = None
    """Negatives drawn for a query in an update (default: all that the row has)."""
    prompt: str | None = None
    """Instruction put before queries, kept in the model (default: the model's own, if it keeps one)."""

    @field_validator("loss", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return _listed(value)

    @property
    def losses(self) -> list[str]:
        """Names of the losses."""
        return [item.name for item in self.loss]

    @model_validator(mode="after")
    def _losses_fit(self) -> "RerankerConfig":
        names = self.losses
        _require_each_once(names)
        if "margin_mse" in names and self.targets == "labels":
            raise ValueError("targets must be scores for loss margin_mse, which learns a teacher's margins, got labels")
        # Beside another loss, that one reads them.
        if names == ["cross_entropy"] and self.targets == "scores":
            raise ValueError("targets must be labels for loss cross_entropy alone, which reads no scores, got scores")
        # These two look at one passage at a time; for the others a list of one holds nothing to compare.
        if self.negatives == 0 and set(names) - {"bce", "mse"}:
            raise ValueError(f"negatives must be at least 1 for loss {', '.join(names)}, got 0")
        return self
