"""Whether a run may have the directory that it asks for: one that can be made, and holds no files but a run's."""

import json
import os
from pathlib import Path

from actors.config import UserError
from launch.config import RunConfig

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes of a file's name and of a path on Linux."""
_ROOM = 60
"""Bytes of a path that files in the run's directory need."""


_BESIDE = (".out", ".err", ".log", ".txt", ".sh", ".md", ".yaml", ".yml")
"""Files that whoever starts a run may have put there: the output of a batch job, a note, a configuration."""


def check_output(config: RunConfig) -> None:
    """Raise UserError when the run's directory cannot be made, or is somebody else's."""
    directory = config.directory.absolute()
    if reason := _unusable(directory):
        got = config.run.output if len(config.run.output) <= 80 else f"{config.run.output[:77]}..."
        raise UserError(f"run.output: must be a directory that can be written ({reason}), got {got or repr(got)}")
    if directory.is_dir() and not _is_ours(directory):
        found = sorted(item.name for item in directory.iterdir())
        some = ", ".join(found[:3]) + f" and {len(found) - 3} more" * (len(found) > 3)
        raise UserError(
            f"run.name: must be a new directory or an earlier run's, and {config.directory} holds other files "
            f"({some}), got {config.run.name}"
        )


def require_there(directory: Path) -> None:
    """Raise UserError when the directory of a run that goes on has been removed or moved."""
    if not any((directory / name).exists() for name in ("config.json", "logs/driver.id")):
        raise UserError(
            f"run.output: must stay while the run goes on, and {directory} was removed or moved: the run ends, as what "
            f"it writes would be lost, got {directory.absolute().parent}"
        )


def _unusable(directory: Path) -> str | None:
    """Why a directory cannot be made or written."""
    if "\0" in str(directory):
        return "no path has a null character"
    # The kernel's limits are in bytes of the encoded name.
    longest = max(directory.parts, key=lambda part: len(os.fsencode(part)))
    if len(os.fsencode(longest)) > _LONGEST_NAME:
        return f"a name in it has {len(os.fsencode(longest))} bytes, {_LONGEST_NAME} is the most"
    if len(os.fsencode(directory)) + _ROOM > _LONGEST_PATH:
        return f"the path has {len(os.fsencode(directory))} bytes, {_LONGEST_PATH - _ROOM} is the most"
    existing = directory
    try:
        while not existing.exists():
            if existing.is_symlink():
                return f"{existing} is a link to nowhere"
            existing = existing.parent
    except OSError as error:
        return error.strerror or str(error)
    if not existing.is_dir():
        return f"{existing} is a file"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} is not writable"
    if existing.resolve().parts[1:2] in (("proc",), ("sys",)):  # where root may write but cannot make directories
        return f"{existing} belongs to the kernel"
    return None


def _is_ours(directory: Path) -> bool:
    """Whether a directory is a run's (a model's has a config.json, too), or holds at most what may lie beside one."""
    try:
        values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    # A model's config.json has none of these sections.
    if isinstance(values, dict) and {"algorithm", "checkpoint", "run"} <= values.keys():
        return True
    if any((directory / name).is_file() for name in ("metrics.jsonl", "events.jsonl", "logs/driver.id")):
        return True
    # Also a directory without any file.
    return all(item.is_file() and item.suffix in _BESIDE for item in directory.iterdir())
