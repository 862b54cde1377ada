"""What a step of reinforcement learning reports, from its groups and the metrics of its updates."""

from collections.abc import Mapping, Sequence

import numpy as np

from actors.rollout.types import RolloutInfo
from algorithms.config_rl import RLConfig
from algorithms.loop import Metrics
from algorithms.rl.advantages import differ
from algorithms.rl.importance import quantile
from algorithms.rollouts.discards import Discards
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup

_COUNTS = "importance/counts/"
"""How the counts of importance weights in each bin begin, in their order."""
_QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}

ReportedAdvantages = Mapping[tuple[int, int], float]
"""(number of the group, of the response) -> advantage; its mean over tokens, where these have their own. None of those
whose ranks have not told."""


def reward_metrics(groups: Sequence[ScoredGroup], prefix: str) -> Metrics:
    """Mean and spread of rewards, each source by its label, and the share of groups whose responses do not differ."""
    rewards = np.concatenate([group.rewards for group in groups])
    metrics = {f"{prefix}/mean": float(rewards.mean()), f"{prefix}/std": float(rewards.std())}
    if len(groups[0].scores) > 1:
        metrics[f"{prefix}/zero_variance_fraction"] = float(np.mean([not teaches(group) for group in groups]))
    names = {name for group in groups for score in group.scores for name in score.parts}
    for name in names if len(names) > 1 else ():  # a single source is the reward, but for its weight
        parts = [score.parts[name] for group in groups for score in group.scores if name in score.parts]
        metrics[f"{prefix}/{name}"] = float(np.mean(parts))
    return metrics | _by_set(groups, prefix)


def _by_set(groups: Sequence[ScoredGroup], prefix: str) -> Metrics:
    """Mean reward of the prompts of each set, where the data has several."""
    by_set: dict[str, list[np.ndarray]] = {}
    for group in groups:
        if group.prompt.of_set:
            by_set.setdefault(group.prompt.of_set, []).append(group.rewards)
    return {f"{prefix}/{name}/mean": float(np.concatenate(rewards).mean()) for name, rewards in by_set.items()}


def teaches(group: ScoredGroup) -> bool:
    """Whether the responses of a group differ in what they are compared by: shaped scores, in an evaluation rewards."""
    return differ(group.compared)


def rollout_metrics(groups: Sequence[ScoredGroup], version: int, failures: Failures) -> Metrics:
    """Lengths, statuses and ages of a step's rollouts; `version` is that of the weights they should be of."""
    infos = [info for group in groups for info in group.infos]
    staleness = [version - info.oldest_version for info in infos]  # by the oldest token
    generated = sum(info.sampled_tokens for info in infos)
    rewards = [score.reward for group in groups for score in group.scores]
    return (
        reward_metrics(groups, "reward")
        | _turn_metrics(infos)
        | {
            "reward/min": float(np.min(rewards)),
            "reward/max": float(np.max(rewards)),
            "tokens/generated": float(generated),
            "rollout/response_tokens_mean": generated / len(infos),
            "rollout/response_tokens_max": float(max(info.sampled_tokens for info in infos)),
            "rollout/truncated_fraction": float(np.mean([info.status == "truncated" for info in infos])),
            "rollout/failed": float(failures.samples),
            "reward/failed": float(failures.unscored),
            "staleness/mean": float(np.mean(staleness)),
            "staleness/max": float(max(staleness)),
        }
    )


def discard_metrics(config: RLConfig, discards: Discards, groups: Sequence[ScoredGroup]) -> Metrics:
    """What became of groups that a step was not given, while it was made: too old ones, those whose scores do not
    differ, those that later steps take; and what was sampled over several versions, of what it was given."""
    found: Metrics = {}
    kept = len(groups)
    if config.max_staleness:
        infos = [info for group in groups for info in group.infos]
        tokens = max(1, sum(info.sampled_tokens for info in infos))
        found["staleness/carried_fraction"] = sum(info.carried_tokens for info in infos) / tokens
        found |= {"staleness/dropped": float(discards.dropped), "staleness/aborted": float(discards.aborted)}
        stale = sum(each.why == "stale" for each in discards.left_out)
        found["staleness/left_out"] = float(stale)
    if discards.held is not None:
        found["rollout/held"] = float(discards.held)
    if discards.postponed:
        found["rollout/postponed"] = float(discards.postponed)
    if getattr(config, "dynamic_sampling", False):
        found["rollout/dynamic_sampling_kept"] = kept / (kept + discards.alike)
    return found


def left_out_rows(discards: Discards) -> dict[str, list[str]]:
    """Why -> names of the prompts of which no group will come in this pass over the data: set (where there are several)
    and row."""
    found: dict[str, list[str]] = {}
    for each in discards.left_out:
        found.setdefault(each.why, []).append(each.prompt.name)
    return found


def _turn_metrics(infos: Sequence[RolloutInfo]) -> Metrics:
    """Turns and their rewards per episode, and the tokens that were given between sampled ones; of a step in which an
    episode has several turns, or one that was rewarded."""
    found: Metrics = {}
    if any(info.turns > 1 for info in infos):
        given = sum(info.tokens - info.prompt_tokens - info.sampled_tokens for info in infos)
        found |= {"rollout/turns_mean": float(np.mean([info.turns for info in infos])), "tokens/given": float(given)}
    if any(info.turn_rewards for info in infos):
        found["reward/turns"] = float(np.mean([sum(info.turn_rewards) for info in infos]))
    return found


def update_metrics(per_update: list[Metrics], trained_tokens: list[int], prefix: str) -> Metrics:
    """Metrics of a step from those of its updates; what an update without trained tokens cannot tell is left out.

    `prefix` is policy or critic; loss, gradient norm and learning rate get it where they do not belong to the policy.
    """
    own = "" if prefix == "policy" else f"{prefix}/"
    always = {"loss": f"loss/{prefix}", "grad_norm": f"{own}grad_norm", "learning_rate": f"{own}learning_rate"}
    means = {name: float(np.mean([metrics[key] for metrics in per_update])) for key, name in always.items()}
    told = [metrics for metrics, tokens in zip(per_update, trained_tokens, strict=True) if tokens]
    for key in (key for key in per_update[0] if told and key.startswith(f"{prefix}/")):
        means[key] = float(np.mean([metrics[key] for metrics in told]))
    if trained_tokens[0]:
        means |= _mismatch(per_update[0], trained_tokens[0])
    return means | _importance(told)


def _importance(told: list[Metrics]) -> Metrics:
    """Quantiles of the importance weights of all updates that tell some, and the share of them that was cut."""
    names = [name for name in told[0] if name.startswith(_COUNTS)] if told else []
    counts = [sum(metrics[name] for metrics in told) for name in names]
    if not (total := sum(counts)):
        return {}
    found = {f"policy/importance_weight_{label}": quantile(counts, share) for label, share in _QUANTILES.items()}
    if "importance/cut" in told[0]:
        found["policy/importance_truncated_fraction"] = sum(metrics["importance/cut"] for metrics in told) / total
    return found


def _mismatch(first: Metrics, trained_tokens: int) -> Metrics:
    """How far trainer and sampler disagree, by the step's first update: only there may they hold the same weights.

    Means over the tokens that such weights have sampled; nothing, where none of the trained ones is.
    """
    found = {name: value for name, value in first.items() if name.startswith("mismatch/")}
    same = found.pop("mismatch/tokens", trained_tokens)
    # Where all are, the factor is exactly 1.
    return {name: value * (trained_tokens / same) for name, value in found.items()} if same else {}
