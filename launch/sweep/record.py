"""`sweep.json`: what a sweep tries and what has come of it. It is written anew at each change, and read to go on."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actors.config import UserError
from launch.sweep.space import Point

NAME, BASE, LOCK, LOGS = "sweep.json", "base.yaml", "sweep.lock", "logs"
"""Files of a sweep's directory, beside those of the trials: trial-1, trial-2, ..."""
WAITING, RUNNING, STOPPING = "waiting", "running", "stopping"
FINISHED, STOPPED, FAILED, INTERRUPTED = "finished", "stopped", "failed", "interrupted"
ENDED = (FINISHED, STOPPED, FAILED)
"""States of a trial of which a searcher learns."""
_STATES = (WAITING, RUNNING, STOPPING, *ENDED, INTERRUPTED)


@dataclass
class SweepTrial:
    """One run of a sweep."""

    number: int
    """From 1."""
    point: Point
    """Field that varies -> YAML text of its value."""
    overrides: list[str]
    """What it is started with beyond what holds for all."""
    state: str = WAITING
    value: float | None = None
    """Of the metric: of the last evaluation after a step, or of the best one where `algorithm.best_by` is this metric,
    as the model that is exported has it. None of a trial that has failed."""
    step: int | None = None
    """Of that evaluation."""
    reached: int = 0
    """Steps that are done."""
    cause: str = ""
    """Why it has failed or was stopped."""

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"trial-{self.number}"


@dataclass
class Record:
    """A sweep."""

    config: str
    """The file it was started with, of which `base.yaml` is a copy."""
    fixed: list[str]
    varied: dict[str, str]
    """Field -> its values as they were given."""
    metric: str
    mode: str
    """max or min."""
    search: str
    """grid, random or optuna."""
    seed: int
    count: int
    """Trials that there are to be."""
    trials: list[SweepTrial] = field(default_factory=list)

    def ordered(self) -> list[SweepTrial]:
        """The trials, the best first; those without a value last."""
        sign = 1.0 if self.mode == "min" else -1.0
        return sorted(self.trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0.0), trial.number))

    def write(self, directory: Path) -> None:
        """Put the file in place as a whole."""
        partial = directory / f"{NAME}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        os.replace(partial, directory / NAME)

    def differences(self, now: "Record") -> list[str]:
        """What another command asks of the same directory, in one line each; more trials are no difference."""
        found = []
        for name, flag in _GIVEN.items():
            then, given = getattr(self, name), getattr(now, name)
            if then != given:
                found.append(f"{flag}: must be {_shown(then)}, as in this sweep before, got {_shown(given)}")
        if now.count < len(self.trials):
            found.append(f"--trials: must be at least {len(self.trials)}, as there are so many, got {now.count}")
        return found


_GIVEN = {
    "varied": "values",
    "fixed": "fixed settings",
    "metric": "--metric",
    "mode": "--mode",
    "search": "--search",
    "seed": "--seed",
}


def read_record(directory: Path) -> Record | None:
    """The sweep of a directory; None where there is none. Raises UserError for a file that is none of ours."""
    path = directory / NAME
    try:
        values = json.loads(path.read_bytes())
        trials = [_checked(SweepTrial(**trial)) for trial in values.pop("trials")]
        return Record(**values, trials=trials)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise UserError(f"{path}: must be as a sweep has written it, got another text") from None


def _checked(trial: SweepTrial) -> SweepTrial:
    """Raise ValueError for what no sweep writes."""
    value = trial.value
    known = trial.state in _STATES and type(trial.number) is int and isinstance(trial.point, dict)
    if not known or not (value is None or (isinstance(value, int | float) and math.isfinite(value))):
        raise ValueError
    return trial


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name}={text}" for name, text in value.items()]
    return (" ".join(value) or "none") if isinstance(value, list) else str(value)
