"""Which models a run reads beside its checkpoint, and that they are still those it began with.

A checkpoint holds what has been trained. Where training began, what it is compared with and what scores it stand
elsewhere, under a path that another run may have written since.
"""

from collections.abc import Iterator
from pathlib import Path

from actors.files.own_files import sha256_of
from actors.models.identity import model_identity
from actors.models.tokenizer_files import files_of
from launch.checks.resumed_data import GO_ON
from launch.config import RunConfig

_OWN_TEMPLATE = "model.chat_template"
_AT_START: dict[str, dict[str, str]] = {}
"""Run directory -> `model_contents` when this process began the run."""
_TEXT_AT_START: dict[str, dict[str, str]] = {}
"""Run directory -> `text_files` then."""


def keep_contents(config: RunConfig) -> None:
    """Look at the models now, before they are read: what is exported there later is not what the run has read."""
    _AT_START[str(config.directory)] = model_contents(config)
    _TEXT_AT_START[str(config.directory)] = text_files(config)


def kept_contents(config: RunConfig) -> dict[str, str]:
    """`model_contents` as `keep_contents` has found them, with those of models that came to this machine since."""
    # What there was at the start wins: that is what the run has read.
    return model_contents(config) | _AT_START.get(str(config.directory), {})


def kept_text_files(config: RunConfig) -> dict[str, str]:
    """`text_files` as `keep_contents` has found them."""
    kept = _TEXT_AT_START.get(str(config.directory))
    return text_files(config) if kept is None else kept


def model_contents(config: RunConfig) -> dict[str, str]:
    """Name of a model -> identity of its content; models that are not on this machine are left out."""
    found = {_name(path, revision): model_identity(path, revision) for _, path, revision in _models(config)}
    return {name: content for name, content in found.items() if content}


def changed_contents(config: RunConfig, then: object, directory: object) -> list[str]:
    """A line for each model that has another content than the manifest of the checkpoint in `directory` says; `then`:
    its `contents`."""
    if not isinstance(then, dict):  # of an older version
        return []
    now = model_contents(config)
    named = [(field, _name(path, revision)) for field, path, revision in _models(config)]
    return [
        f"{field}: must hold the model that {directory} was trained with ({_what(str(then[name]), now[name])}), "
        f"got {name}"
        for field, name in named
        if name in then and name in now and then[name] != now[name]
    ]


def text_files(config: RunConfig) -> dict[str, str]:
    """Name -> SHA-256 of each file of the policy's tokenizer and chat template, where the model is a directory here: a
    model of the hub is known by its commit."""
    directory, own = Path(config.model.path or ""), Path(config.model.chat_template or "")
    found = {_OWN_TEMPLATE: sha256_of(own)} if own.is_file() else {}
    if config.model.path is None or not directory.is_dir():
        return found
    return found | {str(file.relative_to(directory)): sha256_of(file) for file in files_of(directory)}


def changed_text_files(config: RunConfig, then: object, directory: object) -> list[str]:
    """A line where the policy's tokenizer or chat template is another one than the manifest of the checkpoint in
    `directory` says; `then`: its `text_files`."""
    now = text_files(config)
    if not isinstance(then, dict) or not then or not now:  # of an older version, or of a model of the hub
        return []
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    if not changed:
        return []
    field = _OWN_TEMPLATE if changed == [_OWN_TEMPLATE] else "model.path"
    return [
        f"{field}: must hold the tokenizer and chat template that {directory} was trained with "
        f"({', '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed since), got "
        f"{config.model.chat_template if field == _OWN_TEMPLATE else config.model.path}; "
        f"{GO_ON}"
    ]


def _name(path: str, revision: str | None) -> str:
    return f"{path}@{revision}" if revision else path


def _what(then: str, now: str) -> str:
    if then.startswith("commit ") and now.startswith("commit "):
        return f"{then}; it is {now} now"
    return "its files have changed since"


def _models(config: RunConfig) -> Iterator[tuple[str, str, str | None]]:
    """(setting, path, revision) of all models that stand elsewhere; the reference is the policy's."""
    if config.model.path:
        yield "model.path", config.model.path, config.model.revision
    if config.critic and config.critic.path:
        yield "critic.path", config.critic.path, None
    # These have no setting for a revision.
    for index, model in enumerate(config.reward.models):
        yield f"reward.models[{index}].path", model.path, None
    if guide := config.algorithm.guides.get("guide"):
        yield "algorithm.guide", guide, None
