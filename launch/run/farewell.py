"""What a run says in the end: why it has ended, what there is now, and where the rest is told."""

import re
from pathlib import Path

from actors.config import UserError
from actors.files.full_disk import disk_problem
from actors.group import GroupError, first_line
from actors.secret_text import masked
from launch.checks.output import require_there
from launch.config import RunConfig
from launch.run.ending import STOPPED, Ending, outcome
from launch.run.faults import keep_traceback, users_mistake
from launch.run.ray_lost import RayLost
from launch.screen.display import Display
from launch.screen.stdout import tell
from launch.screen.summary import how_it_ended, last_screen

# policy[1].update: ValueError: ..., or policy.update: no answer from rank(s) [1, 3] within 60 s
_GROUP_ERROR = re.compile(r"(\w+)(?:\[(\d+)\])?\.\w+: (?:no answer from rank\(s\) \[(\d+))?")


def why(config: RunConfig, display: Display, ended_by: BaseException | None) -> str:
    """Why the run has ended, for whoever looks at its directory: in one line, with the cause of a failure."""
    told = how_it_ended(config, display, ended_by)
    return masked(f"{told}: {first_line(str(ended_by))}") if outcome(ended_by) == "failed" else told


def farewell(config: RunConfig, display: Display, ended_by: BaseException | None, curves: Path | None) -> int:
    """Say what there is now and how the run has ended; returns the exit code.

    Raises:
        UserError: what has ended it is the user's mistake.
    """
    if display.began or not users_mistake(ended_by):
        told = how_it_ended(config, display, ended_by)
        display.lines(last_screen(config, display, told, finished=ended_by is None, curves=curves))
    directory = config.directory
    if isinstance(ended_by, KeyboardInterrupt):
        tell(f"interrupted; continue with the same command, results so far are in {directory}")
        return STOPPED
    if isinstance(ended_by, Ending):
        goes_on = "the same command continues" if config.checkpoint.resume else "checkpoint.resume=true continues"
        tell(f"{ended_by}; a checkpoint is in {directory}, {goes_on}")
        return ended_by.code
    if isinstance(ended_by, Exception):
        if not users_mistake(ended_by):
            require_there(directory)  # else that is the cause, whoever met it first
        _explain(ended_by, directory)
        return 1
    return 0


def _explain(error: Exception, directory: Path) -> None:
    """Print the cause of a failure and where the rest is; raises UserError when the user can mend it."""
    if isinstance(error, UserError):
        raise error
    log = keep_traceback(error, directory)
    if mistake := users_mistake(error):
        raise UserError(*mistake.problems) from None
    if isinstance(error, OSError) and (full := disk_problem(error, directory)):
        raise full from None
    kind = "" if isinstance(error, GroupError | RayLost) else f"{type(error).__name__}: "
    tell(f"run failed: {kind}{first_line(str(error))}")
    tell(f"full log: {(_worker_log(error, directory / 'logs') or log)}")


def _worker_log(error: Exception, logs: Path) -> Path | None:
    """The log of the process that a GroupError is about, where it is on this machine."""
    match = _GROUP_ERROR.match(str(error))
    if not isinstance(error, GroupError) or match is None:
        return None
    group, rank, late = match.groups()
    path = logs / f"{group}-{rank or late or 0}.log"
    return path if path.exists() else None
