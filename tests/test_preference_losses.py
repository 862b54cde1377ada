"""Preference losses: golden numbers of TRL (float32, CPU), naive scalar versions, and sums over any division."""

import math
from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from algorithms.config_offline import REFERENCE_FREE, DPOConfig, PreferenceLossName, averaged_beta_warning
from algorithms.offline.preference_losses import (
    PairLogprobs,
    matched_references,
    nll_weight,
    preference_loss,
)

PAIRED = [name for name in get_args(PreferenceLossName) if name not in ("kto", "sft")]
SMOOTHED = ("sigmoid", "cpo", "robust", "exo", "aot", "aot_unpaired")


def _pairs(policy_chosen, policy_rejected, reference_chosen=None, reference_rejected=None, tokens=None) -> PairLogprobs:
    zeros, ones = [0.0] * len(policy_chosen), [1] * len(policy_chosen)
    values = [policy_chosen, policy_rejected, reference_chosen or zeros, reference_rejected or zeros]
    tensors = [torch.tensor(x) for x in [*values, *(tokens or (ones, ones))]]
    return PairLogprobs(**dict(zip([field.name for field in fields(PairLogprobs)], tensors, strict=True)))


def _random(count: int, *, seed: int = 0, scale: float = 5.0) -> PairLogprobs:
    generator = torch.Generator().manual_seed(seed)
    policy = -scale * torch.rand(4, count, generator=generator, dtype=torch.float64) - 0.1
    tokens = torch.randint(1, 8, (2, count), generator=generator)
    return PairLogprobs(
        policy_chosen=policy[0],
        policy_rejected=policy[1],
        reference_chosen=policy[2],
        reference_rejected=policy[3],
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
    )


def _part(pairs: PairLogprobs, index: slice) -> PairLogprobs:
    return PairLogprobs(**{field.name: getattr(pairs, field.name)[index] for field in fields(pairs)})


def _config(name: str, **settings: float) -> DPOConfig:
    if name in ("robust", "exo"):
        settings.setdefault("label_smoothing", 0.1)
    return DPOConfig.model_validate({"name": "dpo", "steps": 1, "loss": name, **settings})


def _matched(name, pairs: PairLogprobs) -> PairLogprobs:
    """The pairs as preference_loss expects them, all of them being the update."""
    if name not in ("aot", "aot_unpaired"):
        return pairs
    sums = {key: getattr(pairs, key).detach().double().numpy() for key in SUMS}
    chosen, rejected = (torch.from_numpy(x).to(pairs.policy_chosen) for x in matched_references(name, **sums))
    return replace(pairs, reference_chosen=chosen, reference_rejected=rejected)


SUMS = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
GOLDEN = _pairs(
    [-8.907469, -5.561845],
    [-7.237459, -2.370444],
    [-2.861032, -4.279358],
    [-6.666342, -3.804659],
    ([3, 2], [3, 1]),
)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sigmoid", {}, 0.921054),
        ("hinge", {}, 1.409601),
        ("ipo", {}, 48.32209),
        ("nca", {}, 1.524745),
        ("bco", {}, 1.616120),
        ("sppo", {}, 111.25377),
        ("apo_zero", {}, 1.100128),
        ("apo_down", {}, 1.011165),
        ("sigmoid_norm", {}, 0.795428),
        ("discopop", {}, 0.922091),
        ("robust", {"label_smoothing": 0.1}, 0.972254),
        ("exo", {"label_smoothing": 1e-3}, 3.478215),
        ("aot", {"label_smoothing": 0.1}, 0.880094),
        ("aot_unpaired", {"label_smoothing": 0.1}, 0.880094),
    ],
)
def test_golden_numbers_with_a_reference(name, settings: dict[str, float], expected: float) -> None:
    loss = preference_loss(name, _matched(name, GOLDEN), _config(name, **settings)).mean()
    assert loss.item() == pytest.approx(expected, rel=3e-6)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("simpo", {"beta": 2, "simpo_gamma": 1}, 0.950385),
        ("cpo", {"beta": 0.1}, 0.676053),
        ("orpo", {"beta": 0.1}, 0.059383),
    ],
)
def test_golden_numbers_without_a_reference(name, settings: dict[str, float], expected: float) -> None:
    loss = preference_loss(name, _pairs([-1.2, -0.4], [-2.0, -0.3]), _config(name, **settings)).mean()
    assert loss.item() == pytest.approx(expected, abs=2e-6)


