"""The first words of a run: what is trained, on what, where it goes. Needs no library and reads no data: it comes
before everything that takes time."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from actors.models.hub_cache import cached_snapshot, is_hub_id
from actors.models.skeleton import hf_config, vocabulary_size
from actors.secret_text import masked
from launch.checks.capacity import total_gpus
from launch.config import RunConfig
from launch.kinds.kind import JobKind
from launch.kinds.table import job_kind
from launch.screen.shown import visible
from launch.sizes.estimate import counted_parameters
from launch.sizes.machine import this_machine
from launch.sizes.placement import demands

_LARGEST_FILE = 2**24
"""Bytes of a file that is quickly read."""


def opening_lines(config: RunConfig) -> list[str]:
    """Two lines; their parts are separated by two spaces, where they may be broken."""
    kind = job_kind(config)
    lora = ", LoRA" if config.model.lora else ""
    return [
        visible(f"{kind.title}, {_length(kind)}:  {_model(config)}{lora}"),
        visible(f"data: {_data(config)}  devices: {_devices(config)}  into: {config.directory}"),
    ]


def _length(kind: JobKind) -> str:
    epochs, steps = kind.algorithm.epochs, kind.known_steps
    if epochs is not None:
        return f"{epochs} epoch{'s' * (epochs != 1)}"
    if steps == 0:
        return "evaluation only"
    return f"{steps} step{'s' * (steps != 1)}"


def _model(config: RunConfig) -> str:
    if config.model.init is not None:
        family = config.model.init.family
        values = hf_config(config.model.init, config.model.dtype, vocabulary_size(config.model.init), 0, 0)
        return f"new {family} of {_count(counted_parameters(values) or 0)} parameters"
    name = str(config.model.path)
    snapshot = cached_snapshot(name, config.model.revision) if is_hub_id(name) else None
    values = _values((snapshot or Path(name)) / "config.json")
    try:
        parameters = counted_parameters(values)
    except (TypeError, ValueError, ZeroDivisionError, KeyError, AttributeError):  # whatever the file holds instead
        parameters = None
    known = [str(values["model_type"])] if values.get("model_type") else []
    known += [f"{_count(parameters)} parameters"] if parameters else []
    known += [f"commit {snapshot.name}"] if snapshot else []
    name += f"@{config.model.revision}" if config.model.revision else ""
    return f"{name} ({', '.join(known)})" if known else name


def _values(file: Path) -> Mapping[str, object]:
    try:
        if file.stat().st_size > _LARGEST_FILE:
            return {}
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # what is wrong with it, the checks say
        return {}
    return found if isinstance(found, dict) else {}


def _count(parameters: int) -> str:
    for unit, size in (("billion", 10**9), ("million", 10**6)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return f"{parameters:,}"


def _data(config: RunConfig) -> str:
    source = config.data.train
    sources = list(source.values()) if isinstance(source, dict) else [source]
    rows = [_rows(Path(str(each))) for each in sources]
    known = f" ({sum(filter(None, rows)):,} rows)" if all(rows) else ""
    return f"{', '.join(map(str, sources))}{known}"


def _rows(file: Path) -> int | None:
    """Lines of a file of JSON lines that is quickly read; None for any other source."""
    try:
        if file.suffix != ".jsonl" or file.stat().st_size > _LARGEST_FILE:
            return None
        with file.open("rb") as stream:
            return sum(bool(line.strip()) for line in stream)  # blank lines are no rows
    except (OSError, ValueError):
        return None


def _devices(config: RunConfig) -> str:
    if address := os.environ.get("RAY_ADDRESS"):
        return f"of the Ray cluster at {masked(address)}"
    machine, cluster = this_machine(), config.cluster
    cpus = machine.cpus if cluster.cpus is None else cluster.cpus
    gpus = machine.gpus if cluster.gpus is None else cluster.gpus
    used = total_gpus(config, demands(config))
    return f"{cpus} CPU{'s' * (cpus != 1)}, {f'{used:g} of {gpus} GPUs' if gpus else 'no GPU'}"
