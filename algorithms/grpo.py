"""Group Relative Policy Optimization (arXiv 2402.03300): sample a group of responses to each prompt, reward them, and
raise the probability of those that did better than their group.

    prompts -> rollout (vLLM) + reward -> advantages -> reference -> update (DeepSpeed) -> sync -> prompts

For response i of a group with rewards r: A_i = (r_i - mean r) / (std r + 1e-4), 0 for a group of equal rewards. With
the importance ratio rho = pi / pi_rollout of each token, the loss is the mean over tokens (or over sequences of their
means) of -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) + kl_coef (e^q - q - 1), q = log pi_reference - log pi.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Literal

import numpy as np
import ray
import torch

from actors.batch import Prompt
from actors.group import ActorGroup
from actors.packed import PackedBatch
from actors.policy import PolicyWorker
from actors.reference import ReferenceWorker
from actors.rollout_types import Sampling
from actors.worker import Totals
from algorithms.advantages import group_relative
from algorithms.config import GRPOConfig
from algorithms.data import Batches
from algorithms.experience import Sample, count_micro_batches, divide, samples_of, split_updates, totals_of
from algorithms.loop import Clock, Metrics, Reporter, good_enough
from algorithms.losses import aggregate, grpo_policy_loss, k3_kl, masked_sum, mismatch
from algorithms.sampler import Sampler, ScoredGroup

_EVALUATION_SEED = 1_000_003


def grpo_loss(
    batch: PackedBatch,
    policy_logprobs: torch.Tensor,
    entropies: torch.Tensor,
    totals: Totals,
    *,
    clip_low: float,
    clip_high: float,
    aggregation: Literal["token", "sequence"],
    kl_coef: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This micro-batch's share of the GRPO loss (see the module) and of its metrics; logprobs, entropies: [T]."""
    mask, rollout_logprobs = batch.action_mask, batch.fields["rollout_logprobs"]
    losses, clipped = grpo_policy_loss(
        policy_logprobs, rollout_logprobs, batch.fields["advantages"], mask, clip_low=clip_low, clip_high=clip_high
    )
    per_token = max(1, totals.trained_tokens)
    differences = mismatch(policy_logprobs, rollout_logprobs, mask)
    metrics = {
        "policy/entropy": masked_sum(entropies, mask) / per_token,
        "policy/clip_fraction": masked_sum(clipped.float(), mask) / per_token,
        "policy/ratio_mean": masked_sum(torch.exp(policy_logprobs - rollout_logprobs), mask) / per_token,
        "mismatch/logprob_abs_mean": differences["logprob_abs_sum"] / per_token,
        "mismatch/kl": differences["kl_sum"] / per_token,
    }
    if kl_coef:
        penalties = k3_kl(policy_logprobs, batch.fields["reference_logprobs"])
        losses = losses + kl_coef * penalties
        metrics["policy/kl"] = masked_sum(penalties, mask) / per_token
    loss = aggregate(
        losses, mask, batch.sequence_ids, mode=aggregation, tokens=totals.tokens, sequences=totals.sequences
    )
    return loss, metrics


