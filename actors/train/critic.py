"""The rank that learns values: of every action token of a rollout, what reward is to be expected before it is sampled.

The driver imports this module for its method names; models are imported only where a worker needs them.
"""

from typing import ClassVar

import torch

from actors.train.trainer import TrainedWorker
from actors.train.worker import Handed, Held, Input, Plan, Shares


class ValueWorker(TrainedWorker):
    """One data-parallel rank of a model with a score head."""

    field: ClassVar[str] = "model.path"
    """The setting that names its model."""

    def load_module(self) -> torch.nn.Module:
        from actors.models.balance import balance_of
        from actors.models.load import TokenValues, load_value_model

        model = load_value_model(
            self.model_config, self.directory, self.divider(), field=self.field, engine_length=self.engine_length
        )
        self.hf_model = model.to(self.device)  # type: ignore[arg-type]
        self.balance = balance_of(self.hf_model, self.model_config.router_aux_loss)
        module = TokenValues(self.hf_model, self.balance)
        self.shares_prompts = module.shares_prompts
        return module


class CriticWorker(ValueWorker):
    """One data-parallel rank of the critic."""

    field = "critic.path"

    def values(self, shares: Shares, plan: Plan, held: Held, *inputs: Input) -> Handed:
        """`values` of rollouts; see `ReferenceWorker.logprobs`."""
        return self.read_episodes(self.read, "values", shares, plan, held, inputs, share_prompts=self.shares_prompts)


class RewardModelWorker(ValueWorker):
    """One data-parallel rank of a reward model in training: its score is read at a response's last token."""

    # A reward is for the whole response, and only its last token has read all of it.
    reads = "end"
