"""Decoupled PPO (AReaL, arXiv 2505.24298): clipped around the policy at the step's start, weighted for the sampler's.

Its objective is the mean of w min(u A, clip(u, 1 - low, 1 + high) A) with w = pi_prox / pi_behav, here truncated, and
u = pi_theta / pi_prox. A table of logits learns by several updates of a step, over two epochs, from tokens that were
sampled by other, older logits; every update is compared with a loop over tokens that knows nothing of this code.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from actors.episodes import Experience
from actors.train.worker import Totals, pack_experiences
from algorithms.config_rl import GRPOConfig, PPOConfig, RLConfig
from algorithms.rl.policy_loss import policy_loss

SYMBOLS, SAMPLES, PROMPT, VERSION, STALE = 5, 6, 2, 9, 4
RATE, CAP = 6.0, 1.3
"""Large steps, so that ratios reach their clips and weights the cap."""
Table = list[list[float]]
"""Logits of every symbol behind each symbol, [SYMBOLS][SYMBOLS]."""


def grpo(**settings: Any) -> GRPOConfig:
    return GRPOConfig(name="grpo", prompts_per_step=2, samples_per_prompt=3, max_staleness=STALE, **settings)


def ppo(**settings: Any) -> PPOConfig:
    return PPOConfig(name="ppo", prompts_per_step=6, kl_coef=0.3, max_staleness=STALE, **settings)


UPDATES = {"samples_per_update": 2, "epochs_per_step": 2}
AT_CAP = {"importance_correction": {"cap": CAP}}
CASES: dict[str, RLConfig] = {
    "grpo": grpo(**UPDATES, **AT_CAP),
    "ppo": ppo(**UPDATES, **AT_CAP, clip_low=0.1, clip_high=0.3, aggregation="sequence"),
    "grpo by default": grpo(**UPDATES),
    "ppo, masked": ppo(**UPDATES, importance_correction={"mode": "mask", "cap": CAP}),
}


@dataclass
class Sampled:
    """A response: its symbols behind the prompt's, who sampled each, and what was made of it."""

    symbols: list[int]
    versions: list[int]
    advantages: list[float]
    behaviour: list[float] = field(default_factory=list)
    proximal: list[float] = field(default_factory=list)


def logprob(table: Table, before: int, symbol: int) -> float:
    most = max(table[before])
    return table[before][symbol] - most - math.log(math.fsum(math.exp(each - most) for each in table[before]))


def tables() -> list[Table]:
    """Of versions VERSION - STALE to VERSION: each some way from the one before."""
    random = np.random.default_rng(0)
    steps = random.normal(size=(STALE + 1, SYMBOLS, SYMBOLS)) * np.array([1.0, *[0.25] * STALE])[:, None, None]
    return np.cumsum(steps, axis=0).tolist()


def sampled(by_token: bool) -> list[Sampled]:
    """Responses that newer weights have continued; PPO's advantages are each token's own, GRPO's the response's."""
    random, older = np.random.default_rng(1), tables()
    found = []
    for number in range(SAMPLES):
        tokens = int(random.integers(2, 6))
        began = number % (STALE + 1)
        versions = [VERSION - STALE + min(STALE, began + at) for at in range(tokens)]
        advantages = random.normal(size=tokens) if by_token else np.full(tokens, random.normal())
        one = Sampled([0, *random.integers(0, SYMBOLS, PROMPT - 1 + tokens).tolist()], versions, advantages.tolist())
        for at, version in enumerate(versions):
            pair = one.symbols[PROMPT - 1 + at : PROMPT + 1 + at]
            # As they travel: float32.
            for name, table in (("behaviour", older[version - VERSION + STALE]), ("proximal", older[-1])):
                getattr(one, name).append(float(np.float32(logprob(table, *pair))))
        found.append(one)
    return found


def now(row: Sampled, table: Table) -> list[float]:
    """Logprobs of what was sampled, by these logits."""
    return [logprob(table, *row.symbols[at : at + 2]) for at in range(PROMPT - 1, len(row.symbols) - 1)]


def orders(config: RLConfig) -> list[list[int]]:
    """Samples of each update, of the epochs one after another."""
    per_update = config.samples_per_update or SAMPLES
    return [
        list(range(at, at + per_update)) for _ in range(config.epochs_per_step) for at in range(0, SAMPLES, per_update)
    ]


def by_hand(config: RLConfig, rows: list[Sampled], table: Table) -> tuple[float, Table, int, int]:
    """Loss and gradient of an update, and how many tokens' gradients were clipped away, and weights cut."""
    correction: Any = config.correction
    count = sum(len(row.versions) for row in rows)
    loss, gradient, clipped, cut = 0.0, [[0.0] * SYMBOLS for _ in range(SYMBOLS)], 0, 0
    for row in rows:
        scale = 1 / count if config.aggregation == "token" else 1 / len(rows) / len(row.versions)
        for at, advantage in enumerate(row.advantages):
            before, symbol = row.symbols[PROMPT - 1 + at : PROMPT + 1 + at]
            weight = math.exp(row.proximal[at] - row.behaviour[at])
            if weight > correction.cap:
                weight, cut = (correction.cap if correction.mode == "truncate" else 0.0), cut + 1
            ratio = math.exp(logprob(table, before, symbol) - row.proximal[at])
            within = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            loss -= scale * weight * min(ratio * advantage, within * advantage)
            if within * advantage < ratio * advantage:
                clipped += 1
                continue
            for each in range(SYMBOLS):
                probability = math.exp(logprob(table, before, each))
                gradient[before][each] -= scale * weight * ratio * advantage * ((each == symbol) - probability)
    return loss, gradient, clipped, cut


