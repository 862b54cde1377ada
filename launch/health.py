"""Warnings when a metric leaves the range in which training usually works.

Ranges are those practitioners publish for GRPO: reward moving within 20 steps, fewer than 0.8 of the groups without
variance, KL below 0.5, clip fraction below 0.1, truncated fraction below 0.3, sampler-trainer difference below 0.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Metrics = Mapping[str, float]

REWARD_WINDOW = 20
REWARD_FLOOR = 0.15
REWARD_SPREAD = 0.05
ENTROPY_FLOOR = 0.05
RECOVERY_STEPS = 10
HISTORY = 200
"""Earlier steps that `warnings_for` looks at; a longer history changes nothing."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A metric that should stay below `limit`."""

    metric: str
    limit: float
    advice: str


CEILINGS = (
    Ceiling(
        "reward/zero_variance_fraction",
        0.8,
        "most groups teach nothing: try prompts of medium difficulty, more samples_per_prompt, or a finer reward",
    ),
    Ceiling("policy/kl", 0.5, "the policy runs away from the reference: lower policy.optimizer.lr or raise kl_coef"),
    Ceiling(
        "policy/clip_fraction",
        0.1,
        "updates are too large: lower policy.optimizer.lr or take fewer updates per step",
    ),
    Ceiling(
        "rollout/truncated_fraction",
        0.3,
        "responses are cut: raise rollout.max_response_tokens, or check that the model ends its answers",
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
)


def warnings_for(metrics: Metrics, history: Sequence[Metrics]) -> list[str]:
    """Lines for the metrics that are out of range now and were in range over the last `RECOVERY_STEPS` steps.

    Args:
        metrics: of this step; metrics that are absent are not judged.
        history: of the earlier steps, oldest first, this step excluded.
    """
    history = history[-HISTORY:]
    earlier = [
        _problems(past, history[:index]) for index, past in enumerate(history) if index >= len(history) - RECOVERY_STEPS
    ]
    known = {name for problems in earlier for name in problems}
    return [line for name, line in _problems(metrics, history).items() if name not in known]


def _problems(metrics: Metrics, history: Sequence[Metrics]) -> dict[str, str]:
    """Metric name -> warning, for every metric out of its range."""
    found = {
        ceiling.metric: f"{ceiling.metric} is {metrics[ceiling.metric]:.3g}, usually below {ceiling.limit:g}; "
        f"{ceiling.advice}"
        for ceiling in CEILINGS
        if metrics.get(ceiling.metric, 0.0) >= ceiling.limit
    }
    return {**found, **_flat_reward(metrics, history), **_collapsed_entropy(metrics, history)}


def _flat_reward(metrics: Metrics, history: Sequence[Metrics]) -> dict[str, str]:
    name = "reward/mean"
    rewards = [step[name] for step in (*history, metrics) if name in step][-REWARD_WINDOW:]
    if name not in metrics or len(rewards) < REWARD_WINDOW:
        return {}
    spread = max(rewards) - min(rewards)
    # A reward that is high and flat has been learned; only one that stays near zero asks for help.
    if spread > REWARD_SPREAD or abs(max(rewards, key=abs)) > REWARD_FLOOR:
        return {}
    return {
        name: f"{name} is {metrics[name]:.3g} and moved by {spread:.2g} in {REWARD_WINDOW} steps, usually above "
        f"{REWARD_FLOOR:g} by then; look at samples.jsonl: the reward may never be given, or start from a better model"
    }


def _collapsed_entropy(metrics: Metrics, history: Sequence[Metrics]) -> dict[str, str]:
    name = "policy/entropy"
    if name not in metrics:
        return {}
    # A small vocabulary or an easy task has little entropy from the start: only the fall is alarming.
    highest = max((step[name] for step in history if name in step), default=metrics[name])
    if metrics[name] >= ENTROPY_FLOOR or metrics[name] > highest / 2:
        return {}
    return {
        name: f"{name} fell from {highest:.3g} to {metrics[name]:.2g}, usually 0.05 to 0.5; responses become all "
        f"alike: raise algorithm.clip_high or rollout.temperature, or lower policy.optimizer.lr"
    }
