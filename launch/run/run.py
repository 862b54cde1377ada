"""The verb `run`: directory, cluster, groups, loop, export; and an end that leaves no process behind."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import UserError
from actors.files.full_disk import disk_problem
from actors.group import ActorGroup, first_line
from actors.models.hub_cache import located_models
from algorithms.encoder.mteb import mteb_tasks, run_mteb
from algorithms.loop import Checkpointer
from launch.alerts.alerts import Alerts
from launch.checks.output import require_there
from launch.config import RunConfig
from launch.exports.hub import push_export
from launch.kinds.table import job_kind
from launch.run.attempt_link import AGAIN, is_restarted, owner
from launch.run.checkpoint import Checkpoints
from launch.run.cluster import ray_cluster
from launch.run.earlier import remove
from launch.run.ending import Ending, outcome
from launch.run.farewell import farewell, why
from launch.run.faults import Faults, told_of_lost_ranks
from launch.run.manifest import Checkpoint
from launch.run.places import fill
from launch.run.ray_lost import RayLost, ray_is_dead, told_of_ray
from launch.run.ray_watch import watched_ray
from launch.run.reserve import place, release
from launch.run.reserved import Placement
from launch.run.restore import RunStorage
from launch.run.signals import arm, hold, interruptible, left_to_stop_s
from launch.screen.display import Display
from launch.screen.merging import merging_lost
from launch.screen.reporter import RunReporter
from launch.screen.stdout import tell
from launch.storage.uploads import Uploads
from launch.tracking.now import Now
from launch.tracking.redraw import CurveDrawer
from launch.tracking.tracker import Tracker

if TYPE_CHECKING:
    from actors.train.trainer import TrainedWorker
    from launch.run.roster import Roster

_PATIENCE_S = 5.0
"""For a checkpoint that is being written as the run is interrupted."""


def run(config: RunConfig, display: Display | None = None) -> int:
    """Train, export and report.

    Returns:
        The exit code: 0 done, 1 failed, 75 preempted, 130 interrupted or stopped; 76 where the process that has started
        this one shall start another one, see `launch.run.attempts`.

    Raises:
        UserError: a mistake of the user's that only the run itself could find.
    """
    with interruptible(), display or Display() as display, contextlib.ExitStack() as until_it_ends:
        display.phase("preparing")
        benchmarks = job_kind(config).benchmarks
        if benchmarks:
            mteb_tasks(benchmarks)  # an unknown name shall not be found after hours
        faults = Faults(config)
        # Before the tracker, which writes metrics that this may have to move aside.
        storage = RunStorage(config) if config.run.storage else None
        found = _prepare(config, display.note, storage)
        reached = found.step if found else 0
        tracker = Tracker(config.directory, config, reached, display.warning)
        faults.open(anew=found is None, told=display.note)
        now = Now(config.directory, faults.events, reached, starter=owner())
        until_it_ends.enter_context(now.kept_fresh())
        uploads = storage.uploads(faults.events, display.warning) if storage else None
        curves = CurveDrawer(config.directory, display.warning)
        size = Checkpoints(config).size_of_latest
        alerts = Alerts(
            config,
            faults.events,
            show=display.alert,
            warn=display.warning,
            checkpoint_size=size,
            untried_from=faults.events.attempt - 1 if is_restarted() else None,
        )
        ended_by: BaseException | None = None
        try:
            reporter = RunReporter(display, tracker, now, curves, faults, uploads, alerts)
            _learn_and_export(config, reporter, display, faults)
        except (Exception, KeyboardInterrupt) as error:  # Whatever it was: the cause in a few lines, the rest in a log.
            ended_by = error
        again = _end(config, uploads, display, faults, alerts, ended_by)
        picture = _close(display, tracker, curves, alerts, draw=not again)
        if again:
            return AGAIN
        now.end(outcome(ended_by), why(config, display, ended_by))
        code = farewell(config, display, ended_by, picture)
        # After the farewell: the model is there, whatever becomes of these.
        if config.run.hub_model_id and not code:
            arm()
            print(f"uploading to {config.run.hub_model_id} ...", flush=True)
            if warning := push_export(config.directory, config.run.hub_model_id, private=config.run.hub_private):
                tell(f"warning: {warning}")
        if benchmarks and not code:
            print("measuring with MTEB ...", flush=True)
            _measure_with_mteb(config, benchmarks)
    return code


def _end(
    config: RunConfig,
    uploads: Uploads | None,
    display: Display,
    faults: Faults,
    alerts: Alerts,
    ended_by: BaseException | None,
) -> bool:
    """Wait for what is still to be put into storage, unless the next attempt does that; returns whether there is
    one."""
    left_s = left_to_stop_s(config.cluster.stop_wait_s)  # where SIGTERM has come
    if uploads and ended_by is None:
        # First: what fails is not over.
        _finish(config, uploads, display, config.checkpoint.max_age_s if left_s is None else left_s)
    again = faults.end(ended_by, display.warning)
    if isinstance(ended_by, Exception) and not isinstance(ended_by, Ending) and not again:
        alerts.failed(first_line(str(ended_by) or type(ended_by).__name__))
    if uploads and again:
        uploads.stop()
    elif uploads and ended_by is not None:
        within_s = config.cluster.stop_wait_s if left_s is None else left_s
        # Whoever has ended it at once does not want to wait.
        _finish(config, uploads, display, 0 if isinstance(ended_by, KeyboardInterrupt) else within_s)
    return again


def _finish(config: RunConfig, uploads: Uploads, display: Display, within_s: float) -> None:
    arm()  # what is on the disk stays there: whoever does not want to wait may end it
    with contextlib.suppress(KeyboardInterrupt):  # what is not there is told
        uploads.finish(within_s, lambda what: display.note(f"waiting for uploads to {config.run.storage}: {what}"))


def _close(
    display: Display, tracker: Tracker, curves: CurveDrawer, alerts: Alerts, *, draw: bool = True
) -> Path | None:
    """Deliver and draw what is left; returns the path of the curves, None where none are to be drawn."""
    hold()
    display.phase("delivering metrics")
    tracker.close()
    display.phase("delivering alerts")
    alerts.close(again=not draw)
    picture = None
    if draw:
        display.phase("drawing curves")
        picture = curves.finish()
    else:
        curves.stop()
    display.close()
    return picture


def _prepare(config: RunConfig, tell_of: Callable[[str], None], storage: RunStorage | None = None) -> Checkpoint | None:
    """Make the run directory ready and return the checkpoint to continue from; what an earlier run left and does not
    go on is moved aside, or removed where `checkpoint.resume` is false, and told. Raises UserError."""
    directory, checkpoints = config.directory, Checkpoints(config)
    try:
        if storage:
            storage.restore(tell_of)
        found = checkpoints.latest()
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        for line in checkpoints.prepare(found):
            tell_of(line)
        if storage:
            storage.claim()
        (directory / "config.json").write_text(
            json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False), encoding="utf-8"
        )
    except OSError as error:
        if problem := disk_problem(error, directory):
            raise problem from None
        raise UserError(
            f"run.output: must be a directory that can be written ({error.strerror}: {error.filename}), "
            f"got {config.run.output}"
        ) from None
    return found


@contextlib.contextmanager
def _started(
    config: RunConfig, reporter: RunReporter, display: Display, faults: Faults
) -> Iterator[tuple[Placement, "Roster"]]:
    """A cluster with reserved resources, and a roster whose processes end with it, whatever happens."""
    display.phase("starting Ray" if not os.environ.get("RAY_ADDRESS") else "joining Ray")
    with watched_ray(faults) as ray_watch, ray_cluster(config, config.directory / "logs"), ray_watch.running():
        from launch.run.roster import Roster
        from launch.run.wardens import Wardens
        from launch.run.watch import ProcessWatch

        roster = Roster(str((config.directory / "logs").absolute()), reporter.now)
        display.phase("reserving resources")
        placement = place(config, lambda text: display.phase("waiting for resources", text))
        fill(config, placement)
        if where := placement.where():
            reporter.note(where)
        now = reporter.now
        watch = ProcessWatch(
            roster,
            now.events,
            on_lost=roster.hear,
            warn=display.warning,
            heartbeat_s=config.run.heartbeat_s,
            excuse=ray_is_dead,
            on_news=now.write,
            on_work=display.within,
            wardens=Wardens(config.run.heartbeat_s, placement.lost),
            pool_nodes=lambda: [slot.node for slot in placement.slots.get("reward", ())],
        )
        now.processes = watch.pids
        watch.start()
        try:
            survived = placement.lost if config.run.max_restarts else ()
            with told_of_ray(placement.nodes, survived), told_of_lost_ranks(roster):
                yield placement, roster
        except BaseException as error:
            if faults.notice(error) and not isinstance(error, RayLost):  # while it is known where
                watch.look_last()
            raise
        finally:
            # No signal may cut this short: what it leaves behind would hold cores and memory.
            hold()
            watch.stop()  # first: what ends from now on is meant to
            ray_watch.ending()
            reporter.phase("ending processes")
            roster.shutdown()
            release(placement)


def _learn_and_export(config: RunConfig, reporter: RunReporter, display: Display, faults: Faults) -> None:
    with _started(config, reporter, display, faults) as (placement, roster):
        loop = job_kind(config).build(placement, reporter, roster)
        for model in keep_commits(config.directory / "logs"):
            reporter.note(f"from the hub: {model}")
        display.phase("preparing the export")
        with _prepared_export(roster, config, reporter.note):
            with _written_to_the_end(loop.checkpoint, display):
                loop.train()
            arm()  # The last step is saved: nothing is lost by ending at once.
            reporter.phase("exporting")
            _export_best(config, roster, loop.step, reporter)
            if reporter.uploads:
                reporter.uploads.put_export(config.directory / "export")


@contextlib.contextmanager
def _written_to_the_end(checkpoint: Checkpointer, display: Display) -> Iterator[None]:
    """Where training fails, the checkpoint that is being written beside it is written to its end, while there are ranks
    to do so; who interrupts the run, or that wait, does not wait for long."""
    try:
        yield
    except KeyboardInterrupt:
        checkpoint.close(_PATIENCE_S)
        raise
    except Exception:
        if not ray_is_dead() and not checkpoint.close(0):  # else there is nobody to write, or nothing
            display.phase("writing the checkpoint")
            arm()
            with contextlib.suppress(KeyboardInterrupt):  # what has ended the run is told, not this
                checkpoint.close()
            hold()
        raise


@contextlib.contextmanager
def _prepared_export(roster: "Roster", config: RunConfig, tell_of: Callable[[str], None]) -> Iterator[None]:
    """All of the export but its weights is written first: what cannot be written ends the run before training, and
    what has become of the model's directory meanwhile does not matter. Raises UserError."""
    from actors.train.trainer import TrainedWorker

    partial, policy = _partial(config), roster["policy"]
    remove(partial)

    def prepare() -> list[str]:
        return policy.call(TrainedWorker.prepare_export, partial.absolute(), job_kind(config).chat_settings())[0]

    try:
        notes = prepare()
        roster.once_more.append(prepare)
        _require_shared(partial, config)
        for note in notes:
            tell_of(note)
        yield
    finally:
        with contextlib.suppress(OSError):  # what has ended the run is told, not this
            remove(partial)  # of a full disk, others need the room


