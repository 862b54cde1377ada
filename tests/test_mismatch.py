"""How far trainer and sampler are said to disagree: also where they nearly agree, and only over action tokens."""

import math

import pytest
import torch

from algorithms.rl.losses import kl_penalty, mismatch

BIT = 2.0**-20
"""Nats, 9.5e-7: a difference that logprobs in float32 have for no reason but another order of their sums."""


def test_a_mismatch_of_rounding_is_measured_to_a_hundredth() -> None:
    """Its KL is 4.5e-13 a token, below what float32 can tell of exp(d) - 1 - d."""
    rollout = torch.linspace(-0.9, -0.1, 64)
    policy = rollout + BIT * torch.tensor([1.0, -1.0]).repeat(32)
    differences = [a - b for a, b in zip(policy.tolist(), rollout.tolist(), strict=True)]
    found = mismatch(policy, rollout, torch.ones(64, dtype=torch.bool))
    assert {value.dtype for value in found.values()} == {torch.float64}
    assert found["kl_sum"].item() == pytest.approx(sum(d**2 / 2 for d in differences), rel=1e-2)
    assert found["kl_sum"].item() == pytest.approx(64 * BIT**2 / 2, rel=0.1)
    assert found["logprob_abs_sum"].item() == pytest.approx(math.fsum(map(abs, differences)), rel=1e-9)


def test_the_kl_is_that_of_the_sampler_to_the_trainer() -> None:
    """It sampled the tokens: k3 of KL(rollout || policy), which is not that of KL(policy || rollout)."""
    policy, rollout = torch.tensor([-0.5, -3.0, -1.0, -9.0]), torch.tensor([-1.5, -1.0, -1.25, 0.0])
    mask = torch.tensor([True, True, True, False])
    found = mismatch(policy, rollout, mask)
    assert found["kl_sum"].item() == pytest.approx(sum(math.exp(d) - 1 - d for d in (1.0, -2.0, 0.25)))
    assert found["logprob_abs_max"].item() == 2 and found["tokens"].item() == 3
    assert not found["kl_sum"].requires_grad


@pytest.mark.parametrize("difference", [60.0, 200.0])
def test_k3_of_distant_logprobs_is_finite_in_float32_and_so_is_its_gradient(difference: float) -> None:
    """exp(89) is not: one such token would make the whole update infinite. Beyond 40 nats the value stays, not the
    direction; on the other side it is as large as the difference."""
    policy = torch.tensor([-difference, -0.5], requires_grad=True)
    reference = torch.tensor([0.0, -0.5 - difference])
    value = kl_penalty(policy, reference, "k3")
    (gradient,) = torch.autograd.grad(value.sum(), policy)
    assert value.tolist() == pytest.approx([math.exp(40), difference - 1], rel=1e-5)
    assert gradient.tolist() == pytest.approx([-math.exp(40), 1.0], rel=1e-5)
