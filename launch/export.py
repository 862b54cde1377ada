"""The verb `export`: a finished run's model, a Hugging Face directory, where the user wants it."""

import shutil
from pathlib import Path

from actors.config import UserError
from launch.chat import model_directory


def export(run: str, *, output: str | None) -> int:
    """Copy the model of a finished run to `output` (default: print where it is).

    Raises:
        UserError: when the run has no model yet, which says what there is, or when `output` cannot be written.
    """
    source = model_directory(run)
    if output is None:
        print(source)
        return 0
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output: must be a new or empty directory, got {output}")
    try:
        shutil.copytree(source, target, dirs_exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: must be a directory that can be written ({error}), got {output}") from None
    print(target)
    return 0
