"""CPU, memory and shared memory of pods, from what is packed on them and the memory estimate. Imports no Ray."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.config import UserError
from actors.models.hub_cache import is_hub_id
from launch.checks.findings import Findings
from launch.checks.known_sizes import memory_of
from launch.config import RunConfig
from launch.kube.packing import PackedNode, PodGroup
from launch.models.files import read_policy
from launch.sizes.estimate import DTYPE_BYTES, GIB, decoder_shape
from launch.sizes.placement import demands

GPU_CONTEXT = 3 * GIB
"""Host memory of a process for its CUDA context, libraries and pinned buffers: an allowance, not measured."""
RAYLET = GIB
"""Ray's own processes on a worker (0.3 GiB measured when idle), with room for its logs and idle workers."""
REWARD_PROCESS = GIB // 2
"""A reward process with what its functions import."""
DRIVER_BYTES = 4 * GIB
"""The run's driver: tokenizer, data and the samples of a step."""
UNKNOWN_CPU_PROCESS = 8 * GIB
"""A process on CPU whose model's size is unknown."""
MARGIN = 1.1
_MOST_CPUS = 16
"""Of a pod without GPUs, unless its groups reserve more."""


@dataclass(frozen=True, slots=True)
class PodSize:
    """What one pod requests."""

    cpus: int
    gpus: int
    memory_gib: int
    """With shared memory, which counts."""
    shm_gib: int
    object_store_mib: int


def driver_on_worker(config: RunConfig) -> bool:
    """Whether the driver runs on a worker: where the head may be lost."""
    return config.cluster.kubernetes.gcs.storage != "none"


def may_hold_driver(config: RunConfig, group: PodGroup) -> bool:
    """Whether the driver may run on a pod of `group`: not on those for rollout, which autoscaling takes away."""
    return driver_on_worker(config) and group.name != "rollout"


def head_size(config: RunConfig) -> PodSize:
    """The head's pod; raises UserError when its memory does not hold its object store."""
    head, store = config.cluster.kubernetes.head, _object_store_mib(config, 0)
    shm = _gib(store * 2**20) + 1
    if head.memory_gib < shm + 2:
        raise UserError(
            f"cluster.kubernetes.head.memory_gib: must be at least {shm + 2}, 2 beside its shared memory, "
            f"got {head.memory_gib}"
        )
    return PodSize(head.cpus, 0, head.memory_gib, shm, store)


def worker_size(config: RunConfig, group: PodGroup, processes: Mapping[str, int] | None) -> PodSize:
    """A pod of `group`; `processes`: bytes of host memory of one process of each group, None: unknown.

    Raises:
        UserError: `shm_gib` or `memory_gib` is too small.
    """
    kubernetes, gpus = config.cluster.kubernetes, group.gpus
    driver = may_hold_driver(config, group)
    store = _object_store_mib(config, gpus)
    least = _gib(store * 2**20)
    shm = kubernetes.shm_gib or least + max(1, gpus)
    if shm <= store / 1024:
        raise UserError(f"cluster.kubernetes.shm_gib: must exceed the object store ({store / 1024:g} GiB), got {shm}")
    memory = kubernetes.memory_gib
    if memory is None:
        held = max(_held(node, config, processes) for node in group.nodes) + (DRIVER_BYTES if driver else 0)
        memory = _gib(held) + shm  # what is written to /dev/shm counts as memory of the pod
    elif memory <= shm:
        raise UserError(f"cluster.kubernetes.memory_gib: must exceed shared memory ({shm} GiB), got {memory}")
    cpus = max(_cpus(node, kubernetes.cpus_per_gpu * gpus) for node in group.nodes)
    # The entrypoint asks for one CPU: see `_job` of render.py.
    return PodSize(cpus + driver, gpus, memory, shm, store)


def host_memory(config: RunConfig) -> dict[str, int] | None:
    """Group -> bytes of host memory of one of its processes; None when the model's size cannot be read here.

    A process on a GPU keeps its optimizer's offloaded state, and all weights while it loads them.
    """
    findings = sized(config)
    memory = memory_of(findings)
    if not memory or findings.parameters is None or findings.shape is None:
        return None
    if not findings.shape.activations_known and not all(gpus_of(config, group) for group in memory):
        return None  # of a process without a GPU, they are a large part
    weights = findings.parameters * DTYPE_BYTES[config.model.dtype]
    found = {}
    for group, parts in memory.items():
        ranks = config.rollout.tensor_parallel if group == "rollout" else 1
        if gpus_of(config, group):
            found[group] = ranks * (parts.base + GPU_CONTEXT) + weights + parts.optimizer_offloaded
        else:
            found[group] = ranks * parts.total
    return found


def sized(config: RunConfig) -> Findings:
    """What can be known of the model's size without the hub; a model that is not here is not an error."""
    findings = Findings(config)
    if (
        config.model.path
        and not is_hub_id(config.model.path)
        and not (Path(config.model.path) / "config.json").is_file()
    ):
        return findings
    if policy := read_policy(config):
        findings.shape = decoder_shape(policy.fields)
        findings.parameters = policy.parameters
    return findings


def gpus_of(config: RunConfig, group: str) -> float:
    """GPUs of one process of a group."""
    return next(demand.gpus for demand in demands(config) if demand.group == group)


def _held(node: PackedNode, config: RunConfig, processes: Mapping[str, int] | None) -> float:
    """Bytes beside shared memory of a pod that holds what was packed on `node`."""
    reward = node.processes["reward"] * REWARD_PROCESS
    groups = {group: count for group, count in node.processes.items() if group != "reward"}
    if processes is not None:
        return MARGIN * (sum(processes[group] * count for group, count in groups.items()) + reward + RAYLET)
    on_cpu = sum(count for group, count in groups.items() if not gpus_of(config, group))
    assumed = node.gpus * config.cluster.kubernetes.memory_gib_per_gpu * GIB + on_cpu * UNKNOWN_CPU_PROCESS
    return assumed + reward + RAYLET


def _cpus(node: PackedNode, for_gpus: int) -> int:
    """What the groups reserve at least, as Ray admits no more; else by GPU, or one for each process."""
    # Sums of shares such as 0.1 may come out a little above whole numbers.
    reserved = math.ceil(node.reserved["CPU"] - 1e-9)
    return max(1, reserved, for_gpus or min(_MOST_CPUS, node.processes.total()))


def _object_store_mib(config: RunConfig, gpus: int) -> int:
    return max(config.cluster.object_store_mib, 1024 * max(1, gpus))


def _gib(size: float) -> int:
    return math.ceil(size / GIB)
