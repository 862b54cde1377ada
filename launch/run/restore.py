"""A run whose checkpoints are in storage too: who may write there, and what is fetched where the disk has less."""

import uuid
from collections.abc import Callable
from pathlib import Path

from actors.config import UserError
from actors.files.full_disk import size_in_words, told_when_full
from launch.config import RunConfig
from launch.run.attempt_link import is_restarted
from launch.run.checkpoint import THIS_DRIVER, Checkpoints
from launch.run.earlier import remove
from launch.run.manifest import Damaged, finished, is_whole
from launch.storage.store import Storage, StorageError, patiently
from launch.storage.stored import StoredCheckpoints
from launch.storage.uploads import Uploads
from launch.tracking.events import Events

_SAID = "it is step-{}, which is here, that the run goes on from"
_GONE_BACK = (
    "step-{} there is newer than where this run goes on: it does not count from now on, and is removed with the first "
    "checkpoint that is put there"
)


class RunStorage:
    """What a run has in storage, as it starts."""

    def __init__(self, config: RunConfig, storage: Storage | None = None) -> None:
        """Opens no connection; `storage`: another one than that of `run.storage`. Raises UserError when it cannot be
        opened at all."""
        assert config.run.storage, "only where there is some"
        self._config = config
        self._checkpoints = Checkpoints(config)
        self._directory = config.directory / "checkpoints"
        self._id_file = self._directory / "run.id"
        self._id, self._claimed = "", False
        self._gone_back_to: int | None = None
        """Step that the user has chosen before a newer one, which is in storage, too."""
        try:
            storage = storage or Storage(config.run.storage)
        except StorageError as error:
            raise _refused(config, error) from None
        self.stored = StoredCheckpoints(storage, config.run.name, THIS_DRIVER)

    def restore(self, tell_of: Callable[[str], None]) -> None:
        """Fetch the checkpoint to go on from, where the run's directory has none that is as new, and remove what is
        there where `checkpoint.resume` is false; tells what it does, a line each.

        Raises:
            UserError: storage fails, or holds another run's checkpoints or something else.
            OSError: the run's directory cannot be written.
        """
        own = self._own_id()
        try:
            self._id = self._agreed(own, patiently(self.stored.run_id), tell_of)
            if self._config.checkpoint.resume:
                self._fetch(tell_of)
        except StorageError as error:
            # A driver that was started again has come from here: what it has is the newest, also where that is nothing
            # yet. Without an id, the one before it has not got as far as asking what there is.
            if not (is_restarted() and own):
                raise _refused(self._config, error) from None
            self._id = own
            tell_of(f"{error}: going on from what is in {self._config.directory}")

    def claim(self) -> None:
        """The run's directory is prepared: from now on this process writes. Raises UserError when storage fails."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._id_file.write_text(self._id, encoding="utf-8")
        try:
            patiently(lambda: self.stored.claim(self._id))
            self._claimed = True
            if (step := self._gone_back_to) is not None:  # also for a start after one that puts nothing there
                patiently(lambda: self.stored.point(step))
        except StorageError as error:
            if not is_restarted():
                raise _refused(self._config, error) from None

    def uploads(self, events: Events, warn: Callable[[str], None]) -> Uploads:
        """What puts checkpoints there; `warn` hears of failures from its thread."""
        run_id, newer_go = None if self._claimed else self._id, self._gone_back_to is not None
        return Uploads(self.stored, run_id, self._config.checkpoint, events, warn, newer_go=newer_go)

    def _own_id(self) -> str | None:
        try:
            return self._id_file.read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def _agreed(self, own: str | None, theirs: str | None, tell_of: Callable[[str], None]) -> str:
        """Id of the run that goes on, or begins."""
        here = bool(finished(self._directory))
        if not self._config.checkpoint.resume:
            there = patiently(self.stored.steps) if theirs else []
            if theirs and own != theirs:
                steps = f"steps {', '.join(map(str, there))}" if there else "without a checkpoint yet"
                raise UserError(
                    f"checkpoint.resume: {self.stored.url} holds another directory's run ({steps}): remove it "
                    "yourself, or take another run.name, got false"
                )
            if theirs:
                patiently(self.stored.remove_all)
                tell_of(f"checkpoint.resume is false: removed what an earlier run had put into {self.stored.url}")
            return uuid.uuid4().hex
        if theirs and here and own != theirs:
            raise UserError(
                f"run.name: must be another one, as {self.stored.url} holds another run of this name than "
                f"{self._config.directory}, got {self._config.run.name}"
            )
        return theirs or (own if own and here else uuid.uuid4().hex)

    def _fetch(self, tell_of: Callable[[str], None]) -> None:
        own = self._own_step(tell_of)
        for step in patiently(self.stored.candidates):
            if own is not None and step <= own:
                if self._checkpoints.best() is None:  # a start that has fetched the latest one may have ended before it
                    self._fetch_best(own, tell_of)
                return
            if is_whole(self._directory / f"step-{step}"):
                if own is None:  # nothing says where to go on
                    self._checkpoints.point(step, "latest")
                self._gone_back_to = own
                tell_of(f"{self.stored.url}: {(_SAID if own is None else _GONE_BACK).format(step)}")
                return
            if _fetched(self._checkpoints, self.stored, step, tell_of):
                self._checkpoints.keep(step)
                self._fetch_best(step, tell_of)
                return

    def _own_step(self, tell_of: Callable[[str], None]) -> int | None:
        """Where the run would go on without storage; None where nothing is whole."""
        damaged: dict[str, str] = {}
        try:
            while (found := self._checkpoints.latest(damaged)) and not is_whole(found.directory):
                damaged[found.directory.name] = f"{found.directory} is damaged, a file is not what was saved"
                tell_of(damaged[found.directory.name])
        except Damaged as error:
            if not damaged:
                tell_of(str(error).partition("; ")[0])
            return None
        return found and found.step

    def _fetch_best(self, latest: int, tell_of: Callable[[str], None]) -> None:
        """The best one as well, where one is kept: beside the latest, which stays that."""
        best = patiently(lambda: self.stored.pointer("best"))
        # One that is newer is of a future that the run has left.
        if best is None or best > latest or self._config.best_by is None:
            return
        if best not in (latest, *patiently(self.stored.steps)):
            return
        if best == latest or is_whole(self._directory / f"step-{best}"):
            self._checkpoints.point(best, "best")
        elif _fetched(self._checkpoints, self.stored, best, tell_of, ", the best one"):
            self._checkpoints.place(best)
            self._checkpoints.point(best, "best")


def fetched_again(config: RunConfig, stored: StoredCheckpoints, step: int, tell_of: Callable[[str], None]) -> bool:
    """Put what storage has in the place of a checkpoint whose files are not what was saved; returns whether storage
    has a whole one, where it can be reached.

    Raises:
        UserError: storage fails, which ends no driver that was started again.
        OSError: the run's directory cannot be written.
    """
    checkpoints = Checkpoints(config)
    try:
        if step not in patiently(stored.steps) or not _fetched(checkpoints, stored, step, tell_of):
            return False
    except StorageError as error:
        if not is_restarted():
            raise _refused(config, error) from None
        tell_of(str(error))
        return False
    checkpoints.place(step)
    return True


def _fetched(
    checkpoints: Checkpoints, stored: StoredCheckpoints, step: int, tell_of: Callable[[str], None], which: str = ""
) -> bool:
    """Write a checkpoint aside, to be kept or put in place; returns whether it is whole. Raises StorageError."""
    partial = checkpoints.partial(step)
    remove(partial)
    tell_of(f"fetching step-{step} from {stored.url}{which}")
    with told_when_full(partial):
        partial.mkdir(parents=True)
        problem = stored.fetch(step, partial)
    if problem:
        remove(partial)
        tell_of(problem)
        return False
    tell_of(f"step-{step} is there: {size_in_words(_bytes_below(partial))}")
    return True


def _refused(config: RunConfig, error: StorageError) -> UserError:
    return UserError(f"run.storage: must be storage that can be read and written ({error}), got {config.run.storage}")


def _bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
