"""The verb `export`: a finished run's model, a Hugging Face directory, where the user wants it.

A run with LoRA leaves the whole model, adapters merged into it, in export/, and the adapters alone in export/adapter/.
"""

import functools
import shutil
import sys
from pathlib import Path

from actors.config import UserError
from actors.failure import reason_of
from actors.models.hub_cache import is_hub_id, local_directory
from actors.models.safetensors_header import parse_json
from launch.exports.links import check_links, check_public
from launch.jobs.secret_files import holds_secrets
from launch.models.tensors import check_whole
from launch.screen.merging import merging_lost
from launch.storage.address import check_package, storage_problem
from launch.storage.store import Storage, StorageError
from launch.storage.stored import put_model
from launch.verbs.chat import model_directory

_ADAPTER = "adapter"
_SETTINGS = "adapter_config.json"


def export(run: str, *, output: str | None, adapter: bool = False) -> int:
    """Copy the model of a finished run to `output`, a directory or a URL of storage (default: print where it is).

    With `adapter`, a PEFT directory instead of the model; where `run` itself is one, the model that it makes.

    Raises:
        UserError: when the run has no model yet, which says what there is, one that is damaged, or when `output` cannot
            be written.
    """
    if (Path(run) / _SETTINGS).is_file() and not adapter:
        return _merge(Path(run), output)
    source = model_directory(run, "RUN")
    if adapter:
        source = source / _ADAPTER
        if not source.is_dir():
            raise UserError(f"--adapter: needs a run with model.lora, got {run}")
    else:
        check_whole(source, "RUN")
    if output is None:
        print(source)
        return 0
    if "://" in output:
        return _put(source, Path(run), output)
    check_links(source, "RUN", Path(run))
    target = _target(output)
    try:
        # Contents only: the copy is a new file, which others may read as the umask says.
        ignored = functools.partial(_left_out, source)
        # The target may be there, if it is empty: see `_target`.
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored, copy_function=shutil.copyfile)
    except OSError as error:
        raise _unwritable(output, error) from None
    print(target)
    return 0


def _put(source: Path, run: Path, url: str) -> int:
    """Put a model into storage."""
    if problem := storage_problem(url):
        raise UserError(f"--output: {problem}")
    check_package("--output", url)
    place, _, name = url.rstrip("/").rpartition("/")
    if place.endswith("/"):
        raise UserError(f"--output: must name a place in the bucket, {url}/PATH, got {url}")
    check_public(source, "RUN", run)
    try:
        storage = Storage(place)
        if storage.sizes(name):
            raise UserError(f"--output: must be a new or empty place, got {url}")
        put_model(source, storage, name, set(), without=(_ADAPTER,))
    except StorageError as error:
        raise UserError(f"--output: must be storage that can be written ({error}), got {url}") from None
    print(url)
    return 0


def _left_out(source: Path, folder: str, names: list[str]) -> set[str]:
    """What the copy does not get of a folder: the adapters, and what is named like a secret, which is told."""
    places = {name: Path(folder, name) for name in names}
    secret = {
        name
        for name, place in places.items()
        # A slash marks a directory, as in ignore files.
        if holds_secrets(f"{place.relative_to(source).as_posix()}{'/' * place.is_dir()}")
    }
    for name in sorted(secret):
        print(f"warning: {places[name]} is left out, as it is named like a secret", file=sys.stderr)
    return secret | ({_ADAPTER} & {*names})


def _merge(directory: Path, output: str | None) -> int:
    if output is None:
        raise UserError(f"--output: must be given to merge a PEFT directory into its base, got none for {directory}")
    target = _target(output)
    base = _base_of(directory)
    # Takes seconds, which only those who merge shall wait.
    from actors.models.adapter_files import merge_adapter

    try:
        lost = merge_adapter(directory, str(base), target)
    except OSError as error:
        raise _unwritable(output, error) from None
    except (ValueError, TypeError, RuntimeError, KeyError, ImportError) as error:
        reason = reason_of(error)
        raise UserError(f"RUN: adapters cannot be merged into {base} ({reason}), got {directory}") from error
    for line in merging_lost(lost, directory):
        print(line, file=sys.stderr)
    print(target)
    return 0


def _base_of(directory: Path) -> Path:
    """Directory of the model that a PEFT directory's adapters belong to.

    Raises:
        UserError: it does not say which one, that is not to be had, or it is of an embedding model.
    """
    path = directory / _SETTINGS
    try:
        settings = parse_json(path.read_bytes(), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"RUN: {error}, got {directory}") from None
    if not isinstance(settings, dict):
        raise UserError(f"RUN: {path} must hold an object, got something else")
    base, task = settings.get("base_model_name_or_path"), settings.get("task_type")
    if task == "FEATURE_EXTRACTION" or (directory.parent / "modules.json").is_file():
        raise UserError(
            f"RUN: {path} must be of a language model or classifier; the export of an embedding run has its adapters "
            f"merged already, got task_type {task}"
        )
    weights = [directory / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
    if not any(file.is_file() for file in weights):
        raise UserError(f"RUN: must hold the adapters, {weights[0].name}, got none in {directory}")
    if not isinstance(base, str) or not base:
        raise UserError(f"RUN: base_model_name_or_path in {path} must be a model, got {base or 'nothing'}")
    revision = settings.get("revision")
    named = f"base_model_name_or_path in {path}"
    if is_hub_id(base):
        # The commit that the adapters were made for, where they say one.
        found = Path(local_directory(f"{base}@{revision}" if revision else base, f"RUN: {named}"))
        check_whole(found, f"RUN: {named}")
        return found
    if not Path(base).is_dir():
        raise UserError(
            f"RUN: {named} must be a model, whose weights the adapters change; there is no directory "
            f"{Path(base).absolute()} (put the base there, or change the path in that file), got {base}"
        )
    try:
        check_whole(Path(base), f"RUN: {named}")
    except UserError as error:
        hint = ". A run keeps no weights of a new model: its export/ is the whole one" * _is_skeleton(Path(base))
        raise UserError(f"{error}{hint}") from None
    return Path(base)


def _is_skeleton(directory: Path) -> bool:
    """Whether a run has written this for `model.init`: a configuration and a tokenizer, no weights."""
    return directory.name == "model" and (directory.parent / "config.json").is_file()


def _target(output: str) -> Path:
    if "://" in output:
        raise UserError(f"--output: must be a directory for what is merged, got {output}")
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output: must be a new or empty directory, got {output}")
    return target


def _unwritable(output: str, error: OSError) -> UserError:
    return UserError(f"--output: must be a directory that can be written ({error}), got {output}")
