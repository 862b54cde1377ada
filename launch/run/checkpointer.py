"""When a run is saved, beside training, and what becomes of it when its storage takes no checkpoint: it goes on, and
tries again.

    save: copies in memory --> the step is reported --> keep --> training goes on
                          `--> a thread: files, hashes, manifest ... in place, `latest`
"""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from actors.config import UserError
from actors.files.full_disk import size_in_words, storage_failure
from actors.group import first_line
from launch.checks.output import require_there
from launch.config import RunConfig
from launch.run.captured import Captured
from launch.run.checkpoint import Checkpoints
from launch.run.ending import Ending, reason_to_end
from launch.run.saves import Saves
from launch.run.signals import finish_steps, left_to_stop_s
from launch.run.writing import Writing
from launch.tracking.events import Fault

if TYPE_CHECKING:
    from launch.screen.reporter import RunReporter

_LOOK_S = 0.5
"""Between looks at whether the run is to stop, while a checkpoint is waited for."""


class RunCheckpointer:
    """Implements `algorithms.loop.Checkpointer`: lets the parts of a run be saved when it is time.

    Also after the step in which the run was told to stop, or a node that it lives on began to leave; `nodes`: ids of
    these. Unless `checkpoint.beside` is false, a thread writes what was copied: one checkpoint at a time, as the next
    one waits for it. The loop waits for one that is the best so far, and for one that nothing comes after.

    Where storage fails, the run goes on, and it is tried again after the next step, then after 2, 4, ... more, or when
    it is time anyway; what nothing comes after, as the run ends, must be written. One that is lost with a rank which
    was to write it is made again after the next step. `clock` gives seconds.
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
        self._refused: UserError | None = None
        """Why `run.storage` ends the run after this step."""
        self._closing = False
        """Whether the run ends, and nothing is tried again."""
        self._step = 0
        """That the loop has reached."""
        self._beside = config.checkpoint.beside
        self._writing: Writing | None = None
        """What is written beside, or was last."""
        self._begun: tuple[int, bool] | None = None
        """What `save` has begun, until `keep`: its step, and whether it is the best so far."""
        self._directory: Path = config.directory
        self._max_age_s, self._stop_wait_s = config.checkpoint.max_age_s, config.cluster.stop_wait_s
        self._whole_at = clock()
        """When there was a whole checkpoint last, or nothing to lose."""
        self._failures, self._next_try = 0, 0
        """In a row; step after which it is tried again."""
        self._lost = False
        """Whether the last one was given up, as a rank was lost."""
        self._error: BaseException | None = None
        """What has ended the thread, and ends the run."""
        self._fault: int | None = None
        """Number of the fault that is not over; and how often storage has begun to fail."""
        self._faults = 0
        self._lock = Lock()
        """Both the loop and the thread tell of storage."""
        self.kept: tuple[int, Path] | None = None
        """Step and directory of the last checkpoint that this attempt has put in place."""

    @property
    def in_flight(self) -> bool:
        """Whether a checkpoint is being written beside training."""
        return self._writing is not None and not self._writing.is_over

    def save(self, step: int, last: bool, best: bool = False) -> None:
        """Copy what a checkpoint is made of, when it is time, and begin to write it.

        Raises:
            UserError: storage is not shared, the directory gone, or the run another's.
            OSError, GroupError, UserError: storage has failed, and either the run ends with this step or no checkpoint
                was whole for longer than `checkpoint.max_age_s`; or another checkpoint has failed otherwise.
        """
        self._ending = None if last else reason_to_end(self._nodes)  # after the last step it ends anyway
        # After the last step, the end of the run waits for it, and tells.
        self._refused = None if last else self._refused_by_storage()
        self._must = last or self._ending is not None or self._refused is not None
        self._step = step
        self._raise_error()
        with self._storage(step, best):
            require_there(self._directory)
            self._checkpoints.require_ours()
            if self._must or best or self._checkpoints.due(step, last) or self._again(step):
                self._begin(step, best)

    def keep(self) -> None:
        """Let what `save` has begun become the latest checkpoint; raises as `save` does."""
        # Also where `keep` fails: what is tried again is all of it.
        begun, self._begun = self._begun, None
        if begun is None:
            return
        with self._storage(*begun):
            if self._writing is None:
                self._put_in_place(*begun)
                return
            self._writing.let_count()
            if self._writing.waited_for:
                self._wait(self._writing, self._writing.wait_in_place)

    def end_if_asked(self) -> None:
        """Raise Ending when the run should make no further step, UserError when `run.storage` has failed for too long
        or is another driver's."""
        if self._ending:
            raise self._ending
        if self._refused:
            raise self._refused
        finish_steps()

    def finish(self, within_s: float | None = None) -> bool:
        """Wait until nothing is being written, for so many seconds (default: as long as writing may take), whatever
        becomes of it; where its step was not reported, it does not count. Returns whether nothing is."""
        if self._writing is None:
            return True
        self._writing.give_up()
        return self._writing.wait(self._left_s(self._writing) if within_s is None else within_s)

    def close(self, within_s: float | None = None) -> bool:
        """The run ends: `finish`; what cannot be written is not tried again."""
        self._closing = True
        return self.finish(within_s)

    def _begin(self, step: int, best: bool) -> None:
        if self._writing:  # one at a time: there is memory for one
            self._writing.give_up()
            self._wait(self._writing, self._writing.wait)
        self._raise_error()
        if not self._beside:
            self._checkpoints.write(step, self._saves.write)
            self._begun = step, best
            return
        captured = Captured.of(self._saves, self._checkpoints.partial(step), self._max_age_s)
        # Also where a failure would be the last one.
        waited_for = self._must or best or (self._failures > 0 and self._too_old)
        self._writing = Writing(
            step,
            write=lambda: self._write(step, captured),
            put_in_place=lambda: self._put_in_place(step, best),
            failed=None if waited_for else lambda error: self._not_written(step, captured, error),
        )
        if waited_for:
            self._wait(self._writing, self._writing.wait_written)
        self._begun = step, best

    def _wait(self, writing: Writing, done: Callable[[float], bool]) -> None:
        """Wait for what is being written; `done` waits for so many seconds. Raises OSError when that takes too long."""
        while not done(min(_LOOK_S, self._left_s(writing))):
            if self._left_s(writing) <= 0:
                writing.give_up()
                why = f"the checkpoint of step {writing.step} is not written after {_since(writing):.0f} s"
                raise TimeoutError(errno.ETIMEDOUT, why, str(self._checkpoints.partial(writing.step)))

    def _left_s(self, writing: Writing) -> float:
        """Seconds for which it may still be waited for: as long as ranks may write, or as there is to stop the run."""
        longest_s = max(self._max_age_s, *(group.timeout_s for group in self._saves.groups.values()), 0.0)
        left_s = max(0.0, longest_s - _since(writing))
        to_stop_s = left_to_stop_s(self._stop_wait_s)
        return left_s if to_stop_s is None else min(left_s, to_stop_s)

    def _refused_by_storage(self) -> UserError | None:
        try:
            if uploads := self._reporter.uploads:
                uploads.check()
        except UserError as error:
            return error
        return None

    def _write(self, step: int, captured: Captured) -> None:
        require_there(self._directory)
        self._checkpoints.write(step, captured.write)

    def _put_in_place(self, step: int, best: bool) -> None:
        """A checkpoint is written, and its step reported: from here on, it is whole. On the thread that writes, unless
        `checkpoint.beside` is false."""
        self._checkpoints.require_ours()  # perhaps minutes after `save` has asked
        uploads = self._reporter.uploads
        if uploads:
            self._checkpoints.spared = uploads.spared
        directory = self._checkpoints.keep(step, best=best)
        self._is_whole(step, directory)
        if uploads:
            uploads.put(step, directory, best=best)

    def _not_written(self, step: int, captured: Captured, error: BaseException) -> None:
        """On the thread: whatever was written of it is removed."""
        why = storage_failure(error)
        if self._closing:
            # Ranks that are ended write no more: that says nothing.
            if why is not None:
                self._reporter.warning(f"the checkpoint of step {step} was not written, {why}")
        elif captured.is_lost(error):
            self._lost = True
            self._reporter.warning(
                f"the checkpoint of step {step} was given up, as a rank was lost that had not written it "
                f"({first_line(str(error))}): the next one comes after step {self._step + 1}"
            )
        elif why is not None:
            self._put_off(step, why)
        else:
            self._error = error

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error:
            raise error

    @property
    def _too_old(self) -> bool:
        return self._clock() - self._whole_at > self._max_age_s

    def _again(self, step: int) -> bool:
        failed = self._failures > 0 and (step >= self._next_try or self._too_old)
        return not self.in_flight and (self._lost or failed)

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
        with self._lock:
            if self._fault is None:
                self._faults += 1
                # A fault of its own each time that storage begins to fail.
                fault = Fault(who="disk", what="failed", noticed_by="call", generation=self._faults, cause=why)
                self._fault = self._reporter.now.events.noticed(fault, told=False)
            self._next_try = self._step + (1 if self._too_old else 2**self._failures)
            self._failures += 1
        size = self._checkpoints.size_of_latest()
        needed = f"; the one before has {size_in_words(size)}" if size else ""
        self._reporter.warning(
            f"the checkpoint of step {step} was not written, {why}{needed}: the run goes on, and tries again after "
            f"step {self._next_try}"
        )

    def _is_whole(self, step: int, directory: Path) -> None:
        """The one place where it is known that a checkpoint is whole on the disk, and which `latest` names."""
        with self._lock:
            self._whole_at = self._clock()
            self._failures, self._lost = 0, False
            if self._fault is not None:
                self._reporter.now.events.recovered(self._fault, "written")
                self._fault = None
            self.kept = step, directory


def _since(writing: Writing) -> float:
    return time.monotonic() - writing.began
