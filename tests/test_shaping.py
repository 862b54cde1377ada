"""Shaping of rewards: penalties by hand, running moments against all values at once, the KL controller."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.rl.advantages import group_relative
from algorithms.rl.shaping import AdaptiveKL, RunningMoments, overlong_penalty


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0), (60, 0), (61, -0.05), (70, -0.5), (80, -1.0), (99, -1.95), (100, -2), (130, -2)]
)
def test_overlong_penalty_falls_over_the_buffer(tokens: int, expected: float) -> None:
    assert overlong_penalty(tokens, 100, buffer=40, penalty=2.0) == pytest.approx(expected)


def test_overlong_penalty_over_the_whole_response() -> None:
    assert [overlong_penalty(n, 4, buffer=4, penalty=1.0) for n in range(6)] == [0, -0.25, -0.5, -0.75, -1, -1]
    assert [overlong_penalty(n, 4, buffer=1, penalty=1.0) for n in range(2, 6)] == [0, 0, -1, -1]


@pytest.mark.parametrize("buffer", [0, 101])
def test_overlong_penalty_refuses_a_buffer_that_does_not_fit(buffer: int) -> None:
    with pytest.raises(ValueError, match=f"buffer must be from 1 to 100, the longest response, got {buffer}"):
        overlong_penalty(5, 100, buffer=buffer, penalty=1.0)


@given(
    st.lists(st.lists(st.floats(-1, 1), max_size=6), min_size=1, max_size=8),
    st.sampled_from([0.0, 1.0, -1e6]),
    st.integers(0, 8),
)
def test_running_moments_are_those_of_all_values_and_survive_a_checkpoint(
    batches: list[list[float]], offset: float, saved_at: int
) -> None:
    moments = RunningMoments()
    for i, batch in enumerate(batches):
        if i == saved_at:
            state = json.loads(json.dumps(moments.state_dict()))
            moments = RunningMoments()
            moments.load_state_dict(state)
        moments.update([offset + value for value in batch])
    values = np.array([offset + value for batch in batches for value in batch])
    assert moments.count == len(values)
    if len(values) > 1:
        assert moments.mean == pytest.approx(values.mean(), abs=1e-9)
        spread = np.square(values - values.mean()).sum()
        assert moments.squared_distances == pytest.approx(spread, rel=1e-6, abs=1e-7)
        std = values.std(ddof=1)
        if std > 1e-2:
            np.testing.assert_allclose(
                moments.normalise(values),
                (values - values.mean()) / std,
                rtol=1e-6,
                atol=2e-9 * abs(offset) / std + 1e-9,
            )


def test_normalised_rewards_have_mean_zero_and_unit_variance() -> None:
    moments = RunningMoments()
    moments.update([3.0, 5.0])
    moments.update([10.0])
    normalised = moments.normalise([3.0, 5.0, 10.0])
    np.testing.assert_allclose(normalised, np.array([-3, -1, 4]) / math.sqrt(13))
    assert moments.normalise([6.0]).tolist() == [0.0]


def test_equal_rewards_stay_equal_and_give_no_advantage() -> None:
    weighted_sums = [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]
    constant = RunningMoments()
    constant.update(weighted_sums)
    assert constant.normalise(weighted_sums).tolist() == [0.0] * 4
    assert constant.normalise([1.3]).tolist() == pytest.approx([1.0])
    around = RunningMoments()
    around.update([0.2, *weighted_sums, 0.4])
    assert not group_relative(around.normalise(weighted_sums), normalize_std=True).any()
    assert not group_relative(around.normalise(np.array(weighted_sums) + 0.1), normalize_std=True).any()


def test_running_moments_of_one_value_only_centre() -> None:
    moments = RunningMoments()
    assert moments.normalise([2.0]).tolist() == [2.0]
    moments.update([2.0])
    assert moments.normalise([2.0, 3.0]).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_running_moments_refuse_what_is_not_finite(bad: float) -> None:
    moments = RunningMoments()
    with pytest.raises(ValueError, match="rewards must be finite"):
        moments.update([1.0, bad])
    assert moments == RunningMoments()
    with pytest.raises(ValueError, match="rewards must be finite"):
        moments.normalise([bad])


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (0.0, 0.98), (-3.0, 0.98)]
)
def test_adaptive_kl_moves_against_the_error_and_at_most_a_fifth(kl: float, factor: float) -> None:
    controller = AdaptiveKL(coef=0.2, target=6.0, horizon=10_000)
    controller.update(kl, samples=1000)
    assert controller.coef == pytest.approx(0.2 * factor)


def test_adaptive_kl_reaches_its_target() -> None:
    # A policy whose KL is inversely proportional to the coefficient.
    controller = AdaptiveKL(coef=1.0, target=6.0, horizon=1000)
    for _ in range(300):
        controller.update(0.6 / controller.coef, samples=128)
    assert controller.coef == pytest.approx(0.1, rel=1e-3)


def test_adaptive_kl_without_a_target_stays_and_continues_from_a_checkpoint() -> None:
    fixed = AdaptiveKL(coef=0.2, target=None, horizon=100)
    fixed.update(math.nan, samples=10_000)
    assert fixed.coef == 0.2
    first = AdaptiveKL(coef=0.2, target=1.0, horizon=100)
    first.update(2.0, samples=10)
    second = AdaptiveKL(coef=9.0, target=1.0, horizon=100)
    second.load(Path(), json.loads(json.dumps(first.save(Path()))))
    assert second == first
    changed = AdaptiveKL(coef=0.5, target=None, horizon=100)
    changed.load(Path(), fixed.save(Path()))
    assert changed.coef == 0.5, "a fixed coefficient is the configuration's, also in a resumed run"


def test_adaptive_kl_refuses_what_would_spoil_the_coefficient() -> None:
    controller = AdaptiveKL(coef=0.2, target=1.0, horizon=100)
    with pytest.raises(ValueError, match="KL must be finite, got nan"):
        controller.update(math.nan, samples=10)
    with pytest.raises(ValueError, match="horizon must be above a fifth of the 500 samples of a step, got 100"):
        controller.update(0.5, samples=500)
    assert controller.coef == 0.2
