"""Whether this machine can hold the groups of a configuration. Imports no Ray."""

import os
from dataclasses import replace

from actors.config import UserError
from launch.config import RunConfig
from launch.kinds.table import job_kind
from launch.sizes.machine import Machine
from launch.sizes.placement import Demand, demands, section_of


def check_resources(config: RunConfig, machine: Machine) -> list[str]:
    """Compare what all groups ask for with this machine; a cluster that is joined may grow, so it is not judged.

    `cluster.cpus` and `cluster.gpus` are what the run's own Ray is told; what this machine lacks of them is a warning
    here, as a configuration may be checked far from its machine, and `check_nodes` refuses to start with it.

    Returns:
        Warnings: of GPUs that are not there or not used, and of more work than cores.

    Raises:
        UserError: naming the field that asks for the most, the total, and what there is.
    """
    if os.environ.get("RAY_ADDRESS"):
        return []
    # Of engines that come and go, the run begins with as many as have room.
    fewest = config.rollout.fewest
    wanted = [replace(item, count=fewest) if item.group == "rollout" else item for item in demands(config)]
    cpus, gpus = total_cpus(wanted), total_gpus(config, wanted)
    told_cpus = machine.cpus if config.cluster.cpus is None else config.cluster.cpus
    told_gpus = machine.gpus if config.cluster.gpus is None else config.cluster.gpus
    problems, warnings = [], []
    if cpus > told_cpus + 1e-6:
        limit = _limit("CPUs", config.cluster.cpus, machine.cpus)
        problems.append(_overbooked("CPUs", [(item, item.cpus) for item in wanted], cpus, limit))
    # For Ray, CPUs are no more than a number: it starts all the same.
    elif cpus > machine.cpus + 1e-6:
        warnings.append(
            f"cluster.cpus: {told_cpus} are told to Ray, the groups ask for {cpus:g}, and this machine has "
            f"{machine.cpus}: their processes wait for each other"
        )
    if gpus > told_gpus + 1e-6:
        limit = _limit("GPUs", config.cluster.gpus, machine.gpus)
        parts = [(item, item.gpus) for item in wanted if item.gpus]
        problems.append(_overbooked("GPUs", parts, gpus, limit) + _for_one_gpu(config, told_gpus))
    elif told_gpus > machine.gpus:
        warnings.append(
            f"cluster.gpus: {told_gpus} asked for and this machine has {machine.gpus}: "
            f"`tandem run` would not start on it"
        )
    elif told_gpus and not gpus:
        warnings.append(_unused(config, told_gpus))
    if problems:
        fields = [problem.partition(":")[0] for problem in problems]
        raise UserError(*(problems[-1:] if len(set(fields)) == 1 else problems))  # one number is one mistake
    return warnings


def _limit(kind: str, told: int | None, there: int) -> str:
    if told is None or told == there:
        return f"{counted(there, kind)} on this machine"
    return f"{counted(told, kind)} by cluster.{kind.lower()} (this machine has {there})"


def _for_one_gpu(config: RunConfig, gpus: int) -> str:
    # Without engines one GPU is enough; with them, sharing it is what makes it so.
    if gpus != 1 or not job_kind(config).samples_responses or config.cluster.placement == "shared":
        return ""
    return " (for one GPU: cluster.placement=shared, as in configs/grpo-1gpu.yaml)"


def _unused(config: RunConfig, gpus: int) -> str:
    """What to set so that a configuration without GPUs takes those of this machine."""
    has = f"this machine has {gpus} GPU{'s' * (gpus != 1)}, which this run does not use"
    return f"policy.gpus_per_rank: {has}; to use {'them' if gpus > 1 else 'it'}: {' '.join(gpu_settings(config, gpus))}"


