"""An update of a family that is no plain decoder, by the worker of its group, is that of plain transformers, which
reads one sequence at a time: a hybrid in rows of its own, sliding windows, scaled embeddings."""

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from actors.config import FrozenGroupConfig, LoraConfig, ModelConfig, TrainerConfig
from actors.train.critic import RewardModelWorker
from actors.train.frozen import ReferenceWorker
from actors.train.policy import PolicyWorker
from actors.train.trainer import TrainedWorker
from actors.train.worker import Totals
from algorithms.config_rl import GRPOConfig
from algorithms.rl.policy_loss import policy_loss
from tests.episodes import episode
from tests.families.scores import build_scores
from tests.families.table import build
from tests.one_rank import alone  # noqa: F401
from tests.plain_updates import (
    CLIP,
    RATE,
    ROWS,
    SGD,
    TOKENS,
    Update,
    bradley_terry,
    dpo,
    grpo,
    learning,
    nll,
    plain,
    references,
    updated,
)
from tests.test_families import alone as logprobs_alone
from tests.test_trainer import unborn

pytestmark = pytest.mark.usefixtures("alone")
HYBRID = "qwen3_5 text"
FAMILIES = (HYBRID, "gemma3", "mistral sliding")
PLANS = {"micro-batches": [[0, 1], [2, 3], [], [4, 5]], "one micro-batch": [[0, 1, 2, 3, 4, 5]]}
"""Numbers of the sequences in each micro-batch; pairs stay together."""
SMALL_BUCKETS: Any = {"zero_optimization": {"reduce_bucket_size": 1_000_000}}
"""See tests/one_rank.py."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Directories of the families' models, causal or with scores."""
    known: dict[tuple[str, bool], str] = {}

    def directory(name: str, scores: bool = False) -> str:
        if (name, scores) not in known:
            model = build_scores(name) if scores else build(name)
            path = tmp_path_factory.mktemp("model")
            model.save_pretrained(path)
            known[name, scores] = str(path)
        return known[name, scores]

    return directory


def worker(
    directory: str, kind: type[TrainedWorker] = PolicyWorker, zero_stage: Any = 0, rate: float = RATE, **model: Any
) -> Any:
    """A group's only rank, with its model and engine."""
    found = unborn(kind)
    found.model_config, found.directory = ModelConfig(path=directory, **model), directory
    deepspeed = SMALL_BUCKETS if zero_stage else {}
    optimizer = SGD.model_copy(update={"lr": rate})
    found.group = TrainerConfig(optimizer=optimizer, zero_stage=zero_stage, deepspeed=deepspeed)
    found.build("", 0, 4)
    return found


