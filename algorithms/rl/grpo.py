"""Group Relative Policy Optimization (arXiv 2402.03300) and its family.

Sample a group of responses to each prompt, reward them, and raise the probability of those that did better than their
group:

    prompts -> rollout (vLLM) + reward -> reference -> advantages -> update (DeepSpeed) -> sync -> prompts

For response i of a group with rewards r: A_i = (r_i - mean r) / (std r + 1e-4), 0 for a group of equal rewards; other
baselines are in `algorithms.rl.estimators`. With `mask_truncated`, the group is its responses that were not cut: the
others are in neither loss nor baseline. The loss is that of `algorithms.rl.policy_loss`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from algorithms.config_rl import GRPOConfig
from algorithms.loop import Clock, Metrics
from algorithms.rl.advantages import among_counted, group_relative, leave_one_out
from algorithms.rl.experience import Sample, samples_of
from algorithms.rl.metrics import teaches
from algorithms.rl.stages import RL, Fields
from algorithms.rollouts.groups import ScoredGroup, ShapedGroup


@dataclass(kw_only=True)
class GRPO(RL):
    """The loop."""

    config: GRPOConfig

    def train(self) -> None:
        """Run all steps."""
        clock = Clock(self.reporter)
        self.begin("GRPO", clock)
        while not self.done:
            groups = self._scored_groups(clock)
            with clock("reference"):
                reference, old = self.read_frozen(groups), self.read_old(groups)
                fields = reference() + old()
            with clock("advantages"):
                samples, found, metrics = self._advantages(groups, fields)
            with clock("update"):
                metrics |= self._update(groups, samples, fields + found)
            advantages = {(each.group, each.index): each.advantage for each in samples}
            if found:
                advantages = self.mean_advantages(self.policy, groups, found)
            self.finish_step(groups, metrics, clock, advantages)

    def _scored_groups(self, clock: Clock) -> list[ShapedGroup]:
        """The step's groups; with dynamic sampling, those whose scores differ, sampled until there are enough."""
        wanted, kept, sampled = self.config.prompts_per_step, list[ShapedGroup](), 0
        rounds = self.config.dynamic_sampling_rounds if self.config.dynamic_sampling else 1
        for attempt in range(rounds):
            with clock("rollout"):
                groups = self.sample(wanted - len(kept), attempt)
            with clock("score"):
                groups = self.shape(self.score(groups))
            sampled += len(groups)
            kept += [group for group in groups if teaches(group)] if self.config.dynamic_sampling else groups
            if len(kept) == wanted or not self.config.dynamic_sampling:
                self.sampled = sampled
                return kept
        raise RuntimeError(
            f"after {rounds} rounds of sampling (algorithm.dynamic_sampling_rounds) only {len(kept)} of {wanted} "
            f"prompts had responses of different scores ({sampled} were sampled): too easy or too hard for the model"
        )

    def _advantages(self, groups: Sequence[ScoredGroup], fields: Fields) -> tuple[list[Sample], Fields, Metrics]:
        """The step's samples, with their advantages where these are one number each, else fields that hold them."""
        config, shaped = self.config, self.shape(groups)
        metrics: Metrics = {}
        if config.dynamic_sampling:
            metrics["rollout/dynamic_sampling_kept"] = len(groups) / self.sampled
        if config.advantage.startswith("reinforce_pp") or (config.kl_in == "reward" and config.kl_coef):
            told, found = self.estimate(self.policy, groups, [each.shaped for each in shaped], fields)
            return samples_of(groups, [np.full(len(each.infos), np.nan) for each in shaped]), found, metrics | told
        compare = leave_one_out
        if config.advantage == "group":
            compare = partial(group_relative, normalize_std=config.normalize_std)
        advantages = [among_counted(each.shaped, each.counted, compare) for each in shaped]
        return samples_of(groups, advantages), [], metrics

    def _update(self, groups: Sequence[ScoredGroup], samples: list[Sample], fields: Fields) -> Metrics:
        updates = [self.counted(update) for update in self.updates(samples)]
        trained = [self._with_gradient(update) for update in updates]
        return self.submit_updates(self.policy, "policy", self.policy_loss(), groups, updates, trained, fields)()

    def _with_gradient(self, update: list[Sample]) -> list[Sample]:
        """Samples that move the policy. Those with advantage 0 count in the denominators and are not computed."""
        others = (self.config.kl_coef and self.config.kl_in == "loss") or self.config.entropy_coef
        return update if others else [sample for sample in update if sample.advantage != 0]
