"""Advantages against plain loops, and exact zeros where nothing can be learned."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.rl.advantages import (
    Moments,
    among_counted,
    gae,
    group_relative,
    leave_one_out,
    rewards_to_go,
    token_rewards,
    whiten,
)


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
        assert not leave_one_out(rewards).any()


def test_rewards_equal_but_for_rounding_give_exact_zeros() -> None:
    weighted_sums = [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]
    assert weighted_sums[0] != weighted_sums[1]
    assert not group_relative(weighted_sums, normalize_std=True).any()
    assert not leave_one_out(weighted_sums).any()


def test_a_small_but_real_difference_counts() -> None:
    assert group_relative([0.3, 0.3001], normalize_std=False).any()


@pytest.mark.parametrize("rewards", [[], [1.0], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_refuses_what_is_no_group(rewards: list) -> None:
    with pytest.raises(ValueError, match="rewards"):
        group_relative(rewards, normalize_std=True)
    with pytest.raises(ValueError, match="rewards"):
        leave_one_out(rewards)


@given(st.lists(st.integers(-30, 30), min_size=2, max_size=16))
def test_leave_one_out_is_a_loop(tenths: list[int]) -> None:
    rewards = [value / 10 for value in tenths]
    expected = [
        reward - math.fsum(rewards[:i] + rewards[i + 1 :]) / (len(rewards) - 1) for i, reward in enumerate(rewards)
    ]
    np.testing.assert_allclose(leave_one_out(rewards), expected, rtol=1e-9, atol=1e-12)


def test_token_rewards_put_the_score_on_the_last_action_token() -> None:
    kl, mask = [math.nan, 1.0, 2.0, math.inf, -3.0, math.nan], [False, True, True, False, True, False]
    assert token_rewards(5.0, kl, mask, kl_coef=0.5).tolist() == [0, -0.5, -1.0, 0, 6.5, 0]
    assert token_rewards(5.0, [0.0, 0.0], [True, True], kl_coef=0).tolist() == [0, 5]
    assert token_rewards(5.0, [1.0, 1.0], [False, False], kl_coef=0.5).tolist() == [0, 0]
    assert token_rewards(5.0, [], [], kl_coef=0.5).tolist() == []


def test_token_rewards_of_turns_are_where_these_end() -> None:
    """Beside the KL there, and at the last one beside the score; nowhere else can a turn end."""
    mask = [False, True, True, False, True]
    found = token_rewards(5.0, [9.0, 1.0, 2.0, 9.0, 3.0], mask, kl_coef=0.5, turns={2: 0.25, 4: -1.0})
    assert found.tolist() == [0, -0.5, -0.75, 0, 2.5]
    with pytest.raises(ValueError, match="must be at an action token, got position 3"):
        token_rewards(5.0, [0.0] * 5, mask, kl_coef=0.5, turns={3: 0.25})


def _naive_gae(rewards: list[float], values: list[float], mask: list[bool], gamma: float, lam: float) -> list[float]:
    """The definition: sum over k of (gamma lambda)^k delta at the k-th following action token."""
    actions = [i for i in range(len(mask)) if mask[i]]
    deltas = []
    for k, i in enumerate(actions):
        following = values[actions[k + 1]] if k + 1 < len(actions) else 0.0
        deltas.append(rewards[i] + gamma * following - values[i])
    advantages = [0.0] * len(mask)
    for k, i in enumerate(actions):
        advantages[i] = math.fsum((gamma * lam) ** j * delta for j, delta in enumerate(deltas[k:]))
    return advantages


_TOKENS = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.booleans()), max_size=12)


@given(_TOKENS, st.floats(0.5, 1), st.floats(0, 1))
def test_gae_is_a_loop_over_action_tokens(tokens: list[tuple[float, float, bool]], gamma: float, lam: float) -> None:
    rewards, values, mask = ([token[i] for token in tokens] for i in range(3))
    # What stands outside the mask must not matter, whatever it is.
    spoiled = [[x if keep else math.nan for x, keep in zip(row, mask, strict=True)] for row in (rewards, values)]
    advantages, returns = gae(*spoiled, mask, gamma=gamma, gae_lambda=lam)
    expected = _naive_gae(rewards, values, mask, gamma, lam)
    np.testing.assert_allclose(advantages, expected, atol=1e-9)
    targets = [advantage + value if keep else 0 for advantage, value, keep in zip(expected, values, mask, strict=True)]
    np.testing.assert_allclose(returns, targets, atol=1e-9)


def test_gae_known_values_and_limits() -> None:
    # Two action tokens with a tool's answer between them: deltas 1 + 0.5 * 4 - 2 = 1 and 3 - 4 = -1.
    advantages, returns = gae([1, 9, 3], [2, 9, 4], [True, False, True], gamma=0.5, gae_lambda=0.5)
    assert advantages.tolist() == [0.75, 0, -1] and returns.tolist() == [2.75, 0, 3]
    rewards, values, mask = [0.0, 0.0, 1.0], [0.3, 0.5, 0.9], [True] * 3
    monte_carlo, returns = gae(rewards, values, mask, gamma=1, gae_lambda=1)
    np.testing.assert_allclose(monte_carlo, [0.7, 0.5, 0.1])
    np.testing.assert_allclose(returns, [1, 1, 1])
    one_step, _ = gae(rewards, values, mask, gamma=1, gae_lambda=0)
    np.testing.assert_allclose(one_step, [0.2, 0.4, 0.1])
    assert not gae([1.0, 1.0], [2.0, 2.0], [False, False], gamma=1, gae_lambda=1)[0].any()


@given(_TOKENS, st.floats(0.5, 1))
def test_rewards_to_go_are_a_loop(tokens: list[tuple[float, float, bool]], gamma: float) -> None:
    rewards, _, mask = ([token[i] for token in tokens] for i in range(3))
    actions = [i for i in range(len(mask)) if mask[i]]
    expected = [0.0] * len(mask)
    for k, i in enumerate(actions):
        expected[i] = math.fsum(gamma**j * rewards[later] for j, later in enumerate(actions[k:]))
    np.testing.assert_allclose(rewards_to_go(rewards, mask, gamma=gamma), expected, atol=1e-9)


def test_whiten_golden_numbers() -> None:
    values, mask = [1, 2, math.nan, 4, 5, 6], [True, True, False, True, True, True]
    whitened = whiten(values, mask, Moments.of(values, mask))
    np.testing.assert_allclose(whitened, [-1.253831, -0.771588, 0, 0.192897, 0.675140, 1.157383], atol=1e-6)


@given(st.lists(st.tuples(st.floats(-3, 3), st.booleans(), st.integers(0, 3)), max_size=30))
def test_moments_of_ranks_add_up(tokens: list[tuple[float, bool, int]]) -> None:
    values, mask, rank = (np.array([token[i] for token in tokens]) for i in range(3))
    mask = mask.astype(bool)
    whole = Moments.of(values, mask)
    ranks = [Moments.of(values[rank == r], mask[rank == r]) for r in range(4)]
    total = sum(ranks, Moments())
    chosen = values[mask]
    assert total.count == whole.count == len(chosen)
    if len(chosen) > 1 and chosen.std() > 1e-3:
        assert total.mean == pytest.approx(chosen.mean(), abs=1e-12)
        assert total.variance == pytest.approx(chosen.var(ddof=1), rel=1e-6)
        whitened = [whiten(values[rank == r], mask[rank == r], total) for r in range(4)]
        expected = (chosen - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)
        np.testing.assert_allclose(
            sorted(np.concatenate(whitened)), sorted([*expected, *[0.0] * (~mask).sum()]), atol=1e-6
        )


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_whitening_equal_advantages_gives_exact_zeros(size: int, rounding: bool) -> None:
    mask = np.ones(size, dtype=bool)
    for value in (-0.7, 0.1, 0.3, 1234.5):
        values = np.full(size, value)
        if rounding:
            values[-1] = np.nextafter(value, 9e9)
        moments = sum((Moments.of(values[i : i + 100], mask[i : i + 100]) for i in range(0, size, 100)), Moments())
        assert moments.variance == 0
        assert not whiten(values, mask, moments).any()


def test_moments_of_nothing() -> None:
    moments = Moments.of([math.nan], [False])
    assert moments == Moments() and (moments.mean, moments.variance) == (0, 0)
    assert whiten([math.nan], [False], moments).tolist() == [0]


def test_token_arrays_must_fit_and_be_finite_where_they_count() -> None:
    with pytest.raises(
        ValueError, match=r"values and mask must be vectors of one length, got shapes \(2,\) and \(1,\)"
    ):
        gae([1.0], [1.0, 2.0], [True], gamma=1, gae_lambda=1)
    with pytest.raises(ValueError, match="vectors of one length"):
        Moments.of([[1.0]], [[True]])
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="values must be finite at action tokens"):
            gae([1.0, 0.0], [bad, 0.0], [True, True], gamma=1, gae_lambda=1)
        with pytest.raises(ValueError, match="values must be finite at action tokens"):
            token_rewards(1.0, [bad], [True], kl_coef=0.1)
        with pytest.raises(ValueError, match="values must be finite at action tokens"):
            whiten([bad], [True], Moments(2, 1.0, 1.0))


def test_numbers_of_any_type_are_computed_with_in_float64() -> None:
    """Rewards and values in float32, a mask of zeros and ones."""
    rewards, values = np.float32([0.1, 0.2, 0.3]), np.float32([0.7, 0.1, 0.9])
    mask = [0, 1, 1]
    found = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    same = gae(
        rewards.astype(np.float64), values.astype(np.float64), np.array(mask, dtype=bool), gamma=0.9, gae_lambda=0.8
    )
    assert [each.tolist() for each in found] == [each.tolist() for each in same]
    moments = Moments.of(values, mask)
    assert (moments.total, moments.count) == (float(values[1]) + float(values[2]), 2)
    assert moments.squares == float(values[1]) ** 2 + float(values[2]) ** 2
    assert Moments.of([1, 2, 3], np.array([2, 0, 1])).count == 2


def test_a_flag_for_each_reward() -> None:
    with pytest.raises(ValueError) as caught:
        among_counted([1.0, 2.0], [True], leave_one_out)
    assert str(caught.value) == "rewards and counted must be of one length, got shapes (2,) and (1,)"


def test_how_near_rewards_are_equal_is_a_share_of_their_size() -> None:
    """A millionth of the largest, itself included; computed in float64."""
    for rewards, equal in (
        ([1e6, 1e6 - 1], True),
        ([1e6, 1e6 - 2], False),
        ([1e3, 1e3 + 5e-4], True),
        ([0, 1e-9], False),
    ):
        assert (not group_relative(rewards, normalize_std=False).any()) is equal
    single = np.float32([0.1, 0.7, 0.2])
    assert group_relative(single, normalize_std=True).tolist() == (
        group_relative(single.astype(np.float64), normalize_std=True).tolist()
    )
