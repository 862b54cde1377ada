"""Losses of single responses and of reward models' scores, and the calibration of the latter."""

import math

import numpy as np
import pytest
import torch

from algorithms.offline.preference_losses import (
    bradley_terry_loss,
    centering_penalty,
    expected_calibration_error,
    kto_loss,
)


def test_kto_equals_the_naive_formula_and_its_gradient() -> None:
    policy, reference = -5 * torch.rand(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy, kl = policy.requires_grad_(), 0.7
    desirable = torch.arange(9) % 3 == 0
    settings = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.8}

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = [
        1.5 * (1 - sigmoid(0.3 * (x - kl))) if good else 0.8 * (1 - sigmoid(0.3 * (kl - x)))
        for x, good in zip((policy - reference).tolist(), desirable.tolist(), strict=True)
    ]
    losses = kto_loss(policy, reference, desirable, kl, **settings)
    assert losses.tolist() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda x: kto_loss(x, reference, desirable, kl, **settings), policy)


def test_kto_closed_forms_and_extremes() -> None:
    weights = {"desirable_weight": 1.0, "undesirable_weight": 4.0}
    desirable = torch.tensor([True, False])
    losses = kto_loss(torch.zeros(2), torch.zeros(2), desirable, 0.0, beta=0.1, **weights)
    assert losses.tolist() == [0.5, 2]
    policy = torch.tensor([-9000.0, -9000.0], requires_grad=True)
    losses = kto_loss(policy, torch.zeros(2), desirable, 0.0, beta=1, **weights)
    assert losses.tolist() == [1, 0]
    assert torch.autograd.grad(losses.sum(), policy)[0].isfinite().all()
    for kl in (-0.1, math.nan):
        with pytest.raises(ValueError, match="kl must be at least 0"):
            kto_loss(policy, policy, desirable, kl, beta=1, **weights)


def test_bradley_terry_and_centering() -> None:
    chosen, rejected = torch.tensor([0.0, 2.0, -90.0, 90.0]), torch.tensor([0.0, -1.0, 10.0, -10.0])
    losses = bradley_terry_loss(chosen, rejected, torch.tensor([0.0, 0.5, 0.0, 0.0]))
    expected = torch.tensor([math.log(2), math.log1p(math.exp(-2.5)), 100, 0])
    torch.testing.assert_close(losses, expected)
    assert centering_penalty(chosen, rejected).tolist() == [0, 1, 6400, 6400]
    scores = tuple(x.double().requires_grad_() for x in (chosen[:2], rejected[:2]))
    assert torch.autograd.gradcheck(
        lambda x, y: bradley_terry_loss(x, y, torch.ones(2)) + centering_penalty(x, y), scores
    )


def test_calibration_error_by_hand() -> None:
    # Bins [0.5, 0.75) and [0.75, 1]: three pairs of confidence 0.6, two right; two of confidence 0.9 and 1, one right.
    probabilities = np.array([0.6, 0.6, 0.4, 0.9, 0.0])
    assert expected_calibration_error(probabilities, bins=2) == pytest.approx(3 / 5 * (2 / 3 - 0.6) + 2 / 5 * 0.45)
    assert expected_calibration_error(np.array([1.0, 1.0])) == 0
    assert expected_calibration_error(np.array([0.0, 0.0])) == 1
    assert expected_calibration_error(np.array([0.5, 0.5])) == 0


def test_calibration_error_of_true_probabilities_is_small() -> None:
    generator = np.random.default_rng(0)
    p = generator.uniform(size=20000)
    observed = np.where(generator.uniform(size=20000) < p, p, 1 - p)  # the pair, turned so that its winner is chosen
    assert expected_calibration_error(observed) < 0.02
    logits = np.log(observed / (1 - observed))
    assert expected_calibration_error(1 / (1 + np.exp(-4 * logits))) > 0.1


@pytest.mark.parametrize(("values", "bins"), [([], 10), ([1.2], 10), ([math.nan], 10), ([0.5], 0)])
def test_calibration_error_refuses_what_is_no_probability(values: list[float], bins: int) -> None:
    with pytest.raises(ValueError, match="needs probabilities between 0 and 1"):
        expected_calibration_error(np.array(values), bins)


def naive_calibration_error(probabilities: list[float], bins: int) -> float:
    """Pair by pair: the size, the confidences and the hits of each interval."""
    found: dict[int, list[tuple[float, float]]] = {}
    for p in probabilities:
        confidence = max(p, 1 - p)
        hit = 0.5 if p == 0.5 else float(p > 0.5)
        found.setdefault(min(int((confidence - 0.5) / 0.5 * bins), bins - 1), []).append((confidence, hit))
    gaps = [abs(sum(hit - confidence for confidence, hit in pairs)) for pairs in found.values()]
    return sum(gaps) / len(probabilities)


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 10])
def test_calibration_error_is_a_loop_over_bins(bins: int) -> None:
    probabilities = np.random.default_rng(bins).uniform(size=40)
    expected = naive_calibration_error(probabilities.tolist(), bins)
    assert expected_calibration_error(probabilities, bins) == pytest.approx(expected, rel=1e-12)
    if bins == 10:
        assert expected_calibration_error(probabilities) == expected_calibration_error(probabilities, 10)
        assert expected_calibration_error(probabilities, 11) != pytest.approx(expected)
    half = probabilities.astype(np.float32)
    assert expected_calibration_error(half, bins) == expected_calibration_error(half.astype(np.float64), bins)
