"""The model of any checkpoint that a run has kept: its policy group is started once more, loads it, and writes it."""

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path

from actors.config import UserError
from actors.files.own_files import stranger
from actors.secret_text import masked
from launch.checks.contents import changed_contents
from launch.config import RunConfig, validate
from launch.kinds.table import job_kind
from launch.run.earlier import remove
from launch.run.manifest import UNREADABLE, kept_shards, read_manifest
from launch.screen.merging import merging_lost
from launch.settings.environment import taken_here
from launch.sizes.machine import this_machine


def kept_steps(run: Path) -> list[int]:
    """Steps of a run's complete checkpoints, in order."""
    found = (run / "checkpoints").glob("step-*/manifest.json")
    names = [path.parent.name.removeprefix("step-") for path in found]
    return sorted(int(name) for name in names if name.isdecimal())


def export_step(run: str, step: int) -> str:
    """Write the model of `checkpoints/step-N` to `export-step-N` in the run's directory, and return that.

    Also while the run goes on: a checkpoint is complete as soon as it is there.

    Raises:
        UserError: no run, no such checkpoint, or one that the run has removed meanwhile.
    """
    directory = Path(run)
    for file in (directory / "config.json", directory / f"checkpoints/step-{step}/manifest.json"):
        _require_own(file, step)
    config = _config_of(directory)
    kept = kept_steps(directory)
    if step not in kept:
        there = ", ".join(map(str, kept)) or "none"
        raise UserError(f"--step: must be a step whose checkpoint is kept in {directory} ({there}), got {step}")
    os.environ.update(taken_here(config.cluster.env, os.environ, code=True))
    final, partial = directory / f"export-step-{step}", directory / f"export-step-{step}.partial"
    remove(partial)  # of an export that was interrupted
    _require_base(config, directory / "checkpoints" / f"step-{step}", step)
    try:
        _write(_on_this_machine(config), directory.absolute(), step, partial.absolute())
    except UserError:
        raise
    except Exception as error:  # Whatever it was: the cause in a line, the rest in the log.
        _explain(error, directory, step)
    if not (partial / "config.json").is_file():
        raise UserError(f"RUN: must be on storage that all nodes share (rank 0 wrote {partial} elsewhere), got {run}")
    remove(final)
    os.replace(partial, final)  # whole or not at all, for whoever looks meanwhile
    return str(final)


def _require_own(file: Path, step: int) -> None:
    """Raise UserError for a file of somebody else's: what this run's configuration says is done, such as setting
    environment variables, and its manifest says what is loaded."""
    try:
        why = stranger(file)
    except OSError:
        return  # what is missing is told where it is read
    if why:
        raise _refused(f"{file} {why}", step)


def _require_base(config: RunConfig, checkpoint: Path, step: int) -> None:
    """Raise UserError where what is not trained, which a checkpoint does not hold, is not what it was in the run."""
    if not (config.model.lora or config.model.freeze or job_kind(config).role == "encoder"):
        return
    try:
        then = read_manifest(checkpoint)[0].get("contents")
    except UNREADABLE:
        return  # told where the files are verified
    for line in changed_contents(config, then, checkpoint):
        if line.startswith("model.path:"):
            raise _refused(line, step)


def _refused(problem: str, step: int) -> UserError:
    return UserError(f"--step: {problem}, got {step}")


def _config_of(directory: Path) -> RunConfig:
    try:
        values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict) or "algorithm" not in values:
        raise UserError(f"RUN: must be the directory of a run with a config.json for --step, got {directory}")
    return validate(values)


def _on_this_machine(config: RunConfig) -> RunConfig:
    """The configuration with a policy that has room here: nothing else runs beside it, and it only writes its model.

    Ranks and ZeRO stage are those of the run, whose model they hold. On a cluster that is joined, nothing changes.
    """
    if os.environ.get("RAY_ADDRESS"):
        return config
    policy, model = config.policy, config.model
    # Ray starts as many ranks as their reservations leave room for: next to nothing each, so that all fit.
    changes: dict[str, object] = {"ranks_per_node": None, "node_labels": {}, "resources": {}, "cpus_per_rank": 0.01}
    if policy.ranks * policy.gpus_per_rank > this_machine().gpus:
        changes["gpus_per_rank"] = 0
        model = model.model_copy(update={"attention": "auto"})  # what only GPUs have must give way
    return config.model_copy(update={"policy": policy.model_copy(update=changes), "model": model})


def _write(config: RunConfig, directory: Path, step: int, output: Path) -> None:
    """Start a cluster, or join one, and let the policy's ranks load the checkpoint and write the model."""
    from launch.run.cluster import ray_cluster
    from launch.run.groups import start_building
    from launch.run.reserve import place_policy, release
    from launch.run.roster import Roster
    from launch.run.saves import require_as_saved
    from launch.run.signals import hold, interruptible

    logs = directory / "logs" / "export"
    logs.mkdir(parents=True, exist_ok=True)
    _say("starting Ray")
    with interruptible(), ray_cluster(config, logs):
        from actors.train.trainer import TrainedWorker

        roster = Roster(str(logs))
        placement = place_policy(config, _say)
        try:
            worker, arguments = _worker(config, directory)
            policy = roster.add("policy", worker, config.policy.timeout_s, placement)
            policy.spawn(*arguments)
            _say("loading the model")
            policy.gather(start_building(policy, 1), "build")
            _say(f"loading step-{step}")
            checkpoint = directory / "checkpoints" / f"step-{step}"
            require_as_saved(checkpoint, roster, lambda problem: _refused(problem, step))
            # An earlier start of the run may have had others.
            saved = kept_shards(read_manifest(checkpoint)[0]).get("policy")
            policy.call(TrainedWorker.load_model, checkpoint / "policy", saved)
            decay = config.policy.ema_decay
            _say(
                f"writing {output.stem}"
                + (f", the average of the weights (policy.ema_decay {decay:g})" if decay else "")
            )
            error = policy.call(TrainedWorker.export, output)[0]
            for line in merging_lost(error, f"{output.stem}/adapter"):
                _say(line)
        finally:
            hold()  # a second Ctrl-C must not leave actors behind
            roster.shutdown()
            release(placement)


def _worker(config: RunConfig, directory: Path) -> tuple[type, tuple[object, ...]]:
    """Class of the policy's ranks, and what they are made with."""
    from actors.models.skeleton import write_skeleton

    skeleton = write_skeleton(config.model, directory / "model")
    worker, extra = job_kind(config).policy_worker()
    return worker, (config.model, skeleton, config.policy, config.run.seed, *extra)


def _explain(error: Exception, directory: Path, step: int) -> None:
    """Say why there is no model, as a mistake of the user's where it is one."""
    from actors.group import GroupError, first_line

    # Ray wraps what a rank has raised; the group wraps Ray's error once more.
    original = getattr(error.__cause__, "cause", None)
    if isinstance(error, GroupError) and isinstance(original, UserError):
        raise UserError(*original.problems) from None
    if not (directory / "checkpoints" / f"step-{step}" / "manifest.json").is_file():
        raise UserError(f"--step: the run has removed this checkpoint meanwhile, got {step}") from None
    log = directory / "logs" / "export" / "driver.log"
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write(masked("".join(traceback.format_exception(error))))
    raise UserError(
        f"--step: this checkpoint gave no model ({first_line(str(error))}; log: {log}), got {step}"
    ) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
