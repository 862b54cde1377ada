"""The verb `export`: a run's model as a Hugging Face directory, where the user wants it."""

import shutil
from pathlib import Path

from actors.config import UserError
from launch.chat import model_directory


def export(run: str, *, output: str | None) -> int:
    """Copy the merged model of a run to `output` (default: say where it is); raises UserError."""
    source = model_directory(run)
    if output is None:
        print(source)
        return 0
    target = Path(output)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"--output: must be a new or empty directory, got {output}")
    shutil.copytree(source, target, dirs_exist_ok=True)
    print(target)
    return 0
