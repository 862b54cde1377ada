"""Warnings when a metric leaves the range in which training usually works, and only while they help.

Ranges are those practitioners publish for GRPO: reward moving within 20 steps, fewer than 0.8 of the groups without
variance, KL below 0.5, clip fraction below 0.1, truncated fraction below 0.3, sampler-trainer difference below 0.1
(over tokens that the trained weights have sampled; of all tokens, importance correction should cut less than 0.1).

A warning comes once, and again only when the metric was in its range for RECOVERY_STEPS in between. A task that is
solved (rewards near the highest that was ever given) has groups without variance and little entropy: that is success,
said once as a note, and no reason to change a setting.
"""

import math
from collections import deque
from collections.abc import Container, Mapping
from dataclasses import dataclass

Metrics = Mapping[str, float]

REWARD_WINDOW = 20
REWARD_FLOOR = 0.15
REWARD_SPREAD = 0.05
ENTROPY_FLOOR = 0.05
RECOVERY_STEPS = 50
SOLVED = 0.9
"""Share of the way from the lowest reward seen (at most 0) to the highest at which a task counts as solved."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A metric that should stay below `limit`."""

    metric: str
    limit: float
    advice: str
    solved_too: bool = True
    """Whether the advice still helps where the task is solved."""
    when_stale: str | None = None
    """Advice where samples are of older weights; None: the same."""

    def line(self, metrics: Metrics) -> str:
        """What to tell of the metric in a step that has these."""
        stale = metrics.get("staleness/max", 0.0) > 0
        advice = self.when_stale if stale and self.when_stale else self.advice
        return f"{self.metric} is {metrics[self.metric]:.3g}, usually below {self.limit:g}; {advice}"


CEILINGS = (
    Ceiling(
        "reward/zero_variance_fraction",
        0.8,
        "most groups teach nothing: try prompts of medium difficulty, more samples_per_prompt, or a finer reward",
        solved_too=False,
    ),
    Ceiling("policy/kl", 0.5, "the policy runs away from the reference: lower policy.optimizer.lr or raise kl_coef"),
    Ceiling(
        "policy/clip_fraction",
        0.1,
        "updates are too large: lower policy.optimizer.lr or take fewer updates per step",
        solved_too=False,
        # With algorithm.importance_correction null, the clip is around the weights that sampled.
        when_stale="updates are too large, or samples too old where nothing corrects for it: lower policy.optimizer.lr "
        "or algorithm.max_staleness, take fewer updates per step, or leave algorithm.importance_correction to auto",
    ),
    Ceiling(
        "rollout/truncated_fraction",
        0.3,
        "responses are cut: raise rollout.max_response_tokens, or check that the model ends its answers",
        solved_too=False,
    ),
    Ceiling(
        "texts/at_limit_fraction",
        0.3,
        "many texts are as long as the model reads, so most of them are cut: raise algorithm.max_tokens",
    ),
    Ceiling(
        "mismatch/logprob_abs_mean",
        0.1,
        "sampler and trainer disagree: use model.dtype fp32, or check temperature, top_p, top_k, min_p, penalties "
        "and the weight sync",
    ),
    Ceiling(
        "policy/importance_truncated_fraction",
        0.1,
        "importance correction throws much away, as sampler and trainer disagree: use model.dtype fp32, check "
        "temperature and the weight sync, or raise algorithm.importance_correction.cap",
        when_stale="importance correction throws much away, as samples are too old: lower algorithm.max_staleness or "
        "policy.optimizer.lr, raise algorithm.importance_correction.cap, or take its level token",
    ),
)


