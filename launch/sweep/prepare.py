"""What a sweep will do, checked as a whole before any trial starts."""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from actors.config import UserError
from algorithms.loop import less_is_better
from launch.checks.capacity import total_gpus
from launch.config import RunConfig
from launch.kinds.table import job_kind
from launch.run.identity import changes
from launch.settings.file import read_yaml
from launch.sizes.placement import demands
from launch.sweep.record import BASE, NAME, Record, SweepTrial, read_record
from launch.sweep.settled import Survey, check_metric, probes, survey
from launch.sweep.space import Point, Space, read_space

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_MOST_TRIALS = 1000
_MOST_SAMPLED = 64
"""Points within the ranges that are checked for a search whose points nobody knows before."""
_QUARTER = 4


@dataclass(frozen=True, slots=True)
class Options:
    """What `tandem sweep` is asked for; None: not said."""

    config: str
    overrides: list[str]
    metric: str
    mode: str | None = None
    trials: int | None = None
    parallel: int = 1
    search: str | None = None
    early_stop: str = "asha"
    grace: int | None = None
    reduction: int = 3
    seed: int = 0
    name: str | None = None


@dataclass
class Plan:
    """A sweep that may start, or go on."""

    directory: Path
    record: Record
    space: Space
    points: list[Point] | None
    """Of the trials; None: the searcher says them one by one."""
    parallel: int
    grace: int | None
    """Steps before which no trial is stopped; None: none ever is."""
    reduction: int
    steps: int | None
    """Of the longest trial; None: not known."""
    by_best: bool
    """The model that a trial exports is the best by the sweep's metric, not the last."""
    stop_wait_s: float
    """Time that a trial has to save a checkpoint."""
    storage: str | None
    """URL below which trials put copies of their checkpoints, each below its name."""
    warnings: list[str]

    @property
    def base(self) -> Path:
        """The configuration of all trials."""
        return self.directory / BASE

    def overrides_of(self, trial: SweepTrial) -> list[str]:
        """What a trial is started with."""
        placed = [f"run.output={json.dumps(str(self.directory))}", f"run.name={trial.name}"]
        stored = [f"run.storage={json.dumps(self.storage)}"] if self.storage else []
        return [*self.record.fixed, *trial.overrides, *placed, *stored]


def prepare(options: Options) -> Plan:
    """Check a sweep: its space, metric, trials and directory.

    Raises:
        UserError: with what is wrong; nothing has been written.
    """
    space = read_space(options.overrides)
    search = options.search or ("random" if space.drawn else "grid")
    count = _count(options, space, search)
    # Before Tune is imported, which takes seconds: a mistake is told at once.
    found = survey(options.config, space.fixed, space.corners() if search == "grid" else probes(space))
    config = found.settled[0].config
    _check_sections(config)
    _check_parallel(config, options.parallel)
    for settled in found.settled:
        check_metric(settled, options.metric, ordered=options.mode is None)
    directory = Path(config.run.output) / _name(options, config)
    points = found.distinct() if search == "grid" else _drawn(options, space, search, count, found)
    warnings = found.warnings()
    record = _record(options, space, search, len(points) if search == "grid" and points else count)
    record.trials = _trials_before(directory, record, space, options.config)
    steps, grace = _stopping(options, [settled.config for settled in found.settled])
    storage = config.run.storage
    return Plan(
        directory=directory,
        record=record,
        space=space,
        points=points,
        parallel=options.parallel,
        grace=grace,
        reduction=options.reduction,
        steps=steps,
        by_best=config.best_by == options.metric,
        stop_wait_s=config.cluster.stop_wait_s,
        storage=f"{storage.rstrip('/')}/{directory.name}" if storage else None,
        warnings=warnings,
    )


def make_directory(plan: Plan, config: str) -> None:
    """Make the sweep's directory, with its configuration. Raises UserError."""
    try:
        plan.directory.mkdir(parents=True, exist_ok=True)
        if not plan.base.exists():
            shutil.copyfile(config, plan.base)
    except OSError as error:
        rule = f"must be a directory that can be written ({error.strerror}: {error.filename})"
        raise UserError(f"run.output: {rule}, got {plan.directory.parent}") from None


def _drawn(options: Options, space: Space, search: str, count: int, found: Survey) -> list[Point] | None:
    """Points drawn at random, each of them checked; None for a searcher that chooses its own, within the same space."""
    from launch.sweep.tuned import points, require_optuna

    if search == "optuna":
        require_optuna()
    drawn = points(space, count if search == "random" else min(count, _MOST_SAMPLED), options.seed)
    found.settled += survey(options.config, space.fixed, drawn).settled
    return drawn if search == "random" else None


