"""The learning rate of each update: the schedule of a run's number of updates, also where it goes on from another."""

from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR

from actors.config import OptimizerConfig


def rate_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, total_updates: int) -> LambdaLR:
    """The schedule of a run of so many updates, at its first."""
    return LambdaLR(optimizer, partial(config.rate, updates=total_updates))


def set_rate(schedule: object) -> None:
    """Give the next update the rate that the schedule has for it: an optimizer that was loaded has that of a run of as
    many updates as were to be made then, which is 0 at the end of one."""
    assert isinstance(schedule, LambdaLR), schedule
    # Of torch's optimizer, which DeepSpeed's wrap.
    groups = schedule.optimizer.param_groups
    for group, base, rate in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * rate(schedule.last_epoch)
