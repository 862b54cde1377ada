"""An update of an embedding model or reranker does not depend on how it is computed, and is sentence-transformers' own.

Real Ray actors with real DeepSpeed engines make the same updates with one rank and with two, with all activations kept
and with GradCache, at every ZeRO stage; loss, gradient norm and weights must agree with the plain division's. The loss
and the gradients of the plain division must be those of sentence-transformers' loss on the same model and texts.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.util.placement_group import placement_group, remove_placement_group

from actors.config import EncoderHead, LoraConfig, ModelConfig, ModelInit, OptimizerConfig, TrainerConfig
from actors.group import ActorGroup, Slot
from actors.models.adapter_files import adapter_state
from actors.models.encoders import load_encoder
from actors.models.lora import add_adapters
from actors.models.skeleton import write_skeleton
from actors.train.encoder import EncoderText, EncoderWorker, cut_lengths
from actors.train.engine import gathered
from algorithms.config_encoder import EmbeddingConfig, RerankerConfig
from algorithms.encoder.batches import Example
from algorithms.encoder.embedding import Embedding
from algorithms.encoder.reranker import Reranker

UPDATES, ROWS = 2, 7
ALPHABET = "abcdefghijklmnop 红狐狸在北京卖灯"
INIT = ModelInit(family="bert", hidden_size=32, layers=2, heads=2, max_positions=64, alphabet=ALPHABET)
MODEL = ModelConfig(init=INIT)
GROUP = TrainerConfig(
    # SGD shows gradients as they are: Adam would turn rounding errors of vanishing gradients into whole steps.
    optimizer=OptimizerConfig(name="sgd", lr=0.5, max_grad_norm=0.5, weight_decay=0.01),
    timeout_s=120,
)
EMBEDDING = EncoderHead(kind="embedding", pooling="mean")
RERANKER = EncoderHead(kind="reranker")


class EncoderTrainee(EncoderWorker):
    """A rank that starts anew, from the same initial weights, with other settings."""

    def restart(
        self, address: str, port: int, model: ModelConfig, directory: str, group: TrainerConfig, head: EncoderHead,
        guides: list[str],
    ) -> None:  # fmt: skip
        """Build the model and its engine again."""
        self.model_config, self.directory, self.group, self.head = model, directory, group, head
        self.guide_paths = guides
        torch.manual_seed(0)  # of a reranker's new head
        self.build(address, port, UPDATES)

    def trains(self) -> bool:
        """Whether dropout and gradient checkpointing, if any, would be active."""
        return all(module.training for module in self.model.modules())

    def weights(self) -> dict[str, np.ndarray]:
        """All parameters, the whole of each."""
        return {name: tensor.numpy(force=True).copy() for name, tensor in self.engine.parameters("model")}


@dataclass(frozen=True, kw_only=True)
class Division:
    """One way to compute the same updates."""

    ranks: int = 1
    zero_stage: int = 0
    micro_batch_tokens: int = 8192
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Job:
    """Updates with one configuration."""

    settings: str
    """Of the algorithm, as JSON: hashable."""
    reranker: bool = False
    lora: bool = False
    family: str = "bert"

    @property
    def config(self) -> Any:
        """Of the algorithm."""
        kind = RerankerConfig if self.reranker else EmbeddingConfig
        name = "reranker" if self.reranker else "embedding"
        return kind.model_validate({"name": name, "steps": UPDATES, **json.loads(self.settings)})


@dataclass(frozen=True)
class Result:
    """What came of a division: metrics of each update, and weights before and after all of them."""

    metrics: list[dict[str, float]]
    initial: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


def job(reranker: bool = False, lora: bool = False, family: str = "bert", **settings: Any) -> Job:
    """A job by its algorithm's settings."""
    return Job(json.dumps(settings), reranker, lora, family)


