"""What a checkpoint's manifest says, and whether the checkpoint is as it says."""

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from actors.config_base import UserError
from actors.files.own_files import sha256_of, stranger
from actors.files.parts import Entry
from actors.train.shards import Shards
from algorithms.data.row_contents import Content, Contents
from launch.config import CheckpointConfig

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a manifest raises when there is none, or it is none."""
_FORMER = {"batches": "batches", "shaper": "rewards", "kl": "kl"}
"""Part -> its name in the state that older checkpoints have instead of parts."""
_MOST_BYTES = 4 * 2**30
"""Of files that are read to find out whether a checkpoint is whole; of larger ones, only the sizes are compared."""


class Damaged(UserError):
    """That checkpoints are there, and none that the run could go on from by itself."""


class Manifest(TypedDict):
    """What is read of manifest.json beside its files."""

    step: int
    identity: dict[str, object]
    """Settings that a run which goes on must share."""
    parts: dict[str, Entry]
    contents: NotRequired[object]
    """Identities of models: older versions have none, and nobody has looked at them yet."""
    data: NotRequired[object]
    rows: NotRequired[object]
    text_files: NotRequired[object]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    directory: Path
    step: int
    """Steps done."""
    parts: dict[str, Entry]
    """What the manifest keeps of each part of the run; see `actors.files.parts`."""
    data: dict[str, object] = field(default_factory=dict)
    """Settings of data when it was saved; empty where that was not kept."""
    rows: Contents = field(default_factory=Contents)
    """What the sets held that the run read then; empty where that was not kept."""
    shards: dict[str, Shards] = field(default_factory=dict)
    """What the state of each group is divided by that learns."""
    passed_over: tuple[str, ...] = ()
    """What is wrong with each newer one that it is used instead of, a line each."""


def step_of(path: Path) -> int:
    """The number in `step-N`, -1 for a directory that is no finished checkpoint."""
    number = path.name.removeprefix("step-")
    return int(number) if path.name != number and number.isascii() and number.isdecimal() else -1


def superseded(steps: Sequence[int], spared: Container[int | None], rules: CheckpointConfig) -> list[int]:
    """Steps, of those whose checkpoints are there, in order, that are not to be kept any longer; `spared`: the latest,
    and those that are kept beside."""
    others = [step for step in steps if step not in spared and not (rules.keep_every and step % rules.keep_every == 0)]
    return others[: max(0, len(others) - (rules.keep - 1))]


def finished(checkpoints: Path) -> list[Path]:
    """Directories of checkpoints, the oldest first, whatever is in them."""
    return sorted((path for path in checkpoints.glob("step-*") if step_of(path) >= 0 and path.is_dir()), key=step_of)


def read_manifest(directory: Path) -> tuple[Manifest, dict[str, int], dict[str, str | None]]:
    """The manifest of a checkpoint, bytes of its files, and their SHA-256, None of all where it has none.

    One of an older version, with a single state of the loop, is given as those of today are: in parts.

    Raises:
        UNREADABLE: there is none, or it is none.
    """
    file = directory / "manifest.json"
    if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe would be waited for
        raise ValueError("it is no file")
    manifest = json.loads(file.read_text(encoding="utf-8"))
    files = dict(manifest["files"])
    hashes = {name: manifest["sha256"][name] if "sha256" in manifest else None for name in files}
    if "state" in manifest:
        manifest |= {"step": manifest["state"]["step"], "parts": former_parts(manifest["state"], files)}
    # dict() raises for what is no object: an edited manifest must not get further.
    parts, _ = dict(manifest["parts"]), dict(manifest["identity"])
    kept_shards(manifest)
    # isinstance would take true for 1.
    if type(manifest["step"]) is not int or manifest["step"] != step_of(directory):
        raise ValueError("it is of another step")
    if not all(isinstance(entry, dict) for entry in parts.values()):
        raise TypeError("a part is no object")
    return manifest, files, hashes


def kept_shards(manifest: Manifest) -> dict[str, Shards]:
    """What the state of each group is divided by that learns; what older versions have not kept is left out. Raises
    ValueError for what none is divided by.

    Example: kept_shards({"identity": {"policy": {"ranks": 2, "zero_stage": 3}, "run": {"seed": 0}}, ...}) gives
        {"policy": Shards(ranks=2, zero_stage=3)}.
    """
    found = {}
    for name, kept in manifest["identity"].items():
        if isinstance(kept, dict) and {"ranks", "zero_stage"} <= kept.keys():
            found[name] = Shards(kept["ranks"], kept["zero_stage"])
            if not (isinstance(kept["ranks"], int) and kept["ranks"] > 0 and kept["zero_stage"] in range(4)):
                raise ValueError(f"its state cannot be divided by {found[name]}")
    return found


def kept_rows(given: object) -> Contents:
    """What the sets held, as a manifest keeps it; what cannot be compared with is left out."""
    entries = given.items() if isinstance(given, dict) else ()
    return {str(name): content for name, entry in entries if (content := Content.kept(entry))}


def former_parts(state: dict[str, Any], files: Iterable[str]) -> dict[str, Entry]:
    """The parts of a checkpoint that was written before there were any: of the loop's one state, and its files.

    Example: former_parts({"step": 3, "batches": {"epoch": 0}}, ["policy/random-0.pt"]) gives {"policy": {},
        "loop": {"step": 3}, "best": {}, "batches": {"epoch": 0}}.
    """
    groups = {name.partition("/")[0] for name in files}
    loop = {name: state[name] for name in ("step", "version", "last_evaluation") if name in state}
    others = {name: state[former] for name, former in _FORMER.items() if former in state}
    if "shaper" in others:  # of reinforcement: nothing was made ahead of training then
        others["rollouts"] = {"taken": 0}
    return {name: {} for name in sorted(groups)} | {"loop": loop, "best": state.get("best") or {}} | others


def damage_of(directory: Path, files: dict[str, int]) -> str | None:
    """What distinguishes a checkpoint from what its manifest says, without reading its files; None when nothing does.

    A file of torch.save that is none of `files` does too, as DeepSpeed might load it all the same.
    """
    return difference(directory, files) or surplus(directory, files)


def surplus(directory: Path, files: dict[str, int]) -> str | None:
    """A file of torch.save that is none of `files`, in words; None where there is none."""
    found = (str(path.relative_to(directory)) for path in sorted(directory.rglob("*.pt")))
    return next((f"its manifest does not have {name}" for name in found if name not in files), None)


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
        return changed_file(directory, files, hashes) is None
    except UNREADABLE:
        return False


def changed_file(directory: Path, files: dict[str, int], hashes: dict[str, str | None]) -> str | None:
    """Name of the first file whose content is not what was saved, by its hash; None where none is, none has a hash, or
    reading them would take minutes. Raises OSError."""
    if sum(files.values()) > _MOST_BYTES:
        return None
    return next((name for name, sha256 in hashes.items() if sha256 and sha256_of(directory / name) != sha256), None)
