"""The policy's loss in PPO and the GRPO family, from the token maths of `algorithms.rl.losses`.

With the importance ratio rho = pi / pi_old of each token, the loss is the aggregate over tokens of the surrogate that
`algorithm.loss` names (`algorithms.rl.surrogates`), + kl_coef KL(pi || reference) where kl_in is loss (times rho with
kl_importance_ratio), - entropy_coef entropy. pi_old is the sampler's, or with `importance_correction` the trainer's at
the start of the step: the surrogate is then weighted by pi_old / pi_sampler, truncated or masked.

With the clipped surrogate that is decoupled PPO (arXiv 2505.24298): pi_sampler, whose weights may be older, and change
within a response, is its behaviour policy; pi_old, the same in all updates and epochs of a step, is its proximal one.
In a step of one update pi is pi_old, and what is left is REINFORCE with truncated importance sampling.
"""

import torch

from actors.models.packed import PackedBatch
from actors.train.sums import Divisors
from actors.train.worker import Totals
from algorithms.config_rl import RLConfig
from algorithms.losses import aggregate, bounded, masked_sum
from algorithms.rl.importance import weight_sums
from algorithms.rl.losses import importance_weights, kl_penalty, mismatch, weighted_kl_penalty

Metrics = dict[str, torch.Tensor]
COUNTS = frozenset(("mismatch/tokens", "importance/counts", "importance/cut"))
"""Metrics that are numbers of tokens, whatever `totals` are; all others are divided by the trained tokens."""


def divisors(config: RLConfig, totals: Totals) -> Divisors:
    """What makes the loss and the metrics of an update of those that were computed with counts of 1."""
    by_token = config.aggregation == "token"
    # As in `policy_loss`: an update may have nothing to learn from.
    loss = max(1, totals.tokens if by_token else totals.sequences)
    return Divisors(loss=loss, metrics=max(1, totals.trained_tokens), counts=COUNTS)


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
    keeps_cache: bool = False,
) -> tuple[torch.Tensor, Metrics]:
    """This micro-batch's share of the loss (see the module) and of its metrics; logprobs, entropies: [T].

    `constant` stands for a sequence's length in aggregation constant. `version` is that of the policy before the first
    update: only tokens sampled with it say whether trainer and sampler agree, as others differ by what was learned
    since; with `keeps_cache` (rollout.on_update) only those of responses that are of this version as a whole, as others
    attend to keys and values that older weights have computed. mismatch/tokens is their number, by which
    `update_metrics` divides anew; of importance/counts and importance/cut, which it makes quantiles of, see
    `weight_sums`.
    """
    mask, rollout_logprobs = batch.action_mask, batch.fields["rollout_logprobs"]
    # What is computed, while the loss is divided by all of the update: samples without a gradient are in its mean.
    per_token = max(1, totals.trained_tokens)
    differences = mismatch(policy_logprobs, rollout_logprobs, _comparable(batch, version, keeps_cache))
    old_logprobs, surrogate = _old_logprobs(batch, policy_logprobs, config), config.surrogate
    vectors = [policy_logprobs, old_logprobs, batch.fields["advantages"], mask]
    vectors += [batch.sequence_ids] if surrogate.by_sequence else []  # the others take no such argument
    losses, clipped = surrogate.of(config)(*vectors)
    losses, metrics = _corrected(losses, batch, old_logprobs, per_token, config)
    metrics |= _off_policy(batch, policy_logprobs, old_logprobs, per_token, config, version)
    metrics |= {
        "policy/clip_fraction": masked_sum(clipped.float(), mask) / per_token,
        "policy/ratio_mean": masked_sum(torch.exp(bounded(policy_logprobs.detach() - old_logprobs)), mask) / per_token,
        "policy/entropy": masked_sum(entropies, mask) / per_token,
        "mismatch/logprob_abs_mean": differences["logprob_abs_sum"] / per_token,
        "mismatch/kl": differences["kl_sum"] / per_token,
        "mismatch/tokens": differences["tokens"],
    }
    if kl_coef and config.kl_in == "loss":
        penalties = _penalties(batch, policy_logprobs, old_logprobs, config)
        losses = losses + kl_coef * penalties
        metrics["policy/kl"] = masked_sum(penalties, mask) / per_token
    if config.entropy_coef:
        losses = losses - config.entropy_coef * entropies
    # mask_truncated may leave an update without any: its loss is 0, and no NaN.
    counts = {"tokens": max(1, totals.tokens), "sequences": max(1, totals.sequences)}
    loss = aggregate(losses, mask, batch.sequence_ids, mode=config.aggregation, constant=constant, **counts)
    return loss, metrics


