"""README's picture of a run: rewards over the steps, of the responses learned from and of held-out prompts.

    python -m benchmarks.demo_picture outputs/demo-grpo-0

reads the run's metrics.jsonl and writes docs/demo-curves-light.svg and docs/demo-curves-dark.svg, the same but for
their colours. Small enough to be read on a telephone.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent.parent / "docs"
INCHES = (5.8, 3.3)
METRICS = {"sampled": "reward/mean", "held_out": "eval/reward/mean"}
THEMES = {
    "light": {"text": "#1f2328", "grid": "#d0d7de", "sampled": "#6e9fd4", "held_out": "#bc4c00"},
    "dark": {"text": "#e6edf3", "grid": "#30363d", "sampled": "#4a7bb5", "held_out": "#f0883e"},
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "demo",
    "font.size": 13,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}
"""Text stays text; the same metrics give the same file."""
Lines = dict[str, tuple[list[int], list[float]]]


def draw(run: Path, into: Path = DOCS) -> list[Path]:
    """Draw the rewards of a run directory for each theme, and return the pictures' paths.

    Raises:
        ValueError: when the run has no step, or no evaluation.
    """
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = {name: _line(rows, metric) for name, metric in METRICS.items()}
    if not all(steps for steps, _ in lines.values()):
        raise ValueError(f"{run}: must have {' and '.join(METRICS.values())} in its metrics.jsonl")
    return [_picture(lines, colours, into / f"demo-curves-{theme}.svg") for theme, colours in THEMES.items()]


def _line(rows: list[dict[str, float]], metric: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _picture(lines: Lines, colours: dict[str, str], path: Path) -> Path:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*lines["sampled"], color=colours["sampled"], linewidth=1.2, label="responses of the step")
        steps, values = lines["held_out"]
        axes.plot(steps, values, color=colours["held_out"], linewidth=2.2, marker="o", label="held-out prompts")
        for at in (0, -1):
            axes.annotate(
                f"{values[at]:.2f}",
                (steps[at], values[at]),
                (0, -16),
                textcoords="offset points",
                color=colours["held_out"],
                weight="bold",
                ha="center" if at else "left",
                va="top",
            )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step", color=colours["text"])
        axes.set_ylabel("reward", color=colours["text"])
        axes.tick_params(colors=colours["text"], length=0)
        axes.grid(color=colours["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.legend(loc="lower right", frameon=False, labelcolor=colours["text"])
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw README's picture of a run.")
    parser.add_argument("run", type=Path, help="directory of a run, such as outputs/demo-grpo-0")
    for path in draw(parser.parse_args(argv).run):
        print(path)


if __name__ == "__main__":
    main()