def _naive(name: str, pairs: dict[str, float], beta: float, e: float, gamma: float, tau: float) -> float:
    """One pair, straight from the papers' formulas, without care for large numbers."""

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def ls(x: float) -> float:
        return math.log(s(x))

    lw, ll = pairs["policy_chosen"], pairs["policy_rejected"]
    a, r = lw - pairs["reference_chosen"], ll - pairs["reference_rejected"]
    nw, nl = pairs["chosen_tokens"], pairs["rejected_tokens"]
    d, x = a - r, beta * (a - r)
    odds_w, odds_l = (math.exp(y / n) / (1 - math.exp(y / n)) for y, n in ((lw, nw), (ll, nl)))
    m = s(x / tau)
    return {
        "sigmoid": lambda: -(1 - e) * ls(x) - e * ls(-x),
        "ipo": lambda: (a / nw - r / nl - 1 / (2 * beta)) ** 2,
        "hinge": lambda: max(0.0, 1 - x),
        "robust": lambda: (-(1 - e) * ls(x) + e * ls(-x)) / (1 - 2 * e),
        "exo": lambda: s(x) * (ls(x) - math.log(1 - e)) + s(-x) * (ls(-x) - math.log(e)),
        "nca": lambda: -ls(beta * a) - 0.5 * ls(-beta * a) - 0.5 * ls(-beta * r),
        "bco": lambda: -ls(beta * a) - ls(-beta * r),
        "sppo": lambda: (a - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2,
        "apo_zero": lambda: 1 - s(beta * a) + s(beta * r),
        "apo_down": lambda: s(beta * a) + 1 - s(beta * d),
        "discopop": lambda: -ls(x) * (1 - m) + math.exp(-x) * m,
        "sigmoid_norm": lambda: -ls(beta * (a / nw - r / nl)),
        "simpo": lambda: -ls(beta * (lw / nw - ll / nl) - gamma),
        "cpo": lambda: -(1 - e) * ls(beta * (lw - ll)) - e * ls(-beta * (lw - ll)),
        "orpo": lambda: -beta * ls(math.log(odds_w / odds_l)),
    }[name]()


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("name", [name for name in PAIRED if not name.startswith("aot")])
def test_losses_equal_the_naive_formulas(name, beta: float) -> None:
    pairs, e = _random(40), 0.2 if name in SMOOTHED else 0.0
    own = {"simpo": {"simpo_gamma": 0.8}, "discopop": {"discopop_tau": 0.3}}.get(name, {})
    config = _config(name, beta=beta, label_smoothing=e, **own)
    columns = {field.name: getattr(pairs, field.name).tolist() for field in fields(pairs)}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    expected = [_naive(name, row, beta, e, 0.8, 0.3) for row in rows]
    assert preference_loss(name, pairs, config).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", math.log(2)),
        ("aot", math.log(2)),
        ("aot_unpaired", math.log(2)),
        ("sigmoid_norm", math.log(2)),
        ("nca", 2 * math.log(2)),
        ("bco", 2 * math.log(2)),
        ("hinge", 1),
        ("apo_zero", 1),
        ("apo_down", 1),
        ("ipo", 25),
        ("sppo", 50),
        ("discopop", (math.log(2) + 1) / 2),
        ("robust", math.log(2)),
        ("exo", -math.log(2) - math.log(0.09) / 2),
    ],
)
def test_a_policy_equal_to_its_reference_gives_the_closed_form(name, expected: float) -> None:
    pairs = _random(6)
    pairs = replace(pairs, reference_chosen=pairs.policy_chosen, reference_rejected=pairs.policy_rejected)
    losses = preference_loss(name, _matched(name, pairs), _config(name))
    torch.testing.assert_close(losses, torch.full_like(losses, expected))


@pytest.mark.parametrize("name", REFERENCE_FREE[:3])
def test_losses_without_a_reference_do_not_read_it(name) -> None:
    pairs = _random(6)
    other = replace(pairs, reference_chosen=pairs.reference_chosen - 3)
    assert torch.equal(preference_loss(name, pairs, _config(name)), preference_loss(name, other, _config(name)))


@pytest.mark.parametrize("name", [name for name in PAIRED if name != "aot_unpaired"])
def test_gradients_are_those_of_the_values(name) -> None:
    pairs, config = _random(5, seed=1), _config(name, beta=0.4)
    policy = (pairs.policy_chosen.requires_grad_(), pairs.policy_rejected.requires_grad_())

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return preference_loss(name, replace(pairs, policy_chosen=chosen, policy_rejected=rejected), config)

    assert torch.autograd.gradcheck(loss, policy)


