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
from actors.train.worker import Totals
from algorithms.config_rl import PPOConfig
from algorithms.loop import Clock, Metrics
from algorithms.losses import aggregate, clipped_value_loss, masked_sum
from algorithms.rl.experience import samples_of
from algorithms.rl.stages import RL, Fields
from algorithms.rollouts.sampler import ScoredGroup


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
            with clock("reference"):
                # Each group has its own ranks: what all of them read takes as long as the slowest.
                values = self.read(self.critic, CriticWorker.values, groups, "critic")
                reference, old = self.read_frozen(groups), self.read_old(groups)
                fields = reference() + old()
            with clock("values"):
                fields += values()
            with clock("advantages"):
                metrics, found = self.estimate(self.critic, groups, [each.shaped for each in groups], fields)
            with clock("update"):
                metrics |= self._update(groups, fields + found)
            self.finish_step(groups, metrics, clock, self.mean_advantages(self.critic, groups, found))

    def _update(self, groups: Sequence[ScoredGroup], fields: Fields) -> Metrics:
        """Both groups learn at the same time."""
        samples = samples_of(groups, [np.full(len(group.infos), np.nan) for group in groups])
        updates = [self.counted(update) for update in self.updates(samples)]
        loss = partial(critic_loss, clip=self.config.value_clip)
        critic = self.submit_updates(self.critic, "critic", loss, groups, updates, updates, fields)
        if not self.policy_learns:
            return critic()
        policy = self.submit_updates(self.policy, "policy", self.policy_loss(), groups, updates, updates, fields)
        return critic() | policy()