def _export_best(config: RunConfig, roster: "Roster", last: int, reporter: RunReporter) -> None:
    """Export the best model, where one is kept, else that of the last step; tells which, and what was lost in it."""
    from launch.run.saves import load_best

    require_there(config.directory)
    best = load_best(config, roster.members("policy")) if config.best_by else None
    if best:
        reporter.note(f"best by {config.best_by}: step {best}")
    elif config.best_by:
        reporter.note(f"no checkpoint that is the best by {config.best_by}: exporting the last step")
    if config.policy.ema_decay:
        reporter.note(f"exporting the average of the weights (policy.ema_decay {config.policy.ema_decay:g})")
    for line in merging_lost(_export(roster["policy"], config), "export/adapter"):
        reporter.note(line)
    job_kind(config).finish_export(best or last)


def keep_commits(logs: Path) -> list[str]:
    """Models of the hub that this run has loaded, as `owner/name@COMMIT`: also kept in models.txt, as branches move."""
    models = located_models()
    if models:
        # The run has said them, and storage that is full ends no run.
        with contextlib.suppress(OSError), (logs / "models.txt").open("a", encoding="utf-8") as file:
            file.writelines(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {model}\n" for model in models)
    return models


def _export(policy: "ActorGroup[TrainedWorker]", config: RunConfig) -> float | None:
    """Put the model into `export/`, all of it or nothing; returns what `TrainedWorker.export` does."""
    from actors.train.trainer import TrainedWorker

    final, partial = config.directory / "export", _partial(config)
    error = policy.call(TrainedWorker.export, partial.absolute())[0]
    _require_shared(partial, config)
    remove(final)
    os.replace(partial, final)
    return error


def _partial(config: RunConfig) -> Path:
    return config.directory / "export.partial"


def _require_shared(partial: Path, config: RunConfig) -> None:
    if not (partial / "config.json").is_file():
        raise UserError(
            f"run.output: must be on storage that all nodes share (rank 0 of the policy wrote {partial} elsewhere), "
            f"got {config.run.output}"
        )


def _measure_with_mteb(config: RunConfig, tasks: list[str]) -> None:
    output = config.directory / "mteb"
    kind = "reranker" if job_kind(config).reranks else "embedding"
    for task, score in run_mteb(config.directory / "export", tasks, output, kind).items():
        print(f"mteb:    {task} {score:.4f}")
    print(f"mteb:    {output}")
