"""What each group asks of the cluster; shared by `check` and by the run itself. Imports no Ray."""

from dataclasses import dataclass

from actors.config import GroupConfig
from algorithms.config_rl import RLConfig
from launch.config import RunConfig, machine_cpus

REWARD_WORKER_CPUS = 0.1
"""Ray CPUs of one reward process: a counter for admission, not a limit."""


@dataclass(frozen=True, slots=True)
class Demand:
    """`count` processes of one group, and what each of them reserves."""

    group: str
    count: int
    cpus: float
    gpus: float
    threads: int


def demands(config: RunConfig) -> list[Demand]:
    """Groups in the order they are placed: policy, rollout, critic, reference, reward models, reward processes."""
    wanted = [_group("policy", config.policy)]
    rollout, rl = config.rollout, isinstance(config.algorithm, RLConfig)
    if rl:
        cpus = rollout.cpus_per_engine
        wanted.append(_ranks("rollout", rollout.engines, cpus, rollout.gpus_per_engine, rollout.threads_per_engine))
    if config.critic is not None:
        wanted.append(_group("critic", config.critic))
    if config.reference_group:
        wanted.append(_group("reference", config.reference))
    if rl:
        wanted += [_group(name, config.reward.models[index].group) for index, name in reward_model_groups(config)]
        if config.reward.functions or config.reward.endpoints:
            wanted.append(Demand("reward", config.reward.workers, REWARD_WORKER_CPUS, 0, 1))
    return wanted


def reward_model_groups(config: RunConfig) -> list[tuple[int, str]]:
    """Index in `reward.models` and name of the group of each reward model."""
    return [
        (index, f"reward_model_{index + 1}" if index else "reward_model") for index in range(len(config.reward.models))
    ]


def _group(name: str, group: GroupConfig) -> Demand:
    return _ranks(name, group.ranks, group.cpus_per_rank, group.gpus_per_rank, group.threads_per_rank)


def _ranks(group: str, count: int, cpus: float, gpus: float, threads: int | None) -> Demand:
    # Groups take turns in a step, so each may use every core; ranks of one group run at the same time. The cores are
    # those of the machine that starts the run: on a cluster of other machines, set the threads in the configuration.
    return Demand(group, count, cpus, gpus, threads or max(1, machine_cpus() // count))
