"""A checkpoint in memory: of the moment between two steps at which it was captured, until it is written beside others.

    capture: ranks and parts copy what they would write  -->  training goes on  ...  write: the same bytes, on a thread

The groups' parts stay in their ranks' memory, the driver's in its own.
"""

import errno
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.files.own_files import StoredFile
from actors.files.parts import Entry, captured_arrays, write_captured
from actors.group import ActorGroup
from actors.group_errors import RankLate, RankLost
from launch.run.checkpoint import Written
from launch.run.saves import Saves, files_below, files_of_ranks

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Captured:
    """What the parts of a run would have written."""

    saves: Saves
    versions: Mapping[str, int]
    """Of each group: how many of its processes had been replaced."""
    entries: dict[str, Entry]
    arrays: dict[Path, bytes]
    """Of the driver's parts, by their files."""
    within_s: float
    """For ranks to write it, or longer where their group has more time for a call."""

    @classmethod
    def of(cls, saves: Saves, directory: Path, within_s: float) -> "Captured":
        """Let all parts copy what they would write into this directory, which is absolute, and is not touched yet;
        raises GroupError."""
        from actors.train.trainer import TrainedWorker

        versions = {name: group.version for name, group in saves.groups.items()}
        for name, group in saves.groups.items():
            group.call(TrainedWorker.capture, directory / name)
        entries: dict[str, Entry] = {name: {} for name in saves.groups}  # all that ranks keep is in their files
        with captured_arrays() as arrays:
            for name, part in saves.parts.items():
                # As in `Saves.write`, ranks and driver are between steps. A copy, as what the entry refers to goes on.
                entries[name] = deepcopy(part.save(directory / name))
        return cls(saves, versions, entries, arrays, within_s)

    def write(self, directory: Path) -> Written:
        """Let all parts write what they have copied, into the directory that it was captured for; on any thread.

        Raises GroupError, OSError, UserError; no rank writes any more then, unless one is lost or misses the deadline.
        """
        files = self._write_groups(directory)
        write_captured(self.arrays)
        for name in self.saves.parts:
            files += files_below(directory, name)
        return Written(self.entries, files, self.saves.rows)

    def is_lost(self, error: BaseException) -> bool:
        """Whether an error of `write` comes of the loss of a rank, which has taken with it what it had copied."""
        groups = self.saves.groups
        return isinstance(error, RankLost) or any(groups[name].version != self.versions[name] for name in self.versions)

    def _write_groups(self, directory: Path) -> list[StoredFile]:
        from actors.train.trainer import TrainedWorker

        # All at one time: ranks of other groups may be on other nodes.
        begun: list[tuple[str, ActorGroup[TrainedWorker], list]] = []
        for name, group in self.saves.groups.items():
            write = TrainedWorker.write_captured
            begun.append((name, group, [group.submit(rank, write, directory / name) for rank in range(len(group))]))
        try:
            files: list[StoredFile] = []
            for name, group, refs in begun:
                # Storage that is slow is waited for as long as the one before is good enough.
                files += files_of_ranks(name, group.gather(refs, "write", max(self.within_s, group.timeout_s)))
            return files
        except RankLost:
            raise  # at once: the others that write are ended, too, before anything is written anew
        except RankLate as error:
            # Not a process that stands still, for which others watch: storage is slow.
            raise TimeoutError(errno.ETIMEDOUT, f"it takes too long ({error})", str(directory)) from error
        except Exception:
            for _, group, refs in begun:
                group.wait(refs)
            raise
