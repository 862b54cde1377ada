"""What is trained of a model, and torch's optimizer of it."""

from collections.abc import Callable
from functools import partial

import torch

from actors.config import OptimizerConfig

Group = dict[str, torch.nn.Parameter]
"""Parameters by name that the optimizer treats alike."""

# Fused steps are five times faster on CPU too: 14 against 85 ms for 25M parameters on one core.
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    # SGD has neither betas nor eps, which all are given.
    "sgd": lambda parameters, betas, eps, **options: torch.optim.SGD(parameters, **options),
}


def whole_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Shape of a parameter, also of one that is sharded, which itself says that it is empty."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def trained_groups(module: torch.nn.Module) -> list[Group]:
    """What is trained: matrices, which decay; biases and the scales of norms, which do not, as is usual."""
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
    matrices = {name: each for name, each in trained.items() if len(whole_shape(each)) >= 2}
    others = {name: each for name, each in trained.items() if name not in matrices}
    return [group for group in (matrices, others) if group]


def new_optimizer(trained: list[Group], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of what `trained_groups` has found."""
    groups = []
    for group in trained:
        matrices = len(whole_shape(next(iter(group.values())))) >= 2
        groups.append({"params": list(group.values()), "weight_decay": config.weight_decay if matrices else 0.0})
    return _OPTIMIZERS[config.name](groups, lr=config.lr, betas=config.betas, eps=config.eps)
