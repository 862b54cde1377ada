"""What `tandem check` prints: the resolved configuration, placement, batch arithmetic and memory."""

import json
import sys
from dataclasses import asdict

from pydantic import BaseModel
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from actors.config import GroupConfig
from actors.models.similar import padded_share
from launch.checks.capacity import counted, machine_line, total_cpus, total_gpus
from launch.checks.findings import Findings
from launch.checks.fits import copied_bytes, kept_bytes
from launch.checks.known_sizes import arithmetic_of, memory_of
from launch.checks.row_checks import READ_ROWS
from launch.config import RunConfig
from launch.kinds.rl import reward_model_groups
from launch.kinds.table import job_kind
from launch.screen.console import VisibleConsole
from launch.settings.literal_secrets import public_endpoints, public_values
from launch.sizes.estimate import GIB, Memory, kv_bytes_per_token
from launch.sizes.machine import this_machine
from launch.sizes.placement import Demand, demands

MEMORY_PARTS = ("weights", "gradients", "optimizer", "logits", "activations", "kv_cache", "base")
MIB = 2**20
PLAIN_WIDTH = 120


def as_object(findings: Findings) -> dict[str, object]:
    """The report as JSON values: config, placement, model, arithmetic, memory (bytes of one process), rows too long,
    rewards as called, and warnings."""
    config = findings.config
    groups = [
        {**asdict(item), "zero_stage": _zero_stage(config, item), "bundles": config.cluster.placement}
        for item in demands(config)
    ]
    memory = {group: {**asdict(parts), "total": parts.total} for group, parts in memory_of(findings).items()}
    return {
        "config": public_values(config),
        "placement": groups,
        "model": _model_object(findings),
        "arithmetic": {**asdict(arithmetic_of(findings)), "rows": findings.rows, "mean_tokens": findings.mean_tokens},
        "memory": {"parameters": findings.parameters, "processes": memory},
        "data": findings.notes,
        "rewards": findings.rewards,
        "warnings": findings.warnings,
    }


def print_tables(findings: Findings) -> None:
    """Print the report: coloured tables on a terminal, plain text elsewhere."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH  # rich asks a terminal how wide it is, and takes 80 for a file
    console = VisibleConsole(soft_wrap=True, highlight=False, emoji=False, width=width)
    console.print("[bold]configuration[/] (# set: differs from the default)")
    for line, is_set in config_lines(findings.config):
        console.print(f"[bold]{escape(line)}[/]  # set" if is_set else escape(line))
    console.print("\n[bold]placement[/]")
    _print_placement(console, findings.config)
    console.print("\n[bold]batches[/]")
    for line in batch_lines(findings) + model_lines(findings):
        console.print(escape(line))
    for line in findings.notes:
        console.print(escape(line))
    if findings.rewards:
        console.print("\n[bold]rewards[/] (each function called once)")
    for line in findings.rewards:
        console.print(escape(line))
    console.print("\n[bold]memory[/] (estimate for each process)")
    _print_memory(console, findings)
    for warning in findings.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")


def config_lines(section: BaseModel, depth: int = 0) -> list[tuple[str, bool]]:
    """YAML of a resolved section, line by line, and whether the value differs from the default."""
    lines: list[tuple[str, bool]] = []
    for name, about in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines.append((f"{'  ' * depth}{name}:", False))
            lines += config_lines(value, depth + 1)
        else:
            # Through the section: fields may be written in another form than they are held.
            plain = section.model_dump(mode="json", include={name})[name]
            plain = public_endpoints(plain) if name == "endpoints" else plain
            default = about.get_default(call_default_factory=True)
            lines.append((f"{'  ' * depth}{name}: {json.dumps(plain, ensure_ascii=False)}", value != default))
    return lines


def batch_lines(findings: Findings) -> list[str]:
    """The batch equation, with micro-batches and the data it rests on."""
    config, arithmetic, kind = findings.config, arithmetic_of(findings), job_kind(findings.config)
    bound = "about" if findings.mean_tokens is not None else "at most"
    lines = [
        f"{arithmetic.equation}; {bound} {arithmetic.micro_batches} micro-batch"
        f"{'es' * (arithmetic.micro_batches != 1)} of <= {config.policy.micro_batch_tokens} tokens per rank and update"
    ]
    lines += kind.step_lines(arithmetic.steps, findings.rows)
    if findings.mean_tokens is not None:
        lines.append(kind.length_line(findings.mean_tokens))
    if not findings.complete:
        lines.append(f"only the first {READ_ROWS:,} rows of a set are read here: the run may find more")
    return lines


def model_lines(findings: Findings) -> list[str]:
    """How the model reads the sequences of a micro-batch, unless it reads them packed."""
    family = findings.family
    if family is None or family.way == "packed":
        return []
    share = _padding(findings)
    padding = "" if share is None else f" (about {share:.0%} padding)"
    return [f"model: {family.why}, so each sequence has a row of its own{padding}, and prompts are not shared"]


def _model_object(findings: Findings) -> dict[str, object] | None:
    family = findings.family
    return family and {"way": family.way, "why": family.why, "padding": _padding(findings)}


def _padding(findings: Findings) -> float | None:
    """Share of padding in rows of the model's own; None where there are none, or no lengths are known."""
    rows = findings.family is not None and findings.family.way == "rows"
    return padded_share(findings.lengths) if rows and findings.lengths else None


