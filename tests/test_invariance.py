"""An optimizer step does not depend on how it is computed: micro-batches, packing, ranks, ZeRO stage, checkpointing.

Every variant makes the same three GRPO updates, with gradient clipping, on the same synthetic rollouts, in real Ray
actors with real DeepSpeed engines; loss, gradient norm and weights must agree with the plain variant's.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors.batch import Prompt, Rollout, VersionSpan
from actors.config import ModelConfig, ModelInit, OptimizerConfig, TrainerConfig
from actors.group import ActorGroup, Slot
from actors.policy import PolicyWorker
from actors.rollout_types import RolloutInfo
from actors.skeleton import write_skeleton
from algorithms.experience import divide, samples_of, split_updates, totals_of
from algorithms.grpo import grpo_loss
from algorithms.rewards import Score
from algorithms.sampler import ScoredGroup

# Actors get the classes of this file with the call, as they cannot import it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

UPDATES = 3
TEMPERATURE = 0.7
MODEL = ModelConfig(init=ModelInit(hidden_size=32, layers=2, heads=2, kv_heads=1, max_positions=64))
GROUP = TrainerConfig(
    # SGD shows gradients as they are: Adam would turn rounding errors of vanishing gradients into whole steps.
    optimizer=OptimizerConfig(name="sgd", lr=2.0, max_grad_norm=0.1, weight_decay=0.01),
    timeout_s=120,
)


class Trainee(PolicyWorker):
    """A policy rank that starts anew, from the same initial weights, with other settings."""

    def restart(self, address: str, port: int, model: ModelConfig, group: TrainerConfig) -> None:
        """Build the model and its engine again."""
        self.model_config, self.group = model, group
        self.build(address, port, UPDATES)

    def weights(self) -> dict[str, np.ndarray]:
        """All parameters, the whole of each."""
        return {name: tensor.numpy(force=True).copy() for name, tensor in self.engine.parameters("model")}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute the same updates."""

    ranks: int = 1
    zero_stage: int = 0
    micro_batch_tokens: int = 8192
    logprob_chunk_tokens: int = 1024
    gradient_checkpointing: bool = False
    keep_zero_advantages: bool = False
    aggregation: str = "token"