@dataclass(frozen=True)
class Trainees:
    """Groups of one and of two ranks, and where their models are."""

    groups: dict[int, ActorGroup[EncoderTrainee]]
    models: dict[str, str]
    guide: str
    known: dict[tuple[Job, Division], Result] = field(default_factory=dict)

    def result(self, wanted: Job, division: Division) -> Result:
        """What comes of a job; each is computed only once."""
        if (wanted, division) not in self.known:
            self.known[wanted, division] = self._compute(wanted, division)
        return self.known[wanted, division]

    def model(self, wanted: Job) -> ModelConfig:
        """Settings of the job's model."""
        init = INIT.model_copy(update={"family": "qwen2"}) if wanted.family == "qwen2" else INIT
        return MODEL.model_copy(update={"init": init, "lora": LoraConfig(rank=4) if wanted.lora else None})

    def head(self, wanted: Job) -> EncoderHead:
        """Of the job's model."""
        if wanted.reranker:
            return RERANKER
        return EMBEDDING.model_copy(update={"pooling": "last"}) if wanted.family == "qwen2" else EMBEDDING

    def _compute(self, wanted: Job, division: Division) -> Result:
        group = self.groups[division.ranks]
        model = self.model(wanted).model_copy(update={"gradient_checkpointing": division.gradient_checkpointing})
        changes = {name: getattr(division, name) for name in ("zero_stage", "micro_batch_tokens")}
        address, port = group.gather([group.submit(0, EncoderTrainee.address)], "address")[0]
        config = wanted.config
        if "gist" in wanted.settings:
            config = config.model_copy(update={"guide": self.guide})
        trainer = GROUP.model_copy(update=changes)
        settings = (model, self.models[wanted.family], trainer, self.head(wanted), [*config.guides.values()])
        group.call(EncoderTrainee.restart, address, port, *settings)
        assert all(group.call(EncoderTrainee.trains))
        initial = group.call(EncoderTrainee.weights)[0]
        loop = loop_of(config, group)
        metrics = [_shared(loop.update(examples(wanted, update))) for update in range(UPDATES)]
        return Result(metrics, initial, group.call(EncoderTrainee.weights)[0])


def loop_of(config: Any, group: Any) -> Any:
    """The loop, whose updates are called one by one: nothing here evaluates or reports."""
    unused = dict.fromkeys(("batches", "checkpoint", "reporter"))
    kind: Any = Reranker if isinstance(config, RerankerConfig) else Embedding
    roster = {"policy": group}
    return kind(
        config=config, roster=roster, rows=[], evaluation=[], micro_batch_tokens=0, total_updates=UPDATES, **unused
    )


def examples(wanted: Job, update: int) -> list[Example]:
    """Rows that the job's losses read; lengths 3 to 40 characters, in Chinese and English."""
    generator = np.random.default_rng(update)

    def text(longest: int) -> str:
        return "".join(generator.choice(list(ALPHABET), generator.integers(3, longest)))

    config = wanted.config
    if wanted.reranker:
        sizes = [3] * ROWS if "margin_mse" in config.losses else [2, 3, 4, 2, 5, 3, 2]
        return [
            Example(
                texts=(text(10), *(text(30) for _ in range(size))),
                targets=tuple(generator.random(size)) if config.targets == "scores" else (1.0, *[0.0] * (size - 1)),
                prompt=None,
            )
            for size in sizes
        ]
    if config.rows == "pair":
        binary = "contrastive" in config.losses[0]
        scores = generator.integers(0, 2, ROWS) if binary else generator.random(ROWS)
        return [Example(texts=(text(40), text(40)), targets=(float(score),), prompt=None) for score in scores]
    targets = [tuple(generator.random(3)) if config.scored else () for _ in range(ROWS)]
    return [Example(texts=(text(12), text(40), text(40), text(40)), targets=each, prompt=None) for each in targets]


def _shared(update: dict[str, float]) -> dict[str, float]:
    """Metrics that do not say how the update was computed."""
    how = ("time/", "tokens/padding", "micro_batches")
    return {name: value for name, value in update.items() if not name.startswith(how)}