@dataclass(kw_only=True)
class GRPO:
    """The loop, and what it holds between steps."""

    config: GRPOConfig
    policy: ActorGroup[PolicyWorker]
    reference: ActorGroup[ReferenceWorker] | None
    sampler: Sampler
    prompts: list[Prompt]
    batches: Batches
    evaluation: list[Prompt]
    publish: Callable[[int], Metrics]
    """Send the weights as this version."""
    checkpoint: Callable[[int, dict[str, Any], bool], None]
    """Save after this step, if it is one to save after; the last argument says that it is the last."""
    reporter: Reporter
    sampling: Sampling
    micro_batch_tokens: tuple[int, int]
    """Token budgets of policy and reference."""
    seed: int
    step: int = 0
    """Steps done; also the version of the weights."""
    samples_per_step: int = 8
    last_evaluation: Metrics = field(default_factory=dict)

    def train(self) -> None:
        """Run all steps."""
        config, clock = self.config, Clock(self.reporter)
        self.reporter.start("GRPO", config.steps, self.step)
        with clock("sync"):
            self.publish(self.step)
        if self.step == 0:
            self._evaluate(clock)
        clock.lap()
        while not self.done:
            with clock("rollout"):
                groups = self._rollout()
            with clock("advantages"):
                advantages = [self._advantages(group) for group in groups]
                updates = split_updates(samples_of(groups, advantages), self._per_update, self.seed + self.step)
                trained = [self._with_gradient(update) for update in updates]
            with clock("reference"):
                reference = self._reference_logprobs(groups, trained)
            with clock("update"):
                metrics = self._update(groups, updates, trained, reference)
            self.step += 1
            with clock("sync"):
                metrics |= self.publish(self.step)
            metrics |= self._rollout_metrics(groups, clock)
            metrics |= self._evaluate(clock)
            with clock("checkpoint"):
                self.checkpoint(self.step, self.state(), self.done)
            self._report(groups, metrics | clock.lap())

    @property
    def done(self) -> bool:
        """Whether all steps are done, or the last evaluation was good enough to stop."""
        return self.step >= self.config.steps or good_enough(self.config.stop_when, self.last_evaluation)

    @property
    def _per_update(self) -> int:
        return self.config.samples_per_update or self.config.samples_per_step

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the loop."""
        return {
            "step": self.step,
            "batches": self.batches.state_dict(),
            "last_evaluation": self.last_evaluation,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.step = state["step"]
        self.batches.load_state_dict(state["batches"])
        self.last_evaluation = state["last_evaluation"]

    def _rollout(self) -> list[ScoredGroup]:
        prompts = (self.prompts[self.batches.next(1)[0]] for _ in count())
        seed = (self.seed + 7919 * (self.step + 1)) % 2**31
        return self._collect(prompts, self.config.prompts_per_step, self.sampling, seed)

    def _collect(self, prompts: Iterator[Prompt], count: int, sampling: Sampling, seed: int) -> list[ScoredGroup]:
        groups = self.sampler.collect(prompts, count, sampling, seed)
        for error in self.sampler.pool.errors:
            self.reporter.note(f"not scored: {error}")
        return groups

    def _advantages(self, group: ScoredGroup) -> np.ndarray:
        return group_relative(group.rewards, normalize_std=self.config.normalize_std)

    def _with_gradient(self, update: list[Sample]) -> list[Sample]:
        """Samples that move the policy. Those with advantage 0 count in the denominators and are not computed."""
        return update if self.config.kl_coef else [sample for sample in update if sample.advantage != 0]

    def _reference_logprobs(self, groups: list[ScoredGroup], trained: list[list[Sample]]) -> list[Any]:
        """References to {(group, response): logprobs}, one per reference rank."""
        if self.reference is None:
            return []
        everything = [sample for update in trained for sample in update]
        work = divide(groups, [everything], len(self.reference), self.micro_batch_tokens[1])
        references = []
        for rank, share in enumerate(work):
            plan = [[(group, index) for group, index, _ in batch] for batch in share.plans[0]]
            arguments = (plan, share.keys, self.sampling.temperature, *share.groups)
            references.append(self.reference.submit(rank, ReferenceWorker.logprobs, *arguments))
        self.reference.gather(references, "logprobs")
        return references

    def _update(
        self,
        groups: list[ScoredGroup],
        updates: list[list[Sample]],
        trained: list[list[Sample]],
        reference: list[Any],
    ) -> Metrics:
        config = self.config
        loss = partial(
            grpo_loss,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            aggregation=config.aggregation,
            kl_coef=config.kl_coef,
        )
        totals = [totals_of(update, kept) for update, kept in zip(updates, trained, strict=True)]
        work = divide(groups, trained, len(self.policy), self.micro_batch_tokens[0])
        calls = [
            (
                share.plans,
                share.keys,
                totals,
                loss,
                self.sampling.temperature,
                len(reference),
                *share.groups,
                *reference,
            )
            for share in work
        ]
        per_update = self.policy.scatter(PolicyWorker.update, calls)[0]
        micro_batches, empty = count_micro_batches(work)
        # A shared prompt counts once, as it does in the layers; that attention copies it, and pads, is not counted.
        tokens = sum(update["tokens/trained"] for update in per_update)
        return _mean(per_update, [count.trained_tokens for count in totals]) | {
            "tokens/trained": tokens,
            "tokens/micro_batches": float(micro_batches),
            "tokens/padding_fraction": empty / max(1, empty + tokens),
        }

    def _rollout_metrics(self, groups: list[ScoredGroup], clock: Clock) -> Metrics:
        infos = [info for group in groups for info in group.infos]
        staleness = [self.step - 1 - info.oldest_version for info in infos]
        generated = sum(info.response_tokens for info in infos)
        return _reward_metrics(groups, "reward") | {
            "tokens/generated": float(generated),
            "rollout/response_tokens_mean": generated / len(infos),
            "rollout/truncated_fraction": float(np.mean([info.status == "truncated" for info in infos])),
            "rollout/failed": float(self.sampler.failed),
            "staleness/mean": float(np.mean(staleness)),
            "staleness/max": float(max(staleness)),
        }

    def _evaluate(self, clock: Clock) -> Metrics:
        """Held-out reward before the first step, every `eval_every` steps and after the last."""
        config = self.config
        due = config.eval_every and (self.step % config.eval_every == 0 or self.step == config.steps)
        if not due:
            return {}
        temperature = self.sampling.temperature if config.eval_temperature is None else config.eval_temperature
        sampling = Sampling(
            samples=config.eval_samples_per_prompt, temperature=temperature, max_tokens=self.sampling.max_tokens
        )
        with clock("evaluate"):
            groups = self._collect(iter(self.evaluation), len(self.evaluation), sampling, _EVALUATION_SEED)
        # A prompt whose responses cannot be scored is left out, not replaced: the held-out set stays what it is.
        failed = {"eval/failed": float(self.sampler.failed)}
        self.last_evaluation = _reward_metrics(groups, "eval/reward") | failed
        if self.step == 0:
            self.reporter.step(0, self.last_evaluation | clock.lap())
        return self.last_evaluation

    def _report(self, groups: list[ScoredGroup], metrics: Metrics) -> None:
        training = metrics["time/step"] - metrics.get("time/evaluate", 0.0)
        metrics["tokens_per_second"] = metrics["tokens/generated"] / training
        self.reporter.step(self.step, metrics)
        shown = self.step == 1 or any(name.startswith("eval/") for name in metrics)
        self.reporter.samples(self.step, _sample_rows(groups, self.samples_per_step), shown)


def _mean(per_update: list[Metrics], trained_tokens: list[int]) -> Metrics:
    """Metrics of a step from those of its updates; what an update without trained tokens cannot tell is left out."""
    always = {"loss": "loss/policy", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}
    means = {name: float(np.mean([metrics[key] for metrics in per_update])) for key, name in always.items()}
    told = [metrics for metrics, tokens in zip(per_update, trained_tokens, strict=True) if tokens]
    for key in (key for key in per_update[0] if told and key.startswith("policy/")):
        means[key] = float(np.mean([metrics[key] for metrics in told]))
    if trained_tokens[0]:
        # The first update is on-policy: only there do trainer and sampler hold the same weights.
        means |= {key: value for key, value in per_update[0].items() if key.startswith("mismatch/")}
    return means


def _reward_metrics(groups: list[ScoredGroup], prefix: str) -> Metrics:
    rewards = np.concatenate([group.rewards for group in groups])
    metrics = {f"{prefix}/mean": float(rewards.mean()), f"{prefix}/std": float(rewards.std())}
    if len(groups[0].scores) > 1:
        # Groups of equal rewards have no advantage and teach nothing.
        equal = [not group_relative(group.rewards, normalize_std=False).any() for group in groups]
        metrics[f"{prefix}/zero_variance_fraction"] = float(np.mean(equal))
    names = {name for group in groups for score in group.scores for name in score.parts}
    for name in names if len(names) > 1 else ():
        parts = [score.parts[name] for group in groups for score in group.scores if name in score.parts]
        metrics[f"{prefix}/{name}"] = float(np.mean(parts))
    return metrics


def _sample_rows(groups: list[ScoredGroup], count: int) -> list[dict[str, Any]]:
    """The first response of as many prompts as there are rows to show."""
    rows = []
    for group in groups[:count]:
        rollout = ray.get(group.rollouts, timeout=60)[0]
        rows.append(
            {
                "prompt": group.prompt.text,
                "completion": rollout.text,
                "reward": group.scores[0].reward,
                "version": group.infos[0].oldest_version,
                "status": rollout.status,
            }
        )
    return rows
