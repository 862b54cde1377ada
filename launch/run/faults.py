"""Which failures of a run are faults, that another attempt of its driver survives, and what is written down of them.

A fault is that something was lost: a process, a node, Ray itself, data. What would fail again, as a mistake of the
user's, NaN or a reward function does, ends the run.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.config import UserError
from actors.group import ActorGroup, first_line
from actors.group_errors import DataLost, GroupError, RankLate, RankLost
from actors.secret_text import masked
from launch.config import RunConfig
from launch.run.attempt_link import is_restarted, may_restart, say_attempt, say_step, survives_faults
from launch.run.ray_lost import RayLost
from launch.tracking.events import NAME, Events, Fault
from launch.tracking.history import steps_of

_LOST = RankLost, RankLate, DataLost
_ECHO_S = 3.0
"""How long after an error a process may be found dead that has caused it: gloo tells the others of a lost connection
before Ray tells anybody of a lost process."""
_PULSE_S = 0.5


class Faults:
    """Those of a run, told to `events.jsonl`, and what this attempt has to do with them. Any thread may ask."""

    def __init__(self, config: RunConfig) -> None:
        """Before the results of an earlier attempt are cut."""
        self._directory = config.directory
        # Only where there is a fault that this attempt may have survived.
        known = (self._directory / NAME).exists()
        self._furthest = max(steps_of(self._directory / "metrics.jsonl"), default=0) if known else 0

    def open(self, *, anew: bool, told: Callable[[str], None]) -> None:
        """The run's directory is prepared; `anew`: nothing in it goes on. `told` hears a line of each fault."""
        self.events = Events(self._directory, anew=anew and not is_restarted(), told=told)
        say_attempt(self.events.attempt)

    def finish_step(self, step: int) -> None:
        """A step is done, and its results are written."""
        # One that is only done again is no progress: a fault that always comes after it would be met for ever.
        if step > self._furthest:
            say_step(step)

    def notice(self, error: BaseException) -> list[int]:
        """Write down what an error tells of, where the run survives it; returns the numbers of these faults."""
        return [self.events.noticed(fault) for fault in faults_of(error)] if survives_faults() else []

    def end(self, error: BaseException | None, warn: Callable[[str], None]) -> bool:
        """Write down a fault that ends this attempt; returns whether there shall be another, and warns of it."""
        if error is None:
            for number in self.events.open():  # of Ray while it was ended, for example
                self.events.recovered(number, "done all the same")
            return False
        numbers = self.notice(error)
        cause = first_line(str(error) or type(error).__name__)
        if not numbers or not may_restart():
            # An engine may have been on its way back.
            for number in [*numbers, *self.events.open()]:
                self.events.given_up(number, cause)
            return False
        keep_traceback(error, self._directory)
        warn(cause)
        return True


def faults_of(error: BaseException | None) -> list[Fault]:
    """The faults that an error tells of; none where it is an error of another kind."""
    if not isinstance(error, RayLost | GroupError):
        return []
    cause = first_line(str(error))
    if isinstance(error, RayLost):
        return [Fault(who=who, what="died", noticed_by="call", cause=cause) for who in error.who]
    if isinstance(error, RankLost):
        return [Fault(who=_named(error.group, error.rank), what="died", noticed_by="call", cause=cause)]
    if isinstance(error, RankLate):  # of those that wait for each other, nobody can tell which one stands still
        ranks = error.ranks or (0,)
        return [Fault(who=_named(error.group, rank), what="froze", noticed_by="silent", cause=cause) for rank in ranks]
    return [Fault(who="data", what="died", noticed_by="call", cause=cause)] if isinstance(error, DataLost) else []


@contextlib.contextmanager
def told_of_lost_ranks(groups: Mapping[str, ActorGroup[Any]]) -> Iterator[None]:
    """Let an error of a group within the block that another process' death has caused say so.

    Raises:
        RankLost: instead of a GroupError, where the run survives such a fault.
    """
    try:
        yield
    except GroupError as error:
        if isinstance(error, _LOST) or users_mistake(error) or not survives_faults():
            raise
        if lost := _lost_rank(groups):
            text = f"{first_line(str(lost))}; first told of: {first_line(str(error))}"
            raise RankLost(text, lost.group, lost.rank) from error
        raise


def _lost_rank(groups: Mapping[str, ActorGroup[Any]]) -> RankLost | None:
    """A process that has died by now, or does in a moment."""
    deadline = time.monotonic() + _ECHO_S
    while True:
        for group in groups.values():
            for found in group.pulses(_PULSE_S):
                if isinstance(found, RankLost):
                    return found
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)


def users_mistake(error: BaseException | None) -> UserError | None:
    """The mistake of the user's that an error is, or that a worker has found and that arrives as its cause."""
    if isinstance(error, UserError):
        return error
    # GroupError <- RayTaskError, which holds the original.
    original = getattr(getattr(error, "__cause__", None), "cause", None)
    return original if isinstance(error, GroupError) and isinstance(original, UserError) else None


def keep_traceback(error: BaseException, directory: Path) -> Path:
    """Write all of an error to the run's `driver.log`; returns its path."""
    log = directory / "logs" / "driver.log"
    # Storage that is full or gone must not hide why the run has failed.
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write(masked("".join(traceback.format_exception(error))))
    return log


def _named(group: str, rank: int) -> str:
    return f"{group or 'group'}[{rank}]"