@pytest.fixture(scope="module")
def trainees(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainees]:
    """Processes of one group with one rank and one with two."""
    directory = tmp_path_factory.mktemp("encoders")
    models = {
        family: str(write_skeleton(ModelConfig(init=INIT.model_copy(update={"family": family})), directory / family))
        for family in ("bert", "qwen2")
    }
    models["dropping"] = write_skeleton(MODEL, directory / "dropping")
    file = directory / "dropping/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_dropout_prob": 0.3}))
    guide = load_encoder(ModelConfig(init=INIT.model_copy(update={"seed": 9})), EMBEDDING, models["bert"])
    guide.save(str(directory / "guide"))
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
    groups = {
        ranks: ActorGroup("policy", EncoderTrainee, [slot] * ranks, timeout_s=120, log_directory=str(directory))
        for ranks in (1, 2)
    }
    for group in groups.values():
        group.spawn(MODEL, models["bert"], GROUP, 0, EMBEDDING, [])
    yield Trainees(groups, models, str(directory / "guide"))
    for group in groups.values():
        group.shutdown()
    remove_placement_group(placement)


PLAIN = Division()
TWO = Division(ranks=2)
INFONCE = job(loss="infonce")
DIVISIONS = {
    "cached": Division(micro_batch_tokens=100),
    "one text a pass": Division(micro_batch_tokens=1),
    "2 ranks": TWO,
    "2 ranks, cached": Division(ranks=2, micro_batch_tokens=100),
    "ZeRO-1": Division(ranks=2, zero_stage=1, micro_batch_tokens=100),
    "ZeRO-2": Division(ranks=2, zero_stage=2),
    "ZeRO-3": Division(ranks=2, zero_stage=3),
    "ZeRO-3, cached": Division(ranks=2, zero_stage=3, micro_batch_tokens=100),
    "checkpointing": Division(gradient_checkpointing=True),
}
JOBS = {
    "symmetric": job(loss="infonce", symmetric=True),
    "prompts": job(loss="infonce", prompts={"query": "find ", "passage": "a "}),
    "matryoshka": job(loss="infonce", matryoshka=[32, 8]),
    "gist": job(loss="gist", guide="chosen by Trainees"),
    "triplet": job(loss="triplet"),
    "margin_mse": job(loss="margin_mse"),
    "distill_kl": job(loss="distill_kl"),
    "two losses": job(loss=({"name": "infonce", "weight": 0.5}, "distill_kl")),
    "cosent": job(loss="cosent"),
    "angle": job(loss="angle"),
    "cosine": job(loss="cosine"),
    "contrastive": job(loss="contrastive"),
    "online_contrastive": job(loss="online_contrastive"),
    "lora": job(loss="infonce", lora=True),
    "decoder": job(loss="infonce", family="qwen2"),
    "bce": job(reranker=True, loss="bce"),
    "mse": job(reranker=True, loss="mse", targets="scores"),
    "reranker's margin_mse": job(reranker=True, loss="margin_mse", targets="scores"),
    "cross_entropy": job(reranker=True, loss="cross_entropy"),
    "ranknet": job(reranker=True, loss="ranknet"),
    "lambda": job(reranker=True, loss="lambda"),
    "listnet": job(reranker=True, loss="listnet", targets="scores"),
    "listmle": job(reranker=True, loss="listmle", targets="scores"),
    "reranker with lora": job(reranker=True, loss=("bce", "cross_entropy"), lora=True),
    "decoder as reranker": job(reranker=True, loss="bce", family="qwen2"),
}


@pytest.mark.parametrize("name", DIVISIONS)
def test_division_of_work_does_not_matter(name: str, trainees: Trainees) -> None:
    """Loss, gradient norm and all metrics of clipped updates, and the weights after them."""
    _assert_equal(trainees.result(INFONCE, PLAIN), trainees.result(INFONCE, DIVISIONS[name]))


