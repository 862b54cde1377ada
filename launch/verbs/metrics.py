"""The verb `metrics`: the numbers of a run, as a table for people, or as CSV or lines of JSON for programs."""

import csv
import json
import re
import sys
from collections.abc import Sequence

from actors.config_base import UserError
from launch.screen.stdout import tell
from launch.settings.names import nearest_name
from launch.verbs.run_rows import MetricRow, main_metrics, read_run_rows, run_directory


def show_metrics(
    run: str, *, last: int | None = None, names: str | None = None, every: int = 1, form: str = "table"
) -> int:
    """Print the metrics of a run, finished or not, by step.

    Args:
        run: its directory.
        last: steps, the last ones of those that are left; None: all.
        names: regular expression; metrics that it is found in. None: the main ones in a table, else all.
        every: steps that are multiples of it.
        form: table, csv or json.

    Raises:
        UserError: no such run, no metrics yet, a wrong expression, or one that no metric's name has.
    """
    found = read_run_rows(run_directory(run))
    if note := found.note:
        tell(f"note: {note}")
    if not found.rows:
        raise UserError(f"RUN: must have metrics, and there are none yet, got {run}")
    chosen = _chosen(names, found.names, main=form == "table")
    rows = [(step, row) for step, row in found.rows if step % every == 0 and any(name in row for name in chosen)]
    rows = rows if last is None else rows[-last:]
    if form == "csv":
        _print_csv(rows, chosen)
    elif form == "json":
        for step, row in rows:
            print(json.dumps({"step": step} | {name: row[name] for name in chosen if name in row}, ensure_ascii=False))
    else:
        _print_table(rows, chosen)
    return 0


def _chosen(names: str | None, there: Sequence[str], *, main: bool) -> list[str]:
    if names is None:
        return (main_metrics(there) if main else []) or list(there)
    try:
        pattern = re.compile(names)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"--names: must be a regular expression ({error}), got {names[:80]}") from None
    chosen = [name for name in there if pattern.search(name)]
    if not chosen:
        raise UserError(f"--names: no metric of the run has it{nearest_name(names, list(there))}, got {names[:80]}")
    return chosen


def _print_csv(rows: Sequence[tuple[int, MetricRow]], names: Sequence[str]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["step", *names])
    # csv writes None as nothing.
    writer.writerows([step, *(row.get(name) for name in names)] for step, row in rows)


def _print_table(rows: Sequence[tuple[int, MetricRow]], names: Sequence[str]) -> None:
    cells = [["step", *names], *([str(step), *(_number(row.get(name)) for name in names)] for step, row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        print("  ".join(map(str.rjust, line, widths)).rstrip())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
