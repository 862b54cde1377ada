"""curves.png: the metrics of a run over its steps, one panel for each question that a person has.

As a program of its own (`curves.py DIRECTORY`), it draws without disturbing the run: see `launch.tracking.redraw`.
"""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from launch.tracking.events import NAME, NOTICED, read_events

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, float | None]]
Panel = Callable[["Axes", Rows], None]

_DPI, _COLUMNS, _PANEL_INCHES = 120, 2, (5.5, 3.0)
_FEW = 4  # points of a line that could be overlooked
_TIMED_APART = ("time/step", "time/update_rank", "time/lost", "time/effective", "time/elapsed")
"""Not phases of a step, but their sum, a part of one, what faults have cost, and what is of the whole run."""
_SHARES = ["rollout/truncated_fraction", "reward/zero_variance_fraction"]
_OF_WEIGHTS = ("p01", "p50", "p99")
_ROUNDING = 1e-6
"""A mismatch below this is that of float32 arithmetic: nothing to look at."""


def draw_curves(directory: Path) -> Path | None:
    """Draw `metrics.jsonl` of a run directory into `curves.png` and return its path; None when there is no step.

    Raises:
        OSError, ValueError: when the metrics cannot be read or the picture not written.
    """
    rows = read_metrics(directory)
    if not any(row["step"] for row in rows):
        return None
    # Without pyplot, which would look for a screen: a Figure of its own draws PNG files with Agg.
    from matplotlib.figure import Figure

    names, faults = {name for row in rows for name in row}, fault_steps(directory, rows)
    panels = _panels(names, rows)
    lines_of_panels = -(-len(panels) // _COLUMNS)  # rounded up
    figure = Figure(figsize=(_PANEL_INCHES[0] * _COLUMNS, _PANEL_INCHES[1] * lines_of_panels), layout="constrained")
    figure.suptitle(f"{directory.name}{'   (red: faults)' if faults else ''}")
    for index, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(lines_of_panels, _COLUMNS, index)
        panel(axes, rows)
        for step in faults:
            axes.axvline(step, color="tab:red", linewidth=0.7, alpha=0.7, zorder=1.5)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8, which="both")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    path, partial = directory / "curves.png", directory / "curves.png.partial"
    picture = io.BytesIO()
    figure.savefig(picture, dpi=_DPI, format="png")
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:  # "x" follows no link that somebody has put there
        file.write(picture.getvalue())
    os.replace(partial, path)  # whoever looks meanwhile sees the old one or the new one
    return path


def fault_steps(directory: Path, rows: Rows) -> list[int]:
    """The steps of a run's metrics in which something had died or frozen, by its events."""
    last = max(row["step"] or 0 for row in rows)
    steps = {line.get("step") for line in read_events(directory / NAME) if line["event"] == NOTICED}
    return sorted(step for step in steps if isinstance(step, int) and 0 <= step <= last)


def read_metrics(directory: Path) -> Rows:
    """The lines of a run's metrics.jsonl; the last one is left out where it is still being written.

    Raises:
        ValueError: naming the first line that is none of a run's.
    """
    lines = (directory / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    return [_row(number, line) for number, line in enumerate(lines, start=1)]


def _row(number: int, line: bytes) -> dict[str, float | None]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"line {number} must be JSON, and is not") from None
    if not isinstance(row, dict) or not _is_number(row.get("step")):
        raise ValueError(f"line {number} must be a mapping with the number of its step, and is not")
    row.pop("left_out", None)  # names of prompts
    if wrong := [name for name, value in row.items() if value is not None and not _is_number(value)]:
        raise ValueError(f"line {number}: {wrong[0][:80]!r} must be a number or null, and is not")
    return row


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _panels(names: set[str], rows: Rows) -> list[Panel]:
    """The panels of a reinforcement run or of an imitation run, as the metrics tell."""
    panels = [
        _lines(title, metrics, log) for title, metrics, log in panel_metrics(names, lambda name: _is_seen(name, rows))
    ]
    phases = phases_of(names)
    return [*panels, _seconds(phases)] if phases else panels


def phases_of(names: Iterable[str]) -> list[str]:
    """The metrics `time/<phase>` that are phases of a step, by name."""
    return sorted(name for name in names if name.startswith("time/") and name not in _TIMED_APART)


