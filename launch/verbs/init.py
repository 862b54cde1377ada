"""The verb `init`: configs/ and examples/, as the clone has them, in a directory of the user's."""

import os
import shlex
import shutil
from pathlib import Path

from actors.config import UserError

STARTERS = ("configs", "examples")
_SHIPPED = Path(__file__).parent.parent / "shipped"
"""Where a wheel has them (`setup.py`); in a clone they are beside this package."""
_UNWANTED = shutil.ignore_patterns("__pycache__")


def init(directory: str) -> int:
    """Copy both into `directory`, which is made if need be, and say what to do next.

    Raises:
        UserError: one of them is there already, which is never overwritten, or the directory cannot be written.
    """
    source, target = _source(), Path(directory)
    if there := [str(target / name) for name in STARTERS if os.path.lexists(target / name)]:
        raise UserError(f"DIR: must not have {' or '.join(STARTERS)} yet, got {' and '.join(there)}")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in STARTERS:
            # Contents only: the files of an installation may be read-only, and another user's.
            shutil.copytree(source / name, target / name, copy_function=shutil.copyfile, ignore=_UNWANTED)
    except OSError as error:
        for name in STARTERS:  # none was there before: a second try shall not find a part of it
            shutil.rmtree(target / name, ignore_errors=True)
        cause = error.strerror or str(error)[:200]
        raise UserError(f"DIR: must be a directory that can be written ({cause}), got {directory}") from None
    for name in STARTERS:
        print(f"{name + ':':10}{target / name}, {sum(1 for _ in (target / name).iterdir())} files")
    go_there = "" if target == Path() else f"cd {shlex.quote(directory)} && "
    print(f"next:     {go_there}tandem check configs/own-task.yaml")
    return 0


def _source() -> Path:
    clone = Path(__file__).parent.parent.parent
    # Beside an installed package, `configs` and `examples` would be those of another one.
    for place in (_SHIPPED, clone) if (clone / "pyproject.toml").is_file() else (_SHIPPED,):
        if all((place / name).is_dir() for name in STARTERS):
            return place
    raise UserError(
        f"init: needs configs and examples, which a clone and a wheel of Tandem have, got none at {_SHIPPED}"
    )