class Health:
    """Judges the steps of one run, in their order."""

    def __init__(self, unless: Container[str] = ()) -> None:
        """`unless`: metrics that somebody else judges."""
        self._unless = unless
        self._rewards: deque[float] = deque(maxlen=REWARD_WINDOW)
        # From 0: rewards that are all high are near the highest, however little they differ.
        self._lowest, self._highest = 0.0, -math.inf
        self._entropy = -math.inf  # the highest so far
        self._warned: dict[str, int] = {}
        """Metric that was warned about -> steps for which it has been in its range since."""
        self._said_solved = False
        self.standing: dict[str, str] = {}
        """Metric -> what there is to warn of in the last step, whether it was told before or not."""
        self.solved = False
        """Whether the task is, by the last step."""

    def warnings(self, metrics: Metrics) -> list[str]:
        """Lines for the metrics that are out of range now and that it helps to tell; absent ones are not judged."""
        return list(self.out_of_range(metrics).values())

    def out_of_range(self, metrics: Metrics) -> dict[str, str]:
        """The same lines by their metric."""
        problems = {name: line for name, line in self._problems(metrics).items() if name not in self._unless}
        self.standing, lines = problems, {name: line for name, line in problems.items() if name not in self._warned}
        # Out of range again, a metric begins to recover anew; new ones are added with 0.
        for name in (*self._warned, *problems):
            self._warned[name] = 0 if name in problems else self._warned[name] + 1
        self._warned = {name: steps for name, steps in self._warned.items() if steps < RECOVERY_STEPS}
        return lines

    def good_news(self, metrics: Metrics) -> str | None:
        """Said once: most groups have equal rewards, as the answers are right; call it after these."""
        name = "reward/zero_variance_fraction"
        if self._said_solved or metrics.get(name, 0.0) < 0.8 or not self._solved(metrics):
            return None
        self._said_solved = True
        return (
            f"{metrics[name]:.0%} of the groups got equal rewards, near the highest so far ({self._highest:.3g}): "
            f"these prompts are learned, and only harder ones teach more"
        )

    def _problems(self, metrics: Metrics) -> dict[str, str]:
        """Metric name -> warning, for every metric out of its range."""
        self._remember(metrics)
        self.solved = solved = self._solved(metrics)
        found = {
            ceiling.metric: ceiling.line(metrics)
            for ceiling in CEILINGS
            if metrics.get(ceiling.metric, 0.0) >= ceiling.limit and (ceiling.solved_too or not solved)
        }
        if not solved:
            found |= self._flat_reward(metrics) | self._collapsed_entropy(metrics)
        return found

    def _remember(self, metrics: Metrics) -> None:
        if "reward/mean" in metrics:
            self._rewards.append(metrics["reward/mean"])
            seen = [metrics[name] for name in ("reward/mean", "reward/min", "reward/max") if name in metrics]
            self._lowest, self._highest = min(self._lowest, *seen), max(self._highest, *seen)

    def _solved(self, metrics: Metrics) -> bool:
        # Without the highest reward of a step, its mean says nothing: any mean could be the highest so far.
        if "reward/mean" not in metrics or "reward/max" not in metrics or self._highest <= self._lowest:
            return False
        return metrics["reward/mean"] >= self._lowest + SOLVED * (self._highest - self._lowest)

    def _flat_reward(self, metrics: Metrics) -> dict[str, str]:
        name = "reward/mean"
        if name not in metrics or len(self._rewards) < REWARD_WINDOW:
            return {}
        spread = max(self._rewards) - min(self._rewards)
        # A reward that is high and flat has been learned; only one that stays near zero asks for help.
        if spread > REWARD_SPREAD or abs(max(self._rewards, key=abs)) > REWARD_FLOOR:
            return {}
        return {
            name: f"{name} is {metrics[name]:.3g} and moved by {spread:.2g} in {REWARD_WINDOW} steps, usually above "
            f"{REWARD_FLOOR:g} by then; look at samples.jsonl: the reward may never be given, or start from a better "
            f"model"
        }

    def _collapsed_entropy(self, metrics: Metrics) -> dict[str, str]:
        name = "policy/entropy"
        if name not in metrics:
            return {}
        # A small vocabulary or an easy task has little entropy from the start: only the fall is alarming.
        self._entropy = max(self._entropy, metrics[name])
        if metrics[name] >= ENTROPY_FLOOR or metrics[name] > self._entropy / 2:
            return {}
        return {
            name: f"{name} fell from {self._entropy:.3g} to {metrics[name]:.2g}, usually 0.05 to 0.5; responses become "
            f"all alike: raise algorithm.clip_high or rollout.temperature, or lower policy.optimizer.lr"
        }