def by_the_loop(config: RLConfig, rows: list[Sampled], table: Table) -> tuple[float, Table, dict[str, float]]:
    """The same by `policy_loss`, on a packed batch, and its metrics."""
    logits = torch.tensor(table, dtype=torch.float64, requires_grad=True)
    several = config.updates_per_step > 1
    experiences = [
        Experience(
            token_ids=np.array(row.symbols),
            action_mask=np.arange(len(row.symbols)) >= PROMPT,
            fields={
                name: np.array([0.0] * PROMPT + values, np.float32)
                for name, values in (
                    ("rollout_logprobs", row.behaviour),
                    ("advantages", row.advantages),
                    ("versions", [float(each) for each in row.versions]),
                    *([("old_logprobs", row.proximal)] if several else []),
                )
            },
        )
        for row in rows
    ]
    batch = pack_experiences(experiences, torch.device("cpu"), share_prompts=False)
    ends = torch.log_softmax(logits, -1)
    tokens = [(before, symbol) for row in rows for before, symbol in zip([0, *row.symbols], row.symbols, strict=False)]
    logprobs = torch.stack([ends[pair] for pair in tokens])
    count = sum(len(row.versions) for row in rows)
    totals = Totals(tokens=count, sequences=len(rows), trained_tokens=count)
    loss, metrics = policy_loss(
        batch, logprobs, torch.zeros(len(tokens)), totals, config=config, kl_coef=0.0, constant=1, version=VERSION
    )
    loss.backward()
    assert logits.grad is not None
    return loss.item(), logits.grad.tolist(), {name: float(each.sum()) for name, each in metrics.items()}


def stepped(table: Table, gradient: Table) -> Table:
    return [[a - RATE * b for a, b in zip(*rows, strict=True)] for rows in zip(table, gradient, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_every_update_of_a_step_is_decoupled_ppo(name: str) -> None:
    config = CASES[name]
    assert config.updates_per_step == 6
    rows, ours, theirs = sampled(isinstance(config, PPOConfig)), tables()[-1], tables()[-1]
    all_clipped = all_cut = 0
    for update in orders(config):
        chosen = [rows[index] for index in update]
        loss, gradient, clipped, cut = by_hand(config, chosen, theirs)
        found, own, told = by_the_loop(config, chosen, ours)
        tokens = sum(len(row.versions) for row in chosen)
        assert found == pytest.approx(loss, rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(own, gradient, rtol=1e-5, atol=1e-6)
        assert told["policy/clip_fraction"] * tokens == pytest.approx(clipped)
        assert told["importance/cut"] == cut
        ours, theirs = stepped(ours, own), stepped(theirs, gradient)
        all_clipped, all_cut = all_clipped + clipped, all_cut + cut
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=3e-5)  # of six large steps
    assert np.abs(np.array(ours) - tables()[-1]).max() > 0.5, "hardly a step was made"
    assert all_clipped > 0, "no ratio was clipped"
    assert all_cut > 0 or name == "grpo by default", "no weight was cut"


@pytest.mark.parametrize("other", ["behaviour", "current"])
def test_the_clip_is_around_the_policy_of_the_steps_start(other: str) -> None:
    """Around the sampler's it would be PPO on stale samples, around that of the update no clip at all."""
    config, rows = CASES["grpo"], sampled(by_token=False)
    ours, away = tables()[-1], 0.0
    for update in orders(config):
        chosen = [rows[index] for index in update]
        _, gradient, _, _ = by_hand(config, chosen, ours)
        moved = [replace(row, proximal=row.behaviour if other == "behaviour" else now(row, ours)) for row in chosen]
        away = max(away, float(np.abs(np.array(gradient) - by_hand(config, moved, ours)[1]).max()))
        ours = stepped(ours, gradient)
    assert away > 0.01


def test_with_one_update_it_is_truncated_importance_sampling() -> None:
    """The gradient of a token is that of -min(pi / pi_behav, cap) A log pi, and no old logprobs are read."""
    config, rows, table = grpo(**AT_CAP), sampled(by_token=False), tables()[-1]
    _, gradient, told = by_the_loop(config, rows, table)
    expected, count = np.zeros((SYMBOLS, SYMBOLS)), sum(len(row.versions) for row in rows)
    for row in rows:
        for at, advantage in enumerate(row.advantages):
            before, symbol = row.symbols[PROMPT - 1 + at : PROMPT + 1 + at]
            weight = min(CAP, math.exp(logprob(table, before, symbol) - row.behaviour[at]))
            for each in range(SYMBOLS):
                slope = (each == symbol) - math.exp(logprob(table, before, each))
                expected[before][each] -= weight * advantage * slope / count
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    assert told["policy/clip_fraction"] == 0 and told["policy/ratio_mean"] == pytest.approx(1)
    assert told["importance/cut"] > 0
