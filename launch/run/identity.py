"""What a run must share with the checkpoint that it continues from."""

from collections.abc import Iterator

from launch.config import RunConfig


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
