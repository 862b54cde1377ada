"""The part of `check` that looks at data and rewards. Imports neither torch nor ray nor vllm."""

import os
from collections.abc import Iterable
from pathlib import Path

from algorithms.data.row_contents import contents_of
from algorithms.data.sources import read_rows
from launch.checks.findings import Findings
from launch.checks.known_rows import Field, Rows, Sets
from launch.checks.resumed_data import accepted, content_problems, data_warnings, rows_problem
from launch.checks.reward_checks import RewardProbe
from launch.checks.row_checks import (
    READ_ROWS,
    check_rows,
    read_sets,
    same_rows,
    sets_and_notes,
)
from launch.run.manifest import Checkpoint
from launch.settings.named_code import names_code

_COMPARED_S = 60.0
"""Longest time for reading all rows once more, to compare them with those of a checkpoint."""


def read_data(findings: Findings) -> dict[Field, Sets]:
    """The rows of both data sets, where they are here and what they must be."""
    data, found = findings.config.data, {}
    given: dict[Field, str | dict[str, str] | None] = {"data.train": data.train, "data.eval": data.eval}
    for where, value in given.items():
        sources = named_sources(where, value)
        unread = []
        with findings.collecting():
            unread = [name for name, source in sources.items() if is_unread(findings, name, source)]
        if sources and not unread:
            with findings.collecting():
                if data.converter or any(names_code(source, where) for source in sources.values()):
                    # What ends the process that it runs in, shall not end this one.
                    found[where], notes = findings.aside.call(sets_and_notes, findings.config, where)
                    findings.notes += notes
                else:
                    found[where] = read_sets(findings.config, where, findings.notes)
    return found


def check_sets(findings: Findings, sets: dict[Field, Sets], readable: bool) -> tuple[Rows | None, Rows | None]:
    """What is known of the rows to train on and to evaluate on; None where they are elsewhere, wrong or not given."""
    config = findings.config
    train, held_out = (
        _check_set(findings, "data.train", sets, readable),
        _check_set(findings, "data.eval", sets, readable),
    )
    if train is not None:
        findings.rows, findings.mean_tokens, findings.lengths = train.count, train.mean_tokens, train.lengths
        findings.complete, findings.whole = train.complete, train.whole and train.rendered
        if held_out is not None:
            findings.warnings += same_rows(config, train, held_out)
    return train, held_out


def check_resumed(findings: Findings, checkpoint: Checkpoint) -> None:
    """Compare the rows with those of the checkpoint where the run goes on: what each set holds, and how many are drawn,
    as far as that is known here; what has not been read in time, the run compares."""
    config, data = findings.config, findings.config.data
    given = {"data.train": data.train, "data.eval": data.eval, "data.corpus": data.corpus}
    sources = {name: source for where, value in given.items() for name, source in named_sources(where, value).items()}
    readable = [name for name, source in sources.items() if not is_unread(findings, name, source)]
    now = findings.aside.call(contents_of, data, readable, _COMPARED_S) if checkpoint.rows else None
    problems = content_problems(config, checkpoint, now or {})
    train_differs = any(problem.startswith("data.train") for problem in problems)
    if findings.rows is not None and findings.complete and findings.whole and not train_differs:
        problem = rows_problem(config, checkpoint, findings.rows)
        problems += [problem] if problem else []
    if config.checkpoint.accept_new_data:
        findings.warnings += map(accepted, problems)
    else:
        findings.problems += problems
    findings.warnings += data_warnings(config, checkpoint, now or {})


def _check_set(findings: Findings, where: Field, sets: dict[Field, Sets], readable: bool) -> Rows | None:
    if where not in sets:
        return None
    with findings.collecting():
        found = findings.aside.call(check_rows, findings.config, where, tokenise=readable, sets=sets[where])
        findings.notes += found.notes
        findings.warnings += found.warnings
        return found
    return None


def check_rewards(findings: Findings, probe: RewardProbe, train: Rows | None, held_out: Rows | None) -> None:
    """Call the reward functions, and check the addresses of endpoints."""
    config = findings.config
    columns, lacking = None, {}
    if train is not None:
        known = {"data.train": train, "data.eval": held_out}
        columns = {where: sorted(rows.columns) for where, rows in known.items() if rows is not None}
        lacking = {where: rows.lacking for where, rows in known.items() if rows is not None}
    called = probe.finish(config.data, columns, train.examples if train else [], lacking)
    findings.rewards += called.lines
    findings.problems += called.problems
    findings.warnings += called.warnings
    # The variables that headers name are those of the machines where rewards are computed.
    environment = None if findings.elsewhere or os.environ.get("RAY_ADDRESS") else os.environ
    for index, endpoint in enumerate(config.reward.endpoints):
        from algorithms.rewards.endpoint import check_endpoint  # a tenth of a second, for what few have

        with findings.collecting():
            check_endpoint(endpoint, index, environment)
            findings.rewards.append(
                f"reward.endpoints.{index}: a check asks it nothing, so whether it answers shows in the first step"
            )


def named_sources(field: str, value: str | dict[str, str] | None) -> dict[str, str]:
    """Setting -> source: one, several by name, or none."""
    if isinstance(value, dict):
        return {f"{field}.{name}": source for name, source in value.items()}
    return {} if value is None else {field: value}


def is_unread(findings: Findings, field: str, source: str) -> bool:
    """Whether rows cannot be looked at: they are on other machines, or code would run that must not.

    A file whose rows a converter changes is read as it is, so that it is known to hold rows.
    """
    if is_elsewhere(findings, field, source):
        return True
    if findings.code:
        return False
    # A corpus is texts, which no converter changes.
    converted = findings.config.data.converter is not None and not field.startswith("data.corpus")
    if names_code(source, field):
        return True
    if converted:
        data = findings.config.data
        split = data.split if field.startswith("data.train") else data.eval_split
        read_rows(source, split=split, arguments=data.arguments, limit=READ_ROWS, field=field)
    return converted


def is_elsewhere(findings: Findings, field: str, path: str) -> bool:
    """Whether a path is on the machines of the run, and so can only be warned about."""
    if not findings.elsewhere or not Path(path).is_absolute() or Path(path).exists():
        return False
    findings.warnings.append(f"{field}: {path} is read on the cluster when the run starts, not checked here")
    return True


def one_per_column(problems: Iterable[str]) -> list[str]:
    """The problems, each once; of a name in data.columns one, though both sets may lack it, and nothing read it."""
    kept: dict[str, str] = {}
    for problem in problems:
        field, _, rule = problem.partition(": ")
        key = field if field.startswith("data.columns.") else problem
        # That nothing reads it says more than that a set lacks it.
        if key not in kept or rule.startswith("must be a column that is read"):
            kept[key] = problem
    return list(kept.values())
