"""Whether memory and disk of this machine hold what a configuration asks for.

What is refused is a lower bound: weights, gradients, optimizer state and key-value caches, without activations. What
is warned about is the whole estimate against what is free now.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from actors.config import UserError
from launch.checks.findings import Findings
from launch.checks.known_sizes import memory_of
from launch.config import RunConfig
from launch.kinds.rl import reward_model_groups
from launch.kinds.table import job_kind
from launch.settings.memory_copies import copied_every
from launch.sizes.estimate import DTYPE_BYTES, GIB, DecoderShape, Memory
from launch.sizes.machine import Machine, free_disk
from launch.sizes.placement import demands

_RAY_ALLOWS = 10**10
"""Bytes of an object store up to which Ray 2.60 goes from /dev/shm to a disk instead of refusing to start."""
_WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "optimizer_offloaded": "optimizer state",
    "weights_offloaded": "weights",
    "kv_cache": "key-value cache",
}
"""Part of `Memory` -> what it is called."""


@dataclass(frozen=True, slots=True)
class Part:
    """What the processes of a group surely hold of one kind, in bytes."""

    group: str
    what: str
    size: int


def check_room(findings: Findings, machine: Machine, *, crowded: bool = False) -> None:
    """Compare memory and disk with what this machine has, where the processes will be here; adds to the findings.

    Args:
        crowded: more processes than the machine has CPUs or GPUs for have been refused already: that these do not fit
            its memory is the same mistake, unless one of each group does not fit either.
    """
    config, processes, problems = findings.config, memory_of(findings), len(findings.problems)
    if crowded:
        config = _one_of_each(config)
    if not os.environ.get("RAY_ADDRESS") and (config.cluster.gpus or 0) <= machine.gpus:
        with findings.collecting():
            tokens = job_kind(config).tokens_per_update(findings.mean_tokens) / config.policy.ranks
            filled = min(1.0, tokens / config.policy.micro_batch_tokens)
            findings.warnings += check_memory(config, processes, findings.parameters, machine, filled=filled)
    if len(findings.problems) == problems:  # else it is the same mistake
        with findings.collecting():
            policy = processes.get("policy", Memory())
            # Of adapters alone: too little to count.
            optimizer = 0 if config.model.lora else policy.optimizer + policy.optimizer_offloaded
            # Sharded, every rank writes its part; without ZeRO all have the same, which is written once.
            ranks = config.policy.ranks if config.policy.zero_stage else 1
            free = free_disk(config.directory)
            findings.warnings += check_disk(config, findings.parameters, optimizer * ranks, free)


def _one_of_each(config: RunConfig) -> RunConfig:
    """The configuration with one process in each group that has a setting of how many."""
    groups = {"policy": "ranks", "critic": "ranks", "reference": "ranks", "rollout": "engines"}
    given = {name: getattr(config, name) for name in groups}
    # Not validated again: one process may break a rule about several.
    fewer = {name: group.model_copy(update={groups[name]: 1}) for name, group in given.items() if group is not None}
    return config.model_copy(update=fewer)


def check_memory(
    config: RunConfig, processes: Mapping[str, Memory], parameters: int | None, machine: Machine, *, filled: float = 1.0
) -> list[str]:
    """Compare host memory and the memory of GPUs with what all processes take; returns warnings.

    Args:
        processes: group -> memory of one of its processes; empty when the model's size is not known.
        parameters: of the model.
        machine: where all processes will be.
        filled: part of `micro_batch_tokens` that a micro-batch reaches, from 0 to 1.

    Raises:
        UserError: with the setting behind the largest part and what there is.
    """
    known = dict(processes)
    engines = job_kind(config).samples_responses
    if engines and "rollout" not in known and not config.rollout.gpus_per_engine:
        known["rollout"] = Memory(kv_cache=int(config.rollout.memory_gib * GIB))
    known = {group: _trained_part(config, group, memory) for group, memory in known.items()}
    warnings = _check_object_store(config, machine)
    parts = sorted(_host_parts(config, known), key=lambda part: part.size, reverse=True)
    surely = sum(part.size for part in parts)
    if machine.memory is not None and surely > machine.memory:
        raise UserError(_too_much(config, parts, parameters, machine.memory))
    if machine.gpu_memory is not None:
        _check_gpus(config, known, machine.gpu_memory)
    whole = sum(_on_host(config, group, memory, filled) * _count(config, group) for group, memory in known.items())
    copied, kept = copied_bytes(config, known), kept_bytes(config, known)
    # Memory of the machine as well: /dev/shm is a part of it.
    whole += copied + kept + (config.cluster.object_store_mib * 2**20 if processes else 0)
    if machine.free is not None and whole > machine.free:
        warnings.append(
            f"memory: all processes take up to {_gib(whole)}, by estimate, and {_gib(machine.free)} of this machine's "
            f"{_gib(machine.memory or machine.free)} are free (less: policy.micro_batch_tokens, rollout.memory_gib, "
            f"model.gradient_checkpointing=true, model.dtype=bf16{', checkpoint.beside=false' * bool(copied)}"
            f"{', checkpoint.memory_every=null' * bool(kept)})"
        )
    return warnings


def copied_bytes(config: RunConfig, known: Mapping[str, Memory]) -> int:
    """Host memory of all ranks for a checkpoint that is written beside training: as much as it has bytes."""
    return _state_bytes(config, known) if config.checkpoint.beside else 0


def kept_bytes(config: RunConfig, known: Mapping[str, Memory]) -> int:
    """Host memory for copies of the state of groups that learn: of the one that counts, and of the one that is on its
    way, which nobody holds twice."""
    return 2 * _state_bytes(config, known) if copied_every(config) else 0


def _state_bytes(config: RunConfig, known: Mapping[str, Memory]) -> int:
    """Bytes of a checkpoint's weights and optimizer state, which of adapters alone are too few to count."""
    size = 0
    for name, group in (("policy", config.policy), ("critic", config.critic)):
        memory = _trained_part(config, name, known.get(name, Memory()))
        if not (group and memory.gradients):
            continue
        weights = (memory.weights_offloaded or memory.weights) * (group.ranks if group.zero_stage == 3 else 1)
        # Without ZeRO, all ranks have the same, which is copied once.
        optimizer = (memory.optimizer + memory.optimizer_offloaded) * (group.ranks if group.zero_stage else 1)
        size += weights + optimizer
    return size


