"""The policy's loss in PPO and the GRPO family, from the token maths of `algorithms.losses`.

With the importance ratio rho = pi / pi_old of each token, the loss is the aggregate over tokens of the surrogate that
`algorithm.loss` names, + kl_coef KL(pi || reference) where kl_in is loss (times rho with kl_importance_ratio),
- entropy_coef entropy. pi_old is the
sampler's, or with `importance_correction` the trainer's at the start of the step: the surrogate is then weighted by the
truncated pi_old / pi_sampler.
"""

import torch

from actors.models.packed import PackedBatch
from actors.train.worker import Totals
from algorithms.config_rl import GRPOConfig, RLConfig
from algorithms.losses import (
    aggregate,
    bounded,
    cispo_policy_loss,
    clipped_policy_loss,
    gspo_policy_loss,
    importance_weights,
    kl_penalty,
    masked_sum,
    mismatch,
    sapo_policy_loss,
    weighted_kl_penalty,
)

Metrics = dict[str, torch.Tensor]


def policy_loss(
    batch: PackedBatch,
    policy_logprobs: torch.Tensor,
    entropies: torch.Tensor,
    totals: Totals,
    *,
    config: RLConfig,
    kl_coef: float,
    constant: int,
    version: int,
) -> tuple[torch.Tensor, Metrics]:
    """This micro-batch's share of the loss (see the module) and of its metrics; logprobs, entropies: [T].

    `constant` stands for a sequence's length in aggregation constant. `version` is that of the policy before the first
    update: only tokens sampled with it say whether trainer and sampler agree, as others differ by what was learned
    since. mismatch/tokens is their number, by which `update_metrics` divides anew.
    """
    mask, rollout_logprobs = batch.action_mask, batch.fields["rollout_logprobs"]
    per_token = max(1, totals.trained_tokens)
    differences = mismatch(policy_logprobs, rollout_logprobs, mask & (batch.fields["versions"] == version))
    losses, metrics = _surrogate(batch, policy_logprobs, per_token, config)
    metrics |= {
        "policy/entropy": masked_sum(entropies, mask) / per_token,
        "mismatch/logprob_abs_mean": differences["logprob_abs_sum"] / per_token,
        "mismatch/kl": differences["kl_sum"] / per_token,
        "mismatch/tokens": differences["tokens"],
    }
    if kl_coef and config.kl_in == "loss":
        penalties = _penalties(batch, policy_logprobs, config)
        losses = losses + kl_coef * penalties
        metrics["policy/kl"] = masked_sum(penalties, mask) / per_token
    if config.entropy_coef:
        losses = losses - config.entropy_coef * entropies
    loss = aggregate(
        losses,
        mask,
        batch.sequence_ids,
        mode=config.aggregation,
        tokens=max(1, totals.tokens),
        sequences=max(1, totals.sequences),
        constant=constant,
    )
    return loss, metrics


def _surrogate(
    batch: PackedBatch, policy_logprobs: torch.Tensor, per_token: int, config: RLConfig
) -> tuple[torch.Tensor, Metrics]:
    """The surrogate of each token, [T], and its metrics."""
    mask, advantages, ids = batch.action_mask, batch.fields["advantages"], batch.sequence_ids
    old_logprobs = _old_logprobs(batch, policy_logprobs, config)
    name = config.loss if isinstance(config, GRPOConfig) else "clip"
    clips = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    if isinstance(config, GRPOConfig) and name == "cispo":
        assert config.cispo_max_ratio is not None, "GRPOConfig requires it for cispo"
        found = cispo_policy_loss(policy_logprobs, old_logprobs, advantages, mask, max_ratio=config.cispo_max_ratio)
    elif isinstance(config, GRPOConfig) and name == "sapo":
        found = sapo_policy_loss(policy_logprobs, old_logprobs, advantages, mask, temperatures=config.sapo_temperatures)
    elif name == "gspo":
        found = gspo_policy_loss(policy_logprobs, old_logprobs, advantages, mask, ids, **clips)
    else:
        found = clipped_policy_loss(
            policy_logprobs, old_logprobs, advantages, mask, **clips, dual_clip=config.dual_clip
        )
    losses, clipped = found
    metrics = {
        "policy/clip_fraction": masked_sum(clipped.float(), mask) / per_token,
        "policy/ratio_mean": masked_sum(torch.exp(bounded(policy_logprobs.detach() - old_logprobs)), mask) / per_token,
    }
    if correction := config.importance_correction:
        weights = importance_weights(
            old_logprobs,
            batch.fields["rollout_logprobs"],
            mask,
            ids,
            level=correction.level,
            mode=correction.mode,
            cap=correction.cap,
        )
        losses = losses * weights
        metrics["policy/importance_weight_mean"] = masked_sum(weights, mask) / per_token
    return losses, metrics


def _penalties(batch: PackedBatch, policy_logprobs: torch.Tensor, config: RLConfig) -> torch.Tensor:
    """The KL to the reference that the loss takes for each token, [T]."""
    reference_logprobs = batch.fields["reference_logprobs"]
    if not config.kl_importance_ratio:
        return kl_penalty(policy_logprobs, reference_logprobs, config.kl_estimator)
    old_logprobs = _old_logprobs(batch, policy_logprobs, config)
    return weighted_kl_penalty(
        policy_logprobs, old_logprobs, reference_logprobs, batch.action_mask, config.kl_estimator
    )


def _old_logprobs(batch: PackedBatch, policy_logprobs: torch.Tensor, config: RLConfig) -> torch.Tensor:
    """Of the policy that the ratio compares with, [T]."""
    if config.importance_correction is None:
        return batch.fields["rollout_logprobs"]
    # In the only update of a step, the policy still is the one that the step began with.
    return policy_logprobs.detach() if config.updates_per_step == 1 else batch.fields["old_logprobs"]
