"""Group-relative advantages against a plain loop, and exact zeros where nothing can be learned."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.advantages import group_relative


def _naive(rewards: list[float], normalize_std: bool) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
    return [(reward - mean) / (std + 1e-4 if normalize_std else 1) for reward in rewards]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=16), st.booleans())
def test_agrees_with_a_loop(rewards: list[float], normalize_std: bool) -> None:
    advantages = group_relative(np.array(rewards), normalize_std=normalize_std)
    if max(rewards) - min(rewards) <= 1e-6 * max(map(abs, rewards)):
        assert advantages.tolist() == [0.0] * len(rewards)
    else:
        np.testing.assert_allclose(advantages, _naive(rewards, normalize_std), rtol=1e-6, atol=1e-9)


def test_known_values() -> None:
    advantages = group_relative([1.0, 0.0, 0.0, 0.0], normalize_std=True)
    np.testing.assert_allclose(advantages, np.array([0.75, -0.25, -0.25, -0.25]) / 0.5001, rtol=1e-12)
    assert group_relative([1.0, 0.0], normalize_std=False).tolist() == [0.5, -0.5]


@pytest.mark.parametrize("size", range(2, 17))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_rewards_give_exact_zeros(size: int, dtype: type) -> None:
    for tenths in range(1, 40):
        rewards = np.full(size, tenths / 10, dtype=dtype)
        for normalize_std in (True, False):
            assert not group_relative(rewards, normalize_std=normalize_std).any()


def test_rewards_equal_but_for_rounding_give_exact_zeros() -> None:
    weighted_sums = [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]
    assert weighted_sums[0] != weighted_sums[1]
    assert not group_relative(weighted_sums, normalize_std=True).any()


def test_a_small_but_real_difference_counts() -> None:
    assert group_relative([0.3, 0.3001], normalize_std=False).any()


@pytest.mark.parametrize("rewards", [[], [1.0], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_refuses_what_is_no_group(rewards: list) -> None:
    with pytest.raises(ValueError, match="rewards"):
        group_relative(rewards, normalize_std=True)
