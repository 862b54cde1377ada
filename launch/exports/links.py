"""Links of a model directory, which a copy or an upload would follow: what they lead to must be part of it."""

import os
from collections.abc import Iterator
from pathlib import Path

from actors.config import UserError
from launch.jobs.secret_files import holds_secrets


def check_links(directory: Path, field: str, given: Path) -> None:
    """Raise UserError, with `field`, for a directory that leads, or holds a link that leads, out of what was `given`.

    In the hub's cache a model's files are links to blobs beside the snapshot, which are part of it.
    """
    rule = f"{field}: must hold no link that leads out of it or to a directory"
    if given.resolve() not in (directory.resolve(), *directory.resolve().parents):
        raise UserError(f"{rule} (the directory itself can be named), got {directory} -> {directory.resolve()}")
    for link in _links(directory):
        if link.is_dir() or not _is_part(link, directory.resolve()):
            raise UserError(f"{rule}, got {link} -> {os.readlink(link)}")


def check_public(directory: Path, field: str, given: Path) -> None:
    """As `check_links`, for what will be uploaded: files named like secrets are refused, too."""
    check_links(directory, field, given)
    for path in _entries(directory):
        if holds_secrets(f"{path.relative_to(directory).as_posix()}{'/' * path.is_dir()}"):
            raise UserError(
                f"{field}: must hold no file that looks like a secret, as all of it is uploaded, got {path}"
            )


def _is_part(link: Path, root: Path) -> bool:
    """Whether a link leads to a file of `root` that is none of a secret's name, or to a blob of the hub's cache."""
    target = link.resolve()
    # Of this model's own blobs: those of others lie beside another `snapshots`.
    if root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs":
        return True
    return target.is_relative_to(root) and not holds_secrets(target.relative_to(root).as_posix())


def _links(directory: Path) -> Iterator[Path]:
    return (path for path in _entries(directory) if path.is_symlink())


def _entries(directory: Path) -> Iterator[Path]:
    """All files and directories below; links are not followed."""
    for folder, folders, files in os.walk(directory):
        yield from (Path(folder, name) for name in sorted((*folders, *files)))
