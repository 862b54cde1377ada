"""Which run of Weights & Biases a run directory is: `wandb/run.json`, with its id and the last step given to it.

A resumed run goes on with the same id, on whatever machine, so that no step is there twice.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict


class RunArguments(TypedDict):
    """Arguments of wandb.init that name a run, and the file that remembers it."""

    id: str
    resume: str
    file: str


class _Known(TypedDict):
    id: str
    step: int
    """The last one that was given to W&B; -1 before the first."""
    config: NotRequired[object]
    """Digest of the configuration."""


def known_run(directory: Path, config: Mapping[str, object], *, same: bool, may_be: bool) -> RunArguments:
    """Arguments of wandb.init that name the run of a run directory, and the `file` that remembers it.

    Args:
        directory: of the run.
        config: of the run, JSON values.
        same: the run goes on from a checkpoint: it is the one of before.
        may_be: it is that also when it begins anew with the configuration of before, as a retry does that finds no
            checkpoint yet.
    """
    file = directory / "wandb/run.json"
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
    known = _read(file)
    if not (known and (same or (may_be and known.get("config") == digest))):
        known = {"id": secrets.token_hex(6), "step": -1}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)  # a link that somebody has put there is not followed
    file.write_text(json.dumps(known | {"config": digest}), encoding="utf-8")
    # allow: goes on with the id where it is known, and begins it where it is not.
    return {"id": known["id"], "resume": "allow", "file": str(file)}


def _read(file: Path) -> _Known | None:
    """What the file holds; None where it holds nothing of that kind, which costs a run of its own, and no more."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"id": str(found["id"]), "step": int(found["step"]), "config": found.get("config")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
