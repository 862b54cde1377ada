"""Policy losses of the GRPO family and sampler corrections, against GRPOTrainer on random logits."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from algorithms.losses import aggregate
from algorithms.rl.losses import (
    cispo_policy_loss,
    clipped_policy_loss,
    gspo_policy_loss,
    importance_weights,
    kl_penalty,
    sapo_policy_loss,
)
from tests.oracle.difference import assert_same
from tests.oracle.peer import model, run_lines, trainer

COMPUTE_LOSS = "TRL GRPOTrainer._compute_loss"
SAMPLES, PROMPT, COMPLETION, VOCABULARY = 6, 3, 9, 11
TEMPERATURE, MAX_LENGTH, CLIP_LOW, CLIP_HIGH = 0.7, 12, 0.2, 0.28
precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
seeded = pytest.mark.parametrize("seed", range(3))


@dataclass
class Batch:
    """Random samples; logprobs of the old policy, the reference and the sampler differ from the policy's by noise."""

    logits: Tensor
    """Of prompt and completion, the only leaf with gradient, [B, P + C, V]."""
    ids: Tensor
    """[B, P + C]"""
    mask: Tensor
    """Completion tokens that are not padding, bool [B, C]."""
    old: Tensor
    """[B, C], like the next two."""
    reference: Tensor
    rollout: Tensor
    advantages: Tensor
    """[B]"""

    def __getitem__(self, rows: slice) -> "Batch":
        return Batch(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def policy(self) -> Tensor:
        """Logprobs of the completion at the sampling temperature, with gradient, [B, C]."""
        logprobs = torch.log_softmax(self.logits[:, PROMPT - 1 : -1] / TEMPERATURE, dim=-1)
        return logprobs.gather(2, self.ids[:, PROMPT:, None])[..., 0]

    @property
    def sequence_ids(self) -> Tensor:
        """[B C]"""
        return torch.arange(len(self.ids)).repeat_interleave(COMPLETION)


def _batch(seed: int, dtype: torch.dtype) -> Batch:
    torch.manual_seed(seed)
    logits = torch.randn(SAMPLES, PROMPT + COMPLETION, VOCABULARY, dtype=dtype).requires_grad_()
    ids = torch.randint(VOCABULARY, (SAMPLES, PROMPT + COMPLETION))
    lengths = torch.randint(1, COMPLETION + 1, (SAMPLES, 1))
    empty = torch.zeros(SAMPLES, COMPLETION, dtype=dtype)
    batch = Batch(logits, ids, torch.arange(COMPLETION) < lengths, empty, empty, empty, torch.randn(SAMPLES).to(dtype))
    policy = batch.policy.detach()
    batch.old, batch.reference = (policy + 0.4 * torch.randn(policy.shape).to(dtype) for _ in range(2))
    batch.rollout = batch.old + 0.6 * torch.randn(policy.shape).to(dtype)
    return batch


def _theirs(batch: Batch, micro_batches: int = 1, ratios: Tensor | None = None, **settings: Any) -> Tensor:
    """TRL's loss of the batch, summed over micro-batches of the optimizer step."""
    arguments = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": micro_batches}
    arguments |= {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
    defaults = {
        "args": SimpleNamespace(**arguments),
        "temperature": TEMPERATURE,
        "model_kwarg_keys": (),
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": CLIP_LOW,
        "epsilon_high": CLIP_HIGH,
        "use_vllm": ratios is not None,
        "vllm_importance_sampling_correction": True,
        "max_completion_length": MAX_LENGTH,
        "current_gradient_accumulation_steps": micro_batches,
        "_entropy_bonus_enabled": False,
    }
    grpo = trainer(GRPOTrainer, **(defaults | settings))
    loss, size = torch.zeros(()), SAMPLES // micro_batches
    for start in range(0, SAMPLES, size):
        rows = slice(start, start + size)
        part = batch[rows]
        inputs = {
            "prompt_ids": part.ids[:, :PROMPT],
            "prompt_mask": torch.ones_like(part.ids[:, :PROMPT]),
            "completion_ids": part.ids[:, PROMPT:],
            "completion_mask": part.mask.long(),
            "advantages": part.advantages,
            "old_per_token_logps": part.old,
            "ref_per_token_logps": part.reference,
            "num_items_in_batch": batch.mask.sum(),
            "importance_sampling_ratio": None if ratios is None else ratios[rows],
        }
        loss = loss + grpo._compute_loss(model(part.logits), inputs)
    return loss


Losses = Callable[..., Tensor]
"""(policy logprobs, old logprobs, advantages, mask, sequence ids) -> loss of each token, all [T]."""


def _ours(batch: Batch, losses: Losses, mode: Any, micro_batches: int = 1) -> Tensor:
    """Our loss of the batch, summed over micro-batches of the optimizer step."""
    loss, size = torch.zeros(()), SAMPLES // micro_batches
    for start in range(0, SAMPLES, size):
        part = batch[start : start + size]
        mask, ids = part.mask.flatten(), part.sequence_ids
        advantages = part.advantages.repeat_interleave(COMPLETION)
        tokens = losses(part.policy.flatten(), part.old.flatten(), advantages, mask, ids)
        counts = {"tokens": int(batch.mask.sum()), "sequences": SAMPLES, "constant": MAX_LENGTH}
        loss = loss + aggregate(tokens, mask, ids, mode=mode, **counts)
    return loss


def _clip(policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, _: Tensor) -> Tensor:
    return clipped_policy_loss(policy, old, advantages, mask, clip_low=CLIP_LOW, clip_high=CLIP_HIGH)[0]


def _gspo(policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    return gspo_policy_loss(policy, old, advantages, mask, ids, clip_low=0.03, clip_high=0.04)[0]


def _cispo(policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, _: Tensor) -> Tensor:
    return cispo_policy_loss(policy, old, advantages, mask, cispo_max_ratio=1.2)[0]


def _sapo(policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, _: Tensor) -> Tensor:
    return sapo_policy_loss(policy, old, advantages, mask, sapo_temperatures=(1.0, 1.05))[0]


GSPO = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04}


@precision
@seeded
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize(
    ("method", "settings", "losses", "mode"),
    [
        ("clip, sequence (GRPO)", {"loss_type": "grpo"}, _clip, "sequence"),
        ("clip, token (DAPO)", {"loss_type": "dapo"}, _clip, "token"),
        ("clip, constant (Dr. GRPO)", {"loss_type": "dr_grpo"}, _clip, "constant"),
        ("gspo", GSPO, _gspo, "sequence"),
        ("cispo", {"loss_type": "cispo", "epsilon_high": 1.2}, _cispo, "token"),
        ("sapo", {"loss_type": "sapo"}, _sapo, "sequence"),
    ],
)
def test_surrogates(method: str, settings: Any, losses: Losses, mode: str, micro_batches, seed, dtype) -> None:
    batch = _batch(seed, dtype)
    theirs = _theirs(batch, micro_batches, **settings)
    assert_same(method, COMPUTE_LOSS, _ours(batch, losses, mode, micro_batches), theirs, batch.logits)


@precision
@seeded
def test_bnpo_is_the_token_mean_of_an_undivided_step(seed: int, dtype: torch.dtype) -> None:
    """TRL's bnpo divides by the tokens of each micro-batch, so only one that is the whole step has our definition."""
    batch = _batch(seed, dtype)
    theirs = _theirs(batch, loss_type="bnpo")
    assert_same("clip, token (BNPO, 1 micro-batch)", COMPUTE_LOSS, _ours(batch, _clip, "token"), theirs, batch.logits)


@precision
@seeded
@pytest.mark.parametrize(("loss_type", "mode"), [("grpo", "sequence"), ("dapo", "token"), ("dr_grpo", "constant")])
def test_kl_in_the_loss(loss_type: str, mode: str, seed: int, dtype: torch.dtype) -> None:
    """k3 only: TRL's GRPO has no other estimator in the loss."""
    batch = _batch(seed, dtype)

    def losses(policy: Tensor, *others: Tensor) -> Tensor:
        return _clip(policy, *others) + 0.04 * kl_penalty(policy, batch.reference.flatten(), "k3")

    theirs = _theirs(batch, loss_type=loss_type, beta=0.04)
    assert_same("clip + k3 in the loss", COMPUTE_LOSS, _ours(batch, losses, mode), theirs, batch.logits)


@precision
@seeded
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators(estimator: Any, seed: int, dtype: torch.dtype) -> None:
    """The three definitions, written down from the blog post that names them, with r = reference / policy."""
    batch = _batch(seed, dtype)
    policy = batch.policy
    r = torch.exp(batch.reference) / torch.exp(policy)
    naive = {"k1": -torch.log(r), "k2": torch.log(r) ** 2 / 2, "k3": (r - 1) - torch.log(r)}[estimator]
    source = "formula of joschu.net/blog/kl-approx"
    assert_same(f"kl_penalty {estimator}", source, kl_penalty(policy, batch.reference, estimator), naive, batch.logits)


@precision
@seeded
@pytest.mark.parametrize("bound", [2.0, 3.0])
def test_dual_clip(bound: float, seed: int, dtype: torch.dtype) -> None:
    """Not in TRL: where A < 0 the objective is max(min(rho A, clip(rho) A), c A)."""
    batch = _batch(seed, dtype)
    batch.old = batch.old - 0.5
    policy, mask = batch.policy, batch.mask.flatten()
    surrogate = torch.zeros_like(policy)
    for row in range(SAMPLES):
        for token in range(int(batch.mask[row].sum())):
            ratio, advantage = torch.exp(policy[row, token] - batch.old[row, token]), batch.advantages[row]
            bounded = torch.clamp(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH)
            value = torch.minimum(ratio * advantage, bounded * advantage)
            surrogate[row, token] = value if advantage >= 0 else torch.maximum(value, bound * advantage)
    advantages = batch.advantages.repeat_interleave(COMPLETION)
    ours, _ = clipped_policy_loss(
        policy.flatten(), batch.old.flatten(), advantages, mask, clip_low=0.2, clip_high=0.28, dual_clip=bound
    )
    assert_same("dual clip", "formula of arXiv 1912.09729", ours, -surrogate.flatten(), batch.logits)


@precision
@seeded
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_importance_correction(level: Any, mode: Any, seed: int, dtype: torch.dtype) -> None:
    """Weights as TRL computes them after generation, and the loss they multiply; the KL term is not multiplied."""
    batch = _batch(seed, dtype)
    self = SimpleNamespace(
        vllm_importance_sampling_mode=f"{level}_{mode}",
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_clip_max=1.5,
    )
    names = {"self": self, "mask": batch.mask.long(), "old_per_token_logps": batch.old}
    names |= {"sampling_per_token_logps": batch.rollout}
    lines = "per_token_logps_diff = (old_", "# Compute the per-token log probabilities for the reference model"
    method = GRPOTrainer._generate_and_score_completions
    ratios = run_lines(method, *lines, names)["vllm_importance_sampling_ratio"]
    mask, ids = batch.mask.flatten(), batch.sequence_ids
    weights = importance_weights(
        batch.old.flatten(), batch.rollout.flatten(), mask, ids, level=level, mode=mode, cap=1.5
    )
    source = "TRL GRPOTrainer._generate_and_score_completions (its lines)"
    assert_same(f"importance weights, {level}, {mode}", source, weights, (ratios * batch.mask).flatten())

    def losses(policy: Tensor, *others: Tensor) -> Tensor:
        return weights * _clip(policy, *others) + 0.04 * kl_penalty(policy, batch.reference.flatten(), "k3")

    theirs = _theirs(batch, ratios=ratios, loss_type="dapo", beta=0.04)
    ours = _ours(batch, losses, "token")
    assert_same(f"clip + k3, weighted, {level}, {mode}", COMPUTE_LOSS, ours, theirs, batch.logits)