def gpu_settings(config: RunConfig, gpus: int) -> list[str]:
    """Overrides by which a configuration without GPUs takes this many of one machine."""
    kind = job_kind(config)
    samples, rl = kind.update_samples, kind.samples_responses
    frozen = [f"reward.models.{index}.group" for index in range(len(config.reward.models))]
    frozen += ["reference"] * config.reference_group
    # More than two groups, or a single GPU: all of them take turns on every GPU there is.
    shared = bool(frozen or config.critic is not None or (rl and gpus == 1))
    # A rank without a sample of an update is refused; where engines are apart, half of the GPUs are theirs.
    ranks = min(samples or gpus, gpus if shared or not rl else gpus // 2)
    groups = ["policy", *(["critic"] if config.critic is not None else []), *frozen]
    found = ["cluster.placement=shared"] * shared
    for group in groups:
        found.append(f"{group}.gpus_per_rank=1")
        if ranks > 1:
            found.append(f"{group}.ranks={ranks}")
    if rl:
        engines = ranks if shared else gpus - ranks
        found.append("rollout.gpus_per_engine=1")
        found += [f"rollout.engines={engines}"] * (engines > 1)
    return found


def machine_line(config: RunConfig, machine: Machine) -> str:
    """What there is, and what the run's own Ray is told instead."""
    there = f"this machine has {counted(machine.cpus, 'CPUs')} and {counted(machine.gpus, 'GPUs')}"
    told = {"CPUs": (config.cluster.cpus, machine.cpus), "GPUs": (config.cluster.gpus, machine.gpus)}
    other = [counted(number, kind) for kind, (number, has) in told.items() if number is not None and number != has]
    return there + f", the run's Ray is told {' and '.join(other)} (cluster)" * bool(other)


def check_nodes(config: RunConfig, machine: Machine) -> None:
    """Refuse a placement that needs other nodes or more GPUs than this machine, where the run starts its own Ray here.

    Raises:
        UserError: naming the fields.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    alone = "this machine is one node without labels; RAY_ADDRESS or `tandem submit` takes a cluster"
    problems = []
    if config.cluster.gpus is not None and config.cluster.gpus > machine.gpus:
        there = f"must not exceed this machine's GPUs ({machine.gpus}); RAY_ADDRESS or `tandem submit` takes a cluster"
        hint = _for_one_gpu(config, machine.gpus)
        problems.append(f"cluster.gpus: {there}, got {config.cluster.gpus}{hint}")
    if config.cluster.placement == "separate":
        problems.append(f"cluster.placement: must not be separate here ({alone}), got separate")
    if config.cluster.driver_labels:
        labels = dict(config.cluster.driver_labels)
        problems.append(f"cluster.driver_labels: must be left out here ({alone}), got {labels}")
    for item in demands(config):
        section = section_of(config, item.group)
        if item.per_node and item.per_node < item.count:
            knob = "engines_per_node" if item.group == "rollout" else "ranks_per_node"
            nodes = item.count // item.per_node
            problems.append(f"{section}.{knob}: needs {nodes} nodes ({alone}), got {item.per_node}")
        if item.labels:
            problems.append(f"{section}.node_labels: must be left out here ({alone}), got {dict(item.labels)}")
        if item.resources:
            problems.append(f"{section}.resources: must be left out here ({alone}), got {dict(item.resources)}")
    if problems:
        raise UserError(*problems)


def _overbooked(kind: str, parts: list[tuple[Demand, float]], total: float, available: str) -> str:
    knobs = {name: f"{name}.ranks" for name in ("policy", "critic", "reference")} | {"rollout": "rollout.engines"}
    largest = max(parts, key=lambda part: part[0].count * part[1])[0].group
    asked = " + ".join(f"{item.group} {item.count} x {each:g}" for item, each in parts)
    verb = f"needs {counted(total, kind)} in all ({asked})"
    return f"{knobs.get(largest, 'reward')}: {verb}, got {available}"


def counted(number: float, kind: str) -> str:
    """A number of CPUs or GPUs: `1 GPU`, `2 GPUs`."""
    return f"{number:g} {kind.removesuffix('s') if number == 1 else kind}"


def total_cpus(wanted: list[Demand]) -> float:
    """Ray CPUs of all groups; groups that share a bundle add up there."""
    return sum(item.count * item.cpus for item in wanted)


def total_gpus(config: RunConfig, wanted: list[Demand]) -> float:
    """GPUs of all groups; groups that share a bundle share its GPU."""
    if config.cluster.placement != "shared":
        return sum(item.count * item.gpus for item in wanted)
    # Rank i of every group is in bundle i: it holds the largest demand of those that are so many.
    bundles = max(item.count for item in wanted)
    return sum(max((item.gpus for item in wanted if item.count > bundle), default=0.0) for bundle in range(bundles))
