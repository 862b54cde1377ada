"""Whose files these are, and what is in them: a run reads back what is the user's own, as it was written.

No torch: the driver looks at manifests before anything starts.
"""

import grp
import hashlib
import os
import pwd
import stat
import tempfile
from pathlib import Path

StoredFile = tuple[str, int, str | None]
"""(name relative to the checkpoint, bytes, SHA-256 where it is known) of a file that a rank has written or sees."""


_MEND = " (if you trust what it holds: chmod go-w)"


def stranger(path: Path) -> str | None:
    """Why a file may be somebody else's work, in words; None when only this user and root can have written it.

    Storage that shows every file as another user's, or as writable by all, shows a new one so too: there, owners and
    permissions say nothing, and the answer is None.

    Example: stranger(Path("manifest.json")) == "can be written by everybody (if you trust what it holds: chmod go-w)"
    """
    why = stranger_by(path.stat())
    return None if why is None or why == _of_a_new_file(path.parent) else why


def stranger_by(status: os.stat_result) -> str | None:
    """As `stranger`, of what the system says about a file."""
    if status.st_uid not in (os.geteuid(), 0):  # root could change anything anyway
        owner = _user(status.st_uid)
        return f"belongs to {owner}, neither to you nor to root (if you trust what it holds, copy the run: cp -r)"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by everybody" + _MEND
    if status.st_mode & stat.S_IWGRP and (group := _shared_group(status.st_gid)):
        return f"can be written by the group {group}" + _MEND
    return None


def load_data_only() -> None:
    """From here on `torch.load` makes data only in this process and its children, also where a library asks for more
    or the environment does."""
    # With both variables set, torch.load refuses every file.
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def create(path: Path) -> int:
    """Open a new file for writing, in place of one or a link that was there, that no others may write; returns the
    descriptor."""
    # A link would be written through, to wherever it leads.
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_a_new_file(directory: Path) -> str | None:
    try:
        with tempfile.NamedTemporaryFile(dir=directory) as probe:  # made for its owner alone
            return stranger_by(os.fstat(probe.fileno()))
    except OSError:
        return None


def _shared_group(number: int) -> str | None:
    """Name of a group that may have other members; None for root's, for the user's own, and for one without a name,
    which a container's storage got for it."""
    try:
        name = grp.getgrgid(number).gr_name
    except KeyError:
        return None
    return None if number == 0 or name == _user(os.geteuid()) else name


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
