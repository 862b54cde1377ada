"""Cores where engines generate beside training (`algorithm.max_staleness` above 0, or `overlap_gradients`): how both
sides share a machine's.

A trainer's threads wait for each other many times in a layer, so that all of them stand still while one has lost its
core to an engine. Engines therefore get half of the cores unless a number is set, and what learns goes behind them: an
engine's step then ends soon, and the threads that wait for it go on together.
"""

from collections.abc import Mapping

from algorithms.config_rl import RLConfig
from launch.config import RunConfig, machine_cpus, threads_each

NICENESS = 19
"""Of processes that learn, added to that of the others: they get what these leave, and hardly more."""


def engine_threads(config: RunConfig) -> int:
    """Compute threads of each process of the engines."""
    rollout = config.rollout
    if rollout.threads_per_engine or not _beside_training(config):
        return threads_each(rollout.threads_per_engine, rollout.most, rollout.engines_per_node)
    return max(1, machine_cpus() // 2 // _engine_processes(config))


def early_threads(config: RunConfig) -> int | None:
    """Compute threads of each of the policy's ranks for gradients beside generation (`overlap_gradients`): of the cores
    that engines leave. None: as many as ever."""
    policy, algorithm = config.policy, config.algorithm
    if not (isinstance(algorithm, RLConfig) and algorithm.overlaps_gradients and _beside_training(config)):
        return None
    left = (config.cluster.cpus or machine_cpus()) - _engine_processes(config) * engine_threads(config)
    early = max(1, left // (policy.ranks_per_node or policy.ranks))
    return early if early < threads_each(policy.threads_per_rank, policy.ranks, policy.ranks_per_node) else None


def niceness_of(config: RunConfig, section: str) -> int:
    """Added to the niceness of a group's processes: 0 but for those that compute beside engines where threads outnumber
    cores."""
    early = isinstance(config.algorithm, RLConfig) and config.algorithm.overlaps_gradients
    groups = {"policy": config.policy, "critic": config.critic}
    # What is trained on beside generation is read there before.
    group = (groups | ({"reference": config.reference} if early else {})).get(section)
    if group is None or group.gpus_per_rank or not _beside_training(config):
        return 0
    # Of one node, where both have as many as they may.
    ranks = group.ranks_per_node or group.ranks
    reads = section == "reference" or (config.reference_needed and not config.reference_group)
    fewer = None if reads else early_threads(config)
    learning = ranks * (fewer or threads_each(group.threads_per_rank, group.ranks, group.ranks_per_node))
    generating = _engine_processes(config) * engine_threads(config)
    return NICENESS if learning + generating > (config.cluster.cpus or machine_cpus()) else 0


def _engine_processes(config: RunConfig) -> int:
    """Those of a node, as many as there may be."""
    return (config.rollout.engines_per_node or config.rollout.most) * config.rollout.tensor_parallel


def _beside_training(config: RunConfig) -> bool:
    """Whether engines generate on cores that the policy trains on at the same time."""
    algorithm, on_gpus = config.algorithm, config.rollout.gpus_per_engine or config.policy.gpus_per_rank
    if not isinstance(algorithm, RLConfig) or on_gpus:
        return False
    if not algorithm.max_staleness and not algorithm.overlaps_gradients:
        return False
    return config.cluster.placement != "separate" and not _apart(config.policy.node_labels, config.rollout.node_labels)


def _apart(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether no node has the labels of both."""
    return any(other.get(name, value) != value for name, value in one.items())