def check_disk(config: RunConfig, parameters: int | None, optimizer: int, free: int | None) -> list[str]:
    """Compare what the run writes with the free bytes of its disk; returns warnings.

    Args:
        parameters: of the model; None: not known.
        optimizer: bytes of the optimizer state of all ranks.
        free: bytes on the disk of the run's directory; None: not known.

    Raises:
        UserError: the model alone, which is exported in the end, does not fit.
    """
    if parameters is None or free is None:
        return []
    weights = parameters * DTYPE_BYTES[config.model.dtype]
    if weights > free:
        raise UserError(
            f"run.output: must be on a disk with room for the trained model ({_gib(weights)}), got {_gib(free)} free "
            f"at {config.run.output}"
        )
    # A new checkpoint is written before the oldest one is removed.
    kept = config.checkpoint.keep + 1 if config.checkpoint.every else 1
    each = optimizer + (0 if config.model.lora else weights)
    needed = kept * each + weights
    if needed <= free:
        return []
    return [
        f"run.output: {config.run.output} has {_gib(free)} free, and {kept} checkpoint{'s' * (kept != 1)} of "
        f"{_gib(each)} with the trained model take {_gib(needed)} (fewer: checkpoint.keep)"
    ]


def check_bucket(config: RunConfig, shape: DecoderShape | None) -> None:
    """Raise UserError when the weight transfer on a shared GPU has no room for the model's largest tensor.

    vLLM's ipc backend cuts no tensor; its others do.
    """
    on_gpus = config.policy.gpus_per_rank and config.rollout.gpus_per_engine
    if shape is None or not on_gpus or config.cluster.placement != "shared":
        return
    # Of a mixture of experts, there may be no matrix of intermediate_size.
    numbers = shape.hidden_size * max(shape.vocab_size, 0 if shape.experts else shape.intermediate_size)
    needed = -(-numbers * DTYPE_BYTES[config.model.dtype] // 2**20)  # rounded up
    if config.rollout.transfer.bucket_mib < needed:
        raise UserError(
            f"rollout.transfer.bucket_mib: must hold the model's largest tensor ({needed} MiB) on a shared GPU, "
            f"got {config.rollout.transfer.bucket_mib}"
        )


def _check_object_store(config: RunConfig, machine: Machine) -> list[str]:
    size, there = config.cluster.object_store_mib * 2**20, machine.shared
    limits = [item for item in (machine.memory, there if size > _RAY_ALLOWS else None) if item is not None]
    if limits and size > min(limits):
        what = "memory" if min(limits) == machine.memory else "free space in /dev/shm"
        raise UserError(
            f"cluster.object_store_mib: must not exceed this machine's {what} ({min(limits) // 2**20} MiB), "
            f"got {config.cluster.object_store_mib}"
        )
    if there is not None and size > there:
        return [
            f"cluster.object_store_mib: /dev/shm has {there // 2**20} MiB free, so Ray keeps the {size // 2**20} MiB "
            f"on a disk, which is slow (Docker: --shm-size={config.cluster.object_store_mib}m)"
        ]
    return []


def _too_much(config: RunConfig, parts: list[Part], parameters: int | None, memory: int) -> str:
    largest, surely = parts[0], sum(part.size for part in parts)
    field, got = _setting(config, largest, parameters)
    return (
        f"{field}: must fit this machine's memory of {_gib(memory)}, and all processes take {_gib(surely)} at least, "
        f"most of it the {largest.what} of {largest.group} ({_gib(largest.size)}), got {got}"
    )


def _setting(config: RunConfig, part: Part, parameters: int | None) -> tuple[str, str]:
    """The setting behind a part, and its value."""
    if part.what == _WORDS["kv_cache"]:
        return "rollout.memory_gib", str(config.rollout.memory_gib)[:20]
    model = {name: index for index, name in reward_model_groups(config)}.get(part.group)
    if model is not None:
        return f"reward.models.{model}.path", config.reward.models[model].path
    count = "" if parameters is None else f"{min(parameters, 10**15):,} parameters"
    if config.model.init is not None:
        return "model.init", count
    return "model.path", f"{config.model.path}{f' of {count}' * bool(count)}"


def _check_gpus(config: RunConfig, known: Mapping[str, Memory], memory: int) -> None:
    """Raise UserError when a process does not fit on its GPU, alone or beside the engine that shares it."""
    shared = config.cluster.placement == "shared"
    share = config.rollout.gpu_share(shared=shared)
    engine = share * memory if config.rollout.gpus_per_engine else 0.0
    rl = job_kind(config).samples_responses
    needs = {
        group: parts.weights + parts.gradients + parts.optimizer
        for group, parts in known.items()
        if _gpus(config, group)
    }
    for group, needed in needs.items():
        room = engine if group == "rollout" else memory - (engine if shared and rl else 0)
        if needed > room:
            beside = " beside the engine's share" if group != "rollout" and room < memory else ""
            field = "rollout.gpu_memory_utilization" if beside or group == "rollout" else f"{group}.gpus_per_rank"
            value = share if field.startswith("rollout") else _gpus(config, group)
            raise UserError(
                f"{field}: must leave {group} the {_gib(needed)} that its weights, gradients and optimizer state take, "
                f"and a GPU of {_gib(memory)} has {_gib(int(room))}{beside}, got {value:g}"
            )
    together = {group: needed for group, needed in needs.items() if group != "rollout"}
    if shared and rl and sum(together.values()) > memory - engine:
        raise UserError(
            f"rollout.gpu_memory_utilization: must leave {', '.join(together)}, which share a GPU, the "
            f"{_gib(sum(together.values()))} that their weights, gradients and optimizer state take, and a GPU of "
            f"{_gib(memory)} has {_gib(int(memory - engine))} beside the engine's share, got {share:g}"
        )


def _trained_part(config: RunConfig, group: str, memory: Memory) -> Memory:
    """Without gradients and optimizer state where adapters or a part of the weights are trained, or nothing is."""
    critic = config.critic.lora if config.critic else None
    little = critic if group == "critic" else config.model.lora or config.model.freeze
    if not little and config.algorithm.steps != 0:
        return memory
    return Memory(
        # To 4 bits at best from fp32: what is refused is a lower bound.
        weights=memory.weights // (8 if config.model.quantize and group == "policy" else 1),
        logits=memory.logits,
        activations=memory.activations,
        kv_cache=memory.kv_cache,
        base=memory.base,
    )


def _host_parts(config: RunConfig, known: Mapping[str, Memory]) -> list[Part]:
    """What surely lies in the machine's own memory."""
    found = []
    for group, memory in known.items():
        # With a GPU, the machine's own memory has only what is offloaded.
        names = ("optimizer_offloaded", "weights_offloaded") if _gpus(config, group) else tuple(_WORDS)
        count = _count(config, group)
        found += [Part(group, _WORDS[name], getattr(memory, name) * count) for name in names if getattr(memory, name)]
    return found


def _on_host(config: RunConfig, group: str, memory: Memory, filled: float) -> int:
    if _gpus(config, group):
        return memory.optimizer_offloaded + memory.weights_offloaded + memory.base
    return memory.total - memory.activations + int(memory.activations * filled)


def _count(config: RunConfig, group: str) -> int:
    processes = next(item.count for item in demands(config) if item.group == group)
    return processes * (config.rollout.tensor_parallel if group == "rollout" else 1)


def _gpus(config: RunConfig, group: str) -> float:
    return next(item.gpus for item in demands(config) if item.group == group)


def _gib(size: float) -> str:
    size = int(size)
    if size >= 100 * GIB:
        return f"{min(size // GIB, 10**15):,} GiB"  # a wrong number of 300 digits does not fill the line
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size // 2**20} MiB"
