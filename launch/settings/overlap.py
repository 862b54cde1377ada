"""Which of a step's reads take place while other groups are still generated: `algorithm.overlap_reads`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from algorithms.config_rl import PPOConfig, RLConfig
from launch.config import RunConfig, machine_cpus, threads_each
from launch.settings.cores import engine_threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What the processes of a group compute with."""

    gpu: bool
    threads: int
    """Of all its processes, on cores."""


def computes_beside(engines: Compute, readers: Sequence[Compute], *, placement: str, cpus: int) -> bool:
    """Whether all groups that read can do so while engines generate, without taking a GPU or a core from them.

    `placement` and `cpus` are those of `cluster`, with all cores of the machine where that says none.
    """
    if placement == "shared" and engines.gpu and any(each.gpu for each in readers):
        return False  # rank i and engine i are on the same GPU
    on_cores = [each.threads for each in readers if not each.gpu]
    # With `separate`, engines have nodes that no other group uses.
    return placement == "separate" or not on_cores or engines.threads + sum(on_cores) <= cpus


def reads_of(config: RunConfig, algorithm: RLConfig) -> dict[str, str]:
    """What a step reads before its updates: field -> section of the group that reads it."""
    found = {}
    if config.reference_needed:
        found["reference_logprobs"] = "reference" if config.reference_group else "policy"
    if algorithm.reads_old_logprobs:
        found["old_logprobs"] = "policy"
    return found | ({"values": "critic"} if isinstance(algorithm, PPOConfig) else {})


def reads_that_may_overlap(config: RunConfig, algorithm: RLConfig) -> dict[str, str]:
    """Those of `reads_of` that are right whenever a group has ended: on-policy all, as every model is then at rest;
    beside updates those of a reference that stays as it is."""
    reads = reads_of(config, algorithm)
    if not algorithm.max_staleness:
        return reads
    stays = config.reference_group and not config.reference.sync_every
    return {name: group for name, group in reads.items() if stays and name == "reference_logprobs"}


def overlapped_reads(config: RunConfig, algorithm: RLConfig) -> frozenset[str]:
    """Fields that are read while other groups are generated."""
    if algorithm.overlaps_gradients:  # they are read for that, then
        return frozenset()
    reads = reads_that_may_overlap(config, algorithm)
    if algorithm.overlap_reads == "auto":
        cpus = config.cluster.cpus or machine_cpus()
        engines, readers = _engines(config), _readers(config, reads.values())
        if algorithm.max_staleness:  # what learns computes at the same time
            cpus -= sum(each.threads for each in _readers(config, ["policy", "critic"]) if not each.gpu)
        asked = computes_beside(engines, readers, placement=config.cluster.placement, cpus=cpus)
    else:
        asked = algorithm.overlap_reads
    return frozenset(reads) if asked else frozenset()


def takes_turns_on_gpus(config: RunConfig, sections: Iterable[str]) -> bool:
    """Whether any of these groups is on the same GPUs as the engines."""
    engines, readers = _engines(config), _readers(config, sections)
    on_gpus = [each for each in readers if each.gpu]  # which need no core, so that their number says nothing
    return not computes_beside(engines, on_gpus, placement=config.cluster.placement, cpus=0)


def _readers(config: RunConfig, sections: Iterable[str]) -> list[Compute]:
    known = {"policy": config.policy, "reference": config.reference, "critic": config.critic}
    groups = [group for section in sorted(set(sections)) if (group := known[section])]
    return [
        Compute(
            gpu=bool(group.gpus_per_rank),
            threads=group.ranks * threads_each(group.threads_per_rank, group.ranks, group.ranks_per_node),
        )
        for group in groups
    ]


def _engines(config: RunConfig) -> Compute:
    rollout = config.rollout
    # Of an engine on GPUs, each process still keeps a core busy.
    each = 1 if rollout.gpus_per_engine else engine_threads(config)
    return Compute(gpu=bool(rollout.gpus_per_engine), threads=rollout.most * rollout.tensor_parallel * each)
