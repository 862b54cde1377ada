"""Whether a run that is resumed reads the rows that it read before: settings of data, and the number of rows."""

import json

from launch.config import RunConfig
from launch.run.manifest import Checkpoint

_LONGEST = 60
"""Characters of a value that a line shows."""


def data_settings(config: RunConfig) -> dict[str, object]:
    """What a checkpoint keeps of the section `data`, as JSON values; `shuffle` is a part of its identity."""
    return config.data.model_dump(mode="json", exclude={"shuffle"})


def data_warnings(config: RunConfig, checkpoint: Checkpoint) -> list[str]:
    """One line for each setting of data that is another one than when the checkpoint was saved."""
    where = checkpoint.directory.name
    return [
        f"data.{name}: was {old} when {where} was saved, and is {new} now: what follows is learned, or evaluated, from "
        f"other rows than what came before"
        for name, old, new in _changes(config, checkpoint)
    ]


def rows_problem(config: RunConfig, checkpoint: Checkpoint, rows: int) -> str | None:
    """Why a run over this many rows, which are all, cannot go on from a checkpoint; None where it can."""
    batches = checkpoint.parts.get("batches", {})
    then = batches.get("rows")
    if not isinstance(then, int) or then == rows:
        return None
    changes = [f"data.{name} was {old}, and is {new}" for name, old, new in _changes(config, checkpoint)]
    why = f" ({'; '.join(changes)})" if changes else ""
    return (
        f"data.train: must hold the {then} rows of the checkpoint to resume from {checkpoint.directory}{why}, got "
        f"{rows}; to start anew: checkpoint.resume=false, or another run.name than {config.run.name}"
    )


def _changes(config: RunConfig, checkpoint: Checkpoint) -> list[tuple[str, str, str]]:
    then, now = checkpoint.data, data_settings(config)
    # A setting that was not known then was not kept.
    differing = [name for name in now if name in then and then[name] != now[name]]
    return [(name, _shown(then[name]), _shown(now[name])) for name in differing]


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