def _count(options: Options, space: Space, search: str) -> int:
    trials, grid = options.trials, space.grid
    if search == "grid":
        if trials not in (None, grid):
            raise UserError(f"--trials: must be left out, or {grid}, as the lists have so many points, got {trials}")
        if grid > _MOST_TRIALS:
            raise UserError(f"values: must have at most {_MOST_TRIALS} combinations, got {grid}")
        return grid
    if trials is None:
        drawn = next((item for item in space.varied if item.drawn), space.varied[0])
        what = f"--search {search}" if options.search else f"{drawn.field}={drawn.text}"
        raise UserError(f"--trials: required with {what}, such as 12, got nothing")
    if trials > _MOST_TRIALS:
        raise UserError(f"--trials: must be at most {_MOST_TRIALS}, got {trials}")
    if search == "random" and trials < grid:
        raise UserError(f"--trials: must be at least {grid}, as the lists have so many points, got {trials}")
    return trials


def _check_sections(config: RunConfig) -> None:
    problems = []
    if config.run.hub_model_id:
        rule = "must be left out in a sweep, each of whose trials would replace the model there"
        problems.append(f"run.hub_model_id: {rule}, got {config.run.hub_model_id}")
    if not config.checkpoint.resume:
        rule = "must be true in a sweep, which goes on from its trials' checkpoints"
        problems.append(f"checkpoint.resume: {rule}, got false")
    if problems:
        raise UserError(*problems)


def _check_parallel(config: RunConfig, parallel: int) -> None:
    if parallel > 1 and not os.environ.get("RAY_ADDRESS") and total_gpus(config, demands(config)):
        raise UserError(
            f"--parallel: must be 1 without RAY_ADDRESS, as each trial starts a Ray of its own that takes this "
            f"machine's GPUs (ray start --head, and RAY_ADDRESS=127.0.0.1:6379, let them share one), got {parallel}"
        )


def _name(options: Options, config: RunConfig) -> str:
    name = options.name or f"{config.run.name[:90]}-sweep"
    if not re.fullmatch(_NAME, name):
        rule = "must be at most 100 letters, digits, '.', '_' and '-', a letter or digit first"
        raise UserError(f"--name: {rule}, got {name[:120]}")
    return name


def _record(options: Options, space: Space, search: str, count: int) -> Record:
    mode = options.mode or ("min" if less_is_better(options.metric) else "max")
    varied = {item.field: item.text for item in space.varied}
    return Record(options.config, [*space.fixed], varied, options.metric, mode, search, options.seed, count)


def _trials_before(directory: Path, record: Record, space: Space, config: str) -> list[SweepTrial]:
    """Those of the sweep that this one goes on with; raises UserError where the directory is of something else."""
    before = read_record(directory) if directory.is_dir() else None
    if before is None:
        if directory.exists() and (not directory.is_dir() or _holds_others(directory)):
            raise UserError(
                f"--name: must be a new directory or an earlier sweep's, and {directory} holds other files, "
                f"got {directory.name}"
            )
        return []
    found = before.differences(record)
    base = directory / BASE
    if base.exists():
        then, now = read_yaml(str(base)), read_yaml(config)
        found += [
            f"{field}: must be {old}, as in this sweep before ({base}), got {new}"
            for field, old, new in changes("", then, now)
        ]
    if found:
        raise UserError(*(f"{line}; another --name begins another sweep" for line in found))
    # What trials are started with shall be this command's, whoever has written the file.
    for number, trial in enumerate(before.trials, start=1):
        if trial.number != number or not space.has(trial.point):
            raise UserError(f"{directory / NAME}: must hold points of this sweep, got another as trial {number}")
    return before.trials


def _holds_others(directory: Path) -> bool:
    return any(item.name not in (BASE, "sweep.lock", "sweep.json.partial") for item in directory.iterdir())


def _stopping(options: Options, configs: Iterable[RunConfig]) -> tuple[int | None, int | None]:
    """Steps of the longest trial, and those before which none is stopped; None: not known, and never."""
    configs = list(configs)
    lengths = [job_kind(config).known_steps for config in configs]
    known = [length for length in lengths if length is not None]
    steps = max(known) if len(known) == len(lengths) else None
    if options.early_stop == "none":
        if options.grace is not None:
            raise UserError(f"--grace: must be left out with --early-stop none, got {options.grace}")
        return steps, None
    every = max(config.algorithm.eval_every or 1 for config in configs)
    if options.grace is not None:
        if steps is not None and options.grace > steps:
            raise UserError(f"--grace: must be at most {steps}, the steps of a trial, got {options.grace}")
        return steps, options.grace
    return steps, max(every, 1, -(-(steps or 2 * _QUARTER * every) // _QUARTER))
