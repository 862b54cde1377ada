"""What to look at when a run has ended: warnings of its health that still stand, and what lies below their limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from launch.screen.health import Health
from launch.screen.shown import flowed

Row = Mapping[str, float | None]

_MOST_HINTS = 2
_LAST_STEPS = 10
"""Steps over which a mean is taken: a single one says little."""


@dataclass(frozen=True, slots=True)
class Notable:
    """A metric that is told from a mean that is no reason for a warning yet."""

    metric: str
    least: float
    text: str
    solved_too: bool
    """Whether it still helps where the task is solved."""


_NOTABLE = (
    Notable(
        "rollout/truncated_fraction",
        0.1,
        "of the responses were cut at rollout.max_response_tokens: raise it, or see in samples.jsonl (status "
        "truncated) whether the model ends its answers",
        solved_too=True,
    ),
    Notable(
        "reward/zero_variance_fraction",
        0.5,
        "of the groups had equal rewards and taught nothing: algorithm.dynamic_sampling=true samples others in their "
        "stead (grpo), and prompts of medium difficulty have fewer of them",
        solved_too=False,
    ),
)


def hint_lines(rows: Sequence[Row], width: int) -> list[str]:
    """At most two hints, the warnings that stand at the last step first; nothing where nothing is to be told.

    Args:
        rows: of the run's metrics.
        width: in cells.
    """
    health, since = Health(), dict[str, float]()
    for row in rows:
        if step := row["step"]:  # 0 is an evaluation before the first
            health.warnings({name: value for name, value in row.items() if value is not None and math.isfinite(value)})
            since = {name: since.get(name, step) for name in health.standing}
    # The longest first: it has cost most.
    standing = sorted(health.standing.items(), key=lambda each: since[each[0]])
    told = [f"{text} (since step {since[name]:g})" for name, text in standing]
    told += [text for each in _NOTABLE if each.metric not in since and (text := _noted(each, rows, health))]
    return [
        line
        for place, hint in enumerate(told[:_MOST_HINTS])
        for line in flowed(f"{'' if place else 'look at:':9}{hint}".split(" "), width, indent=9, gap=" ", cut=False)
    ]


def _noted(notable: Notable, rows: Sequence[Row], health: Health) -> str | None:
    found = [value for row in rows if row["step"] and (value := row.get(notable.metric)) is not None][-_LAST_STEPS:]
    if not found or (health.solved and not notable.solved_too):
        return None
    mean = fmean(found)
    # Not <, which a mean that is no number would pass.
    if not mean >= notable.least:
        return None
    return f"in the last {len(found)} steps {mean:.0%} {notable.text}"
