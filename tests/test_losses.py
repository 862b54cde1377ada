"""Losses: golden numbers of TRL (float32, CPU), and sums that do not depend on how a step is divided."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from algorithms.losses import aggregate, masked_sum, nll_loss
from algorithms.rl.losses import (
    cispo_policy_loss,
    clipped_policy_loss,
    clipped_value_loss,
    gspo_policy_loss,
    importance_weights,
    kl_penalty,
    mismatch,
    sapo_policy_loss,
    weighted_kl_penalty,
)

POLICY = [
    [-0.012791, -0.316708, -0.857527, -0.080864],
    [-1.414843, -0.180349, -2.315598, -2.231098],
    [-1.783264, -2.66357, -1.353094, -2.398472],
]
OLD = [
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


SURROGATES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "clip": lambda *args: clipped_policy_loss(*args[:4], clip_low=0.2, clip_high=0.2),
    "dual clip": lambda *args: clipped_policy_loss(*args[:4], clip_low=0.2, clip_high=0.2, dual_clip=1.5),
    "gspo": lambda *args: gspo_policy_loss(*args, clip_low=0.2, clip_high=0.2),
    "cispo 5": lambda *args: cispo_policy_loss(*args[:4], cispo_max_ratio=5),
    "cispo 0.2": lambda *args: cispo_policy_loss(*args[:4], cispo_max_ratio=0.2),
    "sapo": lambda *args: sapo_policy_loss(*args[:4], sapo_temperatures=(1.0, 1.05)),
}
"""Losses of (policy_logprobs, old_logprobs, advantages, mask, sequence_ids)."""


@pytest.mark.parametrize(
    ("name", "mode", "kl_coef", "expected"),
    [
        ("clip", "sequence", 0, -0.221139),
        ("dual clip", "sequence", 0, -0.221139),
        ("clip", "sequence", 0.04, -0.220005),
        ("clip", "token", 0, -0.356175),
        ("clip", "constant", 0, -0.178087),
        ("gspo", "sequence", 0, -0.245853),
        ("cispo 5", "token", 0, 0.326260),
        ("cispo 0.2", "token", 0, 0.049117),
        ("sapo", "sequence", 0, -0.591686),
    ],
)
def test_golden_numbers(name: str, mode, kl_coef: float, expected: float) -> None:
    policy = _flat(POLICY)
    losses, _ = SURROGATES[name](policy, _flat(OLD), ADVANTAGES, MASK, IDS)
    losses = losses + kl_coef * kl_penalty(policy, _flat(REFERENCE), "k3")
    loss = aggregate(losses, MASK, IDS, mode=mode, tokens=int(MASK.sum()), sequences=3, constant=6)
    assert loss.item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("name", ["clip", "dual clip", "gspo", "cispo 5", "sapo"])
def test_ratio_one_gives_the_policy_gradient(name: str) -> None:
    policy = _flat(POLICY).double().requires_grad_()
    losses, clipped = SURROGATES[name](policy, policy.detach(), ADVANTAGES.double(), MASK, IDS)
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    expected = (-ADVANTAGES * MASK).double()
    torch.testing.assert_close(gradient, expected)
    assert not clipped.any()
    # The value is that of -A, but for CISPO, whose surrogate is A log pi, and SAPO, whose gate is 2 / tau there.
    factor = {"cispo 5": policy.detach(), "sapo": 2 / torch.where(ADVANTAGES > 0, 1.0, 1.05).double()}.get(name, 1)
    torch.testing.assert_close(losses, expected * factor)


def test_clip_bounds_each_side_and_reports_where_the_gradient_ends() -> None:
    #                     above  below  above  below  inside inside outside the mask
    ratio = torch.tensor([1.50, 0.50, 1.50, 0.50, 1.25, 0.95, 1.50])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 1.0])
    mask = torch.tensor([True] * 6 + [False])
    policy = ratio.log().requires_grad_()
    losses, clipped = clipped_policy_loss(policy, torch.zeros(7), advantages, mask, clip_low=0.1, clip_high=0.3)
    torch.testing.assert_close(losses, torch.tensor([-1.3, -0.5, 1.5, 0.9, -1.25, 0.95, 0.0]))
    assert clipped.tolist() == [True, False, False, True, False, False, False]
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert ((gradient == 0) == (clipped | ~mask)).all()


def test_dual_clip_bounds_what_a_negative_advantage_costs() -> None:
    #                     bound  inside  A > 0  below  outside the mask
    ratio = torch.tensor([9.00, 2.50, 9.00, 0.50, 9.00])
    advantages = torch.tensor([-2.0, -2.0, 2.0, -2.0, -2.0])
    mask = torch.tensor([True] * 4 + [False])
    policy = ratio.log().requires_grad_()
    bounds = {"clip_low": 0.2, "clip_high": 0.2}
    losses, clipped = clipped_policy_loss(policy, torch.zeros(5), advantages, mask, **bounds, dual_clip=3.0)
    torch.testing.assert_close(losses, torch.tensor([6.0, 5.0, -2.4, 1.6, 0.0]))
    assert clipped.tolist() == [True, False, True, True, False]
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert ((gradient == 0) == (clipped | ~mask)).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), delta=st.floats(1.3, 4))
def test_dual_clip_is_the_two_sided_cap_of_the_unclipped_ratio(seed: int, delta: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    policy, advantages = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    losses, _ = clipped_policy_loss(
        policy, torch.zeros(50), advantages, advantages > -9, clip_low=0.2, clip_high=0.28, dual_clip=delta
    )
    for loss, logprob, advantage in zip(losses.tolist(), policy.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(logprob)
        expected = -min(min(ratio, delta) * advantage, min(max(ratio, 0.8), 1.28) * advantage)
        assert loss == pytest.approx(expected, rel=1e-9)


def test_gspo_is_a_loop_over_sequences_and_its_gradient_is_shared_by_their_tokens() -> None:
    policy, old = _flat(POLICY).double().requires_grad_(), _flat(OLD).double()
    advantages = torch.tensor([1.0, -0.5, 0.3]).double().repeat_interleave(4)
    losses, clipped = gspo_policy_loss(policy, old, advantages, MASK, IDS, clip_low=0.5, clip_high=0.05)
    expected, cut = [], []
    for row in range(3):
        at = [i for i in range(4 * row, 4 * row + 4) if MASK[i]]
        ratio = math.exp(math.fsum(policy[i].item() - old[i].item() for i in at) / len(at))
        advantage = advantages[at[0]].item()
        low, high = ratio * advantage, min(max(ratio, 0.5), 1.05) * advantage
        cut.append(high < low)
        expected.append((-min(low, high), 0 if high < low else -ratio * advantage / len(at) / 3))
    for i in range(12):
        row = i // 4
        assert losses[i].item() == pytest.approx(expected[row][0] if MASK[i] else 0)
        assert clipped[i].item() == (cut[row] and bool(MASK[i]))
    loss = aggregate(losses, MASK, IDS, mode="sequence", tokens=9, sequences=3)
    assert loss.item() == pytest.approx(sum(value for value, _ in expected) / 3)
    (gradient,) = torch.autograd.grad(loss, policy)
    assert gradient.tolist() == pytest.approx([expected[i // 4][1] if MASK[i] else 0 for i in range(12)])
    assert not cut[1] and any(clipped_policy_loss(policy, old, advantages, MASK, clip_low=0.5, clip_high=0.05)[1])


def test_cispo_weighs_the_policy_gradient_by_the_capped_ratio() -> None:
    ratio, advantages = torch.tensor([3.0, 3.0, 0.5, 3.0]), torch.tensor([1.0, -1.0, 2.0, 1.0])
    mask = torch.tensor([True, True, True, False])
    policy = torch.tensor([-1.0, -2.0, -0.5, -1.0], requires_grad=True)
    losses, capped = cispo_policy_loss(policy, policy.detach() - ratio.log(), advantages, mask, cispo_max_ratio=2.0)
    torch.testing.assert_close(losses, torch.tensor([2.0, -4.0, 0.5, 0.0]))
    assert capped.tolist() == [True, True, False, False]
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    torch.testing.assert_close(gradient, torch.tensor([-2.0, 2.0, -1.0, 0.0]))


def test_sapo_gates_by_the_sign_of_the_advantage() -> None:
    policy = torch.tensor([0.4, 0.4, -0.7, 3.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([2.0, -2.0, -1.0, 1.0], dtype=torch.float64)
    mask = torch.tensor([True, True, True, False])
    losses, clipped = sapo_policy_loss(policy, torch.zeros(4), advantages, mask, sapo_temperatures=(1.0, 3.0))
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert not clipped.any() and losses[3] == 0 and gradient[3] == 0
    for i, tau in enumerate((1.0, 3.0, 3.0)):
        ratio, advantage = math.exp(policy[i].item()), advantages[i].item()
        gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
        assert losses[i].item() == pytest.approx(-4 / tau * gate * advantage)
        assert gradient[i].item() == pytest.approx(-4 * gate * (1 - gate) * ratio * advantage)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_ignore_what_is_not_finite_outside_the_mask(name: str) -> None:
    rows = [_flat(POLICY), _flat(OLD), ADVANTAGES]
    policy = rows[0].clone().requires_grad_()
    losses, _ = SURROGATES[name](policy, *rows[1:], MASK, IDS)
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    outside = (~MASK).nonzero().flatten()
    for junk in ((-math.inf, 0.0, 0.0), (0.0, -math.inf, math.nan), (-math.inf, -math.inf, math.inf)):
        spoiled = [row.index_fill(0, outside, value) for row, value in zip(rows, junk, strict=True)]
        spoiled[0].requires_grad_()
        same, _ = SURROGATES[name](*spoiled, MASK, IDS)
        assert torch.equal(same, losses)
        assert torch.equal(torch.autograd.grad(same.sum(), spoiled[0])[0], gradient)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_of_nothing_are_zero(name: str) -> None:
    empty = torch.empty(0)
    losses, clipped = SURROGATES[name](empty, empty, empty, empty.bool(), empty.long())
    assert losses.shape == clipped.shape == (0,)
    policy = _flat(POLICY).requires_grad_()
    losses, clipped = SURROGATES[name](policy, _flat(OLD), ADVANTAGES, torch.zeros_like(MASK), IDS)
    assert not losses.any() and not clipped.any()
    assert not torch.autograd.grad(losses.sum(), policy)[0].any()


def test_k3_is_accurate_for_small_differences() -> None:
    policy = torch.tensor([-1.0, -1.0, -2.0])
    difference = torch.tensor([2.0**-12, -(2.0**-12), 0.0])
    expected = [math.expm1(d) - d for d in difference.tolist()]
    # exp(d) - d - 1 in float32 would be wrong by a third of the value here.
    torch.testing.assert_close(kl_penalty(policy, policy + difference, "k3"), torch.tensor(expected), rtol=2e-3, atol=0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=8))
def test_kl_estimators_are_their_formulas(pairs: list[tuple[float, float]]) -> None:
    policy, reference = torch.tensor(pairs, dtype=torch.float64).T
    for i, (ours, theirs) in enumerate(pairs):
        difference = ours - theirs
        assert kl_penalty(policy, reference, "k1")[i].item() == difference
        assert kl_penalty(policy, reference, "k2")[i].item() == pytest.approx(difference**2 / 2)
        k3 = kl_penalty(policy, reference, "k3")[i].item()
        assert k3 == pytest.approx(math.exp(-difference) - 1 + difference, abs=1e-9) and k3 >= 0


def test_estimators_and_their_gradients_in_expectation() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    policy, reference = logits.log_softmax(0), torch.randn(7, dtype=torch.float64).log_softmax(0)
    kl = (policy.exp() * (policy - reference)).sum()
    reverse = (reference.exp() * (reference - policy)).sum()
    # The tokens are samples: their probabilities carry no gradient, as in training.
    means = {name: (policy.exp().detach() * kl_penalty(policy, reference, name)).sum() for name in ("k1", "k2", "k3")}
    gradients = {name: torch.autograd.grad(mean, logits, retain_graph=True)[0] for name, mean in means.items()}
    torch.testing.assert_close(means["k1"], kl)
    torch.testing.assert_close(means["k3"], kl)
    torch.testing.assert_close(gradients["k1"], torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(gradients["k2"], torch.autograd.grad(kl, logits, retain_graph=True)[0])
    torch.testing.assert_close(gradients["k3"], torch.autograd.grad(reverse, logits)[0])


EXTREMES = [-1e4, -100.0, -88.8, -41.0, -3.0, 3.0, 41.0, 88.8, 100.0, 1e4]


@pytest.mark.parametrize("difference", EXTREMES)
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_leads_to_the_reference_at_any_distance(estimator, difference: float) -> None:
    policy = torch.tensor([-5.0], requires_grad=True)
    value = kl_penalty(policy, policy.detach() - difference, estimator)
    (gradient,) = torch.autograd.grad(value.sum(), policy)
    assert value.isfinite() and value > 0 and gradient.isfinite()
    assert gradient.sign() == math.copysign(1, difference)  # descent moves the policy to the reference
    if estimator == "k3" and difference < -40:
        assert gradient < -2e17


@pytest.mark.parametrize("difference", EXTREMES)
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_finite_and_rightly_directed_at_any_ratio(
    name: str, advantage: float, difference: float
) -> None:
    policy = torch.tensor([-5.0], requires_grad=True)
    old, mask = policy.detach() - difference, torch.ones(1, dtype=torch.bool)
    losses, cut = SURROGATES[name](policy, old, torch.tensor([advantage]), mask, torch.zeros(1, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert losses.isfinite().all() and gradient.isfinite().all()
    assert gradient * advantage <= 0  # descent makes what has a positive advantage likelier
    if advantage and name != "sapo" and difference > -88:  # below, nothing is left of the ratio; SAPO's gate is closed
        assert bool(gradient != 0) == (name.startswith("cispo") or not cut)


@pytest.mark.parametrize("difference", EXTREMES)
def test_the_weighted_kl_and_importance_weights_are_finite_at_any_ratio(difference: float) -> None:
    mask, ids = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    for other in EXTREMES:
        policy = torch.tensor([-5.0], requires_grad=True)
        start = policy.detach()
        value = weighted_kl_penalty(policy, start - other, start - difference, mask, "k3")
        (gradient,) = torch.autograd.grad(value.sum(), policy)
        assert value.isfinite() and gradient.isfinite()
    weights = importance_weights(start, start - difference, mask, ids, level="sequence", mode="truncate", cap=2.0)
    assert weights == pytest.approx(min(2.0, math.exp(min(difference, 50))))


def test_the_weighted_kl_and_its_gradient_are_unbiased_off_policy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    policy = logits.log_softmax(0)
    old, reference = (torch.randn(7, dtype=torch.float64).log_softmax(0) for _ in range(2))
    kl = (policy.exp() * (policy - reference)).sum()
    exact = torch.autograd.grad(kl, logits, retain_graph=True)[0]
    mask = torch.ones(7, dtype=torch.bool)
    for estimator in ("k1", "k3"):
        mean = (old.exp() * weighted_kl_penalty(policy, old, reference, mask, estimator)).sum()
        torch.testing.assert_close(mean, kl)
        torch.testing.assert_close(torch.autograd.grad(mean, logits, retain_graph=True)[0], exact)
        plain = (old.exp() * kl_penalty(policy, reference, estimator)).sum()
        assert abs((plain - kl).item()) > 0.01


def test_the_weighted_kl_is_a_loop_over_action_tokens() -> None:
    policy, old, reference = _flat(POLICY), _flat(OLD), _flat(REFERENCE)
    unread = torch.where(MASK, 0.0, math.inf)
    found = weighted_kl_penalty(policy + unread, old - unread, reference + unread, MASK, "k3")
    for i in range(12):
        d = (reference - policy)[i].item()
        expected = math.exp((policy - old)[i].item()) * (math.exp(d) - 1 - d) if MASK[i] else 0.0
        assert found[i].item() == pytest.approx(expected, rel=1e-4)


def test_kl_penalty_refuses_an_unknown_estimator() -> None:
    with pytest.raises(ValueError, match="estimator must be k1, k2 or k3, got 'k4'"):
        kl_penalty(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_weights_are_a_loop(level, mode) -> None:
    generator = torch.Generator().manual_seed(1)
    old, rollout = -torch.rand(2, 40, generator=generator, dtype=torch.float64)
    mask = torch.rand(40, generator=generator) < 0.8
    ids = torch.arange(8).repeat_interleave(5)
    weights = importance_weights(old.requires_grad_(), rollout, mask, ids, level=level, mode=mode, cap=1.1)
    assert not weights.requires_grad
    expected = []
    for i in range(40):
        members = [j for j in range(40) if ids[j] == ids[i] and mask[j]] if level == "sequence" else [i]
        weight = math.prod(math.exp(old[j].item() - rollout[j].item()) for j in members)
        beyond = 1.1 if mode == "truncate" else 0.0
        expected.append((weight if weight <= 1.1 else beyond) if mask[i] else 0.0)
    assert weights.tolist() == pytest.approx(expected)
    assert any(0 < weight < 1.1 for weight in expected) and expected.count(1.1 if mode == "truncate" else 0.0) > 8


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_weights_are_one_where_trainer_and_sampler_agree(level) -> None:
    old = _flat(OLD)
    rollout = torch.where(MASK, old, -math.inf)
    weights = importance_weights(old, rollout, MASK, IDS, level=level, mode="mask", cap=1.0)
    assert torch.equal(weights, MASK.float())
    impossible = old.index_fill(0, torch.tensor([0]), -math.inf)
    weights = importance_weights(old, impossible, MASK, IDS, level=level, mode="truncate", cap=2.0)
    assert weights[0] == 2 and weights[1] == (2 if level == "sequence" else 1) and weights[4] == 1


def test_importance_weights_refuse_unknown_names() -> None:
    one = (torch.zeros(1), torch.zeros(1), torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="level must be token or sequence, got 'batch'"):
        importance_weights(*one, level="batch", mode="mask", cap=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode must be truncate or mask, got 'drop'"):
        importance_weights(*one, level="token", mode="drop", cap=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_is_a_loop_and_says_where_its_gradient_ends(clip: float | None) -> None:
    generator = torch.Generator().manual_seed(2)
    old, returns = torch.randn(2, 60, generator=generator, dtype=torch.float64)
    values = (old + 0.4 * torch.randn(60, generator=generator)).requires_grad_()
    mask = torch.arange(60) % 5 != 0
    losses, clipped = clipped_value_loss(values, old, returns, mask, clip=clip)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    cut = 0
    for i in range(60):
        value, before, target = values[i].item(), old[i].item(), returns[i].item()
        bounded = value if clip is None else min(max(value, before - clip), before + clip)
        loss = max((value - target) ** 2, (bounded - target) ** 2) / 2
        constant = (bounded - target) ** 2 > (value - target) ** 2
        assert losses[i].item() == pytest.approx(loss if mask[i] else 0)
        assert clipped[i].item() == (constant and bool(mask[i]))
        assert gradient[i].item() == pytest.approx(value - target if mask[i] and not constant else 0)
        cut += clipped[i].item()
    assert (cut > 0) == (clip is not None)


def test_value_loss_ignores_what_is_not_finite_outside_the_mask() -> None:
    values = torch.tensor([1.0, math.inf, -math.inf], requires_grad=True)
    old, returns = torch.tensor([0.0, math.nan, 0.0]), torch.tensor([3.0, math.inf, math.nan])
    mask = torch.tensor([True, False, False])
    losses, clipped = clipped_value_loss(values, old, returns, mask, clip=0.5)
    assert losses.tolist() == [3.125, 0, 0] and clipped.tolist() == [True, False, False]
    losses, _ = clipped_value_loss(values, old, returns, mask, clip=None)
    assert torch.autograd.grad(losses.sum(), values)[0].tolist() == [-2, 0, 0]


def test_masked_tokens_do_not_count_even_if_not_finite() -> None:
    mask = torch.tensor([True, False, True])
    assert masked_sum(torch.tensor([1.0, math.nan, 2.0]), mask).item() == 3
    assert nll_loss(torch.tensor([-1.0, -math.inf, -2.0]), mask).tolist() == [1, 0, 2]


def _weighted(*args: Tensor) -> tuple[Tensor, Tensor]:
    """A surrogate with sequence weights and a KL penalty."""
    policy, old, _, mask, ids = args
    weights = importance_weights(old, 0.9 * old, mask, ids, level="sequence", mode="mask", cap=0.9)
    losses, clipped = SURROGATES["clip"](*args)
    return weights * losses + 0.1 * kl_penalty(policy, 0.7 * old, "k2"), clipped


def _values(*args: Tensor) -> tuple[Tensor, Tensor]:
    """The critic's loss, on the same inputs."""
    values, old, returns, mask, _ = args
    return clipped_value_loss(values, old, returns, mask, clip=0.2)