def _print_placement(console: Console, config: RunConfig) -> None:
    wanted = demands(config)
    table = Table("group", "processes", "CPUs each", "GPUs each", "threads each", "ZeRO stage", "bundles", box=SIMPLE)
    for item in wanted:
        stage = _zero_stage(config, item)
        numbers = (str(item.count), f"{item.cpus:g}", f"{item.gpus:g}", str(item.threads))
        where = f"{item.per_node} on each node" if item.per_node else config.cluster.placement
        table.add_row(item.group, *numbers, "-" if stage is None else str(stage), where)
    console.print(table)
    asked = f"{counted(total_cpus(wanted), 'CPUs')} and {counted(total_gpus(config, wanted), 'GPUs')} in all"
    console.print(f"{asked}; {machine_line(config, this_machine())}")


def _zero_stage(config: RunConfig, item: Demand) -> int | None:
    groups: dict[str, GroupConfig] = {"policy": config.policy, "reference": config.reference}
    groups |= {name: config.reward.models[index].group for index, name in reward_model_groups(config)}
    groups |= {"critic": config.critic} if config.critic else {}
    return groups[item.group].zero_stage if item.group in groups else None


def _print_memory(console: Console, findings: Findings) -> None:
    memory = memory_of(findings)
    if not memory:
        console.print("unknown: the model's size cannot be read from its directory")
        return
    counts = {item.group: item.count for item in demands(findings.config)}
    # An engine is as many processes.
    counts["rollout"] = counts.get("rollout", 0) * findings.config.rollout.tensor_parallel
    table = Table("process", "count", *MEMORY_PARTS, "total", box=SIMPLE)
    for group, parts in memory.items():
        sizes = [_size(getattr(parts, name)) for name in MEMORY_PARTS]
        table.add_row(group, str(counts[group]), *sizes, _size(parts.total))
    console.print(table)
    for line in _memory_notes(findings, memory, counts):
        console.print(escape(line))


def _memory_notes(findings: Findings, memory: dict[str, Memory], counts: dict[str, int]) -> list[str]:
    config, rollout = findings.config, findings.config.rollout
    total = _size(sum(parts.total * counts[group] for group, parts in memory.items()))
    shape = findings.shape
    known = shape is not None and shape.activations_known
    activations = "activations at their most" if known else "without activations, which are not known for its layers"
    experts = f", {shape.experts} experts in a layer" if shape and shape.experts > 1 else ""
    lines = [f"model of {findings.parameters:,} parameters{experts}; {total} in all processes, {activations}"]
    if offloaded := memory["policy"].optimizer_offloaded:
        lines.append(f"policy: {_size(offloaded)} of the total is optimizer state in host memory")
    for group, parts in memory.items():
        if parts.weights_offloaded:
            lines.append(f"{group}: {_size(parts.weights_offloaded)} of the total is parameters in host memory")
    if copied := copied_bytes(config, memory):
        lines.append(f"checkpoint: {_size(copied)} more in host memory while one is written (none: beside=false)")
    if kept := kept_bytes(config, memory):
        lines.append(f"checkpoint: {_size(kept)} more for copies of the state in memory (none: memory_every=null)")
    if "rollout" in memory and rollout.gpus_per_engine:
        share = rollout.gpu_share(shared=config.cluster.placement == "shared")
        lines.append(f"rollout: an engine's cache takes the rest of {share:.0%} of its GPUs")
    elif "rollout" in memory and findings.shape and findings.shape.keeps_all:
        tokens = memory["rollout"].kv_cache // kv_bytes_per_token(findings.shape, config.model.dtype)
        lines.append(
            f"rollout: an engine's cache holds {tokens:,} tokens, {tokens // rollout.max_model_len} sequences of the "
            f"longest length at one time (max_concurrent {rollout.max_concurrent})"
        )
    return lines


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
