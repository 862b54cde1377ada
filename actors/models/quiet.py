"""Models that compute in training what they compute in evaluation: without dropout, and without noise at routers.

The importance ratio compares the policy with the sampler, which drops nothing and draws no experts.
"""

import torch
from transformers import PretrainedConfig, PreTrainedModel

from actors.models.as_source import as_in_evaluation
from actors.models.mixture_limits import refuse_mixed_tokens

_DRAWING = ("PhimoeTopKRouter",)
"""Routers that draw experts in training, whatever their settings say."""


def quiet_config(config: PretrainedConfig) -> PretrainedConfig:
    """Settings, those of the model's parts included, with which training computes what evaluation does; in place.

    Raises:
        UserError: see `refuse_mixed_tokens`.
    """
    refuse_mixed_tokens(config.to_dict())
    parts = [config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))]
    for part in parts:
        for name, value in as_in_evaluation(part.to_dict()).items():
            setattr(part, name, value)
    return config


def quiet_routers(model: PreTrainedModel) -> None:
    """Let routers that would draw experts in training choose as in evaluation; in place."""
    for module in model.modules():
        if type(module).__name__ in _DRAWING:
            module.register_forward_pre_hook(_evaluate)


def _evaluate(module: torch.nn.Module, _: object) -> None:
    # Each time: whoever calls model.train() sets it again.
    module.training = False