@pytest.mark.parametrize("name", JOBS)
def test_two_cached_ranks_are_one_rank_with_the_whole_batch(name: str, trainees: Trainees) -> None:
    """With every loss: vectors and scores are gathered with gradients, and batches read twice."""
    _assert_equal(trainees.result(JOBS[name], PLAIN), trainees.result(JOBS[name], DIVISIONS["2 ranks, cached"]))


def _assert_equal(expected: Result, found: Result) -> None:
    for one, other in zip(expected.metrics, found.metrics, strict=True):
        assert one.keys() == other.keys()
        for metric in one:
            assert other[metric] == pytest.approx(one[metric], rel=1e-5, abs=1e-6), metric
    moved = 0.0
    for name, weights in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], weights, rtol=1e-5, atol=1e-6, err_msg=name)
        moved += float(np.abs(weights - expected.initial[name]).sum())
    assert moved > 1e-3


def test_dropout_is_the_same_when_texts_are_read_again(trainees: Trainees) -> None:
    """With a budget that cuts the texts as before, but holds only one pass of 767 and 810 padded tokens at a time."""
    dropping = job(loss="infonce", family="dropping")
    kept, again = (trainees.result(dropping, Division(micro_batch_tokens=tokens)) for tokens in (8192, 700))
    _assert_equal(kept, again)
    without = trainees.result(INFONCE, PLAIN).metrics[0]["loss/embedding"]
    assert abs(kept.metrics[0]["loss/embedding"] - without) > 1e-3


def test_matryoshka_at_full_size_is_plain(trainees: Trainees) -> None:
    """A single size, the embedding's own, changes nothing."""
    full = trainees.result(job(loss="infonce", matryoshka=[32]), PLAIN)
    _assert_equal(trainees.result(INFONCE, PLAIN), full)


def test_prompts_reach_the_model(trainees: Trainees) -> None:
    """Instructions are tokens of the update, and change its loss."""
    plain, prompted = (trainees.result(JOBS[name], PLAIN).metrics[0] for name in ("symmetric", "prompts"))
    added = ROWS * (len("find ") + 3 * len("a "))
    assert prompted["tokens/trained"] == plain["tokens/trained"] + added
    assert prompted["loss/embedding"] != pytest.approx(trainees.result(INFONCE, PLAIN).metrics[0]["loss/embedding"])


@pytest.mark.parametrize("name", ["2 ranks, cached", "ZeRO-3"])
def test_all_weights_move(name: str, trainees: Trainees) -> None:
    """Every parameter but the pooler, which an embedding model does not read."""
    result = trainees.result(INFONCE, DIVISIONS[name])
    still = [key for key, weights in result.weights.items() if np.array_equal(weights, result.initial[key])]
    assert all("pooler" in key for key in still), still


def test_a_decoder_reads_instructions_as_its_export_does(trainees: Trainees, tmp_path: Path) -> None:
    """One vector of a query in training, of one batch with passages, in evaluation, and by the exported directory's
    encode_query; the tokenizer has a chat template, which plays no part."""
    from sentence_transformers import SentenceTransformer

    prompted = job(loss="infonce", family="qwen2", prompts={"query": "find ", "passage": "a "})
    trainees.result(prompted, PLAIN)
    group = trainees.groups[1]
    texts = [
        EncoderText(kind="query", text="red fox", prompt="find "),
        EncoderText(kind="passage", text="红狐 lamp", prompt="a "),
    ]
    together = group.call(EncoderTrainee.encode, texts)[0]
    alone = np.concatenate([group.call(EncoderTrainee.encode, [text])[0] for text in texts])
    group.call(EncoderTrainee.export, tmp_path / "export")
    model = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    exported = np.concatenate([model.encode(["red fox"], prompt="find "), model.encode(["红狐 lamp"], prompt="a ")])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together, exported, atol=1e-6)


