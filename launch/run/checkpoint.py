"""Checkpoints of a run: written aside, then put in place with a manifest; a half-written one is never read."""

import contextlib
import json
import os
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from actors.config import UserError
from actors.files.full_disk import told_when_full
from actors.files.own_files import StoredFile, create, sha256_of, stranger
from actors.files.parts import Entry
from algorithms.data.row_contents import Contents
from launch.checks.contents import keep_contents, kept_contents, kept_text_files
from launch.checks.resumed_data import data_settings
from launch.config import RunConfig
from launch.run.attempt_link import is_restarted
from launch.run.earlier import remove, remove_results, set_newer_aside, set_results_aside
from launch.run.identity import how_to_start_anew, identity, require_same
from launch.run.manifest import (
    UNREADABLE,
    Checkpoint,
    Damaged,
    changed_file,
    difference,
    finished,
    is_whole,
    kept_rows,
    kept_shards,
    read_manifest,
    step_of,
    superseded,
    surplus,
)

# Not the number of the process: on another machine, or later, another one has it too.
THIS_DRIVER = uuid.uuid4().hex
"""Id of this process, which no other one has had."""


Files = Iterable[StoredFile]
"""Files that somebody has written or sees."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a run has written into the directory of a checkpoint."""

    parts: dict[str, Entry]
    """What the manifest keeps of each part."""
    files: Files
    """Of all ranks and parts; several ranks may have seen the same one."""
    rows: Contents = field(default_factory=Contents)
    """What the sets hold that the run reads."""


