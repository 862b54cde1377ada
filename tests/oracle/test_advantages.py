"""Advantages, PPO's token rewards and losses, and the overlong penalty, against lines of TRL's trainers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trl.experimental.ppo.ppo_trainer import PPOTrainer, masked_whiten
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from algorithms.losses import aggregate
from algorithms.rl.advantages import Moments, gae, group_relative, leave_one_out, rewards_to_go, token_rewards, whiten
from algorithms.rl.losses import clipped_policy_loss, clipped_value_loss, kl_penalty
from algorithms.rl.shaping import overlong_penalty
from tests.oracle.difference import assert_same
from tests.oracle.peer import run_lines

GROUPS, SAMPLES, TOKENS = 4, 5, 8
PPO_LINES = "TRL PPOTrainer.train (its lines)"
seeded = pytest.mark.parametrize("seed", range(3))


def _rewards(seed: int) -> Tensor:
    """Rewards of groups, the last of which has equal ones, [G, N]."""
    torch.manual_seed(seed)
    rewards = torch.randn(GROUPS, SAMPLES, dtype=torch.float64)
    rewards[-1] = 0.7
    return rewards


@seeded
@pytest.mark.parametrize("scale", ["group", "none"])
def test_group_relative(scale: str, seed: int) -> None:
    rewards = _rewards(seed)
    self = SimpleNamespace(
        multi_objective_aggregation="sum_then_normalize", reward_weights=torch.ones(1), scale_rewards=scale
    )
    names = {"self": self, "rewards_per_func": rewards.reshape(-1, 1), "num_generations": SAMPLES, "device": "cpu"}
    lines = "unscorable_mask = ", "# Slice to keep only the local part of the data"
    theirs = run_lines(GRPOTrainer._generate_and_score_completions, *lines, names)["advantages"]
    ours = np.concatenate([group_relative(group.numpy(), normalize_std=scale == "group") for group in rewards])
    source = "TRL GRPOTrainer._generate_and_score_completions (its lines)"
    assert_same(f"advantage group, scale {scale}", source, torch.from_numpy(ours), theirs)


@seeded
@pytest.mark.parametrize("kl_coef", [0.0, 0.05])
def test_leave_one_out(kl_coef: float, seed: int) -> None:
    """TRL subtracts the k1 KL of the whole response from the reward before the baseline, as kl_in reward does."""
    rewards = _rewards(seed)
    old, reference = torch.randn(2, GROUPS * SAMPLES, TOKENS, dtype=torch.float64)
    mask = torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (GROUPS * SAMPLES, 1))
    self = SimpleNamespace(
        reward_weights=torch.ones(1), reward_clip_range=None, beta=kl_coef, normalize_advantages=False
    )
    names = {"self": self, "rewards_per_func": rewards.reshape(-1, 1), "num_generations": SAMPLES, "device": "cpu"}
    names |= {"old_per_token_logps": old, "ref_per_token_logps": reference, "completion_mask": mask}
    names |= {"gather": lambda value: value}
    lines = "unscorable_mask = ", "is_std_zero = "
    theirs = run_lines(RLOOTrainer._generate_and_score_completions, *lines, names)["advantages"]
    kl = (kl_penalty(old, reference, "k1") * mask).sum(1).reshape(GROUPS, SAMPLES)
    ours = np.concatenate([leave_one_out(group.numpy()) for group in rewards - kl_coef * kl])
    source = "TRL RLOOTrainer._generate_and_score_completions (its lines)"
    assert_same("advantage leave_one_out", source, torch.from_numpy(ours), theirs)


@seeded
def test_whitening(seed: int) -> None:
    """Also with moments added up over parts, as over ranks, and for values far from 0."""
    torch.manual_seed(seed)
    for shift in (0.0, 50.0):
        values = torch.randn(GROUPS, TOKENS, dtype=torch.float64) + shift
        mask = torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (GROUPS, 1))
        moments = sum((Moments.of(row, where) for row, where in zip(values, mask, strict=True)), Moments())
        ours = np.stack([whiten(row, where, moments) for row, where in zip(values, mask, strict=True)])
        theirs = masked_whiten(values, mask) * mask
        assert_same("whitening over a step", "TRL masked_whiten", torch.from_numpy(ours), theirs)


def _ppo(seed: int, full: bool) -> dict[str, Any]:
    """Local variables of PPOTrainer.train after generation: responses of every length, or of the full one."""
    torch.manual_seed(seed)
    logprobs, ref_logprobs, values = torch.randn(3, SAMPLES, TOKENS, dtype=torch.float64)
    last = torch.full((SAMPLES,), TOKENS - 1) if full else torch.randint(0, TOKENS, (SAMPLES,))
    position = torch.arange(TOKENS).repeat(SAMPLES, 1)
    padding, padding_p1 = position > last[:, None], position > last[:, None] + 1
    return {
        "responses": torch.zeros(SAMPLES, TOKENS),
        # 1 is what TRL writes over padding: INVALID_LOGPROB.
        "logprobs": logprobs.masked_fill(padding, 1.0),
        "ref_logprobs": ref_logprobs.masked_fill(padding, 1.0),
        "values": values.masked_fill(padding_p1, 0),
        "scores": torch.randn(SAMPLES, dtype=torch.float64),
        "sequence_lengths": last,
        "sequence_lengths_p1": last + 1,
        "padding_mask": padding,
        "padding_mask_p1": padding_p1,
    }


def _ppo_advantages(names: dict[str, Any], **settings: Any) -> dict[str, Any]:
    defaults = {"kl_estimator": "k1", "kl_coef": 0.05, "whiten_rewards": False, "gamma": 1.0, "lam": 0.95}
    names = names | {"args": SimpleNamespace(**(defaults | settings))}
    return run_lines(PPOTrainer.train, "logr = ref_logprobs - logprobs", "empty_cache()", names)


@seeded
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_token_rewards(estimator: Any, seed: int) -> None:
    """Responses of full length: of a shorter one TRL puts the score on the position after the last token."""
    names = _ppo(seed, full=True)
    theirs = _ppo_advantages(names, kl_estimator=estimator)["rewards"]
    kl = kl_penalty(names["logprobs"], names["ref_logprobs"], estimator)
    rows = zip(names["scores"].tolist(), kl, strict=True)
    ours = np.stack([token_rewards(score, row, np.ones(TOKENS), kl_coef=0.05) for score, row in rows])
    assert_same(f"token rewards, {estimator}", PPO_LINES, torch.from_numpy(ours), theirs)


@seeded
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (1.0, 1.0), (0.9, 0.8)])
@pytest.mark.parametrize("full", [True, False])
def test_gae_and_its_whitening(full: bool, gamma: float, gae_lambda: float, seed: int) -> None:
    """On TRL's own rewards and values, with the position after a shorter response, where TRL puts the score."""
    names = _ppo_advantages(_ppo(seed, full), gamma=gamma, lam=gae_lambda)
    mask, counted = ~names["padding_mask_p1"], ~names["padding_mask"]
    rows = zip(names["rewards"], names["values"], mask, strict=True)
    found = [gae(*row, gamma=gamma, gae_lambda=gae_lambda) for row in rows]
    advantages, returns = (np.stack(each) for each in zip(*found, strict=True))
    assert_same("GAE returns", PPO_LINES, torch.from_numpy(returns), names["returns"] * mask)
    moments = sum((Moments.of(row, where) for row, where in zip(advantages, counted, strict=True)), Moments())
    ours = np.stack([whiten(row, where, moments) for row, where in zip(advantages, counted, strict=True)])
    assert_same("GAE advantages, whitened", PPO_LINES, torch.from_numpy(ours), names["advantages"])


