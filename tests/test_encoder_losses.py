"""Losses of embedding models and rerankers against the formulas of docs/embedding.md, written out pair by pair.

At settings that are not sentence-transformers' own: at those that are, `tests/test_encoder_update.py` compares whole
updates with its losses.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.config_encoder import EmbeddingTask, RerankerConfig
from algorithms.encoder.losses import embedding_loss, reranker_loss

ROWS, WIDTH = 5, 8
GENERATOR = torch.Generator().manual_seed(4)


def vectors(columns: int) -> list[Tensor]:
    """Of different lengths, and near enough to each other for every margin to decide something."""
    common = torch.randn(ROWS, WIDTH, generator=GENERATOR)
    return [common + torch.randn(ROWS, WIDTH, generator=GENERATOR) for _ in range(columns)]


RANKING, GUIDE, PAIRS = vectors(4), vectors(4), vectors(2)
"""Queries, positives and two negatives; the guide's vectors of them; two texts."""
TEACHER = torch.randn(ROWS, 3, generator=GENERATOR)
SCORES, BINARY = torch.tensor([0.25, 0.75, 0.25, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (a.norm() * b.norm())


def total(items: list[Tensor]) -> Tensor:
    return torch.stack(items).sum()


def mean(items: list[Tensor]) -> Tensor:
    return torch.stack(items).mean()


def above(item: Tensor, least: float = 0.0) -> Tensor:
    return item if item.item() > least else torch.full_like(item, least)


def log_sum(items: list[Tensor]) -> Tensor:
    return total([torch.exp(item) for item in items]).log()


def infonce(task: EmbeddingTask, columns: list[Tensor], **_: Any) -> Tensor:
    queries, positives = columns[:2]
    found, t = [], task.temperature
    for i in range(ROWS):
        normalizer = log_sum([cosine(queries[i], x) / t for column in columns[1:] for x in column])
        if task.symmetric:
            normalizer = (normalizer + log_sum([cosine(x, positives[i]) / t for x in queries])) / 2
        found.append(normalizer - cosine(queries[i], positives[i]) / t)
    return mean(found)


def gist(task: EmbeddingTask, columns: list[Tensor], guide: list[Tensor], **_: Any) -> Tensor:
    """A passage is compared with the query, and so is another query; another positive with the positive."""
    found = []
    for i in range(ROWS):
        known = cosine(guide[0][i], guide[1][i]).item()
        least = known - task.guide_margin * (abs(known) if task.guide_margin_strategy == "relative" else 1)
        kept = [cosine(columns[0][i], columns[1][i]) / task.temperature]
        for anchor, column in ((0, 0), (1, 1), *((0, column) for column in range(1, len(columns)))):
            for j in range(ROWS):
                if (anchor, column, j) == (0, 1, i) or cosine(guide[anchor][i], guide[column][j]).item() > least:
                    continue
                kept.append(cosine(columns[anchor][i], columns[column][j]) / task.temperature)
        found.append(log_sum(kept) - kept[0])
    return mean(found)


def triplet(task: EmbeddingTask, columns: list[Tensor], **_: Any) -> Tensor:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).norm() if task.distance == "euclidean" else 1 - cosine(a, b)

    return mean([above(distance(q, p) - distance(q, n) + task.margin) for q, p, n in zip(*columns[:3], strict=True)])


def margin_mse(task: EmbeddingTask, columns: list[Tensor], targets: Tensor, **_: Any) -> Tensor:
    found = []
    for i, (query, *passages) in enumerate(zip(*columns, strict=True)):
        margins = [
            query @ passages[0] - query @ n - (targets[i, 0] - y)
            for n, y in zip(passages[1:], targets[i, 1:], strict=True)
        ]
        found += [margin**2 for margin in margins]
    return mean(found)


def distill_kl(task: EmbeddingTask, columns: list[Tensor], targets: Tensor, **_: Any) -> Tensor:
    found = []
    for i, (query, *passages) in enumerate(zip(*columns, strict=True)):
        teacher = [y / task.teacher_temperature for y in targets[i]]
        student = [cosine(query, x) / task.temperature for x in passages]
        for y, s in zip(teacher, student, strict=True):
            p, q = y - log_sum(teacher), s - log_sum(student)
            found.append(torch.exp(p) * (p - q))
    return task.temperature**2 * total(found) / ROWS


def angle_of(a: Tensor, b: Tensor) -> Tensor:
    x, y = (torch.complex(*each.chunk(2)) / each.norm() for each in (a, b))
    quotient = (x * y.conj()).sum()
    return (quotient.real + quotient.imag).abs()


def ordered(task: EmbeddingTask, columns: list[Tensor], targets: Tensor, similarity: Callable[..., Tensor]) -> Tensor:
    s = [similarity(a, b) / task.temperature for a, b in zip(*columns, strict=True)]
    pairs = [(i, j) for i in range(ROWS) for j in range(ROWS) if targets[i] > targets[j]]
    return torch.log(1 + total([torch.exp(s[j] - s[i]) for i, j in pairs]))


def squared(task: EmbeddingTask, columns: list[Tensor], targets: Tensor, **_: Any) -> Tensor:
    return mean([(cosine(a, b) - y) ** 2 for a, b, y in zip(*columns, targets, strict=True)])


def contrastive(task: EmbeddingTask, columns: list[Tensor], targets: Tensor, **_: Any) -> Tensor:
    found = []
    for a, b, y in zip(*columns, targets, strict=True):
        distance = 1 - cosine(a, b)
        found.append((distance**2 if y else above(task.margin - distance) ** 2) / 2)
    return mean(found)


def online_contrastive(task: EmbeddingTask, columns: list[Tensor], targets: Tensor, **_: Any) -> Tensor:
    distances = [1 - cosine(a, b) for a, b in zip(*columns, strict=True)]
    alike = [distance for distance, y in zip(distances, targets, strict=True) if y]
    unlike = [distance for distance, y in zip(distances, targets, strict=True) if not y]
    far = [distance**2 for distance in alike if distance > min(unlike)]
    near = [above(task.margin - distance) ** 2 for distance in unlike if distance < max(alike)]
    return total([torch.zeros(()), *far, *near])


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "infonce": infonce,
    "gist": gist,
    "triplet": triplet,
    "margin_mse": margin_mse,
    "distill_kl": distill_kl,
    "cosent": lambda task, columns, targets, **_: ordered(task, columns, targets, cosine),
    "angle": lambda task, columns, targets, **_: ordered(task, columns, targets, angle_of),
    "cosine": squared,
    "contrastive": contrastive,
    "online_contrastive": online_contrastive,
}
GUIDED = {"loss": "gist", "guide": "a directory"}
CASES: dict[str, dict[str, Any]] = {
    "infonce": {"loss": "infonce", "temperature": 0.1},
    "symmetric": {"loss": "infonce", "temperature": 0.2, "symmetric": True},
    "gist": GUIDED | {"temperature": 0.1},
    "gist with a margin": GUIDED | {"guide_margin": 0.1},
    "gist with a share": GUIDED | {"guide_margin": 0.3, "guide_margin_strategy": "relative"},
    "triplet": {"loss": "triplet", "margin": 0.3},
    "euclidean": {"loss": "triplet", "margin": 0.3, "distance": "euclidean"},
    "margin_mse": {"loss": "margin_mse"},
    "distill_kl": {"loss": "distill_kl", "temperature": 0.1, "teacher_temperature": 0.4},
    "cosent": {"loss": "cosent", "temperature": 0.1},
    "angle": {"loss": "angle", "temperature": 0.3},
    "cosine": {"loss": "cosine"},
    "contrastive": {"loss": "contrastive", "margin": 0.9},
    "online_contrastive": {"loss": "online_contrastive", "margin": 0.9},
    "weights": {"loss": [{"name": "infonce", "weight": 0.5}, {"name": "distill_kl", "weight": 2}], "temperature": 0.3},
    "weights of pairs": {"loss": [{"name": "cosent", "weight": 0.5}, {"name": "cosine", "weight": 2}]},
    "matryoshka": {"loss": "margin_mse", "matryoshka": [8, 4]},
    "matryoshka without the whole": {"loss": "margin_mse", "matryoshka": [6, 2]},
    "matryoshka and weights": {
        "loss": [{"name": "margin_mse", "weight": 0.5}, {"name": "triplet", "weight": 2}],
        "distance": "euclidean",
        "matryoshka": [8, 3],
    },
}


