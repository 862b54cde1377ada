"""Advantages token by token, from scores, KL to the reference and values: what a rank computes for whole groups.

A score is what the episode earned in all. Of it, the reward of a turn is given at the last token sampled in that turn,
the rest at the last sampled token. What was given to the policy, and not sampled by it, has no part in any of this.

GAE (PPO): per token -kl_coef KL, and the rewards, are discounted against the critic's values.
leave_one_out, group: the score minus kl_coef times the episode's KL is compared within the group.
reinforce_pp: rewards minus kl_coef times the KL from the token on, whitened over the step (arXiv 2501.03262).
reinforce_pp_baseline: the same with the group's mean subtracted from the score, and so from the rest.
Which one compares, goes token by token or whitens is said in `algorithms.rl.baselines`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from actors.episodes import Experience
from actors.train.worker import Metrics, ScoredGroups
from algorithms.config_rl import RLConfig
from algorithms.rl.advantages import Advantages, Moments, among_counted, token_rewards, whiten
from algorithms.rl.losses import kl_penalty

Fields = dict[str, NDArray[np.float32]]
AddOverRanks = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def compared(config: RLConfig, scores: NDArray[np.float64], counted: ArrayLike) -> Advantages:
    """What each of a prompt's scores is above what the baseline expects, 0 of those that the loss leaves out, [N].

    `scores`: float64 [N]; `counted`: whether the loss counts the response, bool [N].
    """
    if compare := config.baseline.compare:
        return among_counted(scores, counted, compare.of(config))
    return scores * np.asarray(counted)


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Computes the advantages of a step's groups; a plain object, sent to the ranks that call it."""

    config: RLConfig
    kl_coef: float
    """0 unless kl_in is reward."""
    counted: list[list[bool]]
    """Per group and episode of this rank: whether the loss counts it, and so baselines and whitening. Advantages of
    the others are 0."""

    def __call__(self, groups: ScoredGroups, add: AddOverRanks) -> tuple[list[list[Fields]], Metrics]:
        """Fields of every response, and metrics over all ranks; `add` sums a vector over ranks."""
        penalties = [[self._penalties(item) for _, item in group] for group in groups]
        estimate = self._by_token if self.config.baseline.by_token else self._by_response
        found = [
            estimate(group, kl, counted) for group, kl, counted in zip(groups, penalties, self.counted, strict=True)
        ]
        metrics = self._metrics(groups, penalties, found, add)
        if self.config.baseline.whitens(self.config):
            found = self._whitened(groups, found, add)
        rows = [
            [{name: values.astype(np.float32) for name, values in fields.items()} for fields in group]
            for group in found
        ]
        return rows, metrics

    def _penalties(self, item: Experience) -> NDArray[np.float64]:
        """KL estimate at each token, 0 outside the actions, [L]."""
        if not self.kl_coef:
            return np.zeros(len(item))
        rollout, reference = (
            # The difference of nearly equal numbers, which k3 makes smaller still.
            torch.from_numpy(item.fields[name]).double()
            for name in ("rollout_logprobs", "reference_logprobs")
        )
        return np.where(item.action_mask, kl_penalty(rollout, reference, self.config.kl_estimator).numpy(), 0.0)

    def _rewards(self, score: float, item: Experience, kl: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each token, those of turns where these end, [L]."""
        # A score has earned them already: what is left of it comes at the end.
        rest = score - math.fsum(item.turn_rewards.values())
        return token_rewards(rest, kl, item.action_mask, kl_coef=self.kl_coef, turns=item.turn_rewards)

    def _by_response(
        self, group: list[tuple[float, Experience]], penalties: list[NDArray[np.float64]], counted: list[bool]
    ) -> list[dict[str, NDArray[np.float64]]]:
        """One number for all tokens of a response."""
        scores = np.array([score for score, _ in group])
        # Before comparing, so that the others' penalties are in the baseline as well.
        whole = compared(self.config, scores - self.kl_coef * np.array([kl.sum() for kl in penalties]), counted)
        return [{"advantages": value * item.action_mask} for value, (_, item) in zip(whole, group, strict=True)]

    def _by_token(
        self, group: list[tuple[float, Experience]], penalties: list[NDArray[np.float64]], counted: list[bool]
    ) -> list[dict[str, NDArray[np.float64]]]:
        """What the rewards of a response's tokens are worth; with a critic, also what its values should be."""
        baseline = self.config.baseline
        assert baseline.spread, "only one that spreads goes token by token"
        spread = baseline.spread.of(self.config)
        scores = np.array([score for score, _ in group])
        if baseline.compare:
            scores = compared(self.config, scores, counted)
        found = []
        for score, (_, item), kl, kept in zip(scores, group, penalties, counted, strict=True):
            rewards, mask = self._rewards(score, item, kl), item.action_mask
            if baseline.critic:
                advantages, returns = spread(rewards, item.fields["values"].astype(np.float64), mask)
                found.append({"advantages": advantages * kept, "returns": returns})
            else:
                found.append({"advantages": spread(rewards, mask) * kept})
        return found

    def _metrics(
        self,
        groups: ScoredGroups,
        penalties: list[list[NDArray[np.float64]]],
        found: list[list[dict[str, NDArray[np.float64]]]],
        add: AddOverRanks,
    ) -> Metrics:
        """Means over all ranks: KL per response and token; for a critic, how much it explains of the returns that it
        learns."""
        items = [
            (item, fields)
            for group, each in zip(groups, found, strict=True)
            for (_, item), fields in zip(group, each, strict=True)
        ]
        tokens = sum(int(item.action_mask.sum()) for item, _ in items)
        kl = sum(float(each.sum()) for group in penalties for each in group)
        sums = [np.array([len(items), tokens, kl], dtype=np.float64)]
        if self.config.baseline.critic:
            counted = [kept for group in self.counted for kept in group]
            sums.append(_moments_of_returns([item for item, kept in zip(items, counted, strict=True) if kept]))
        # Summed up in one vector: every sum over ranks is a collective.
        responses, tokens, kl, *rest = add(np.concatenate(sums)).tolist()
        metrics = {}
        if self.kl_coef:
            metrics = {
                "reward/kl_per_response": kl / responses,
                "policy/kl": kl / tokens,
                "reward/kl_coef": self.kl_coef,
            }
        if rest:
            tokens, returns, squares, errors, error_squares, values = rest
            tokens = max(1.0, tokens)
            variance = squares / tokens - (returns / tokens) ** 2
            unexplained = error_squares / tokens - (errors / tokens) ** 2
            metrics |= {"critic/returns_mean": returns / tokens, "critic/values_mean": values / tokens}
            # Where all returns are equal, there is nothing to explain.
            metrics["critic/explained_variance"] = 0.0 if variance <= 1e-12 else 1 - unexplained / variance
        return metrics

    def _whitened(
        self, groups: ScoredGroups, found: list[list[dict[str, NDArray[np.float64]]]], add: AddOverRanks
    ) -> list[list[dict[str, NDArray[np.float64]]]]:
        """Advantages with mean 0 and variance 1 over the action tokens of the whole step that the loss counts."""
        rows = [
            (item.action_mask, fields, counted)
            for group, each, flags in zip(groups, found, self.counted, strict=True)
            for (_, item), fields, counted in zip(group, each, flags, strict=True)
        ]
        # By sums, which add up over ranks as the mean and the variance do not.
        moments = sum((Moments.of(fields["advantages"], mask) for mask, fields, counted in rows if counted), Moments())
        sums = add(np.array([moments.count, moments.total, moments.squares], dtype=np.float64)).tolist()
        whole = Moments(int(sums[0]), sums[1], sums[2])
        for mask, fields, counted in rows:
            fields["advantages"] = whiten(fields["advantages"], mask, whole) * counted
        return found


def _moments_of_returns(items: list[tuple[Experience, dict[str, NDArray[np.float64]]]]) -> NDArray[np.float64]:
    """Number of tokens, and sums over them of returns, their squares, returns - values, its square, values."""
    sums = np.zeros(6)
    for item, fields in items:
        mask = item.action_mask
        returns, values = fields["returns"][mask], item.fields["values"][mask].astype(np.float64)
        errors = returns - values
        sums += [len(returns), returns.sum(), (returns**2).sum(), errors.sum(), (errors**2).sum(), values.sum()]
    return sums
