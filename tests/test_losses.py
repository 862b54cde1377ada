"""Losses: golden numbers of TRL (float32, CPU), and sums that do not depend on how a step is divided."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from algorithms.losses import aggregate, grpo_policy_loss, k3_kl, masked_sum, mismatch, nll_loss

POLICY = [
    [-0.012791, -0.316708, -0.857527, -0.080864],
    [-1.414843, -0.180349, -2.315598, -2.231098],
    [-1.783264, -2.66357, -1.353094, -2.398472],
]
ROLLOUT = [
    [0.155957, 0.18885, -1.575117, 0.407851],
    [-1.153818, 0.438609, -2.747915, -2.081618],
    [-1.573654, -2.703497, -0.889889, -1.990633],
]
REFERENCE = [
    [0.135766, -0.366003, -1.060916, -0.398597],
    [-1.190534, -0.108674, -2.433243, -2.185524],
    [-2.138384, -2.503262, -1.788401, -2.587284],
]
MASK = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0], dtype=torch.bool)
ADVANTAGES = torch.tensor([1.0, -0.5, 0.3]).repeat_interleave(4)
IDS = torch.arange(3).repeat_interleave(4)


def _flat(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows).flatten()


@pytest.mark.parametrize(
    ("mode", "kl_coef", "expected"),
    [("sequence", 0, -0.221139), ("token", 0, -0.356175), ("sequence", 0.04, -0.220005)],
)
def test_grpo_golden_numbers(mode, kl_coef: float, expected: float) -> None:
    policy, rollout = _flat(POLICY), _flat(ROLLOUT)
    losses, _ = grpo_policy_loss(policy, rollout, ADVANTAGES, MASK, clip_low=0.2, clip_high=0.2)
    losses = losses + kl_coef * k3_kl(policy, _flat(REFERENCE))
    loss = aggregate(losses, MASK, IDS, mode=mode, tokens=int(MASK.sum()), sequences=3)
    assert loss.item() == pytest.approx(expected, abs=2e-6)


def test_ratio_one_gives_minus_the_advantage_and_its_policy_gradient() -> None:
    policy = _flat(POLICY).requires_grad_()
    losses, clipped = grpo_policy_loss(policy, policy.detach(), ADVANTAGES, MASK, clip_low=0.2, clip_high=0.2)
    expected = -ADVANTAGES * MASK
    assert torch.equal(losses, expected) and not clipped.any()
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert torch.equal(gradient, expected)


def test_clip_bounds_each_side_and_reports_where_the_gradient_ends() -> None:
    #                     above  below  above  below  inside inside outside the mask
    ratio = torch.tensor([1.50, 0.50, 1.50, 0.50, 1.25, 0.95, 1.50])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 1.0])
    mask = torch.tensor([True] * 6 + [False])
    policy = ratio.log().requires_grad_()
    losses, clipped = grpo_policy_loss(policy, torch.zeros(7), advantages, mask, clip_low=0.1, clip_high=0.3)
    torch.testing.assert_close(losses, torch.tensor([-1.3, -0.5, 1.5, 0.9, -1.25, 0.95, 0.0]))
    assert clipped.tolist() == [True, False, False, True, False, False, False]
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert ((gradient == 0) == (clipped | ~mask)).all()


def test_k3_is_accurate_for_small_differences() -> None:
    policy = torch.tensor([-1.0, -1.0, -2.0])
    difference = torch.tensor([2.0**-12, -(2.0**-12), 0.0])
    expected = [math.expm1(d) - d for d in difference.tolist()]
    # exp(d) - d - 1 in float32 would be wrong by a third of the value here.
    torch.testing.assert_close(k3_kl(policy, policy + difference), torch.tensor(expected), rtol=2e-3, atol=0)


def test_masked_tokens_do_not_count_even_if_not_finite() -> None:
    mask = torch.tensor([True, False, True])
    assert masked_sum(torch.tensor([1.0, math.nan, 2.0]), mask).item() == 3
    assert nll_loss(torch.tensor([-1.0, -math.inf, -2.0]), mask).tolist() == [1, 0, 2]


@pytest.mark.parametrize("mode", ["token", "sequence"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_division_into_micro_batches_gives_the_same_loss_and_gradient(mode, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    parts = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    total = sum(lengths)
    rollout, advantages = -torch.rand(total, dtype=torch.float64), torch.randn(total, dtype=torch.float64)
    mask = torch.rand(total) < 0.7
    mask[0] = True
    policy = (rollout + 0.3 * torch.randn(total)).requires_grad_()
    counts = {"tokens": int(mask.sum()), "sequences": len(lengths)}
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))

    def loss_of(members: list[int]) -> Tensor:
        tokens = torch.isin(owner, torch.tensor(members, dtype=torch.int64))
        ids = torch.unique(owner[tokens], return_inverse=True)[1]
        losses, _ = grpo_policy_loss(
            policy[tokens], rollout[tokens], advantages[tokens], mask[tokens], clip_low=0.2, clip_high=0.2
        )
        return aggregate(losses, mask[tokens], ids, mode=mode, **counts)

    whole = loss_of(list(range(len(lengths))))
    divided = [loss_of([i for i, part in enumerate(parts) if part == which]) for which in range(4)]
    torch.testing.assert_close(sum(divided), whole)
    torch.testing.assert_close(torch.autograd.grad(sum(divided), policy), torch.autograd.grad(whole, policy))


def test_a_sequence_without_action_tokens_adds_nothing() -> None:
    losses = torch.tensor([1.0, 5.0, 3.0])
    mask, ids = torch.tensor([True, False, True]), torch.tensor([0, 1, 2])
    assert aggregate(losses, mask, ids, mode="sequence", tokens=2, sequences=2).item() == 2


def test_aggregate_refuses_an_empty_step_and_an_unknown_mode() -> None:
    losses, mask, ids = torch.ones(1), torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one token"):
        aggregate(losses, mask, ids, mode="token", tokens=0, sequences=1)
    with pytest.raises(ValueError, match="mode must be token or sequence, got 'mean'"):
        aggregate(losses, mask, ids, mode="mean", tokens=1, sequences=1)  # type: ignore[arg-type]


def test_mismatch_sums_over_action_tokens() -> None:
    policy, rollout = torch.tensor([-1.0, -2.0, -9.0]), torch.tensor([-1.5, -1.75, 0.0])
    sums = mismatch(policy, rollout, torch.tensor([True, True, False]))
    expected_kl = sum(math.exp(d) - 1 - d for d in (0.5, -0.25))
    assert {name: value.item() for name, value in sums.items()} == pytest.approx(
        {"logprob_abs_sum": 0.75, "logprob_abs_max": 0.5, "kl_sum": expected_kl, "tokens": 2}
    )
    empty = torch.empty(0)
    assert mismatch(empty, empty, empty.bool())["logprob_abs_max"].item() == 0
