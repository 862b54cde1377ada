"""When a run is saved, and what becomes of it when its storage takes no checkpoint: it goes on, and tries again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from actors.files.full_disk import size_in_words, storage_failure
from launch.checks.output import require_there
from launch.config import RunConfig
from launch.run.checkpoint import Checkpoints
from launch.run.ending import Ending, reason_to_end
from launch.run.saves import Saves
from launch.run.signals import finish_steps
from launch.tracking.events import Fault

if TYPE_CHECKING:
    from launch.screen.reporter import RunReporter


class RunCheckpointer:
    """Implements `algorithms.loop.Checkpointer`: lets the parts of a run be saved when it is time.

    Also after the step in which the run was told to stop, or a node that it lives on began to leave; `nodes`: ids of
    these. Where storage fails, the run goes on, and it is tried again after the next step, then after 2, 4, ... more,
    or when it is time anyway; what nothing comes after, as the run ends, must be written. `clock` gives seconds.
    """

    def __init__(
        self,
        config: RunConfig,
        saves: Saves,
        nodes: set[str],
        reporter: "RunReporter",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoints = Checkpoints(config)
        self._saves, self._nodes, self._reporter, self._clock = saves, nodes, reporter, clock
        self._ending: Ending | None = None
        self._must = False
        """Whether a checkpoint that cannot be written ends the run."""
        self._written: tuple[int, bool] | None = None
        self._directory: Path = config.directory
        self._max_age_s = config.checkpoint.max_age_s
        self._whole_at = clock()
        """When there was a whole checkpoint last, or nothing to lose."""
        self._failures, self._next_try = 0, 0
        """In a row; step after which it is tried again."""
        self._fault: int | None = None
        """Number of the fault that is not over; and how often storage has begun to fail."""
        self._faults = 0
        self.kept: tuple[int, Path] | None = None
        """Step and directory of the last checkpoint that this attempt has written."""

    def save(self, step: int, last: bool, best: bool = False) -> None:
        """Write a checkpoint, when it is time.

        Raises:
            UserError: storage is not shared, the directory gone, or the run another's.
            OSError, GroupError, UserError: storage has failed, and either the run ends with this step or no checkpoint
                was whole for longer than `checkpoint.max_age_s`.
        """
        self._ending = None if last else reason_to_end(self._nodes)  # after the last step it ends anyway
        self._must = last or self._ending is not None
        with self._storage(step, best):
            require_there(self._directory)
            self._checkpoints.require_ours()
            if self._must or best or self._checkpoints.due(step, last) or self._again(step):
                self._checkpoints.write(step, self._saves.write)
                self._written = step, best

    def keep(self) -> None:
        """Make what `save` has written, if anything, the latest checkpoint; raises as `save` does."""
        if self._written:
            step, best = self._written
            # Also where `keep` fails: what is tried again is all of it.
            self._written = None
            with self._storage(step, best):
                self.kept = step, self._checkpoints.keep(step, best=best)
                self._is_whole()

    def end_if_asked(self) -> None:
        """Raise Ending when the run should make no further step."""
        if self._ending:
            raise self._ending
        finish_steps()

    @property
    def _too_old(self) -> bool:
        return self._clock() - self._whole_at > self._max_age_s

    def _again(self, step: int) -> bool:
        return self._failures > 0 and (step >= self._next_try or self._too_old)

    @contextmanager
    def _storage(self, step: int, best: bool) -> Iterator[None]:
        """Within it, storage may fail."""
        try:
            yield
        except Exception as error:  # of a rank, of this process, or as a library words it
            why = storage_failure(error)
            if why is None:
                raise
            if self._must or self._too_old:
                if self._fault is not None:
                    self._reporter.now.events.given_up(self._fault, why)
                raise
            self._put_off(step, why)
            if best:
                self._saves.go_back_to_best(self._checkpoints.best_entry())

    def _put_off(self, step: int, why: str) -> None:
        """Tell, in one line, that a checkpoint was not written, and when it is tried again."""
        if self._fault is None:
            self._faults += 1
            # A fault of its own each time that storage begins to fail.
            fault = Fault(who="disk", what="failed", noticed_by="call", generation=self._faults, cause=why)
            self._fault = self._reporter.now.events.noticed(fault, told=False)
        self._next_try = step + 2**self._failures
        self._failures += 1
        size = self._checkpoints.size_of_latest()
        needed = f"; the one before has {size_in_words(size)}" if size else ""
        self._reporter.warning(
            f"the checkpoint of step {step} was not written, {why}{needed}: the run goes on, and tries again after "
            f"step {self._next_try}"
        )

    def _is_whole(self) -> None:
        self._whole_at = self._clock()
        self._failures = 0
        if self._fault is not None:
            self._reporter.now.events.recovered(self._fault, "written")
            self._fault = None