def test_all_of_a_new_head_is_trained_and_saved(tmp_path: Path) -> None:
    """With LoRA, of a classifier whose head has several layers: what the base has no weights for."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=32, num_labels=1, **sizes))
    add_adapters(model, LoraConfig(rank=2), seed=0)
    head = {name for name, parameter in model.named_parameters() if name.startswith("classifier.")}
    assert len(head) == 4
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert head <= trained and all("lora_" in name for name in trained - head)
    saved = adapter_state(model, gathered, keep=True)
    assert {f"base_model.model.{name}" for name in head} <= saved.keys()


def _own_loss(name: str) -> tuple[Job, Callable[[Any], Any]]:
    """A job, and what makes sentence-transformers' loss of the same."""
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.util import pairwise_cos_sim

    known: dict[str, tuple[Job, Callable[[Any], Any]]] = {
        "infonce": (INFONCE, lambda model: losses.MultipleNegativesRankingLoss(model, scale=20)),
        "cached": (INFONCE, lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)),
        "matryoshka": (
            JOBS["matryoshka"],
            lambda model: losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), [32, 8]),
        ),
        "triplet": (
            JOBS["triplet"],
            lambda model: losses.TripletLoss(model, losses.TripletDistanceMetric.COSINE, triplet_margin=0.5),
        ),
        "margin_mse": (JOBS["margin_mse"], losses.MarginMSELoss),
        "distill_kl": (
            JOBS["distill_kl"],
            lambda model: losses.DistillKLDivLoss(
                model, pairwise_cos_sim, student_temperature=0.05, teacher_temperature=1.0
            ),
        ),
        "cosent": (JOBS["cosent"], losses.CoSENTLoss),
        "angle": (JOBS["angle"], losses.AnglELoss),
        "cosine": (JOBS["cosine"], losses.CosineSimilarityLoss),
        "contrastive": (JOBS["contrastive"], losses.ContrastiveLoss),
        "online_contrastive": (JOBS["online_contrastive"], losses.OnlineContrastiveLoss),
    }
    return known[name]