@dataclass(frozen=True)
class Result:
    """What came of a variant: metrics of each update, and weights before and after all of them."""

    metrics: list[dict[str, float]]
    initial: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def groups() -> list[ScoredGroup]:
    """Six prompts with four responses each; lengths 3 to 31 tokens, one group of equal rewards."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(6):
        prompt = generator.integers(3, 90, size=2 + number).tolist()
        rollouts = [_rollout(prompt, generator) for _ in range(4)]
        rewards = np.ones(4) if number == 3 else generator.normal(size=4)
        found.append(
            ScoredGroup(
                prompt=Prompt(index=number, token_ids=prompt, text="", row={}),
                rollouts=rollouts,
                infos=[_info(rollout) for rollout in rollouts],
                scores=[Score(reward=float(reward), parts={}, status="ok") for reward in rewards],
            )
        )
    return found


def _rollout(prompt: list[int], generator: np.random.Generator) -> Rollout:
    length = int(generator.integers(1, 25))
    return Rollout(
        prompt_token_ids=prompt,
        response_token_ids=generator.integers(3, 90, size=length).tolist(),
        # Around the logprobs of a model that knows nothing (log 1/128), so that the clip cuts off some tokens.
        rollout_logprobs=generator.normal(-4.85, 0.15, size=length).astype(np.float32),
        versions=[VersionSpan(version=0, start=0, end=length)],
        finish_reason="stop",
        status="ok",
        text="",
    )


def _info(rollout: Rollout) -> RolloutInfo:
    prompt, response = len(rollout.prompt_token_ids), len(rollout.response_token_ids)
    return RolloutInfo(prompt_tokens=prompt, response_tokens=response, status="ok", oldest_version=0)


@pytest.fixture(scope="module")
def trainees(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, ActorGroup[Trainee]]]:
    """Policy groups of one and of two ranks."""
    directory = tmp_path_factory.mktemp("trainees")
    skeleton = str(write_skeleton(MODEL, directory / "model"))
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
    started = {}
    for ranks in (1, 2):
        group = ActorGroup("policy", Trainee, [slot] * ranks, timeout_s=120, log_directory=str(directory))
        group.spawn(MODEL, skeleton, GROUP, 0)
        started[ranks] = group
    yield started
    for group in started.values():
        group.shutdown()
    remove_placement_group(placement)


@pytest.fixture(scope="module")
def result(trainees: dict[int, ActorGroup[Trainee]], groups: list[ScoredGroup]) -> Callable[[Variant], Result]:
    """Computes a variant, each only once."""
    known: dict[Variant, Result] = {}

    def compute(variant: Variant) -> Result:
        if variant not in known:
            known[variant] = _compute(variant, trainees[variant.ranks], groups)
        return known[variant]

    return compute


def _compute(variant: Variant, policy: ActorGroup[Trainee], groups: list[ScoredGroup]) -> Result:
    model = MODEL.model_copy(update={"gradient_checkpointing": variant.gradient_checkpointing})
    changes = {name: getattr(variant, name) for name in ("zero_stage", "micro_batch_tokens", "logprob_chunk_tokens")}
    address, port = policy.gather([policy.submit(0, Trainee.address)], "address")[0]
    policy.call(Trainee.restart, address, port, model, GROUP.model_copy(update=changes))
    initial = policy.call(Trainee.weights)[0]
    metrics = policy.scatter(Trainee.update, _calls(variant, groups))
    return Result([_shared(update) for update in metrics[0]], initial, policy.call(Trainee.weights)[0])


def _shared(update: dict[str, float]) -> dict[str, float]:
    """Metrics that do not say how the update was computed: its duration, and its tokens with shared prompts once."""
    return {name: value for name, value in update.items() if not name.startswith(("time/", "tokens/"))}


def _calls(variant: Variant, groups: list[ScoredGroup]) -> list[tuple[Any, ...]]:
    """What the GRPO loop sends to each rank: three updates of eight samples."""
    advantages = [group.rewards - group.rewards.mean() for group in groups]
    updates = split_updates(samples_of(groups, advantages), 24 // UPDATES, seed=1)
    trained = [[s for s in update if variant.keep_zero_advantages or s.advantage] for update in updates]
    totals = [totals_of(update, kept) for update, kept in zip(updates, trained, strict=True)]
    loss = partial(grpo_loss, clip_low=0.2, clip_high=0.3, aggregation=variant.aggregation, kl_coef=0.0)
    work = divide(groups, trained, variant.ranks, variant.micro_batch_tokens)
    return [(share.plans, share.keys, totals, loss, TEMPERATURE, 0, *share.groups) for share in work]


VARIANTS = {
    "each sequence alone": Variant(micro_batch_tokens=1),
    "a few sequences in a micro-batch": Variant(micro_batch_tokens=50),
    "logits of three tokens at a time": Variant(logprob_chunk_tokens=3),
    "gradient checkpointing": Variant(gradient_checkpointing=True),
    "ZeRO-1": Variant(zero_stage=1),
    "ZeRO-2": Variant(zero_stage=2, micro_batch_tokens=50),
    "ZeRO-3": Variant(zero_stage=3, micro_batch_tokens=50),
    "two ranks": Variant(ranks=2),
    # 8 samples in micro-batches of one: where two ranks get different numbers, one ends on empty micro-batches.
    "two ranks, each sequence alone": Variant(ranks=2, micro_batch_tokens=1),
    "two ranks, ZeRO-1": Variant(ranks=2, zero_stage=1),
    "two ranks, ZeRO-2": Variant(ranks=2, zero_stage=2, micro_batch_tokens=40),
    "two ranks, ZeRO-3": Variant(ranks=2, zero_stage=3, micro_batch_tokens=40),
    "two ranks, ZeRO-3, gradient checkpointing": Variant(ranks=2, zero_stage=3, gradient_checkpointing=True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_division_of_work_does_not_matter(name: str, result: Callable[[Variant], Result]) -> None:
    """Loss, gradient norm and all metrics of three clipped updates, and the weights after them."""
    plain, other = result(Variant()), result(VARIANTS[name])
    _assert_equal_updates(plain, other, plain.metrics[0].keys())
    _assert_equal_weights(plain, other)


@pytest.mark.parametrize("ranks", [1, 2])
def test_sequence_aggregation_is_divided_as_freely(ranks: int, result: Callable[[Variant], Result]) -> None:
    """The mean over sequences, too, is taken over the whole update and not over micro-batches or ranks."""
    plain = result(Variant(aggregation="sequence"))
    other = result(Variant(aggregation="sequence", ranks=ranks, micro_batch_tokens=40))
    _assert_equal_updates(plain, other, plain.metrics[0].keys())
    _assert_equal_weights(plain, other)
    assert abs(plain.metrics[0]["loss"] - result(Variant()).metrics[0]["loss"]) > 1e-4, "the two aggregations differ"


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_samples_without_advantage_need_not_be_computed(aggregation: str, result: Callable[[Variant], Result]) -> None:
    """Leaving zero-advantage samples out of the model, but not out of the denominators, changes no weight."""
    dropped = result(Variant(aggregation=aggregation))
    kept = result(Variant(aggregation=aggregation, keep_zero_advantages=True))
    _assert_equal_updates(dropped, kept, ("loss", "grad_norm"))
    _assert_equal_weights(dropped, kept)
    assert any(
        a["policy/entropy"] != b["policy/entropy"] for a, b in zip(dropped.metrics, kept.metrics, strict=True)
    ), "no sample was dropped, so nothing was compared"


def test_updates_move_every_tensor_and_clip(result: Callable[[Variant], Result]) -> None:
    """The comparisons above would mean nothing if the updates did nothing: both kinds of clipping are at work."""
    plain = result(Variant())
    assert all(update["grad_norm"] > GROUP.optimizer.max_grad_norm for update in plain.metrics)
    assert any(update["policy/clip_fraction"] > 0 for update in plain.metrics)
    moved = {name: float(np.abs(weight - plain.initial[name]).max()) for name, weight in plain.weights.items()}
    assert min(moved.values()) > 5e-6, f"tensors that hardly moved: {moved}"


def _assert_equal_updates(plain: Result, other: Result, names: Any) -> None:
    for update, (expected, found) in enumerate(zip(plain.metrics, other.metrics, strict=True)):
        for name in names:
            assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-8), f"{name} of update {update}"


def _assert_equal_weights(plain: Result, other: Result) -> None:
    assert plain.weights.keys() == other.weights.keys()
    for name, weight in plain.weights.items():
        np.testing.assert_allclose(other.weights[name], weight, rtol=0, atol=1e-6, err_msg=name)