def assert_same(metrics: dict[str, float], trained: Any, wanted: Update, rate: float = RATE) -> None:
    assert metrics["loss"] == pytest.approx(wanted.loss, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(wanted.norm, rel=1e-5)
    found = dict(trained.engine.parameters("model"))
    assert found.keys() == wanted.weights.keys()
    # float32 sums of a gradient in another order, as large as the gradient is.
    rounding = 1e-6 + 1e-6 * rate * wanted.norm
    for name, weight in wanted.weights.items():
        difference = (found[name] - weight).abs().max().item()
        assert difference <= rounding, name


@pytest.mark.parametrize("numbers", PLANS)
@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_update_is_that_of_plain_transformers(name: str, kind: str, numbers: str, saved: Any) -> None:
    directory = saved(name, kind == "reward")
    model = plain(directory, kind)
    given = references(model, ROWS) if kind == "dpo" else []
    wanted = updated(model, {"sft": nll, "dpo": dpo(given), "reward": bradley_terry}[kind], ROWS, RATE)
    trained = worker(directory, RewardModelWorker if kind == "reward" else PolicyWorker)
    assert_same(trained.learn(*learning(kind, PLANS[numbers], given)), trained, wanted)


@pytest.mark.parametrize(
    "settings",
    [{"zero_stage": 1}, {"zero_stage": 2}, {"zero_stage": 3}, {"gradient_checkpointing": True}],
    ids=["ZeRO-1", "ZeRO-2", "ZeRO-3", "checkpointing"],
)
@pytest.mark.parametrize("kind", ["sft", "reward"])
@pytest.mark.parametrize("name", FAMILIES)
def test_however_it_is_computed(name: str, kind: str, settings: dict[str, Any], saved: Any) -> None:
    directory = saved(name, kind == "reward")
    wanted = updated(plain(directory, kind), {"sft": nll, "reward": bradley_terry}[kind], ROWS, RATE)
    trained = worker(directory, RewardModelWorker if kind == "reward" else PolicyWorker, **settings)
    assert_same(trained.learn(*learning(kind, PLANS["micro-batches"])), trained, wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_rollouts_become_the_update_of_plain_transformers(name: str, saved: Any) -> None:
    """Of responses that another policy has sampled, some so that the clip is at work, at a temperature of 1."""
    model, advantages = plain(saved(name)), [0.5, -1.5, 1.0, -0.3, 2.0, -0.7]
    noise = np.random.default_rng(1)
    with torch.no_grad():
        found = [logprobs_alone(model, row).numpy() for row in ROWS]
    rollout = [logprobs + noise.normal(0, 0.2, len(logprobs)).astype(np.float32) for logprobs in found]
    wanted = updated(model, grpo(rollout, advantages), ROWS, RATE)
    config = GRPOConfig.model_validate({"name": "grpo", "clip_low": CLIP, "clip_high": CLIP})
    loss = partial(policy_loss, config=config, kl_coef=0.0, constant=1, version=0)
    episodes = [
        episode(row.token_ids[~row.action_mask].tolist(), row.token_ids[row.action_mask].tolist(), logprobs)
        for row, logprobs in zip(ROWS, rollout, strict=True)
    ]
    trained = worker(saved(name))
    plans = [[[(0, number, advantages[number]) for number in batch] for batch in PLANS["micro-batches"]]]
    totals = Totals(tokens=TOKENS, sequences=len(ROWS), trained_tokens=TOKENS)
    (metrics,) = trained.update(plans, [(0, list(range(len(ROWS))))], [totals], loss, 1.0, episodes)
    assert metrics["policy/clip_fraction"] > 0.05
    assert_same(metrics, trained, wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_learn_as_in_the_model_alone(name: str, saved: Any) -> None:
    """In the second update, as in the first one adapters still change nothing."""
    rate = 5.0
    trained = worker(saved(name), rate=rate, lora=LoraConfig(rank=4))
    trained.learn(*learning("sft", PLANS["one micro-batch"]))
    model = deepcopy(trained.hf_model)
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert before and all("lora_" in name for name in before)
    wanted = updated(model, nll, ROWS, rate)
    assert_same(trained.learn(*learning("sft", PLANS["micro-batches"])), trained, wanted, rate)


@pytest.mark.parametrize("name", [*FAMILIES, "mamba", "falcon_mamba", "granite scaled", "gemma2"])
def test_in_bf16_it_is_that_of_plain_transformers_in_bf16(name: str, saved: Any) -> None:
    """As near as that is to plain transformers in fp32, where it is near."""
    exact = updated(plain(saved(name)), nll, ROWS, 0.0)
    rounded = updated(plain(saved(name)).bfloat16(), nll, ROWS, 0.0)
    trained = worker(saved(name), zero_stage=1, dtype="bf16")
    metrics = trained.learn(*learning("sft", PLANS["micro-batches"]))
    assert metrics["loss"] == pytest.approx(exact.loss, rel=2e-3)
    assert metrics["loss"] == pytest.approx(rounded.loss, rel=2e-3)
    assert metrics["grad_norm"] == pytest.approx(rounded.norm, rel=2e-2)


@pytest.mark.parametrize("name", ["olmo_hybrid", "ernie4_5_moe", "zamba"])
def test_a_reference_in_bf16_is_the_policy_before_its_first_update(name: str, saved: Any) -> None:
    """Of families of which transformers keeps some parameters in float32: DeepSpeed does not."""
    policy = worker(saved(name), zero_stage=1, dtype="bf16")
    reference: Any = object.__new__(ReferenceWorker)
    reference.rank, reference.world_size, reference.device = 0, 1, torch.device("cpu")
    reference.model_config, reference.directory = ModelConfig(path=saved(name), dtype="bf16"), saved(name)
    reference.engine_length = None
    reference.group = FrozenGroupConfig()
    reference.build("", 0)
    assert reference.outputs([ROWS]) == policy.outputs([ROWS])
