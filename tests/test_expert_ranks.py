"""Mixtures of experts on several ranks: the same updates however they are divided, sharded experts without a token
included, and every expert moves."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.config import LoraConfig
from actors.episodes import Sequence
from actors.group import ActorGroup
from actors.train.critic import RewardModelWorker
from actors.train.policy import PolicyWorker
from algorithms.config_offline import RewardModelConfig, SFTConfig
from algorithms.config_rl import GRPOConfig
from algorithms.offline.reward_model import RewardModel
from algorithms.offline.sft import SFT
from tests.mixtures import BALANCED, saved_mixture
from tests.test_invariance import SIZES, _assert_equal, _grpo, _offline
from tests.trainees import Division, Job, Result, Trainee, Trainees, preferences, started_trainees

PLAIN = Division()
DIVISIONS = {
    "micro-batches": Division(micro_batch_tokens=40),
    "ranks": Division(ranks=2, micro_batch_tokens=60),
    "ZeRO 2": Division(ranks=2, zero_stage=2, micro_batch_tokens=60),
    "ZeRO 3": Division(ranks=2, zero_stage=3, micro_batch_tokens=60),
    "recomputed": Division(gradient_checkpointing=True, micro_batch_tokens=100),
}
FAMILIES = ("qwen3_moe", "gpt_oss", "deepseek_v3", "jetmoe", "dbrx", "jamba")
"""With their own kinds of experts: one tensor, with biases, beside others; in rows and packed."""
UNABLE = {
    ("dbrx", "ZeRO 3"): "zero_stage: must be below 3 for dbrx",
    ("jetmoe", "recomputed"): "model.gradient_checkpointing: must be false for a jetmoe",
}
"""Families that are refused in some ways."""


@pytest.fixture(scope="module")
def trainees(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainees]:
    """Processes of one group with one rank, one with two."""
    with started_trainees(tmp_path_factory.mktemp("trainees")) as started:
        yield started


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Of a family's model."""
    found: dict[str, Path] = {}

    def directory(model_type: str) -> str:
        if model_type not in found:
            large = {"vocab_size": 128}  # what the data of the trainees has
            found[model_type] = saved_mixture(tmp_path_factory.mktemp("model"), model_type, **large)
        return str(found[model_type])

    return directory


def rows() -> list[list[Sequence]]:
    """Of three updates, the last one with a single row: a rank has nothing to do."""
    generator = np.random.default_rng(1)

    def row() -> Sequence:
        tokens = generator.integers(3, 120, size=generator.integers(4, 24))
        return Sequence(token_ids=tokens, action_mask=np.arange(len(tokens)) >= 2)

    return [[row() for _ in range(count)] for count in (6, 6, 1)]


def _sft(group: ActorGroup[Trainee], _: Any, division: Division) -> list[dict[str, float]]:
    loop = SFT(config=SFTConfig(name="sft", steps=3), **_offline(group, division))
    return [loop.update(update) for update in rows()]


def _reward(group: ActorGroup[Trainee], _: Any, division: Division) -> list[dict[str, float]]:
    loop = RewardModel(config=RewardModelConfig(name="reward", steps=3), **_offline(group, division))
    return [loop.update(update) for update in preferences()]


def _policy(group: ActorGroup[Trainee], reference: Any, division: Division) -> list[dict[str, float]]:
    return _grpo(GRPOConfig.model_validate({"name": "grpo"} | SIZES), group, reference, division)


def job(directory: str, kind: Any = PolicyWorker, updates: Any = _sft, **settings: Any) -> Job:
    return Job(kind, updates, (("path", directory), *settings.items()))


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_update_is_divided_freely(
    model_type: str, division: str, trainees: Trainees, directories: Callable[[str], str]
) -> None:
    """Loss with its balancing part, gradient norm and all weights; every expert's have moved."""
    balanced = {"router_aux_loss": 0.5} if model_type in BALANCED else {}
    learned = job(directories(model_type), **balanced)
    plain = trainees.result(learned, PLAIN)
    if (model_type, division) in UNABLE:
        with pytest.raises(Exception, match=UNABLE[model_type, division]):
            trainees.result(learned, DIVISIONS[division])
        return
    _assert_equal(plain, trainees.result(learned, DIVISIONS[division]))
    assert all(("policy/router_aux_loss" in update) is bool(balanced) for update in plain.metrics)
    _assert_experts_moved(plain)


@pytest.mark.parametrize("updates", [_reward, _policy])
def test_other_jobs_balance_experts_too(updates: Any, trainees: Trainees, directories: Callable[[str], str]) -> None:
    """A reward model's body, and rollouts where it is asked for by number."""
    kind = RewardModelWorker if updates is _reward else PolicyWorker
    learned = job(directories("qwen3_moe"), kind, updates, router_aux_loss=0.5)
    plain, off = trainees.result(learned, PLAIN), trainees.result(job(directories("qwen3_moe"), kind, updates), PLAIN)
    sharded = trainees.result(learned, Division(ranks=2, zero_stage=3, micro_batch_tokens=60, share_prompts=False))
    _assert_equal(plain, sharded)
    assert not any("policy/router_aux_loss" in update for update in off.metrics)
    first, without = plain.metrics[0], off.metrics[0]
    assert first["policy/router_aux_loss"] > 2
    names = [name for name in first if name.startswith("loss")]
    for name in names:
        assert first[name] == pytest.approx(without[name] + 0.5 * first["policy/router_aux_loss"], rel=1e-4)


@pytest.mark.parametrize("stage", [0, 3])
def test_adapters_of_experts_are_divided_freely(
    stage: int, trainees: Trainees, directories: Callable[[str], str]
) -> None:
    """Also where experts are sharded: adapters are gathered with them."""
    learned = job(directories("gpt_oss"), lora=LoraConfig(rank=4), router_aux_loss=0.1)
    plain = trainees.result(learned, PLAIN)
    _assert_equal(plain, trainees.result(learned, Division(ranks=2, zero_stage=stage, micro_batch_tokens=60)))
    adapters = [name for name in plain.weights if "experts.lora_B" in name and not name.startswith("average")]
    assert len(adapters) == 4 and all(np.abs(plain.weights[name]).reshape(4, -1).max(1).min() > 0 for name in adapters)


def _assert_experts_moved(plain: Result) -> None:
    """Each expert's own part of each tensor, of those that have one for all experts."""
    for name, weight in plain.weights.items():
        change = np.abs(weight - plain.initial[name])
        fixed = ("e_score_correction_bias", "k_proj.bias")
        assert change.max() > 0 or name.endswith(fixed), name
        if weight.ndim == 3 and "expert" in name:
            assert (change.reshape(len(weight), -1).max(1) > 0).all(), name
