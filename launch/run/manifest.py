"""What a checkpoint's manifest says, and whether the checkpoint is as it says."""

import json
from pathlib import Path
from typing import Any

from actors.files.own_files import sha256_of, stranger

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a manifest raises when there is none, or it is none."""
_MOST_BYTES = 4 * 2**30
"""Of files that are read to find out whether a checkpoint is whole; of larger ones, only the sizes are compared."""


def step_of(path: Path) -> int:
    """The number in `step-N`, -1 for a directory that is no finished checkpoint."""
    number = path.name.removeprefix("step-")
    return int(number) if path.name != number and number.isascii() and number.isdecimal() else -1


def finished(checkpoints: Path) -> list[Path]:
    """Directories of checkpoints, the oldest first, whatever is in them."""
    return sorted((path for path in checkpoints.glob("step-*") if step_of(path) >= 0 and path.is_dir()), key=step_of)


def read_manifest(directory: Path) -> tuple[dict[str, Any], dict[str, int], dict[str, str | None]]:
    """The manifest of a checkpoint, bytes of its files, and their SHA-256, None of all where it has none.

    Raises:
        UNREADABLE: there is none, or it is none.
    """
    file = directory / "manifest.json"
    if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe would be waited for
        raise ValueError("it is no file")
    manifest = json.loads(file.read_text(encoding="utf-8"))
    files = dict(manifest["files"])
    hashes = {name: manifest["sha256"][name] if "sha256" in manifest else None for name in files}
    state, _ = manifest["state"], dict(manifest["identity"])
    if not isinstance(state, dict) or type(state["step"]) is not int or state["step"] != step_of(directory):
        raise ValueError("the loop's state is of another step")
    return manifest, files, hashes


def damage_of(directory: Path, files: dict[str, int]) -> str | None:
    """What distinguishes a checkpoint from what its manifest says, without reading its files; None when nothing does.

    A file of torch.save that is none of `files` does too, as DeepSpeed might load it all the same.
    """
    found = (str(path.relative_to(directory)) for path in sorted(directory.rglob("*.pt")))
    surplus = next((f"its manifest does not have {name}" for name in found if name not in files), None)
    return difference(directory, files) or surplus


def difference(directory: Path, files: dict[str, int]) -> str | None:
    """What distinguishes the directory from the files (name -> bytes) it should hold; None when nothing does."""
    if not files:
        return "its manifest names no files"
    for name, size in files.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def is_whole(directory: Path) -> bool:
    """Whether a checkpoint is what was saved, also by its hashes where reading its files takes seconds at most."""
    try:
        _, files, hashes = read_manifest(directory)
        if stranger(directory / "manifest.json") or damage_of(directory, files):
            return False
        quick = sum(files.values()) <= _MOST_BYTES
        return all(not (quick and sha256) or sha256_of(directory / name) == sha256 for name, sha256 in hashes.items())
    except UNREADABLE:
        return False
