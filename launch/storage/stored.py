"""A run's checkpoints and model in an object store, which are whole or not there, as those on a disk are.

    RUN/run.json, RUN/driver.id                 which run this is, and which driver may write
    RUN/checkpoints/latest, best                the pointers
    RUN/checkpoints/step-N/manifest.json        names the attempt, and size and SHA-256 of each of its files
    RUN/checkpoints/step-N/ATTEMPT/...          the checkpoint's files, its own manifest among them
    RUN/export/...                              the model, config.json last

Nothing can be renamed there: files count once the manifest, a single object, names them, and until it is removed.
"""

import json
import uuid
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from actors.config_base import UserError
from actors.files.own_files import sha256_of
from launch.config import CheckpointConfig
from launch.run.manifest import read_manifest, step_of, superseded
from launch.storage.store import Storage, StorageError, patiently

_MANIFEST = "manifest.json"
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Kept:
    """What a manifest in storage says of a checkpoint."""

    attempt: str
    """Directory of its files."""
    files: dict[str, tuple[int, str]]
    """Name -> bytes and SHA-256."""


@dataclass(slots=True)
class Attempt:
    """One checkpoint on its way: what has been put is not put again when the rest is tried again."""

    step: int
    directory: Path
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    done: set[str] = field(default_factory=set)
    """Files that are there."""


class StoredCheckpoints:
    """Those of one run; whatever it does may raise StorageError."""

    def __init__(self, storage: Storage, run: str, driver: str) -> None:
        """
        Args:
            storage: where runs are.
            run: name of this one.
            driver: id of this process.
        """
        self._storage, self._run, self._driver = storage, run, driver
        self._below = f"{run}/checkpoints"
        self._damaged: set[int] = set()
        """Steps of which something was found that is not what was put: they are put anew, whatever manifests say."""

    @property
    def url(self) -> str:
        """Where the run is."""
        return f"{self._storage.url}/{self._run}"

    def run_id(self) -> str | None:
        """Id of the run that is there; None where there is none. Raises UserError where there is something else."""
        text = self._storage.text(f"{self._run}/run.json")
        if text is not None:
            known = _parsed(text).get("run")
            if isinstance(known, str) and known:
                return known
        # A directory that an end between two writes has left is nobody's.
        found = sorted(name.removeprefix(f"{self._run}/") for name in self._storage.sizes(self._run))
        if [name for name in found if name not in ("run.json", "driver.id")]:
            some = ", ".join(found[:_MOST_NAMED]) + f" and {len(found) - _MOST_NAMED} more" * (len(found) > _MOST_NAMED)
            raise UserError(
                f"run.storage: must hold nothing but a run's files in {self.url} (it has {some}), got {self.url}"
            )
        return None

    def claim(self, run_id: str) -> None:
        """Let this process be the one that writes."""
        text, name = json.dumps({"run": run_id}), f"{self._run}/run.json"
        if self._storage.text(name) != text:  # half of it would be nobody's
            self._storage.put_text(text, name)
        self._storage.put_text(self._driver, f"{self._run}/driver.id")

    def require_ours(self) -> None:
        """Raise UserError when another driver has taken the run over since."""
        if self._storage.text(f"{self._run}/driver.id") != self._driver:
            raise UserError(f"run.storage: another driver has taken over {self.url}, so this one ends, got {self.url}")

    def steps(self) -> list[int]:
        """Of all whole checkpoints, in order."""
        return sorted(step for step, names in self._listed().items() if _MANIFEST in names)

    def pointer(self, name: str) -> int | None:
        """The step that `latest` or `best` names; None where there is no such pointer, or only half of one."""
        text = self._storage.text(f"{self._below}/{name}") or ""
        step = step_of(Path(text.strip()))
        # Without its end it may be the beginning of another step's.
        return step if text.endswith("\n") and step >= 0 else None

    def point(self, step: int) -> None:
        """Let `latest` name a step, whether it is there or not: those that are newer do not count any more."""
        self._storage.put_text(f"step-{step}\n", f"{self._below}/latest")

    def candidates(self) -> list[int]:
        """Steps to go on from: the latest, and those before it, the newest first."""
        latest = self.pointer("latest")
        return [step for step in reversed(self.steps()) if latest is None or step <= latest]

    def put(
        self,
        attempt: Attempt,
        *,
        best: bool,
        rules: CheckpointConfig,
        latest: bool = True,
        newer_go: bool = False,
        unfinished: Container[int] = (),
    ) -> None:
        """Let a checkpoint that is whole on the disk be the latest one here, and remove those that have had their time.

        Args:
            attempt: what has been put of it before.
            best: it is the best one so far.
            rules: which ones are kept.
            latest: it is the latest one; else that stays another.
            newer_go: the run has left those that are newer than the latest by going back; else they stay.
            unfinished: steps that are put later, and of which something may be there.

        Raises:
            OSError: a file of it is gone, or cannot be read.
            UserError: another driver has taken the run over.
        """
        self.require_ours()
        files = _files_of(attempt.directory)
        base = self._base(attempt.step)
        known = self._kept(attempt.step)
        if known is None or known.files != files or attempt.step in self._damaged:
            self._put_files(attempt, files)
            manifest = {"attempt": attempt.name, "files": {name: list(kept) for name, kept in files.items()}}
            self.require_ours()
            self._storage.put_text(json.dumps(manifest, indent=1), f"{base}/{_MANIFEST}")
            self._damaged.discard(attempt.step)
        for pointer in ["best"] * best + ["latest"] * latest:
            # What is done already is not done again when the rest is tried again: it would fail for ever, perhaps.
            if self.pointer(pointer) != attempt.step:
                self._storage.put_text(f"step-{attempt.step}\n", f"{self._below}/{pointer}")
        self._remove_others(rules, newer_go=newer_go, unfinished=unfinished)

    def fetch(self, step: int, directory: Path) -> str | None:
        """Write the files of a checkpoint into a directory; returns what is wrong with it, in words that begin with an
        address; None when nothing is. Raises OSError when they cannot be written."""
        flaw = self._fetch(step, directory)
        if flaw:
            self._damaged.add(step)
        return flaw

    def _fetch(self, step: int, directory: Path) -> str | None:
        base = f"{self._storage.url}/{self._base(step)}"
        kept = self._kept(step)
        if kept is None:
            return f"{base} is damaged, its manifest cannot be read"
        for name, (_, sha256) in kept.files.items():
            place = f"{self._base(step)}/{kept.attempt}/{name}"
            found = patiently(partial(self._storage.fetch, place, directory / name))
            if found != sha256:
                what = (
                    "is missing"
                    if found is None
                    else "is not what was saved: its SHA-256 is another one than the manifest's"
                )
                return f"{base} is damaged, {kept.attempt}/{name} {what}"
        return None

    def remove_all(self) -> None:
        """Remove what a new start must not find: the checkpoints, what makes them whole first, and the model."""
        for step, names in self._listed().items():
            self._remove(step, names)
        for name in (self._below, f"{self._run}/export"):
            self._storage.remove(name)

    def put_export(self, directory: Path, done: set[str]) -> None:
        """Let the model of a directory be the run's; see `put_model`."""
        self.require_ours()
        put_model(directory, self._storage, f"{self._run}/export", done)

    def _base(self, step: int) -> str:
        return f"{self._below}/step-{step}"

    def _listed(self) -> dict[int, list[str]]:
        """Step -> names of all that is below it."""
        found: dict[int, list[str]] = {}
        for name in self._storage.sizes(self._below):
            top, _, rest = name.removeprefix(f"{self._below}/").partition("/")
            if rest and (step := step_of(Path(top))) >= 0:
                found.setdefault(step, []).append(rest)
        return found

    def _kept(self, step: int) -> Kept | None:
        """What a manifest says; None where there is none that can be read."""
        found = _parsed(self._storage.text(f"{self._base(step)}/{_MANIFEST}") or "")
        attempt, files = found.get("attempt"), found.get("files")
        if not (isinstance(attempt, str) and _is_below(attempt) and isinstance(files, dict) and _MANIFEST in files):
            return None
        try:
            kept = {name: (int(size), str(sha256)) for name, (size, sha256) in files.items()}
        except (TypeError, ValueError):
            return None
        # Whoever may write there shall write into the checkpoint's directory only.
        return Kept(attempt, kept) if all(_is_below(name) for name in kept) else None

    def _put_files(self, attempt: Attempt, files: dict[str, tuple[int, str]]) -> None:
        below = f"{self._base(attempt.step)}/{attempt.name}"
        for name in files:
            if name not in attempt.done:
                self._storage.put(attempt.directory / name, f"{below}/{name}")
                attempt.done.add(name)
        there = self._storage.sizes(below)
        for name, (size, _) in files.items():
            if (found := there.get(f"{below}/{name}")) != size:
                attempt.done.discard(name)
                raise StorageError(f"{self._storage.url}/{below}/{name} has {found or 0} bytes, not {size}")

    def _remove_others(self, rules: CheckpointConfig, *, newer_go: bool, unfinished: Container[int]) -> None:
        """Those that have had their time, what is half of one, and newer ones than the latest where `newer_go`."""
        latest = self.pointer("latest")
        if latest is None:
            return
        listed = self._listed()
        whole = sorted(step for step, names in listed.items() if _MANIFEST in names)
        past = superseded([step for step in whole if step <= latest], {latest, self.pointer("best")}, rules)
        for step, names in listed.items():
            left = newer_go and step > latest
            if step in past or left or (step not in whole and step not in unfinished):
                self._remove(step, names)
            elif step in unfinished:
                continue
            elif kept := self._kept(step):
                for other in {name.partition("/")[0] for name in names} - {_MANIFEST, kept.attempt}:
                    self._storage.remove(f"{self._base(step)}/{other}")

    def _remove(self, step: int, names: Sequence[str]) -> None:
        if _MANIFEST in names:  # first: without it, the others are nothing
            self._storage.remove(f"{self._base(step)}/{_MANIFEST}")
        self._storage.remove(self._base(step))


