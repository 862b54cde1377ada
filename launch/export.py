"""The verb `export`: a finished run's model, a Hugging Face directory, where the user wants it.

A run with LoRA leaves the whole model, adapters merged into it, in export/, and the adapters alone in export/adapter/.
"""

import shutil
from pathlib import Path

from actors.config import UserError
from launch.chat import model_directory

_ADAPTER = "adapter"


def export(run: str, *, output: str | None, adapter: bool = False) -> int:
    """Copy the model of a finished run to `output` (default: print where it is).

    With `adapter`, a PEFT directory instead of the model; where `run` itself is one, the model that it makes.

    Raises:
        UserError: when the run has no model yet, which says what there is, or when `output` cannot be written.
    """
    if (Path(run) / "adapter_config.json").is_file() and not adapter:
        return _merge(Path(run), output)
    source = model_directory(run)
    if adapter:
        source = source / _ADAPTER
        if not source.is_dir():
            raise UserError(f"--adapter: needs a run with model.lora, got {run}")
    if output is None:
        print(source)
        return 0
    target = _target(output)
    try:
        # Contents only: the copy is a new file, which others may read as the umask says.
        ignored = shutil.ignore_patterns(_ADAPTER)
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored, copy_function=shutil.copyfile)
    except OSError as error:
        raise _unwritable(output, error) from None
    print(target)
    return 0


def _merge(directory: Path, output: str | None) -> int:
    if output is None:
        raise UserError(f"--output: must be given to merge a PEFT directory into its base, got none for {directory}")
    target = _target(output)
    # Takes seconds, which only those who merge shall wait.
    from actors.lora import merge_adapter

    try:
        merge_adapter(directory, target)
    except OSError as error:
        raise _unwritable(output, error) from None
    print(target)
    return 0


def _target(output: str) -> Path:
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output: must be a new or empty directory, got {output}")
    return target


def _unwritable(output: str, error: OSError) -> UserError:
    return UserError(f"--output: must be a directory that can be written ({error}), got {output}")
