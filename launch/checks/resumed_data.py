"""Whether a run that is resumed reads the rows that it read before: settings of data, what sets hold, and how many."""

import json
from collections.abc import Mapping

from actors.files.parts import Entry
from algorithms.data.row_contents import Content, Contents
from launch.config import RunConfig
from launch.run.manifest import Checkpoint

GO_ON = "to go on all the same: checkpoint.accept_new_data=true"
"""What to do about a problem with rows."""
_LONGEST = 60
"""Characters of a value that a line shows."""
_SOURCES = ("train", "eval", "corpus", "arguments", "split", "eval_split", "converter", "limit", "eval_limit")
"""Settings of data that say no more than which rows there are."""


def data_settings(config: RunConfig) -> dict[str, object]:
    """What a checkpoint keeps of the section `data`, as JSON values; `shuffle` is a part of its identity."""
    return config.data.model_dump(mode="json", exclude={"shuffle"})


def data_warnings(config: RunConfig, checkpoint: Checkpoint, now: Contents) -> list[str]:
    """One line for each setting of data that is another one than when the checkpoint was saved; not for those of
    sources where `now`, what the sets hold, is known and was known then: that says what matters."""
    where, known = checkpoint.directory.name, now and now.keys() == checkpoint.rows.keys()
    return [
        f"data.{name}: was {old} when {where} was saved, and is {new} now: what follows is learned, or evaluated, from "
        f"other rows than what came before"
        for name, old, new in _changes(config, checkpoint)
        if not (known and name in _SOURCES)
    ]


def rows_problem(config: RunConfig, checkpoint: Checkpoint, rows: int) -> str | None:
    """Why a run over this many rows, which are all, cannot go on from a checkpoint; None where it can."""
    batches = checkpoint.parts.get("batches", {})
    then = batches.get("rows")
    if not isinstance(then, int) or then == rows:
        return None
    return _told(config, checkpoint, "data.train", f"{then} rows of the checkpoint", str(rows))


def content_problems(config: RunConfig, checkpoint: Checkpoint, now: Contents) -> list[str]:
    """A line for each set that holds other rows than when the checkpoint was saved, with its setting, and what has
    changed; `now`: what sets hold, as far as it is known."""
    then, train = checkpoint.rows, config.data.train
    were = sorted(name for name in then if name.startswith("data.train"))
    are = sorted(f"data.train.{name}" for name in train) if isinstance(train, dict) else ["data.train"]
    if were and were != are:
        return [_told(config, checkpoint, "data.train", f"{_names(were)} of the checkpoint", _names(are))]
    # Of what is evaluated on, sets may come and go.
    return [
        _told(config, checkpoint, name, f"{then[name].rows} rows of the checkpoint", _difference(then[name], content))
        for name, content in now.items()
        if name in then and then[name] != content
    ]


def accepted(problem: str) -> str:
    """The line of a problem with rows without what to do about it."""
    return problem.partition(f"; {GO_ON}")[0]


def over_new_rows(parts: Mapping[str, Entry]) -> dict[str, Entry]:
    """The parts of a checkpoint as a run goes on from them over other rows, or with another tokenizer: what was sampled
    ahead says nothing any more, and its rows may not be there."""
    found = {name: dict(entry) for name, entry in parts.items()}
    for name in found.keys() & {"batches", "rollouts"}:
        found[name]["new_rows"] = True
    return found


def _names(fields: list[str]) -> str:
    names = [field.removeprefix("data.train.") for field in fields]
    return "one set" if names == ["data.train"] else f"sets {', '.join(names)}"


def _difference(then: Content, now: Content) -> str:
    if then.any_order == now.any_order and then.rows == now.rows:
        return "the same rows in another order"
    return f"{now.rows} other ones" if then.rows == now.rows else f"{now.rows}"


def _told(config: RunConfig, checkpoint: Checkpoint, field: str, then: str, now: str) -> str:
    changes = [f"data.{name} was {old}, and is {new}" for name, old, new in _changes(config, checkpoint)]
    why = f" ({'; '.join(changes)})" if changes else ""
    return (
        f"{field}: must hold the {then} to resume from {checkpoint.directory}{why}, got {now}; {GO_ON}; to start anew: "
        f"checkpoint.resume=false, or another run.name than {config.run.name}"
    )


def _changes(config: RunConfig, checkpoint: Checkpoint) -> list[tuple[str, str, str]]:
    """(name, old, new) of each setting of data that is another one than when the checkpoint was saved."""
    then, now = checkpoint.data, data_settings(config)
    # A setting that was not known then was not kept.
    differing = [name for name in now if name in then and then[name] != now[name]]
    return [(name, _shown(then[name]), _shown(now[name])) for name in differing]


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