def put_model(directory: Path, storage: Storage, below: str, done: set[str], without: Container[str] = ()) -> None:
    """Put a model's directory there, config.json last: who finds that finds all of it, and while another model is
    replaced, it is not there.

    Args:
        directory: of the model.
        storage: where it is put.
        below: name of its directory there.
        done: of an earlier try that has failed: what is not to be done again; grows.
        without: files and directories in it that are left out.

    Raises:
        StorageError: the same may be tried again.
        OSError: a file cannot be read.
    """
    paths = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    names = sorted(path.as_posix() for path in paths if path.parts[0] not in without)
    last = "config.json"
    if not done:
        storage.remove(f"{below}/{last}")
        for name in storage.sizes(below):
            if name.removeprefix(f"{below}/") not in names:
                storage.remove(name)
        done.add("")  # nothing there is another model's
    for name in sorted(names, key=lambda name: name == last):
        if name not in done:
            storage.put(directory / name, f"{below}/{name}")
            done.add(name)


def _files_of(directory: Path) -> dict[str, tuple[int, str]]:
    _, sizes, hashes = read_manifest(directory)
    # A checkpoint of an older version has no hashes.
    files = {name: (size, hashes[name] or sha256_of(directory / name)) for name, size in sizes.items()}
    own = directory / _MANIFEST
    return files | {_MANIFEST: (own.stat().st_size, sha256_of(own))}


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