class Checkpoints:
    """The directory `checkpoints/` of a run: `step-N/` each with a manifest, and the pointer `latest`."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._directory = config.directory / "checkpoints"
        self._driver = config.directory / "logs/driver.id"
        self.spared: Callable[[], Iterable[Path]] = tuple
        """Directories that somebody still reads: they go later."""

    def latest(self, damaged: Mapping[str, str] | None = None) -> Checkpoint | None:
        """The checkpoint to continue from; None when there is none, or when `checkpoint.resume` is false.

        That is the latest one, or, where it is damaged, the newest before it that is whole.

        Args:
            damaged: names of those that are known to be, each with what is wrong, in words that begin with its path.

        Raises:
            UserError: when none is whole, one may be somebody else's work, or is of a run that this configuration
                cannot continue.
        """
        if self._directory.is_file():
            rule = f"must be a directory whose checkpoints are one, and {self._directory} is a file"
            raise UserError(f"run.output: {rule}, got {self._config.run.output}")
        if not self._config.checkpoint.resume:
            return None
        try:
            name = self._reached()
        except NotADirectoryError:
            raise  # as every other use of the run's directory will
        except (OSError, UnicodeDecodeError) as error:
            raise self.refused(f"{self._directory / 'latest'} cannot be read ({type(error).__name__})") from None
        if name is None:
            if found := finished(self._directory):
                names = ", ".join(path.name for path in found)
                lost = f"{self._directory} holds {names}, and latest, which says where to go on, is gone"
                raise Damaged(*self.refused(lost).problems)
            return None
        latest = self._directory / name
        if step_of(latest) < 0 or latest.parent != self._directory:
            rule = f"{self._directory / 'latest'} must name a checkpoint such as step-20"
            raise self.refused(f"{rule}, got {name[:40]!a}")
        earlier = [path for path in reversed(finished(self._directory)) if step_of(path) <= step_of(latest)]
        passed_over: list[str] = []
        for directory in dict.fromkeys([latest, *earlier]):
            # Of one that nobody has pointed at, the content counts at once: going back to it moves newer ones.
            wrong = (damaged or {}).get(directory.name) or self._damage(directory, hashed=bool(passed_over))
            if wrong is None:
                return self._read(directory, passed_over)
            passed_over.append(wrong)
        raise Damaged(*self.refused(passed_over[0]).problems)

    def _damage(self, directory: Path, *, hashed: bool) -> str | None:
        """What is wrong with a checkpoint, in words that begin with its path; `hashed`: also with its content, where
        that can be told in seconds. Raises UserError where it may be somebody else's work."""
        try:
            _, files, hashes = read_manifest(directory)
        except UNREADABLE as error:
            return f"{directory} has no readable manifest ({type(error).__name__})"
        if why := stranger(directory / "manifest.json"):
            raise self.refused(f"{directory / 'manifest.json'} {why}")
        if why := difference(directory, files):
            return f"{directory} is damaged, {why}"
        if why := surplus(directory, files):
            raise self.refused(f"{directory} is damaged, {why}")
        changed = changed_file(directory, files, hashes) if hashed else None
        return f"{directory} is damaged, {changed} is not what was saved" if changed else None

    def _read(self, directory: Path, passed_over: list[str]) -> Checkpoint:
        manifest, _, _ = read_manifest(directory)
        require_same(self._config, manifest, directory)
        kept = manifest.get("data")
        data = kept if isinstance(kept, dict) else {}
        rows, shards = kept_rows(manifest.get("rows")), kept_shards(manifest)
        lines = tuple(f"{line}: going on from {directory.name}, the newest whole one before it" for line in passed_over)
        return Checkpoint(directory, manifest["step"], manifest["parts"], data, rows, shards, lines)

    def refused(self, problem: str) -> UserError:
        """That the latest checkpoint is not resumed from, and what to do: go on from another one that is whole, by a
        command that changes nothing but where the next start goes on, or start anew."""
        try:
            pointed = self._reached()
        except (OSError, UnicodeDecodeError):
            pointed = None
        pointer, offer = self._directory / "latest", ""
        for other in reversed(finished(self._directory)):
            if other.name != pointed and is_whole(other):
                command = f"echo {other.name} > {shlex.quote(str(pointer))}"
                if pointer.is_dir() or pointer.is_symlink():  # which has to go first
                    command = f"rm -d {shlex.quote(str(pointer))} && {command}"
                offer = f"to go on from {other.name}, which is whole: {command}; "
                break
        return UserError(f"checkpoint.resume: {problem}; {offer}{how_to_start_anew(self._config)}")

    def prepare(self, found: Checkpoint | None) -> list[str]:
        """Make way for a run that starts, from `found` of `latest`; returns what was moved or removed, a line each.

        Half-written checkpoints go silently. Finished ones and results go only where `checkpoint.resume` is false;
        those that a resumed run would write over, and results without a checkpoint, are kept aside.
        """
        # Before any model is read: what is exported to its path later is not what this run has begun with.
        keep_contents(self._config)
        run, lines = self._config.directory, []
        name = found.directory.name if found else None
        if found:
            if self._cut_short() == name:
                for pointer in ("best", "latest"):
                    if self._pointer(f"{pointer}.partial") == name:
                        os.replace(self._directory / f"{pointer}.partial", self._directory / pointer)
                lines.append(f"{name} was saved as the last start ended: latest names it now")
            lines += self.go_on_from(found)
        elif self._config.checkpoint.resume:
            lines.append(set_results_aside(run, same_command=is_restarted()))
        else:
            lines.append(remove_results(run, finished(self._directory)))
        for path in self._directory.glob("step-*.partial"):
            shutil.rmtree(path)
        for pointer in ("latest.partial", "best.partial", *(() if name else ("latest", "best"))):
            remove(self._directory / pointer)
        if self.best() is None:  # also where `algorithm.best_by` is another metric now
            remove(self._directory / "best")
        self._driver.parent.mkdir(parents=True, exist_ok=True)
        self._driver.write_text(THIS_DRIVER, encoding="utf-8")
        return [line for line in lines if line]

    def go_on_from(self, found: Checkpoint) -> list[str]:
        """Set checkpoints aside that are newer, and let `latest` name this one; returns what has become of others, a
        line each."""
        name = found.directory.name
        # Also what is no directory: it is in the way.
        newer = sorted((path for path in self._directory.glob("step-*") if step_of(path) > found.step), key=step_of)
        lines = [set_newer_aside(self._config.directory, newer, name), self._best_lost(found.directory)]
        if self._pointer() != name:
            os.replace(self._say(found.directory, "latest"), self._directory / "latest")
        return [line for line in lines if line]

    def require_shared(self, read: Callable[[Path], list[str | None]]) -> None:
        """Raise UserError unless all ranks see this run's directory; `read` reads a file on each of them."""
        if any(text != THIS_DRIVER for text in read(self._driver.absolute())):
            raise UserError(
                f"run.output: must be an absolute path on storage that all nodes share (the ranks do not see "
                f"{self._config.directory.absolute()} as the driver does), got {self._config.run.output}"
            )

    def require_ours(self) -> None:
        """Raise UserError when another driver has begun this run anew, on this machine or another one: two drivers
        would write each other's checkpoints and metrics."""
        if self._driver.exists() and self._driver.read_bytes() != THIS_DRIVER.encode():
            raise UserError(
                f"run.name: another driver has taken over {self._config.directory}, so this one ends, "
                f"got {self._config.run.name}"
            )

    def best(self) -> Path | None:
        """Directory of the best checkpoint, if one was called so; by another metric it is none."""
        try:
            name = self._pointer("best")
            if name is None or not (self._directory / name / "manifest.json").is_file():
                return None
            best = read_manifest(self._directory / name)[0]["parts"].get("best", {})
        except UNREADABLE:
            return None  # damaged: the next best one takes its place
        return self._directory / name if best.get("metric") == self._config.best_by else None

    def lasting(self) -> list[Path]:
        """Directories of those that are kept whatever comes: the best one, and those of `checkpoint.keep_every`."""
        best, every = self.best(), self._config.checkpoint.keep_every
        found = finished(self._directory)
        return [path for path in found if path == best or (every and step_of(path) % every == 0)]

    def best_entry(self) -> Entry:
        """What the best checkpoint has kept of how good it is; empty where there is none."""
        try:
            best = self.best()
            return read_manifest(best)[0]["parts"]["best"] if best else {}
        except UNREADABLE:
            return {}

    def size_of_latest(self) -> int | None:
        """Bytes of the files of the newest checkpoint; None where there is none."""
        try:
            return sum(read_manifest(finished(self._directory)[-1])[1].values())
        except (IndexError, *UNREADABLE):
            return None

    def save(self, step: int, write: Callable[[Path], Written], *, best: bool = False) -> Path:
        """Write a checkpoint and make it the latest one: `write` and `keep`."""
        self.write(step, write)
        return self.keep(step, best=best)

    def partial(self, step: int) -> Path:
        """The directory, absolute, that `write` fills."""
        return (self._directory / f"step-{step}.partial").absolute()

    def write(self, step: int, write: Callable[[Path], Written]) -> None:
        """Let `write` fill a directory aside, which counts for nothing before `keep`.

        Args:
            step: steps done.
            write: fills the (absolute) directory, from all ranks, and returns the parts and every file of them.

        Raises:
            UserError: when a file that a rank has written is not there, or the disk is full.
        """
        partial = self.partial(step)
        try:
            with told_when_full(partial):
                self._fill(partial, step, write)
        except Exception:
            self._remove_partials()  # of a full disk, the next try needs the room
            raise

    def _remove_partials(self) -> None:
        for path in self._directory.glob("step-*.partial"):
            with contextlib.suppress(OSError):  # why it failed is told; the next try removes it, too
                remove(path)

    def _fill(self, partial: Path, step: int, write: Callable[[Path], Written]) -> None:
        self._remove_partials()
        partial.mkdir(parents=True)
        files: dict[str, int] = {}
        hashes: dict[str, str] = {}
        written = write(partial)
        for name, size, sha256 in written.files:
            # A rank may have seen a file that another one was still writing: the largest size is the final one.
            files[name] = max(size, files.get(name, 0))
            if sha256:
                hashes[name] = sha256
        if missing := difference(partial, files):
            raise UserError(
                f"run.output: must be on storage that all nodes share ({missing} after the ranks wrote {partial}), "
                f"got {self._config.run.output}"
            )
        # What no rank has hashed are DeepSpeed's notes of a few lines, and arrays that this process has just written.
        hashes |= {name: sha256_of(partial / name) for name in files if name not in hashes}
        manifest = {"step": step, "identity": identity(self._config), "contents": kept_contents(self._config)}
        manifest |= {"data": data_settings(self._config), "text_files": kept_text_files(self._config)}
        manifest |= {"rows": {name: content.entry() for name, content in written.rows.items()}}
        manifest |= {"parts": written.parts, "files": files, "sha256": hashes}
        with os.fdopen(create(partial / "manifest.json"), "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=2)

    def keep(self, step: int, *, best: bool = False) -> Path:
        """Make what was written at this step the latest checkpoint, and remove the oldest ones.

        Args:
            step: steps done.
            best: it is to be kept until a better one comes.

        Raises:
            OSError, UserError: it cannot be put in place, and is removed; the one before is the latest still.
        """
        final = self._directory / f"step-{step}"
        try:
            with told_when_full(final):
                remove(final)
                # Said before it is in place: a run that is killed in between goes on from it all the same.
                said = [self._say(final, name) for name in (["best"] if best else []) + ["latest"]]
                os.replace(self._directory / f"{final.name}.partial", final)
                for partial in said:
                    os.replace(partial, partial.with_suffix(""))
        except Exception:
            self._remove_partials()
            raise
        self._prune(final)
        return final

    def place(self, step: int) -> None:
        """Put what was written at this step in place, beside the others: no pointer moves, and nothing else goes."""
        final = self._directory / f"step-{step}"
        remove(final)
        os.replace(self.partial(step), final)

    def point(self, step: int, pointer: str) -> None:
        """Let `latest` or `best` name the checkpoint of a step."""
        os.replace(self._say(self._directory / f"step-{step}", pointer), self._directory / pointer)

    def due(self, step: int, last: bool) -> bool:
        """Whether to save after this step."""
        every = self._config.checkpoint.every
        return last or bool(every and step % every == 0)

    def _pointer(self, pointer: str = "latest") -> str | None:
        try:
            return (self._directory / pointer).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def _reached(self) -> str | None:
        """Name of the checkpoint to go on from."""
        return self._cut_short() or self._pointer()

    def _cut_short(self) -> str | None:
        """The checkpoint that was in place when a run was killed, before `latest` named it."""
        said, latest = self._directory / "latest.partial", self._directory / "latest"
        try:
            name = said.read_text(encoding="utf-8")
            # Whoever has written `latest` since then has decided otherwise.
            decided = latest.exists() and latest.stat().st_mtime_ns > said.stat().st_mtime_ns
        except (OSError, UnicodeDecodeError):
            return None
        there = step_of(Path(name)) >= 0 and (self._directory / name / "manifest.json").is_file()
        return name if there and not decided else None

    def _best_lost(self, reached: Path) -> str | None:
        """That the checkpoint which was the best one so far is not there any more."""
        best = read_manifest(reached)[0]["parts"].get("best", {})
        metric = self._config.best_by
        if metric is None or best.get("metric") != metric or best.get("value") is None or self.best():
            return None
        then = f"the best checkpoint so far, with {metric} {best['value']:g}, is gone"
        return f"{then}: of the next ones one that is better is exported, else the last one"

    def _say(self, directory: Path, pointer: str) -> Path:
        partial = self._directory / f"{pointer}.partial"
        partial.unlink(missing_ok=True)
        with partial.open("x", encoding="utf-8") as file:  # "x" follows no link that somebody has put there
            file.write(directory.name)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave a name of NUL bytes
        return partial

    def _prune(self, latest: Path) -> None:
        spared = {step_of(path) for path in (latest, self.best(), *self.spared()) if path}
        paths = {step_of(path): path for path in finished(self._directory)}
        for step in superseded(list(paths), spared, self._config.checkpoint):
            # Only now: a run that is killed before has one checkpoint too many, and none too few.
            with contextlib.suppress(OSError):  # the new one is in place: the next `keep` removes it
                shutil.rmtree(paths[step])
