"""Checkpoints of a run: written aside, then put in place with a manifest; a half-written one is never read."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.config import UserError
from actors.own_files import StoredFile, create, sha256_of, stranger
from launch.config import RunConfig
from launch.contents import changed_contents, keep_contents, kept_contents

_THIS_DRIVER = uuid.uuid4().hex

Files = Iterable[StoredFile]
"""Files that a rank has written or sees."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    directory: Path
    state: dict[str, Any]
    """What the loop keeps, as its `state()` gave it."""


class Checkpoints:
    """The directory `checkpoints/` of a run: `step-N/` each with a manifest, and the pointer `latest`."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._directory = config.directory / "checkpoints"
        self._driver = config.directory / "logs/driver.id"

    def latest(self) -> Checkpoint | None:
        """The checkpoint to continue from; None when there is none, or when `checkpoint.resume` is false.

        Raises:
            UserError: when it is damaged, or of a run that this configuration cannot continue.
        """
        if not self._config.checkpoint.resume:
            return None
        try:
            name = self._pointer()
        except NotADirectoryError:
            raise  # as every other use of the run's directory will
        except (OSError, UnicodeDecodeError) as error:
            reason = f"{self._directory / 'latest'} cannot be read ({type(error).__name__})"
            raise UserError(f"checkpoint.resume: {reason}; {_anew(self._config)}") from None
        if name is None:
            return None
        directory = self._directory / name
        if _step(directory) < 0 or directory.parent != self._directory:
            reason = f"{self._directory / 'latest'} must name a checkpoint such as step-20, got {name[:40]!r}"
            raise UserError(f"checkpoint.resume: {reason}; {_anew(self._config)}")
        try:
            manifest, files, _ = read_manifest(directory)
            state, then = manifest["state"], dict(manifest["identity"])
            state.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{directory} has no readable manifest ({type(error).__name__})"
            raise UserError(f"checkpoint.resume: {reason}; {_anew(self._config)}") from None
        if why := stranger(directory / "manifest.json"):
            raise self.refused(f"{directory / 'manifest.json'} {why}")
        if damage := damage_of(directory, files):
            raise self.refused(f"{directory} is damaged, {damage}")
        self._require_same(then, directory, manifest.get("contents"))
        return Checkpoint(directory, state)

    def refused(self, problem: str) -> UserError:
        """That the latest checkpoint is not resumed from, and what to do."""
        return UserError(f"checkpoint.resume: {problem}; {_anew(self._config)}")

    def prepare(self) -> None:
        """Remove what a starting run must not find: half-written checkpoints, those that are newer than the one it
        continues from, and without `checkpoint.resume` all of them."""
        keep_contents(self._config)
        name = self._pointer() if self._config.checkpoint.resume else None
        reached = _step(Path(name)) if name else -1
        for path in self._directory.glob("step-*"):
            if _step(path) < 0 or _step(path) > reached:
                shutil.rmtree(path)
        for pointer in ("latest.partial", "best.partial", *(() if name else ("latest", "best"))):
            (self._directory / pointer).unlink(missing_ok=True)
        if self.best() is None:
            (self._directory / "best").unlink(missing_ok=True)
        self._driver.parent.mkdir(parents=True, exist_ok=True)
        self._driver.write_text(_THIS_DRIVER, encoding="utf-8")

    def require_shared(self, read: Callable[[Path], list[str | None]]) -> None:
        """Raise UserError unless all ranks see this run's directory; `read` reads a file on each of them."""
        if any(text != _THIS_DRIVER for text in read(self._driver.absolute())):
            raise UserError(
                f"run.output: must be an absolute path on storage that all nodes share (the ranks do not see "
                f"{self._config.directory.absolute()} as the driver does), got {self._config.run.output}"
            )

    def require_ours(self) -> None:
        """Raise UserError when another driver has begun this run anew, on this machine or another one: two drivers
        would write each other's checkpoints and metrics."""
        if self._driver.exists() and self._driver.read_text(encoding="utf-8") != _THIS_DRIVER:
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
            manifest = json.loads((self._directory / name / "manifest.json").read_text(encoding="utf-8"))
            best = manifest["state"].get("best") or {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # damaged: the next best one takes its place
        return self._directory / name if best.get("metric") == self._config.best_by else None

    def save(
        self, step: int, state: dict[str, Any], write: Callable[[Path], Iterable[Files]], *, best: bool = False
    ) -> Path:
        """Let `write` fill a directory, then make it the latest checkpoint and remove the oldest ones.

        Args:
            step: steps done.
            state: of the loop, JSON values.
            write: fills the (absolute) directory from all ranks, and returns the files of each rank.
            best: it is to be kept until a better one comes.

        Raises:
            UserError: when a file that a rank has written is not there.
        """
        final = self._directory / f"step-{step}"
        partial = self._directory / f"step-{step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files: dict[str, int] = {}
        hashes: dict[str, str] = {}
        for name, size, sha256 in (file for rank in write(partial.absolute()) for file in rank):
            # A rank may have seen a file that another one was still writing: the largest size is the final one.
            files[name] = max(size, files.get(name, 0))
            if sha256:
                hashes[name] = sha256
        if missing := _difference(partial, files):
            raise UserError(
                f"run.output: must be on storage that all nodes share ({missing} after the ranks wrote {partial}), "
                f"got {self._config.run.output}"
            )
        # What no rank has hashed are DeepSpeed's notes of a few lines.
        hashes |= {name: sha256_of(partial / name) for name in files if name not in hashes}
        manifest = {"step": step, "identity": identity(self._config), "contents": kept_contents(self._config)}
        manifest |= {"state": state, "files": files, "sha256": hashes}
        with os.fdopen(create(partial / "manifest.json"), "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=2)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        if best:  # first: a run that is killed in between takes this step again
            self._point_to(final, "best")
        self._point_to(final, "latest")
        self._prune(final)
        return final

    def due(self, step: int, last: bool) -> bool:
        """Whether to save after this step."""
        every = self._config.checkpoint.every
        return last or bool(every and step % every == 0)

    def _pointer(self, pointer: str = "latest") -> str | None:
        try:
            return (self._directory / pointer).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def _point_to(self, directory: Path, pointer: str) -> None:
        partial = self._directory / f"{pointer}.partial"
        partial.write_text(directory.name, encoding="utf-8")
        os.replace(partial, self._directory / pointer)

    def _prune(self, latest: Path) -> None:
        spared = (latest, self.best())
        others = sorted(
            (path for path in self._directory.glob("step-*") if path not in spared and _step(path) >= 0), key=_step
        )
        kept = self._config.checkpoint.keep - 1  # the best one comes on top
        for old in others[: max(0, len(others) - kept)]:
            shutil.rmtree(old)

    def _require_same(self, then: dict[str, Any], directory: Path, contents: Any) -> None:
        """Raise UserError unless this configuration describes the run that wrote the checkpoint, and the models it
        names are those of then (`contents`)."""
        now = identity(self._config)
        sharded = " (DeepSpeed loads sharded optimizer state only into as many ranks as wrote it)"
        reasons = {"policy.ranks": sharded, "critic.ranks": sharded}
        problems = [
            f"{field}: must be {json.dumps(old)} to resume from {directory}{reasons.get(field, '')}, "
            f"got {json.dumps(new)}; {_anew(self._config)}"
            for field, old, new in _changes("", then, now)
            if field not in reasons or now[field.partition(".")[0]]["zero_stage"]
        ]
        if not problems:  # of other paths, the contents are others as well
            changed = changed_contents(self._config, contents, directory)
            problems = [f"{line}; {_anew(self._config)}" for line in changed]
        if problems:
            raise UserError(*problems)


def read_manifest(directory: Path) -> tuple[dict[str, Any], dict[str, int], dict[str, str | None]]:
    """The manifest of a checkpoint, bytes of its files, and their SHA-256, None of all where it has none.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError: there is none, or it is none.
    """
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    files = dict(manifest["files"])
    return manifest, files, {name: manifest["sha256"][name] if "sha256" in manifest else None for name in files}


def identity(config: RunConfig) -> dict[str, Any]:
    """The part of the configuration that a run must share with the checkpoint it continues from, as JSON values.

    Of the optimizer, DeepSpeed restores the settings that it finds in the checkpoint: others would have no effect. The
    number of ranks matters where ZeRO has sharded its state (stages 1 to 3).
    """
    parts = {
        "algorithm": {"name"},
        "model": {"path", "revision", "init", "dtype", "lora", "quantize", "freeze"},
        "data": {"shuffle"},
        "policy": {"optimizer", "zero_stage", "ranks", "ema_decay"},
        "run": {"seed"},
    }
    if config.critic is not None:
        parts["critic"] = {"optimizer", "zero_stage", "ranks", "path", "lora"}
    if config.reference.sync_every:  # the checkpoint then holds the reference's weights
        parts["reference"] = {"sync_every", "sync_mix"}
    return {
        section: getattr(config, section).model_dump(mode="json", include=names) for section, names in parts.items()
    }


def damage_of(directory: Path, files: dict[str, int]) -> str | None:
    """What distinguishes a checkpoint from what its manifest says, without reading its files; None when nothing does.

    A file of torch.save that is none of `files` does too, as DeepSpeed might load it all the same.
    """
    found = (str(path.relative_to(directory)) for path in sorted(directory.rglob("*.pt")))
    surplus = next((f"its manifest does not have {name}" for name in found if name not in files), None)
    return _difference(directory, files) or surplus


def _difference(directory: Path, files: dict[str, int]) -> str | None:
    """What distinguishes the directory from the files (name -> bytes) it should hold; None when nothing does."""
    for name, size in files.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def _anew(config: RunConfig) -> str:
    return f"to start anew: checkpoint.resume=false, or another run.name than {config.run.name}"


def _changes(field: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """(dotted field, old value, new value) of every leaf that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted(then.keys() | now.keys()):
            if name in then or now[name]:  # a setting that was not known then was not given
                yield from _changes(f"{field}.{name}".lstrip("."), then.get(name), now.get(name))
    elif then != now:
        yield field, then, now


def _step(path: Path) -> int:
    """The number in `step-N`, -1 for a directory that is no finished checkpoint."""
    number = path.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1