def given(task: EmbeddingTask) -> tuple[list[Tensor], list[Tensor] | None, Tensor | None]:
    """Columns with gradient, the guide's, and targets."""
    binary = any("contrastive" in name for name in task.losses)
    targets = (BINARY if binary else SCORES) if task.rows == "pair" else TEACHER if task.scored else None
    columns = [each.clone().requires_grad_() for each in (PAIRS if task.rows == "pair" else RANKING)]
    return columns, GUIDE if task.guide else None, targets


def by_formula(task: EmbeddingTask, columns: list[Tensor], guide: Any, targets: Any) -> Tensor:
    """Sum over sizes and losses; vectors that are cut get length 1."""
    found = []
    for size in task.matryoshka or [WIDTH]:
        cut = [column[:, :size] / (column[:, :size].norm(dim=1, keepdim=True)) for column in columns]
        for item in task.loss:
            formula = FORMULAS[item.name]
            found.append(item.weight * formula(task, cut if size < WIDTH else columns, guide=guide, targets=targets))
    return total(found)


@pytest.mark.parametrize("name", CASES)
def test_an_embedding_loss_is_its_formula(name: str) -> None:
    """Value and gradients of all vectors."""
    task = EmbeddingTask.model_validate(CASES[name])
    columns, guide, targets = given(task)
    loss, expected = embedding_loss(task, columns, guide, targets), by_formula(task, columns, guide, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    options: Any = {"allow_unused": True, "materialize_grads": True}
    for found, wanted in zip(
        torch.autograd.grad(loss, columns, **options), torch.autograd.grad(expected, columns, **options), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_each_setting_of_an_embedding_loss_says_something(name: str) -> None:
    """Of every case, back at its default, the loss is another one."""
    needed = {"loss", "guide"} if isinstance(CASES[name]["loss"], str) else {"guide"}
    for field in CASES[name].keys() - needed:
        plain = {each: value for each, value in CASES[name].items() if each != field}
        if field == "loss":
            plain["loss"] = [item["name"] for item in CASES[name]["loss"]]
        values = []
        for settings in (CASES[name], plain):
            task = EmbeddingTask.model_validate(settings)
            values.append(embedding_loss(task, *given(task)).item())
        assert values[0] != pytest.approx(values[1], rel=1e-3), field


LISTS, EQUAL = [3, 2, 4], [3, 3, 3]
"""Passages of each query."""
PASSAGES = torch.randn(9, generator=GENERATOR) * 2
LABELS = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
GRADES = torch.tensor([0.9, 0.1, 0.4, 0.3, 0.6, 0.8, 0.2, 0.5, 0.7])


def bce(scores: list[Tensor], labels: list[Tensor]) -> Tensor:
    each = zip(torch.cat(scores), torch.cat(labels), strict=True)
    return mean([y * torch.log(1 + torch.exp(-s)) + (1 - y) * torch.log(1 + torch.exp(s)) for s, y in each])


def mse(scores: list[Tensor], labels: list[Tensor]) -> Tensor:
    return mean([(s - y) ** 2 for s, y in zip(torch.cat(scores), torch.cat(labels), strict=True)])


def cross_entropy(scores: list[Tensor], _: list[Tensor]) -> Tensor:
    return mean([log_sum(list(each)) - each[0] for each in scores])


def margins(scores: list[Tensor], labels: list[Tensor]) -> Tensor:
    each = zip(scores, labels, strict=True)
    return mean([(s[0] - s[j] - (y[0] - y[j])) ** 2 for s, y in each for j in range(1, len(s))])


def ranknet(scores: list[Tensor], labels: list[Tensor]) -> Tensor:
    found = []
    for s, y in zip(scores, labels, strict=True):
        found += [torch.log2(1 + torch.exp(s[j] - s[i])) for i in range(len(s)) for j in range(len(s)) if y[i] > y[j]]
    return mean(found)


def listnet(scores: list[Tensor], labels: list[Tensor]) -> Tensor:
    each = zip(scores, labels, strict=True)
    return mean(
        [
            -total([torch.exp(y[i] - log_sum(list(y))) * (s[i] - log_sum(list(s))) for i in range(len(s))])
            for s, y in each
        ]
    )


def listmle(scores: list[Tensor], labels: list[Tensor]) -> Tensor:
    found = []
    for s, y in zip(scores, labels, strict=True):
        order = [s[i] for i in sorted(range(len(s)), key=lambda i, y=y: -y[i].item())]
        found.append(total([log_sum(order[i:]) - order[i] for i in range(len(order))]))
    return mean(found)


RERANKING: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "mse": mse,
    "cross_entropy": cross_entropy,
    "margin_mse": margins,
    "ranknet": ranknet,
    "listnet": listnet,
    "listmle": listmle,
}


@pytest.mark.parametrize(
    ("losses", "targets", "sizes"),
    [
        *(({name: 1.0}, "labels", LISTS) for name in ("bce", "cross_entropy", "ranknet", "listnet")),
        *(({name: 3.0}, "scores", LISTS) for name in ("mse", "ranknet", "listnet", "listmle")),
        ({"margin_mse": 1.0}, "scores", EQUAL),
        ({"bce": 0.5, "cross_entropy": 2.0}, "labels", LISTS),
        ({"margin_mse": 0.5, "mse": 2.0, "listmle": 0.25}, "scores", EQUAL),
    ],
)
def test_a_rerankers_loss_is_its_formula(losses: dict[str, float], targets: str, sizes: list[int]) -> None:
    """Weighted, over lists of one length or of several; value and gradient of every score."""
    named = [{"name": name, "weight": weight} for name, weight in losses.items()]
    config = RerankerConfig.model_validate({"name": "reranker", "steps": 1, "loss": named, "targets": targets})
    labels = LABELS if targets == "labels" else GRADES
    scores = PASSAGES.clone().requires_grad_()
    loss = reranker_loss(config, scores, sizes, labels)
    parts = [list(each.split(sizes)) for each in (scores, labels)]
    expected = total([weight * RERANKING[name](*parts) for name, weight in losses.items()])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    (found,), (wanted,) = (torch.autograd.grad(each, scores) for each in (loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
