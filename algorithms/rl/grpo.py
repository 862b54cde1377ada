"""Group Relative Policy Optimization (arXiv 2402.03300) and its family.

Sample a group of responses to each prompt, reward them, and raise the probability of those that did better than their
group:

    prompts -> rollout (vLLM) + reward -> reference -> advantages -> update (DeepSpeed) -> sync -> prompts

For response i of a group with rewards r: A_i = (r_i - mean r) / (std r + 1e-4), 0 for a group of equal rewards; other
baselines are in `algorithms.rl.baselines`. With `mask_truncated`, the group is its responses that were not cut: the
others are in neither loss nor baseline. The loss is that of `algorithms.rl.policy_loss`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from algorithms.config_rl import GRPOConfig
from algorithms.division.deals import Updates
from algorithms.division.work import Sample, samples_of, totals_of
from algorithms.loop import Clock, Metrics
from algorithms.rl.estimators import compared
from algorithms.rl.metrics import ReportedAdvantages
from algorithms.rl.overlapped_gradients import Accumulated
from algorithms.rl.stages import RL
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
            with clock("rollout"):
                groups = self.sample(self.config.prompts_per_step)
            with clock("score"):
                groups = self.shape(self.score(groups))
            metrics, advantages = self.survive(self.learn, groups, clock)
            self.finish_step(groups, metrics, clock, advantages)

    def learn(self, groups: Sequence[ShapedGroup], clock: Clock) -> tuple[Metrics, ReportedAdvantages]:
        """Update the policy; returns metrics, and the advantages that samples.jsonl tells."""
        with clock("advantages"):
            samples = self._advantages(groups)
        if self.gradients:
            with clock("update"):
                metrics = self._finish_early(self.gradients.take(groups), groups, samples)
            return metrics, _reported(samples)
        with clock("advantages"):
            # Planned before anything is computed: a rank that computes fields must know who goes on with them.
            updates, estimation = self._plan(samples), self.estimation(self.policy, groups)
        learns = [updates.taker]
        with clock("reference"):
            takers = [estimation, *learns] if self._by_token else learns
            # Both begin before one is waited for.
            reference, old = self.read_frozen(groups, takers), self.read_old(groups, takers)
            parts = reference() + old()
        metrics: Metrics = {}
        advantages = _reported(samples)
        if self._by_token:
            with clock("advantages"):
                scores = [each.shaped for each in groups]
                metrics, advantages, found = self.estimate(self.policy, groups, scores, parts, estimation, learns)
                parts += found
        with clock("update"):
            metrics |= self.submit_updates(updates, self.policy_loss(), groups, parts)()
        return metrics, advantages

    def accumulate(self, groups: Sequence[ScoredGroup]) -> Accumulated:
        return self.begin_accumulating(groups, self._plan(self._advantages(groups)))

    def _finish_early(
        self, begun: Sequence[Accumulated], groups: Sequence[ShapedGroup], samples: list[Sample]
    ) -> Metrics:
        """The update of a step whose groups have been trained on while others were generated, but for the last."""
        early = {group.rollouts for part in begun for group in part.groups}
        late = [group for group in groups if group.rollouts not in early]
        counted = self.counted(samples)
        totals = totals_of(counted, self._with_gradient(counted))
        return self.finish_accumulated(begun, late, self._plan(self._advantages(late)), totals)

    @property
    def _by_token(self) -> bool:
        """Whether ranks compute the advantages: they see tokens, over which whitening goes too."""
        config, baseline = self.config, self.config.baseline
        of_tokens = baseline.by_token or baseline.whitens(config)
        return of_tokens or bool(config.kl_in == "reward" and config.kl_coef)

    def _advantages(self, groups: Sequence[ScoredGroup]) -> list[Sample]:
        """The step's samples, with their advantages where these are one number each, else NaN."""
        config, shaped = self.config, self.shape(groups)
        if self._by_token:
            return samples_of(groups, [np.full(len(each.infos), np.nan) for each in shaped])  # not known yet
        return samples_of(groups, [compared(config, each.shaped, each.counted) for each in shaped])

    def _plan(self, samples: list[Sample]) -> Updates:
        updates = [self.counted(update) for update in self.updates(samples)]
        return self.plan_policy(updates, [self._with_gradient(update) for update in updates])

    def _with_gradient(self, update: list[Sample]) -> list[Sample]:
        """Samples that move the policy. Those with advantage 0 count in the denominators and are not computed."""
        # These move the policy at every token, whatever its advantage is.
        others = (self.config.kl_coef and self.config.kl_in == "loss") or self.config.entropy_coef
        return update if others else [sample for sample in update if sample.advantage != 0]


def _reported(samples: Sequence[Sample]) -> ReportedAdvantages:
    return {(each.group, each.index): each.advantage for each in samples}
