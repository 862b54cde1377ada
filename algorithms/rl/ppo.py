"""Proximal Policy Optimization (arXiv 1707.06347) with a critic, for language models (arXiv 2203.02155).

    prompts -> rollout (vLLM) -> reward -> reference, values -> advantages -> update (policy and critic) -> sync

The reward of a token is -kl_coef KL(pi || reference) there, and the response's score is added at its last token.
Advantages are generalized advantage estimates (arXiv 1506.02438) against the critic's values, whitened over the step.
The policy's loss is that of `algorithms.rl.policy_loss`; the critic's is the mean over tokens of
1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2), R = A + V_old before whitening.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from actors.group import ActorGroup
from actors.models.packed import PackedBatch
from actors.train.critic import CriticWorker
from actors.train.worker import LossFunction, Totals
from algorithms.config_rl import PPOConfig
from algorithms.division.deals import Updates
from algorithms.division.work import samples_of
from algorithms.loop import Clock, Metrics
from algorithms.losses import aggregate, masked_sum
from algorithms.rl.losses import clipped_value_loss
from algorithms.rl.metrics import ReportedAdvantages
from algorithms.rl.read_passes import ReadPass
from algorithms.rl.stages import RL
from algorithms.rollouts.groups import ScoredGroup, ShapedGroup


def critic_loss(
    batch: PackedBatch, values: torch.Tensor, _: torch.Tensor, totals: Totals, *, clip: float | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This micro-batch's share of the critic's loss (see the module) and of its metrics; values: [T]."""
    mask, old = batch.action_mask, batch.fields["values"]
    losses, clipped = clipped_value_loss(values, old, batch.fields["returns"], mask, clip=clip)
    tokens, sequences = max(1, totals.tokens), max(1, totals.sequences)
    loss = aggregate(losses, mask, batch.sequence_ids, mode="token", tokens=tokens, sequences=sequences)
    return loss, {"critic/clip_fraction": masked_sum(clipped.float(), mask) / max(1, totals.trained_tokens)}


@dataclass(kw_only=True)
class PPO(RL):
    """The loop."""

    config: PPOConfig

    @property
    def critic(self) -> ActorGroup[CriticWorker]:
        """The group that learns values."""
        return self.roster["critic"]

    @property
    def policy_learns(self) -> bool:
        """Whether this step updates the policy: not while only the critic does."""
        return self.step >= self.config.critic_warmup_steps

    def train(self) -> None:
        """Run all steps."""
        clock = Clock(self.reporter)
        self.begin("PPO", clock)
        while not self.done:
            with clock("rollout"):
                groups = self.sample(self.config.prompts_per_step)
            with clock("score"):
                groups = self.shape(self.score(groups))
            metrics, advantages = self.survive(self.learn, groups, clock)
            self.finish_step(groups, metrics, clock, advantages)

    def learn(self, groups: Sequence[ShapedGroup], clock: Clock) -> tuple[Metrics, ReportedAdvantages]:
        """Update critic and policy; returns metrics, and the advantages that samples.jsonl tells."""
        with clock("reference"):
            critic, policy = self._plan(groups)
            # By the ranks of the critic: what it reads most, values, comes from them.
            estimation = self.estimation(self.critic, groups)
            learners = [critic.taker, policy.taker] if self.policy_learns else [critic.taker]
            takers = [estimation, *learners]
            # Each group has its own ranks: what all of them read takes as long as the slowest.
            values = self.read(self.values_pass, groups, takers)
            reference, old = self.read_frozen(groups, takers), self.read_old(groups, takers)
            parts = reference() + old()
        with clock("values"):
            parts += values()
        with clock("advantages"):
            scores = [each.shaped for each in groups]
            metrics, advantages, found = self.estimate(self.critic, groups, scores, parts, estimation, learners)
        with clock("update"):
            # Both are submitted before either is waited for: they learn at the same time.
            pending = [self.submit_updates(critic, self._critic_loss(), groups, parts + found)]
            if self.policy_learns:
                pending.append(self.submit_updates(policy, self.policy_loss(), groups, parts + found))
            for finish in pending:
                metrics |= finish()
        return metrics, advantages

    def passes(self) -> list[ReadPass]:
        return [self.values_pass, *super().passes()]

    @property
    def values_pass(self) -> ReadPass:
        """Values of the critic at the start of the step."""
        tokens = self.micro_batch_tokens["critic"]
        return ReadPass(field="values", group="critic", method=CriticWorker.values, micro_batch_tokens=tokens)

    def _plan(self, groups: Sequence[ScoredGroup]) -> tuple[Updates, Updates]:
        """Updates of the critic and of the policy, on all samples that the loss counts."""
        samples = samples_of(groups, [np.full(len(group.infos), np.nan) for group in groups])
        # All of them: unlike a group's, no advantage is known to be 0 before the critic has told.
        updates = [self.counted(update) for update in self.updates(samples)]
        critic = self.plan(self.critic, "critic", updates, updates, {"values", "returns"})
        return critic, self.plan_policy(updates, updates)

    def _critic_loss(self) -> LossFunction:
        return partial(critic_loss, clip=self.config.value_clip)
