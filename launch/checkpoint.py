"""Checkpoints of a run: written aside, then put in place with a manifest; a half-written one is never read."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.config import UserError
from launch.config import CheckpointConfig


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    directory: Path
    state: dict[str, Any]
    """What the loop keeps, as its `state()` gave it."""


class Checkpoints:
    """The directory `checkpoints/` of a run: `step-N/` each with a manifest, and the pointer `latest`."""

    def __init__(self, directory: Path, config: CheckpointConfig) -> None:
        self._directory = directory
        self._config = config

    def latest(self) -> Checkpoint | None:
        """The checkpoint that `latest` names; None when there is none. Raises UserError when it is damaged."""
        pointer = self._directory / "latest"
        if not self._config.resume or not pointer.exists():
            return None
        directory = self._directory / pointer.read_text().strip()
        manifest = directory / "manifest.json"
        try:
            return Checkpoint(directory, json.loads(manifest.read_text())["state"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"checkpoint.resume: {directory} has no readable manifest ({type(error).__name__}); "
                f"remove {pointer} to start anew"
            ) from None

    def save(self, step: int, state: dict[str, Any], write: Callable[[Path], object]) -> Path:
        """Let `write` fill a directory, then make it the latest checkpoint and remove the oldest ones."""
        final = self._directory / f"step-{step}"
        partial = self._directory / f"step-{step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial.absolute())
        (partial / "manifest.json").write_text(json.dumps({"step": step, "state": state}))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        self._point_to(final)
        self._prune()
        return final

    def due(self, step: int, last: bool) -> bool:
        """Whether to save after this step."""
        return last or bool(self._config.every and step % self._config.every == 0)

    def _point_to(self, directory: Path) -> None:
        partial = self._directory / "latest.partial"
        partial.write_text(directory.name)
        os.replace(partial, self._directory / "latest")

    def _prune(self) -> None:
        found = sorted(self._directory.glob("step-*"), key=_step)
        for old in [path for path in found if _step(path) >= 0][: -self._config.keep]:
            shutil.rmtree(old)


def _step(path: Path) -> int:
    number = path.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1