@pytest.mark.parametrize(
    "name",
    [
        "infonce",
        "cached",
        "matryoshka",
        "triplet",
        "margin_mse",
        "distill_kl",
        "cosent",
        "angle",
        "cosine",
        "contrastive",
        "online_contrastive",
    ],
)
def test_embedding_losses_are_those_of_sentence_transformers(name: str, trainees: Trainees) -> None:
    """Loss and gradient norm of the whole model, called as its own trainer calls it."""
    wanted, make = _own_loss(name)
    torch.manual_seed(0)
    model = load_encoder(trainees.model(wanted), trainees.head(wanted), trainees.models["bert"])
    rows = examples(wanted, 0)
    texts = list(zip(*(row.texts for row in rows), strict=True))
    columns = texts[:3] if name == "triplet" else texts
    targets = torch.tensor([row.targets for row in rows], dtype=torch.float32)
    labels = targets[:, 0] if wanted.config.rows == "pair" else targets
    loss = make(model)([model.preprocess(list(column)) for column in columns], labels)
    loss.backward()
    found = trainees.result(wanted, PLAIN).metrics[0]
    assert found["loss/embedding"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found["grad_norm"] == pytest.approx(_norm(model), rel=1e-4)


def test_guided_loss_is_that_of_sentence_transformers(trainees: Trainees) -> None:
    """GIST with several negatives, which only the cached variant knows; the guide is another model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedGISTEmbedLoss

    wanted = JOBS["gist"]
    model = load_encoder(MODEL, EMBEDDING, trainees.models["bert"])
    guide = SentenceTransformer(trainees.guide, device="cpu")
    columns = zip(*(row.texts for row in examples(wanted, 0)), strict=True)
    loss = CachedGISTEmbedLoss(model, guide, temperature=0.05)(
        [model.preprocess(list(column)) for column in columns], torch.empty(0)
    )
    loss.backward()
    found = trainees.result(wanted, PLAIN).metrics[0]
    assert found["loss/embedding"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found["grad_norm"] == pytest.approx(_norm(model), rel=1e-4)


@pytest.mark.parametrize("name", ["bce", "mse", "reranker's margin_mse", "ranknet", "lambda", "listnet", "listmle"])
def test_reranker_losses_are_those_of_sentence_transformers(name: str, trainees: Trainees) -> None:
    """Loss and gradient norm of the whole model, called as its own trainer calls it."""
    from sentence_transformers.cross_encoder import losses

    makers: dict[str, Any] = {
        "bce": losses.BinaryCrossEntropyLoss,
        "mse": losses.MSELoss,
        "reranker's margin_mse": losses.MarginMSELoss,
        "ranknet": losses.RankNetLoss,
        "lambda": losses.LambdaLoss,
        "listnet": losses.ListNetLoss,
        "listmle": lambda model: losses.ListMLELoss(model, respect_input_order=False),
    }
    wanted = JOBS[name]
    torch.manual_seed(0)
    model = load_encoder(MODEL, RERANKER, trainees.models["bert"])
    rows = examples(wanted, 0)
    queries, passages = [row.texts[0] for row in rows], [list(row.texts[1:]) for row in rows]
    labels: Any = [torch.tensor(row.targets, dtype=torch.float32) for row in rows]
    inputs: list[Any] = [queries, passages]
    if name in ("bce", "mse"):
        inputs = [
            [q for q, each in zip(queries, passages, strict=True) for _ in each],
            [p for each in passages for p in each],
        ]
        labels = torch.cat(labels)
    elif name == "reranker's margin_mse":
        inputs = [queries, *map(list, zip(*passages, strict=True))]
    loss = makers[name](model)(inputs, labels)
    loss.backward()
    found = trainees.result(wanted, PLAIN).metrics[0]
    assert found["loss/reranker"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found["grad_norm"] == pytest.approx(_norm(model), rel=1e-4)


def test_group_cross_entropy_by_hand(trainees: Trainees) -> None:
    """-log softmax of the positive's score among its query's passages, in numpy; lists of different lengths."""
    wanted = JOBS["cross_entropy"]
    torch.manual_seed(0)
    model = load_encoder(MODEL, RERANKER, trainees.models["bert"])
    expected = []
    for row in examples(wanted, 0):
        pairs = [(row.texts[0], passage) for passage in row.texts[1:]]
        scores = model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False).astype(float)
        expected.append(math.log(np.exp(scores).sum()) - scores[0])
    assert trainees.result(wanted, PLAIN).metrics[0]["loss/reranker"] == pytest.approx(np.mean(expected), rel=1e-5)


def _norm(model: Any) -> float:
    squares = [float(p.grad.double().pow(2).sum()) for p in model.parameters() if p.grad is not None]
    return math.sqrt(sum(squares))


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=7), budget=st.integers(1, 60), overhead=st.integers(0, 30)
)
def test_texts_are_cut_where_it_costs_least(lengths: list[int], budget: int, overhead: int) -> None:
    """Of all ways to cut them, tried one by one; every text once, and no pass beyond the budget."""
    lengths = sorted(lengths, reverse=True)

    def cost(ranges: list[range]) -> int:
        return sum(lengths[part[0]] * len(part) + overhead for part in ranges)

    def allowed(ranges: list[range]) -> bool:
        return all(len(part) == 1 or lengths[part[0]] * len(part) <= budget for part in ranges)

    found = cut_lengths(lengths, budget, overhead)
    assert [place for part in found for place in part] == list(range(len(lengths)))
    assert allowed(found)
    ways = []
    for borders in product([False, True], repeat=len(lengths) - 1):
        cuts = [0, *(place for place, cut in enumerate(borders, start=1) if cut), len(lengths)]
        ways.append([range(start, end) for start, end in pairwise(cuts)])
    assert cost(found) == min(cost(way) for way in ways if allowed(way))
