"""What a run must share with the checkpoint that it continues from."""

import json
from collections.abc import Iterator
from pathlib import Path

from actors.config import UserError
from launch.checks.contents import changed_contents, changed_text_files
from launch.config import RunConfig
from launch.run.manifest import Manifest


def identity(config: RunConfig) -> dict[str, dict[str, object]]:
    """The part of the configuration that a run must share with the checkpoint it continues from, as JSON values.

    Of the optimizer, DeepSpeed restores the settings that it finds in the checkpoint: others would have no effect.
    Ranks and ZeRO stage may change; they say what the files are divided by (`actors.train.universal`).
    """
    parts = {
        "algorithm": {"name"},
        "model": {"path", "revision", "init", "dtype", "lora", "quantize", "freeze"},
        "data": {"shuffle"},
        "policy": {"optimizer", "zero_stage", "ranks", "ema_decay"},
        "run": {"seed"},
    }
    if config.critic is not None:
        parts["critic"] = {"optimizer", "zero_stage", "ranks", "path", "lora"}
    if config.reference.sync_every:  # the checkpoint then holds the reference's weights
        parts["reference"] = {"sync_every", "sync_mix"}
    return {
        section: getattr(config, section).model_dump(mode="json", include=names) for section, names in parts.items()
    }


def changes(field: str, then: object, now: object) -> Iterator[tuple[str, object, object]]:
    """(dotted field, old value, new value) of every leaf that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted(then.keys() | now.keys()):
            if name in then or now[name]:  # a setting that was not known then was not given
                yield from changes(f"{field}.{name}".lstrip("."), then.get(name), now.get(name))
    elif then != now:
        yield field, then, now


def require_same(config: RunConfig, manifest: Manifest, directory: Path) -> None:
    """Raise UserError unless this configuration describes the run that wrote the checkpoint, and the models it
    names are those of then."""
    then, now = manifest["identity"], identity(config)
    problems = [
        f"{field}: must be {json.dumps(old)} to resume from {directory}, got {json.dumps(new)}; "
        f"{how_to_start_anew(config)}"
        for field, old, new in changes("", then, now)
        # By what the state is divided may change: it is divided anew.
        if field.rpartition(".")[2] not in ("ranks", "zero_stage")
    ]
    if not problems:  # of other paths, the contents are others as well
        changed = changed_contents(config, manifest.get("contents"), directory)
        if not changed and not config.checkpoint.accept_new_data:
            changed = changed_text_files(config, manifest.get("text_files"), directory)
        problems = [f"{line}; {how_to_start_anew(config)}" for line in changed]
    if problems:
        raise UserError(*problems)


def how_to_start_anew(config: RunConfig) -> str:
    """For whoever cannot go on from a checkpoint, in words."""
    return f"to start anew: checkpoint.resume=false, or another run.name than {config.run.name}"