@pytest.mark.parametrize("mode", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", [*SURROGATES, "weighted", "value"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_division_into_micro_batches_gives_the_same_loss_and_gradient(name: str, mode, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    parts = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    total = sum(lengths)
    old, advantages = -torch.rand(total, dtype=torch.float64), torch.randn(total, dtype=torch.float64)
    mask = torch.rand(total) < 0.7
    mask[0] = True
    policy = (old + 0.3 * torch.randn(total)).requires_grad_()
    counts = {"tokens": int(mask.sum()), "sequences": len(lengths), "constant": 6}
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    surrogate = {**SURROGATES, "weighted": _weighted, "value": _values}[name]

    def loss_of(members: list[int]) -> Tensor:
        tokens = torch.isin(owner, torch.tensor(members, dtype=torch.int64))
        ids = torch.unique(owner[tokens], return_inverse=True)[1]
        losses, _ = surrogate(policy[tokens], old[tokens], advantages[tokens], mask[tokens], ids)
        return aggregate(losses, mask[tokens], ids, mode=mode, **counts)

    whole = loss_of(list(range(len(lengths))))
    divided = [loss_of([i for i, part in enumerate(parts) if part == which]) for which in range(4)]
    torch.testing.assert_close(sum(divided), whole)
    torch.testing.assert_close(torch.autograd.grad(sum(divided), policy), torch.autograd.grad(whole, policy))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_aggregate_is_a_loop_over_sequences(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    losses, mask = torch.randn(sum(lengths), dtype=torch.float64), torch.rand(sum(lengths)) < 0.6
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    rows = [losses[(ids == i) & mask].tolist() for i in range(len(lengths))]
    expected = {
        "token": sum(map(sum, rows)) / 7,
        "sequence": sum(sum(row) / len(row) for row in rows if row) / 5,
        "constant": sum(map(sum, rows)) / (5 * 11),
    }
    for mode, value in expected.items():
        loss = aggregate(losses, mask, ids, mode=mode, tokens=7, sequences=5, constant=11)  # type: ignore[arg-type]
        assert loss.item() == pytest.approx(value, abs=1e-12)


def test_a_sequence_without_action_tokens_adds_nothing() -> None:
    losses = torch.tensor([1.0, 5.0, 3.0])
    mask, ids = torch.tensor([True, False, True]), torch.tensor([0, 1, 2])
    assert aggregate(losses, mask, ids, mode="sequence", tokens=2, sequences=2).item() == 2


def test_aggregate_refuses_an_empty_step_and_an_unknown_mode() -> None:
    losses, mask, ids = torch.ones(1), torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one token"):
        aggregate(losses, mask, ids, mode="token", tokens=0, sequences=1)
    with pytest.raises(ValueError, match="mode must be token, sequence or constant, got 'mean'"):
        aggregate(losses, mask, ids, mode="mean", tokens=1, sequences=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one sequence"):
        aggregate(losses, mask, ids, mode="constant", tokens=1, sequences=0, constant=4)
    for constant in (None, 0):
        with pytest.raises(ValueError, match="constant must be above 0 with mode constant"):
            aggregate(losses, mask, ids, mode="constant", tokens=1, sequences=1, constant=constant)


def test_mismatch_sums_over_action_tokens() -> None:
    policy, rollout = torch.tensor([-1.0, -2.0, -9.0]), torch.tensor([-1.5, -1.75, 0.0])
    sums = mismatch(policy, rollout, torch.tensor([True, True, False]))
    expected_kl = sum(math.exp(d) - 1 - d for d in (0.5, -0.25))
    assert {name: value.item() for name, value in sums.items()} == pytest.approx(
        {"logprob_abs_sum": 0.75, "logprob_abs_max": 0.5, "kl_sum": expected_kl, "tokens": 2}
    )
    empty = torch.empty(0)
    assert mismatch(empty, empty, empty.bool())["logprob_abs_max"].item() == 0


def test_a_sequence_of_one_token_has_the_ratio_of_its_token() -> None:
    policy, old = torch.tensor([-1.0, -0.5]), torch.tensor([-1.25, -1.5])
    advantages, mask, bounds = (
        torch.tensor([1.0, -2.0]),
        torch.tensor([True, True]),
        {"clip_low": 0.9, "clip_high": 9.0},
    )
    by_token = clipped_policy_loss(policy, old, advantages, mask, **bounds)
    by_sequence = gspo_policy_loss(policy, old, advantages, mask, torch.tensor([0, 1]), **bounds)
    for one, other in zip(by_token, by_sequence, strict=True):
        assert one.tolist() == other.tolist()


def test_a_ratio_at_its_cap_is_not_cut() -> None:
    logprobs, mask = torch.tensor([-1.0, -2.0]), torch.tensor([True, True])
    losses, cut = cispo_policy_loss(logprobs, logprobs, torch.tensor([1.0, -1.0]), mask, cispo_max_ratio=1.0)
    assert losses.tolist() == [1.0, -2.0] and cut.tolist() == [False, False]


def test_a_loss_at_the_bound_of_the_dual_clip_is_not_cut() -> None:
    policy, old, mask = torch.tensor([0.5]), torch.tensor([-0.25]), torch.tensor([True])
    ratio = torch.exp(policy - old).item()
    losses, cut = clipped_policy_loss(
        policy, old, torch.tensor([-1.0]), mask, clip_low=0.2, clip_high=0.2, dual_clip=ratio
    )
    assert losses.tolist() == [ratio] and cut.tolist() == [False]


def test_a_sequence_may_stand_for_one_token() -> None:
    losses, mask, ids = torch.tensor([1.0, 2.0]), torch.tensor([True, True]), torch.tensor([0, 0])
    assert aggregate(losses, mask, ids, mode="constant", tokens=2, sequences=2, constant=1).item() == 1.5