def _comparable(batch: PackedBatch, version: int, keeps_cache: bool) -> torch.Tensor:
    """Action tokens that the weights of this version alone have sampled, bool [T]."""
    fresh = batch.action_mask & (batch.fields["versions"] == version)
    if not keeps_cache or batch.idle:  # an idle rank's has no sequence
        return fresh
    others = batch.sequence_sums((batch.action_mask & ~fresh).double())
    return fresh & (others == 0)[batch.sequence_ids]


def _corrected(
    losses: torch.Tensor, batch: PackedBatch, old_logprobs: torch.Tensor, per_token: int, config: RLConfig
) -> tuple[torch.Tensor, Metrics]:
    """The surrogate of each token, [T], weighted where `correction` says so, and the metrics of that."""
    correction, mask = config.correction, batch.action_mask
    if correction is None:
        return losses, {}
    weights = importance_weights(
        old_logprobs,
        batch.fields["rollout_logprobs"],
        mask,
        batch.sequence_ids,
        level=correction.level,
        mode=correction.mode,
        cap=correction.cap,
    )
    return losses * weights, {"policy/importance_weight_mean": masked_sum(weights, mask) / per_token}


def _off_policy(
    batch: PackedBatch,
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    per_token: int,
    config: RLConfig,
    version: int,
) -> Metrics:
    """How far all tokens, of whatever version, are from the trainer's policy; nothing where none can be.

    The sampler is compared with pi_old, or without a correction, for which nobody reads it, with pi.
    """
    correction, mask, rollout_logprobs = config.correction, batch.action_mask, batch.fields["rollout_logprobs"]
    if correction is None and not config.max_staleness:
        return {}
    compared = policy_logprobs.detach() if correction is None else old_logprobs
    level, cap = (correction.level, correction.cap) if correction else ("token", None)
    sums = weight_sums(compared, rollout_logprobs, mask, batch.sequence_ids, level=level, cap=cap)
    found = {"policy/sampler_kl": sums["kl"] / per_token, "importance/counts": sums["counts"]}
    if correction:
        found["importance/cut"] = sums["cut"]
    if config.max_staleness:
        behind = version - batch.fields["versions"].double()
        found["policy/token_staleness"] = masked_sum(behind, mask) / per_token
    return found


def _penalties(
    batch: PackedBatch, policy_logprobs: torch.Tensor, old_logprobs: torch.Tensor, config: RLConfig
) -> torch.Tensor:
    """The KL to the reference that the loss takes for each token, [T]."""
    reference_logprobs = batch.fields["reference_logprobs"]
    if not config.kl_importance_ratio:
        return kl_penalty(policy_logprobs, reference_logprobs, config.kl_estimator)
    return weighted_kl_penalty(
        policy_logprobs, old_logprobs, reference_logprobs, batch.action_mask, config.kl_estimator
    )


def _old_logprobs(batch: PackedBatch, policy_logprobs: torch.Tensor, config: RLConfig) -> torch.Tensor:
    """Of the policy that the ratio compares with, [T]."""
    if config.correction is None:
        return batch.fields["rollout_logprobs"]
    # In the only update of a step, the policy still is the one that the step began with. In others it is not, also in
    # the first of an epoch: what was read before all of them stays.
    return policy_logprobs.detach() if config.updates_per_step == 1 else batch.fields["old_logprobs"]
