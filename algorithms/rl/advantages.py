"""Advantages: how much better a sample is than what was to be expected."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

Advantages = NDArray[np.float64]
NO_TURNS: Mapping[int, float] = MappingProxyType({})


def group_relative(rewards: ArrayLike, *, normalize_std: bool) -> NDArray[np.float64]:
    """Advantages of one prompt's samples: reward minus the group's mean (GRPO, arXiv 2402.03300).

    A group without a winner teaches nothing: if its rewards differ by at most 1e-6 of their magnitude, advantages are
    exactly 0. (The rounding error of the mean, divided by an equally small deviation, would look like a signal.)

    Args:
        rewards: [N], N >= 2.
        normalize_std: divide by the Bessel-corrected standard deviation + 1e-4, as TRL does.

    Returns:
        Advantages, [N].

    Raises:
        ValueError: fewer than two rewards, not a vector, or a reward that is not finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"a group needs at least 2 rewards in a vector, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"rewards must be finite, got {values.tolist()}")
    if np.ptp(values) <= 1e-6 * np.abs(values).max():
        return np.zeros_like(values)
    centred = values - values.mean()
    return centred / (values.std(ddof=1) + 1e-4) if normalize_std else centred


def centred(rewards: ArrayLike) -> NDArray[np.float64]:
    """Advantages of one prompt's samples: reward minus the group's mean; [N] and errors as in `group_relative`."""
    return group_relative(rewards, normalize_std=False)


def leave_one_out(rewards: ArrayLike) -> NDArray[np.float64]:
    """Advantages of one prompt's samples: reward minus the mean of the others (RLOO, arXiv 2402.14740).

    Exactly 0 for a group of equal rewards, by the rule of `group_relative`.

    Args:
        rewards: [N], N >= 2.

    Returns:
        Advantages, [N].

    Raises:
        ValueError: as in `group_relative`.
    """
    above = centred(rewards)
    # r less the mean of the others is (r less the mean of all) N / (N - 1): one rule for groups of equal rewards.
    return above * (len(above) / (len(above) - 1))


def among_counted(rewards: ArrayLike, counted: ArrayLike, compare: Callable[[ArrayLike], ArrayLike]) -> Advantages:
    """Advantages of one prompt's samples where the loss leaves some of them out (`mask_truncated`).

    Only those that it counts are compared with each other: one that is not trained on must not be the baseline of
    those that are. Fewer than two have nothing to compare with.

    Args:
        rewards: [N].
        counted: whether the loss counts the sample, bool [N].
        compare: rewards of several samples to their advantages, such as `leave_one_out`.

    Returns:
        Advantages, 0 of the samples left out, [N].

    Raises:
        ValueError: as in `group_relative`, and for vectors of different lengths.
    """
    values, chosen = np.asarray(rewards, dtype=np.float64), np.asarray(counted, dtype=bool)
    if values.shape != chosen.shape:
        raise ValueError(f"rewards and counted must be of one length, got shapes {values.shape} and {chosen.shape}")
    advantages = np.zeros_like(values)
    if chosen.sum() > 1:
        advantages[chosen] = compare(values[chosen])
    return advantages


def differ(rewards: ArrayLike) -> bool:
    """Whether rewards that are compared with each other give any of them an advantage, by `group_relative`'s rule."""
    return len(np.atleast_1d(rewards)) > 1 and bool(centred(rewards).any())


def token_rewards(
    score: float, kl: ArrayLike, mask: ArrayLike, *, kl_coef: float, turns: Mapping[int, float] = NO_TURNS
) -> NDArray[np.float64]:
    """Rewards of the tokens of one sample: -kl_coef x kl, the score at the last action token (arXiv 2203.02155), and
    those of `turns`.

    A sequence without action tokens gets zeros: nothing of it is trained.

    Args:
        score: reward of the whole episode.
        kl: estimate of the KL to the reference at each token, in nats, [L].
        mask: action tokens, bool [L].
        kl_coef: weight of the penalty.
        turns: position of the last action token of a turn -> what was given for that turn, beside `score`.

    Returns:
        Rewards, 0 outside `mask`, [L].

    Raises:
        ValueError: arrays of different lengths, a value at an action token that is not finite, or the reward of a turn
            at another token.
    """
    penalties, actions = _at_actions(kl, mask)
    rewards = np.zeros(np.shape(mask))
    rewards[actions] = -kl_coef * penalties
    if len(actions):
        rewards[actions[-1]] += score  # the end-of-sequence token, where there is one
    for position, reward in turns.items():
        if position not in actions:
            raise ValueError(f"the reward of a turn must be at an action token, got position {position}")
        rewards[position] += reward
    return rewards


