"""What goes to storage beside training: one checkpoint after the other, tried again until it is there."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from actors.config_base import UserError
from launch.config import CheckpointConfig
from launch.run.manifest import UNREADABLE, step_of
from launch.storage.store import StorageError
from launch.storage.stored import Attempt, StoredCheckpoints
from launch.tracking.events import Events, Fault

_FIRST_BACK_OFF_S, _LONGEST_BACK_OFF_S = 1.0, 60.0


@dataclass(slots=True)
class _Upload:
    """A checkpoint, or with no `attempt` the model."""

    name: str
    directory: Path
    attempt: Attempt | None = None
    best: bool = False
    for_good: bool = False
    """It is one that `keep_every` keeps."""
    latest: bool = True
    """It is the newest of the run: older ones, and those of an earlier start, are put beside that."""
    done: set[str] = field(default_factory=set)
    """Files of a model that are there."""


class Uploads:
    """Those of one run, in a thread of their own; any thread may ask."""

    def __init__(
        self,
        stored: StoredCheckpoints,
        run_id: str | None,
        rules: CheckpointConfig,
        events: Events,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        first_back_off_s: float = _FIRST_BACK_OFF_S,
        *,
        newer_go: bool = False,
    ) -> None:
        """
        Args:
            stored: where they go.
            run_id: of the run, where that has to be claimed before anything is written.
            rules: which checkpoints are kept, and how long storage may fail.
            events: is told when it fails, and when that is over.
            warn: hears in a line of each failure, from the thread.
            clock: gives seconds.
            first_back_off_s: before the second try, and twice as long before each further one.
            newer_go: the user has gone back: what is newer there goes with the first checkpoint that is put.
        """
        self.stored, self._unclaimed, self._rules = stored, run_id, rules
        self._events, self._warn, self._clock = events, warn, clock
        self._first_back_off_s = first_back_off_s
        self._news = threading.Condition()
        self._waiting: list[_Upload] = []
        self._now: _Upload | None = None
        self._ended = False
        self._tries = 0
        """That have failed since the last one that did not."""
        self._failing_since: float | None = None
        self._why = ""
        self._fault: int | None = None
        self._faults = 0
        self._fatal: UserError | None = None
        """What ends the run: another driver."""
        self._newer_go = newer_go
        self._behind_since: float | None = None
        """Since when the newest checkpoint is not there, or the one before it was put; None: all are there."""
        self._told_behind = False
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    def put(self, step: int, directory: Path, *, best: bool = False) -> None:
        """Let a whole checkpoint be put there, the next one of all. One that waits gives way to it, unless it is the
        best one or kept for good: storage that is slow has the newest."""
        upload = self._checkpoint(step, directory, best=best)
        with self._news:
            for other in self._all():
                other.best = other.best and not best
                other.latest = False
            self._waiting = [other for other in self._waiting if not _gives_way(other)]
            self._waiting.append(upload)
            if self._behind_since is None:
                self._behind_since = self._clock()
            self._news.notify_all()

    def put_earlier(self, directories: Iterable[Path], best: Path | None) -> None:
        """Let whole checkpoints that an earlier start has left on the disk be put there, beside those that are there;
        `best`: which of them is the best one."""
        try:
            there, pointer = self.stored.steps(), self.stored.pointer("best")
        except StorageError:
            there, pointer = [], None  # it is asked again when their turn comes
        lacking = []
        for directory in directories:
            step = step_of(directory)
            if step not in there or (directory == best and step != pointer):
                lacking.append(self._checkpoint(step, directory, best=directory == best, latest=False))
        with self._news:
            self._waiting += lacking
            self._news.notify_all()

    def _checkpoint(self, step: int, directory: Path, *, best: bool, latest: bool = True) -> _Upload:
        every = self._rules.keep_every
        for_good = bool(every and step % every == 0)
        return _Upload(f"step-{step}", directory, Attempt(step, directory), best, for_good, latest)

    def put_export(self, directory: Path) -> None:
        """Let the model of a directory be put there after all checkpoints."""
        with self._news:
            self._waiting.append(_Upload("export", directory, latest=False))
            self._news.notify_all()

    def spared(self) -> set[Path]:
        """Directories that are still needed."""
        with self._news:
            return {upload.directory for upload in self._all()}

    def check(self) -> None:
        """Raise UserError when the run should end: another driver has the storage, or it has failed for longer than
        `checkpoint.max_age_s`; warns, once, when it has not failed and the newest there is older than that."""
        if self._fatal:
            raise self._fatal
        self._warn_when_behind()
        if self._fails_for_too_long():
            self._give_up()
            raise UserError(
                f"run.storage: must take checkpoints again within checkpoint.max_age_s ({self._rules.max_age_s:g}) of "
                f"its first failure ({self._why}), got {self.stored.url}"
            )

    def finish(self, within_s: float, say: Callable[[str], None]) -> bool:
        """Wait until all is there, but no longer than `within_s`, and warn of what is not; nothing is put afterwards.

        Args:
            within_s: seconds.
            say: hears what is waited for, as soon as there is something.

        Returns:
            Whether all is there.
        """
        if self._fails_for_too_long():
            within_s = 0
        deadline = time.monotonic() + within_s
        try:
            with self._news:
                if self._all() and not self._fatal and within_s:
                    say(f"{self._named()}, for {within_s:.0f} s at most")
                while self._all() and not self._fatal and (left := deadline - time.monotonic()) > 0:
                    self._news.wait(left)
        finally:
            with self._news:
                left_out, self._ended = self._named(), True
                self._news.notify_all()
            if left_out:
                self._give_up()
                self._warn(f"not in {self.stored.url}: {left_out}{self._what_then()}")
        return not left_out

    def _what_then(self) -> str:
        if self._fatal:  # whose storage it is now
            return f" ({self._fatal.problems[0].removeprefix('run.storage: ').partition(', got ')[0]})"
        why = f" ({self._why})" if self._why else ""
        return f"{why}; the same command puts it there, as long as the run's directory is"

    def stop(self) -> None:
        """Put nothing more: the next start does."""
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _fails_for_too_long(self) -> bool:
        with self._news:
            since = self._failing_since
            return since is not None and not self._clock() - since <= self._rules.max_age_s

    def _warn_when_behind(self) -> None:
        with self._news:
            since, names = self._behind_since, self._named()
            if since is None or self._failing_since is not None or self._clock() - since <= self._rules.max_age_s:
                return
            told, self._told_behind = self._told_behind, True
        if not told:
            self._warn(
                f"not in {self.stored.url} for longer than checkpoint.max_age_s ({self._rules.max_age_s:g}): {names}; "
                "storage is too slow, or hangs: the run goes on"
            )

    def _all(self) -> list[_Upload]:
        return ([self._now] if self._now else []) + self._waiting

    def _named(self) -> str:
        return ", ".join(upload.name for upload in self._all())

    def _work(self) -> None:
        while True:
            with self._news:
                while not self._waiting and not self._ended:
                    self._news.wait()
                if self._ended:
                    return
                newest = next((upload for upload in self._waiting if upload.latest), self._waiting[0])
                self._waiting.remove(newest)
                self._now = newest
            done = self._tried(self._now)
            with self._news:
                if self._fatal or self._ended:
                    return
                if done and self._now.attempt:
                    self._behind_since = self._clock() if self._is_behind() else None
                    self._told_behind = False
                if not done and not self._is_superseded(self._now):
                    self._waiting.insert(0, self._now)
                self._now = None
                self._news.notify_all()

    def _tried(self, upload: _Upload) -> bool:
        """Put it there; returns whether nothing of it is left to do, after a wait where there is."""
        try:
            self._put(upload)
        except StorageError as error:
            self._put_off(upload, str(error))
            return False
        except UserError as error:
            with self._news:
                self._fatal = error
                self._news.notify_all()
            return False
        except UNREADABLE as error:
            self._warn(f"{upload.name} was not put into {self.stored.url}: its files are gone or damaged ({error})")
            self._is_over(f"its files are gone or damaged ({error})")
            return True
        self._is_over()
        return True

    def _put(self, upload: _Upload) -> None:
        if self._unclaimed:
            self.stored.claim(self._unclaimed)
            self._unclaimed = None
        if upload.attempt is None:
            self.stored.put_export(upload.directory, upload.done)
        else:
            with self._news:
                unfinished = {other.attempt.step for other in self._waiting if other.attempt}
                best, latest = upload.best, upload.latest
            newer_go = self._newer_go and latest
            self.stored.put(
                upload.attempt, best=best, rules=self._rules, latest=latest, newer_go=newer_go, unfinished=unfinished
            )
            self._newer_go = self._newer_go and not latest

    def _put_off(self, upload: _Upload, why: str) -> None:
        wait_s = min(self._first_back_off_s * 2.0**self._tries, _LONGEST_BACK_OFF_S)
        self._tries += 1
        with self._news:
            self._why = why
            if self._failing_since is None:
                self._failing_since = self._clock()
        if self._fault is None:
            self._faults += 1
            fault = Fault(who="storage", what="failed", noticed_by="call", generation=self._faults, cause=why)
            self._fault = self._events.noticed(fault, told=False)
        if self._tries & (self._tries - 1) == 0:  # the 1st, 2nd, 4th, ...: an hour of failures is no screen full
            self._warn(
                f"{upload.name} was not put into storage, {why}: the run goes on, and tries again in {wait_s:g} s"
            )
        until = time.monotonic() + wait_s
        with self._news:
            while not self._ended and (left := until - time.monotonic()) > 0:
                self._news.wait(left)

    def _is_over(self, lost: str | None = None) -> None:
        """Storage does not fail any more; `lost`: why the checkpoint is not there all the same."""
        with self._news:
            self._tries, self._failing_since, self._why = 0, None, ""
        if self._fault is not None:
            if lost:
                self._events.given_up(self._fault, lost)
            else:
                self._events.recovered(self._fault, "uploaded")
            self._fault = None

    def _is_behind(self) -> bool:
        """Whether the newest checkpoint of all waits."""
        return any(other.latest for other in self._waiting)

    def _is_superseded(self, upload: _Upload) -> bool:
        return _gives_way(upload) and self._is_behind()

    def _give_up(self) -> None:
        if self._fault is not None:
            self._events.given_up(self._fault, self._why)


def _gives_way(upload: _Upload) -> bool:
    """Whether a newer checkpoint may take its place."""
    return upload.attempt is not None and not upload.best and not upload.for_good
