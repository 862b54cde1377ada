"""Whether this machine can hold the groups of a configuration. Imports no Ray."""

import glob
import os

from actors.config import UserError
from launch.config import RunConfig, machine_cpus
from launch.placement import Demand, demands, section_of


def check_resources(config: RunConfig) -> None:
    """Compare what all groups ask for with this machine; a cluster that is joined may grow, so it is not judged.

    Raises:
        UserError: naming the field that asks for the most, the total, and what there is.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    wanted = demands(config)
    cpus, gpus = total_cpus(wanted), total_gpus(config, wanted)
    machine, devices = available_cpus(config), available_gpus(config)
    problems = []
    if cpus > machine + 1e-6:
        problems.append(_overbooked("CPUs", [(item, item.cpus) for item in wanted], cpus, machine))
    if gpus > devices + 1e-6:
        problems.append(_overbooked("GPUs", [(item, item.gpus) for item in wanted if item.gpus], gpus, devices))
    if problems:
        raise UserError(*problems)


def check_nodes(config: RunConfig) -> None:
    """Refuse a placement that needs other nodes than this machine, where the run starts a Ray of its own.

    Raises:
        UserError: naming the fields.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    alone = "this machine is one node without labels; RAY_ADDRESS or `tandem submit` takes a cluster"
    problems = []
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


def _overbooked(kind: str, parts: list[tuple[Demand, float]], total: float, available: float) -> str:
    knobs = {name: f"{name}.ranks" for name in ("policy", "critic", "reference")} | {"rollout": "rollout.engines"}
    largest = max(parts, key=lambda part: part[0].count * part[1])[0].group
    asked = " + ".join(f"{item.group} {item.count} x {each:g}" for item, each in parts)
    verb = f"needs {total:g} {kind} in all ({asked})"
    return f"{knobs.get(largest, 'reward')}: {verb}, got {available:g} {kind} on this machine"


def total_cpus(wanted: list[Demand]) -> float:
    """Ray CPUs of all groups; groups that share a bundle add up there."""
    return sum(item.count * item.cpus for item in wanted)


def total_gpus(config: RunConfig, wanted: list[Demand]) -> float:
    """GPUs of all groups; groups that share a bundle take turns on its GPU."""
    if config.cluster.placement != "shared":
        return sum(item.count * item.gpus for item in wanted)
    bundles = max(item.count for item in wanted)
    return sum(max((item.gpus for item in wanted if item.count > bundle), default=0.0) for bundle in range(bundles))


def available_cpus(config: RunConfig) -> int:
    """CPUs of the local cluster."""
    return config.cluster.cpus or machine_cpus()


def available_gpus(config: RunConfig) -> int:
    """GPUs of the local cluster: as configured, else the NVIDIA devices of this machine."""
    return len(glob.glob("/dev/nvidia[0-9]*")) if config.cluster.gpus is None else config.cluster.gpus
