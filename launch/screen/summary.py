"""The last screen of a run, however it has ended: what was reached, where the time went, which files there are, and
what to do next."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from algorithms.loop import LESS_IS_BETTER
from launch.checks.check import takes
from launch.config import RunConfig
from launch.kinds.table import job_kind
from launch.run.ending import STOPPED, Ending
from launch.run.signals import interrupted_by
from launch.screen.bubbles import account_line, account_of, advice, advice_line
from launch.screen.display import Display
from launch.screen.faults import fault_lines
from launch.screen.hints import hint_lines
from launch.screen.shown import clock, flowed
from launch.tracking.curves import Rows, read_metrics
from launch.tracking.events import NAME, read_events

Row = Mapping[str, float | None]

MOST_METRICS = 5
SMALLEST_SHARE = 0.01
_HEADLINES = (
    "reward/mean",
    "accuracy",
    "sequence_probability",
    "loss",
    "ndcg@10",
    "recall@1",
    "base_ndcg@10",
    "spearman",
)
"""Ends of the names of evaluation metrics, the ones that tell most first."""
_LESS_IS_BETTER = (*LESS_IS_BETTER, "failed", "kl")
_NOT_RESULTS = ("std", "failed", "zero_variance_fraction", "score_mean", "score_std")
_IN_TRAINING = ("reward/mean", "reward_model/accuracy", "rewards/accuracy", "embedding/accuracy", "reranker/accuracy")


def how_it_ended(config: RunConfig, display: Display, ended_by: BaseException | None) -> str:
    """Why there are no further steps, and how many there were; `ended_by` is None when the run came to its end."""
    before, done, total = display.steps
    if ended_by is not None:
        where = f"after step {done} of {total}" if done else "before the first step was done"
        return f"{_cause(ended_by)} {where}"
    stop = config.algorithm.stop_when
    short = f"stop_when ({stop.metric} {stop.bound}) met at step {done} of {total}" if stop else ""
    if display.began and not total:
        return "done: the model was evaluated and not trained, as algorithm.steps is 0"
    if before and before == done:
        reached = short if done < total else f"all {total} steps"
        return f"done: an earlier start had finished already ({reached}), so nothing was trained"
    return f"done: {short}" if done < total else f"done: all {total} steps"


def _cause(ended_by: BaseException) -> str:
    if isinstance(ended_by, KeyboardInterrupt):
        return "stopped by you (Ctrl-C)" if interrupted_by() == "Ctrl-C" else "stopped by SIGTERM"
    if isinstance(ended_by, Ending):
        return "stopped by SIGTERM" if ended_by.code == STOPPED else f"{ended_by},"
    return "failed"


def last_screen(config: RunConfig, display: Display, why: str, *, finished: bool, curves: Path | None) -> list[str]:
    """Lines of at most the terminal's width, except for paths and commands, which stay whole."""
    width = display.width
    lines = ["", *flowed([why, f"({clock(display.elapsed_s)} in all)"], width, cut=False)]
    rows = _readable(config.directory)
    lines += _results(config, rows, width)
    if spent := _time(display):
        lines += flowed([f"time:    {spent[0]}", *spent[1:]], width, indent=9)
    lines += _bubbles(config, rows, display)
    lines += hint_lines(rows, width)
    lines += fault_lines(read_events(config.directory / NAME), rows, width)
    lines += _files(config, finished=finished, curves=curves)
    commands = _next(config, finished=finished, drawn=curves is not None)
    return lines + [f"{'next:' if not place else '':9}{line}" for place, line in enumerate(commands)]


def _readable(directory: Path) -> Rows:
    try:
        return read_metrics(directory)
    except (OSError, ValueError):  # a run that ended before its first line, or storage that is gone
        return []


def _results(config: RunConfig, rows: Rows, width: int) -> list[str]:
    """First, last and best value of the metrics that matter, with their steps."""
    evaluations = [row for row in rows if any(name.startswith("eval/") for name in row)]
    if evaluations:
        return _table(_metrics_of(config, evaluations[-1]), evaluations, width, best=len(evaluations) > 1)
    steps = [row for row in rows if row["step"]]
    if not steps:
        return []
    names = [name for name in steps[-1] if name in _IN_TRAINING or name.startswith("loss/")]
    if "reward/mean" in names:
        names = ["reward/mean"]  # the losses of reinforcement say nothing
    return _table(names, [steps[0], steps[-1]] if len(steps) > 1 else steps, width, best=False)


def _metrics_of(config: RunConfig, evaluation: Row) -> list[str]:
    algorithm = config.algorithm
    asked = [getattr(algorithm, "best_by", None), algorithm.stop_when.metric if algorithm.stop_when else None]

    def rank(name: str) -> int:
        if name in asked:  # what the user has asked to judge by goes first
            return -1
        return next((place for place, end in enumerate(_HEADLINES) if name.endswith(f"/{end}")), len(_HEADLINES))

    results = [name for name in evaluation if name.startswith("eval/") and name.rpartition("/")[2] not in _NOT_RESULTS]
    return sorted(results, key=lambda name: (rank(name), name))[:MOST_METRICS]