@pytest.mark.parametrize("name", PAIRED)
def test_losses_and_gradients_are_finite_at_extreme_logprobs(name) -> None:
    extremes = [(0.0, -9000.0), (-9000.0, 0.0), (0.0, 0.0), (-1e-7, -1e-7), (-9000.0, -9000.0), (-1e-30, -90.0)]
    chosen, rejected = (torch.tensor(side, requires_grad=True) for side in zip(*extremes, strict=True))
    tokens = torch.tensor([1, 1, 0, 1, 2, 1])
    pairs = PairLogprobs(
        policy_chosen=chosen,
        policy_rejected=rejected,
        reference_chosen=torch.full([6], -40.0),
        reference_rejected=torch.full([6], -50.0),
        chosen_tokens=tokens,
        rejected_tokens=tokens,
    )
    losses = preference_loss(name, _matched(name, pairs), _config(name, beta=1))
    assert losses.isfinite().all()
    for gradient in torch.autograd.grad(losses.sum(), (chosen, rejected)):
        assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("distance", [10.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize(("name", "settings"), [*[(name, {}) for name in PAIRED], ("discopop", {"discopop_tau": 2.0})])
def test_a_pair_in_the_wrong_order_is_put_right_at_any_log_ratio(name, settings, distance: float) -> None:
    pairs = _pairs([-1.0 - distance], [-1.0], [-1.0], [-1.0])
    pairs.policy_chosen.requires_grad_()
    pairs.policy_rejected.requires_grad_()
    loss = preference_loss(name, _matched(name, pairs), _config(name, **settings))
    chosen, rejected = torch.autograd.grad(loss.sum(), (pairs.policy_chosen, pairs.policy_rejected))
    assert loss.isfinite() and chosen.isfinite() and rejected.isfinite()
    assert chosen <= 1e-8 and rejected >= 0
    # The losses of bounded value have no gradient left so far away.
    assert rejected > 0 or (name in ("exo", "apo_down") and distance > 100)


def test_losses_are_accurate_where_the_sigmoid_saturates() -> None:
    pairs = _pairs([0.0, -80.0, -60.0], [-80.0, 0.0, 0.0])
    torch.testing.assert_close(
        preference_loss("sigmoid", pairs, _config("sigmoid", beta=1)), torch.tensor([math.exp(-80), 80, 60])
    )
    # exp(-d) alone is infinite in float32 at d = -100, where its product with the modulation is 0.
    loss = preference_loss("discopop", _pairs([-100.0], [0.0]), _config("discopop", beta=1))
    assert loss.item() == pytest.approx(100)
    # 1 - e^x in float32 would be wrong by half a percent here.
    odds = [math.exp(x) / -math.expm1(x) for x in (-1e-5, -1.3e-5)]
    loss = preference_loss("orpo", _pairs([-1e-5], [-1.3e-5]), _config("orpo", beta=1))
    assert loss.item() == pytest.approx(math.log1p(odds[1] / odds[0]), rel=1e-5)


def test_robust_loss_is_unbiased_under_swapped_labels() -> None:
    pairs, config = _random(10), _config("robust", label_smoothing=0.3)
    swapped = PairLogprobs(
        policy_chosen=pairs.policy_rejected,
        policy_rejected=pairs.policy_chosen,
        reference_chosen=pairs.reference_rejected,
        reference_rejected=pairs.reference_chosen,
        chosen_tokens=pairs.rejected_tokens,
        rejected_tokens=pairs.chosen_tokens,
    )
    noisy = 0.7 * preference_loss("robust", pairs, config) + 0.3 * preference_loss("robust", swapped, config)
    torch.testing.assert_close(noisy, preference_loss("sigmoid", pairs, _config("sigmoid")))


def _sorted_loss(name: str, pairs: PairLogprobs, beta: float, e: float) -> Tensor:
    if name == "aot":
        policy = torch.sort(pairs.policy_chosen - pairs.policy_rejected, stable=True).values
        difference = policy - torch.sort(pairs.reference_chosen - pairs.reference_rejected, stable=True).values
    else:
        difference = torch.sort(pairs.policy_chosen - pairs.reference_chosen, stable=True).values
        difference = difference - torch.sort(pairs.policy_rejected - pairs.reference_rejected, stable=True).values
    return (-(1 - e) * logsigmoid(beta * difference) - e * logsigmoid(-beta * difference)).sum()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_matched_references_give_the_loss_and_gradient_of_sorting_the_update(name, ties: bool) -> None:
    for seed in range(10):
        pairs = _random(13, seed=seed, scale=8)
        if ties:
            pairs = replace(pairs, **{key: getattr(pairs, key).round() for key in SUMS})
        policy = (pairs.policy_chosen.requires_grad_(), pairs.policy_rejected.requires_grad_())
        expected = _sorted_loss(name, pairs, 0.3, 0.1)
        config, matched = _config(name, beta=0.3, label_smoothing=0.1), _matched(name, pairs)
        # In micro-batches of 5, 1 and 7 pairs, as a step is.
        parts = [_part(matched, part) for part in (slice(0, 5), slice(5, 6), slice(6, 13))]
        loss = torch.stack([preference_loss(name, part, config).sum() for part in parts]).sum()
        torch.testing.assert_close(loss, expected)
        gradients = torch.autograd.grad(loss, policy), torch.autograd.grad(expected, policy)
        torch.testing.assert_close(*gradients)


def test_aot_and_its_unpaired_form_differ_from_each_other_and_from_dpo() -> None:
    pairs = _random(13, scale=8)
    names = ("aot", "aot_unpaired", "sigmoid")
    losses = [preference_loss(name, _matched(name, pairs), _config(name, beta=0.3)).mean().item() for name in names]
    assert min(abs(losses[0] - losses[1]), abs(losses[0] - losses[2]), abs(losses[1] - losses[2])) > 1e-3


def test_equal_values_keep_their_order_among_many() -> None:
    """numpy's default sort keeps it only among few."""
    policy, reference = (np.random.default_rng(seed).integers(3, size=200).astype(np.float64) for seed in (0, 1))
    order = {value: iter(np.flatnonzero(reference == value)) for value in range(3)}
    ranked = [int(next(order[value])) for value in np.sort(reference)]
    partner = np.empty(200, dtype=int)
    for rank, pair in enumerate(sorted(range(200), key=lambda pair: policy[pair])):
        partner[pair] = ranked[rank]
    numbers = np.arange(200.0)
    chosen, rejected = matched_references(
        "aot",
        policy_chosen=policy,
        policy_rejected=np.zeros(200),
        reference_chosen=reference + numbers,
        reference_rejected=numbers,
    )
    assert rejected.tolist() == partner.tolist() and (chosen - rejected).tolist() == reference[partner].tolist()


def test_matched_references_refuse_other_losses_and_unequal_lengths() -> None:
    sums = {key: np.zeros(2) for key in SUMS}
    with pytest.raises(ValueError, match="only aot and aot_unpaired match references, got sigmoid"):
        matched_references("sigmoid", **sums)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got lengths \[2, 2, 2, 3\]"):
        matched_references("aot", **{**sums, "reference_rejected": np.zeros(3)})
    empty = matched_references("aot_unpaired", **{key: np.zeros(0) for key in SUMS})
    assert [len(x) for x in empty] == [0, 0]


@pytest.mark.parametrize("name", PAIRED)
def test_a_pair_s_loss_does_not_depend_on_its_micro_batch(name) -> None:
    pairs, config = _random(7), _config(name)
    alone = [preference_loss(name, _part(pairs, slice(i, i + 1)), config) for i in range(7)]
    torch.testing.assert_close(torch.cat(alone), preference_loss(name, pairs, config))
    assert preference_loss(name, _part(pairs, slice(0)), config).sum().item() == 0


@pytest.mark.parametrize("name", ["kto", "sft"])
def test_losses_that_compare_no_pairs_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"compares pairs, got {name}"):
        preference_loss(name, GOLDEN, _config(name))


def test_nll_weight_is_that_of_the_loss() -> None:
    own = {"cpo": {"cpo_alpha": 0.3}}
    weights = {name: nll_weight(name, _config(name, **own.get(name, {}))) for name in get_args(PreferenceLossName)}
    assert weights == dict.fromkeys(weights, 0.0) | {"cpo": 0.3, "orpo": 1.0, "sft": 1.0}


def test_beta_of_summed_logprobs_is_warned_about_where_they_are_averaged() -> None:
    warning = averaged_beta_warning(_config("simpo", beta=0.1))
    assert warning is not None and warning.startswith("algorithm.beta: 0.1 ") and "simpo" in warning
    assert "2 to 10" in warning and "\n" not in warning
    assert averaged_beta_warning(_config("sigmoid_norm")) is not None
    assert averaged_beta_warning(_config("simpo", beta=2)) is None
    for name in ("sigmoid", "ipo", "orpo", "cpo"):
        assert averaged_beta_warning(_config(name, beta=0.1)) is None