@seeded
def test_score_of_a_short_response_without_discount(seed: int) -> None:
    """With gamma = lambda = 1, and a value of 0 after the last token, it does not matter where the score sits."""
    names = _ppo(seed, full=False)
    names["values"] = names["values"].masked_fill(names["padding_mask"], 0)
    theirs = _ppo_advantages(names, lam=1.0)
    mask = ~names["padding_mask"]
    kl = kl_penalty(names["logprobs"], names["ref_logprobs"], "k1")
    found = []
    for score, row, values, where in zip(names["scores"].tolist(), kl, names["values"], mask, strict=True):
        rewards = token_rewards(score, row, where, kl_coef=0.05)
        found.append(gae(rewards, values, where, gamma=1, gae_lambda=1)[1])
    assert_same("PPO returns, any length", PPO_LINES, torch.from_numpy(np.stack(found)), theirs["returns"] * mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@seeded
@pytest.mark.parametrize("full", [True, False])
def test_ppo_losses(full: bool, seed: int, dtype: torch.dtype) -> None:
    """TRL's value loss counts one position more than the policy's where a response is short."""
    torch.manual_seed(seed)
    names = _ppo(seed, full)
    policy, values = (torch.randn(2, SAMPLES, TOKENS).to(dtype)).requires_grad_()
    old, old_values, advantages, returns = torch.randn(4, SAMPLES, TOKENS).to(dtype)
    mask, mask_p1 = ~names["padding_mask"], ~names["padding_mask_p1"]
    names |= {
        "args": SimpleNamespace(cliprange=0.2, cliprange_value=0.5, vf_coef=0.1),
        "micro_batch_inds": slice(None),
        "new_logprobs": policy.masked_fill(names["padding_mask"], 1.0),
        "mb_logprobs": old.masked_fill(names["padding_mask"], 1.0),
        "mb_advantage": advantages,
        "vpred": values,
        "mb_values": old_values,
        "mb_return": returns,
    }
    theirs = run_lines(PPOTrainer.train, "vpred = torch.masked_fill(", "accelerator.backward(loss)", names)
    ids = torch.arange(SAMPLES).repeat_interleave(TOKENS)
    losses, _ = clipped_policy_loss(
        policy.flatten(), old.flatten(), advantages.flatten(), mask.flatten(), clip_low=0.2, clip_high=0.2
    )
    ours = aggregate(losses, mask.flatten(), ids, mode="token", tokens=int(mask.sum()), sequences=SAMPLES)
    assert_same("PPO policy loss", PPO_LINES, ours, theirs["pg_loss"], policy)
    flat = (item.flatten() for item in (values, old_values, returns, mask_p1))
    losses, _ = clipped_value_loss(*flat, clip=0.5)
    ours = aggregate(losses, mask_p1.flatten(), ids, mode="token", tokens=int(mask_p1.sum()), sequences=SAMPLES)
    assert_same("PPO value loss, clipped", PPO_LINES, ours, theirs["vf_loss"], values)


@seeded
@pytest.mark.parametrize("baseline", [False, True])
def test_reinforce_plus_plus(baseline: bool, seed: int) -> None:
    """Not in TRL: A_t = R - b - kl_coef sum of KL from t on, normalised over all tokens of the batch."""
    rewards, kl_coef = _rewards(seed).tolist(), 0.05
    kl = torch.randn(GROUPS, SAMPLES, TOKENS, dtype=torch.float64).tolist()
    lengths = torch.randint(1, TOKENS + 1, (GROUPS, SAMPLES)).tolist()
    naive = []
    for group, kls, sizes in zip(rewards, kl, lengths, strict=True):
        mean = sum(group) / SAMPLES if baseline else 0.0
        for reward, row, size in zip(group, kls, sizes, strict=True):
            naive.append([reward - mean - kl_coef * sum(row[t:size]) for t in range(size)])
    tokens = torch.tensor([value for row in naive for value in row], dtype=torch.float64)
    theirs = (tokens - tokens.mean()) / (tokens.var() + 1e-8).sqrt()
    found, masks = [], []
    for group, kls, sizes in zip(rewards, kl, lengths, strict=True):
        scores = group_relative(group, normalize_std=False) if baseline else np.array(group)
        for score, row, size in zip(scores.tolist(), kls, sizes, strict=True):
            masks.append(np.arange(TOKENS) < size)
            found.append(rewards_to_go(token_rewards(score, row, masks[-1], kl_coef=kl_coef), masks[-1], gamma=1))
    moments = sum((Moments.of(row, mask) for row, mask in zip(found, masks, strict=True)), Moments())
    ours = np.concatenate([whiten(row, mask, moments)[mask] for row, mask in zip(found, masks, strict=True)])
    name = "REINFORCE++-baseline" if baseline else "REINFORCE++"
    assert_same(f"advantage, {name}", "formula of arXiv 2501.03262", torch.from_numpy(ours), theirs)


@pytest.mark.parametrize(("limit", "buffer"), [(20, 5), (16, 16), (7, 1)])
def test_overlong_penalty(limit: int, buffer: int) -> None:
    """Every length up to twice the limit; TRL's penalty at the limit is 1."""
    lengths = range(2 * limit)
    theirs = get_soft_overlong_punishment(limit, buffer)([[0] * length for length in lengths])
    ours = [overlong_penalty(length, limit, buffer=buffer, penalty=1.0) for length in lengths]
    source = "TRL get_soft_overlong_punishment"
    assert_same("overlong penalty", source, torch.tensor(ours), torch.tensor(theirs))