def _table(names: Sequence[str], rows: Sequence[Row], width: int, *, best: bool) -> list[str]:
    first, last = rows[0], rows[-1]
    heads = [f"step {first['step']:g}"] + ([f"step {last['step']:g}"] if len(rows) > 1 else [])
    cells = [["", *heads, *(["best"] if best else [])]]
    for name in names:
        values = [_number(first.get(name))] + ([_number(last.get(name))] if len(rows) > 1 else [])
        cells.append([name, *values, *([_best(name, rows)] if best else [])])
    if len(cells) == 1:
        return []
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    if sum(widths) + 2 * len(widths) > width:  # the name on a line of its own, rather than a value cut
        return [f"{name}: {', '.join(f'{head} {value}' for head, value in zip(cells[0][1:], values, strict=True))}"
                for name, *values in cells[1:]]  # fmt: skip
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]


def _best(name: str, rows: Sequence[Row]) -> str:
    found = [(value, row["step"]) for row in rows if (value := row.get(name)) is not None and math.isfinite(value)]
    if not found:
        return "-"
    less = name.rpartition("/")[2] in _LESS_IS_BETTER
    value, step = (min if less else max)(found, key=lambda item: item[0])
    return f"{_number(value)} at step {step:g}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or not value else f"{value:.3g}"


def _time(display: Display) -> list[str]:
    """Share of the time since the command that each phase took: the start as one, with its own parts."""
    spent = display.time_spent()
    whole = sum(spent.values())
    if not whole:
        return []
    parts = {part: {name: s for (where, name), s in spent.items() if where == part} for part in ("start", "steps")}
    start = sum(parts["start"].values())
    largest = _shares(parts["start"], whole)[:2]
    share = f"{start / whole:.0%}" if display.began else "all of it"
    return [f"{share} starting ({', '.join(largest)})", *_shares(parts["steps"], whole)]


def _shares(seconds: Mapping[str, float], whole: float) -> list[str]:
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [f"{value / whole:.0%} {name}" for name, value in ordered if value >= SMALLEST_SHARE * whole]


def _bubbles(config: RunConfig, rows: Rows, display: Display) -> list[str]:
    """What engines and trainer have waited for, and the setting that would help most, if any would."""
    account = account_of(rows, display.steps[0])
    if account is None:
        return []
    first, *others = account_line(account)
    lines = flowed([f"bubbles: {first}", *others], display.width, indent=9, gap=" ", cut=False)
    found = advice(account, config.model_dump(mode="json"), lambda setting: takes(config, setting))
    if found is None:
        return lines
    setting, why = advice_line(found)
    return lines + flowed([f"try:     {setting}", *why.split(" ")], display.width, indent=9, gap=" ", cut=False)


def _files(config: RunConfig, *, finished: bool, curves: Path | None) -> list[str]:
    directory = config.directory
    files = [("model", directory / "export")] if finished else []
    files += [("metrics", directory / "metrics.jsonl")]
    files += [("curves", curves)] if curves else []
    files += [("samples", directory / "samples.jsonl")] if job_kind(config).samples_responses else []
    files += [] if finished else [("logs", directory / "logs")]
    return [f"{name + ':':9}{path}" for name, path in files if path.exists()]


def _next(config: RunConfig, *, finished: bool, drawn: bool) -> Iterable[str]:
    run = shlex.quote(str(config.directory))
    yield from _to_look_at(run, config, drawn=drawn)
    if not finished:
        if not (config.directory / "config.json").exists():  # the directory was removed: its command would fail
            return
        resumes = "" if config.checkpoint.resume else " checkpoint.resume=true"
        saved = (config.directory / "checkpoints" / "latest").is_file()
        goes_on = f"goes on from {_checkpoint(config)}" if saved else "starts again, as there is no checkpoint yet"
        yield f"tandem run {shlex.quote(str(config.directory / 'config.json'))}{resumes if saved else ''}  # {goes_on}"
    else:
        yield job_kind(config).next_command(run, config.directory / "export")
        yield f"tandem export {run} --output DIRECTORY  # copy the model"
    yield f"tandem watch {run}  # curves, completions and faults in a browser"


def _to_look_at(run: str, config: RunConfig, *, drawn: bool) -> Iterable[str]:
    """Commands that show what is in the run's directory, however it has ended; `run` is quoted for a shell."""
    if not drawn and any(row["step"] for row in _readable(config.directory)):
        yield f"tandem curves {run}  # draw the metrics"


def _checkpoint(config: RunConfig) -> str:
    try:
        name = (config.directory / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return "the checkpoint"
    return f"step {name.removeprefix('step-')}"
