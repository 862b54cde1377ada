"""Files of safetensors, which makes them through private temporary ones, get the permissions of other new files."""

import contextlib
import os
import uuid
from pathlib import Path


def make_readable(directory: Path) -> None:
    """Let whoever may read a new file in `directory`, by the umask and the directory's rules, read those below it."""
    probe = directory / f".{uuid.uuid4().hex}"
    # Asked for with all rights: those that it gets are what umask and directory leave to a new file.
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    allowed = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink() and (mode := path.stat().st_mode & 0o777) | allowed != mode:
            with contextlib.suppress(OSError):  # storage without permissions: no reason to lose the export
                path.chmod(mode | allowed)