def panel_metrics(names: Collection[str], is_seen: Callable[[str], bool]) -> list[tuple[str, list[str], bool]]:
    """Title and metrics of each panel, and whether its axis is a logarithmic one: those that a person looks at first.

    Args:
        names: of all metrics that the run has.
        is_seen: whether a metric has ever left what rounding makes of zero.
    """
    names = set(names)
    if "reward/mean" in names:
        wanted: list[tuple[str, list[str], bool]] = [
            ("reward", ["reward/mean", "eval/reward/mean"], False),
            ("held-out prompts solved", [*_pass_at_k(names), "eval/majority"], False),
            ("entropy (nats per token)", ["policy/entropy"], False),
            ("response length (tokens)", ["rollout/response_tokens_mean"], False),
            ("share of responses cut, and of groups that teach nothing", _SHARES, False),
            ("mismatch of trainer and sampler (KL)", ["mismatch/kl"] if is_seen("mismatch/kl") else [], True),
            ("importance weights (1 %, median, 99 %)", [f"policy/importance_weight_{p}" for p in _OF_WEIGHTS], True),
            ("KL to the reference", ["policy/kl"], False),
            ("variance of returns that the critic explains", ["critic/explained_variance"], False),
        ]
    elif names & {"loss/reward_model", "loss/dpo"}:
        wanted = [
            ("loss", ["loss/reward_model", "loss/dpo", "eval/loss"], False),
            ("accuracy", [f"{p}accuracy" for p in ("reward_model/", "rewards/", "eval/", "eval/rewards/")], False),
            ("margin", [f"{p}margin" for p in ("reward_model/", "rewards/", "eval/", "eval/rewards/")], False),
            ("rewards", ["rewards/chosen", "rewards/rejected"], False),
            ("logprob of responses", ["logprobs/chosen", "logprobs/rejected"], False),
            ("calibration error", ["eval/calibration_error"], False),
        ]
    elif names & {"loss/embedding", "loss/reranker"}:
        wanted = [
            ("loss", ["loss/embedding", "loss/reranker"], False),
            ("accuracy in training batches", ["embedding/accuracy", "reranker/accuracy"], False),
            *_held_out(names),
        ]
    else:
        probabilities = sorted(name for name in names if name.startswith("eval/") and name != "eval/loss")
        wanted = [
            ("loss (nats per token)", ["loss/nll", "eval/loss"], False),
            *((name, [name], False) for name in probabilities),
        ]
    wanted += [
        ("gradient norm", ["grad_norm", "critic/grad_norm"], False),
        ("learning rate", ["learning_rate", "critic/learning_rate"], False),
    ]
    found = [(title, [name for name in metrics if name in names], log) for title, metrics, log in wanted]
    return [panel for panel in found if panel[1]]


def _is_seen(name: str, rows: Rows) -> bool:
    """Whether a metric has ever left what rounding makes of zero."""
    return any(abs(row.get(name) or 0.0) > _ROUNDING for row in rows)


def _pass_at_k(names: set[str]) -> list[str]:
    """The metrics eval/pass@k, by k."""
    found = [name for name in names if re.fullmatch(r"eval/pass@[0-9]{1,9}", name)]
    return sorted(found, key=lambda name: int(name.rpartition("@")[2]))


def _held_out(names: set[str]) -> list[tuple[str, list[str], bool]]:
    """For each evaluation set: search, reranking and similarity, a panel each."""
    sets = sorted({name.removeprefix("eval/").rpartition("/")[0] for name in names if name.startswith("eval/")})
    kinds = {
        "search": ("ndcg@10", "mrr@10", "recall@1", "recall@10"),
        "reranking": ("rerank_map", "rerank_ndcg@10", "rerank_base_ndcg@10"),
        "similarity": ("spearman",),
    }
    if "loss/reranker" in names:
        kinds = {"reranking": ("map", "ndcg@10", "base_map", "base_ndcg@10")}
    return [
        (
            f"{kind} in {name}" if name else kind,
            [f"eval/{name}/{metric}".replace("//", "/") for metric in metrics],
            False,
        )
        for name in sets
        for kind, metrics in kinds.items()
    ]


def _lines(title: str, metrics: list[str], log: bool) -> Panel:
    def draw(axes: "Axes", rows: Rows) -> None:
        for name in metrics:
            points = [(row["step"], value) for row in rows if (value := row.get(name)) is not None]
            # Rounding gives exact zeros, which a logarithm cannot show.
            points = [(step, value) for step, value in points if value > 0 or not log]
            if not points:
                continue
            # Where there are few points, as of evaluations, they show where they are.
            marker = "o" if len(points) < _FEW or name.startswith("eval/") else ""
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, linewidth=1.4, label=name)
        if log:
            axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        if len(metrics) > 1:
            axes.legend(fontsize=8, frameon=False)

    return draw


def _seconds(phases: list[str]) -> Panel:
    def draw(axes: "Axes", rows: Rows) -> None:
        steps = [row["step"] for row in rows if row["step"]]
        spent = {name: [row.get(name) or 0.0 for row in rows if row["step"]] for name in phases}
        totals = {name: sum(values) for name, values in spent.items()}
        shown = [
            name
            for name in sorted(totals, key=lambda name: -totals[name])
            if totals[name] > 0.01 * sum(totals.values())
        ]
        labels = [name.removeprefix("time/") for name in shown]
        axes.stackplot(steps, *(spent[name] for name in shown), labels=labels, step="mid", alpha=0.8, linewidth=0)
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
        axes.set_title("seconds per step (phases above 1 % of the time)", fontsize=10)
        axes.legend(fontsize=8, frameon=False, loc="upper center", ncols=len(shown))

    return draw


if __name__ == "__main__":
    os.nice(10)  # the run comes first
    draw_curves(Path(sys.argv[1]))