def gae(
    rewards: ArrayLike, values: ArrayLike, mask: ArrayLike, *, gamma: float, gae_lambda: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Generalized advantage estimation (arXiv 1506.02438) over the action tokens of one sample.

    delta_t = r_t + gamma V_t' - V_t and A_t = delta_t + gamma lambda A_t', where t' is the next action token after t:
    tokens outside `mask`, which the policy did not choose, take no time. Past the last one, value and advantage are 0.

    Args:
        rewards: of each token, [L]; those outside `mask` are ignored.
        values: the critic's, before the update, [L].
        mask: action tokens, bool [L].
        gamma: discount per action token.
        gae_lambda: lambda.

    Returns:
        advantages and returns (advantage + value, for the critic), both 0 outside `mask`, [L]. Whiten advantages after
        this: returns are in units of reward.

    Raises:
        ValueError: arrays of different lengths, or a value at an action token that is not finite.
    """
    rewards_at, actions = _at_actions(rewards, mask)
    values_at, _ = _at_actions(values, mask)
    advantages, returns = np.zeros(np.shape(mask)), np.zeros(np.shape(mask))
    following: list[float] = []
    advantage = next_value = 0.0
    # Plain floats: a loop over elements of an array takes ten times as long.
    for reward, value in zip(reversed(rewards_at.tolist()), reversed(values_at.tolist()), strict=True):
        advantage = reward + gamma * next_value - value + gamma * gae_lambda * advantage
        next_value = value
        following.append(advantage)
    advantages[actions] = following[::-1]
    returns[actions] = advantages[actions] + values_at
    return advantages, returns


def rewards_to_go(rewards: ArrayLike, mask: ArrayLike, *, gamma: float = 1.0) -> NDArray[np.float64]:
    """Discounted sum of the rewards from each action token on, 0 outside `mask`, [L]; REINFORCE++ (arXiv 2501.03262).

    Args and errors as in `gae`, of which this is the case without a critic.
    """
    return gae(rewards, np.zeros(np.shape(rewards)), mask, gamma=gamma, gae_lambda=1)[0]


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of numbers, to be added over samples and ranks; `sum(moments, Moments())`.

    Example: Moments(count=3, total=6.0, squares=14.0) of 1, 2 and 3.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: ArrayLike, mask: ArrayLike) -> "Moments":
        """Of `values` [L] where `mask` (bool [L]) is true; raises ValueError if one of them is not finite."""
        chosen, _ = _at_actions(values, mask)
        return cls(len(chosen), float(chosen.sum()), float(np.square(chosen).sum()))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """Mean, 0 of no numbers."""
        return self.total / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """Bessel-corrected variance; exactly 0 of fewer than 2 numbers, or if they deviate by under 1e-6 of their size.

        (Rounding errors of sums, divided by an equally small deviation, would look like a signal.)
        """
        if self.count < 2:
            return 0.0
        spread = self.squares - self.total * self.mean
        if not math.isfinite(spread):  # sums that overflow do not say that all numbers are equal
            return math.nan
        # Squares of deviations: 1e-12 is (1e-6)^2.
        return spread / (self.count - 1) if spread > 1e-12 * self.squares else 0.0


def whiten(values: ArrayLike, mask: ArrayLike, moments: Moments) -> NDArray[np.float64]:
    """Values with mean 0 and variance 1: (x - mean) / sqrt(variance + 1e-8), as TRL does.

    Args:
        values: [L].
        mask: action tokens, bool [L].
        moments: of all action tokens of the step, over all ranks.

    Returns:
        Whitened values, [L], 0 outside `mask`; exactly 0 everywhere if the variance is 0.

    Raises:
        ValueError: arrays of different lengths, or a value at an action token that is not finite.
    """
    chosen, actions = _at_actions(values, mask)
    whitened = np.zeros(np.shape(mask))
    if moments.variance:
        whitened[actions] = (chosen - moments.mean) / np.sqrt(moments.variance + 1e-8)
    return whitened


def _at_actions(values: ArrayLike, mask: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Values where the mask is true, and their indices."""
    array, chosen = np.asarray(values, dtype=np.float64), np.asarray(mask, dtype=bool)
    if array.ndim != 1 or array.shape != chosen.shape:
        raise ValueError(f"values and mask must be vectors of one length, got shapes {array.shape} and {chosen.shape}")
    actions = np.flatnonzero(chosen)
    if not np.isfinite(array[actions]).all():
        raise ValueError(f"values must be finite at action tokens, got {array[actions].tolist()}")
    return array[actions], actions
