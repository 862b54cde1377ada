"""What each group asks of the cluster; shared by `check` and by the run itself. Imports no Ray."""

from dataclasses import dataclass

from algorithms.config import GRPOConfig
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
    """Groups in the order they are placed: policy, then rollout, reference, reward."""
    policy = config.policy
    wanted = [_ranks("policy", policy.ranks, policy.cpus_per_rank, policy.gpus_per_rank, policy.threads_per_rank)]
    if not isinstance(config.algorithm, GRPOConfig):
        return wanted
    rollout, reference = config.rollout, config.reference
    cpus = rollout.cpus_per_engine
    wanted.append(_ranks("rollout", rollout.engines, cpus, rollout.gpus_per_engine, rollout.threads_per_engine))
    if config.reference_enabled:
        cpus, gpus = reference.cpus_per_rank, reference.gpus_per_rank
        wanted.append(_ranks("reference", reference.ranks, cpus, gpus, reference.threads_per_rank))
    wanted.append(Demand("reward", config.reward.workers, REWARD_WORKER_CPUS, 0, 1))
    return wanted


def _ranks(group: str, count: int, cpus: float, gpus: float, threads: int | None) -> Demand:
    # Groups take turns in a step, so each may use every core; ranks of one group run at the same time. The cores are
    # those of the machine that starts the run: on a cluster of other machines, set the threads in the configuration.
    return Demand(group, count, cpus, gpus, threads or max(1, machine_cpus() // count))
