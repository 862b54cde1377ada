"""The faults of a whole run, kind by kind, and the time that they have cost: what the last screen says of them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from launch.screen.shown import flowed
from launch.tracking.events import GIVEN_UP, NOTICED, RECOVERED

Line = Mapping[str, Any]
"""One of `events.jsonl`."""
Row = Mapping[str, float | None]
"""One of `metrics.jsonl`."""

_HEADS = "faults:", "times", "noticed", "at most", "stood", "at most", "done"
_MOST_SHOWN = 0.999
"""Of a share that is not the whole: what was lost does not vanish by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """What has happened in one way to the processes of one group."""

    name: str
    """Example: rollout died"""
    times: int
    noticed_s: Sequence[float]
    """After the last sign of life, of those of which that is known."""
    stood_s: Sequence[float]
    """From there until they were over, of those that are."""
    done: Mapping[str, int]
    """What was done, how often."""
    redone_steps: int
    """That were trained again."""


def kinds_of(lines: Iterable[Line]) -> list[FaultKind]:
    """The kinds of a run's faults, the most frequent first."""
    first: dict[int, Line] = {}
    last: dict[int, Line] = {}
    for line in lines:
        if line["event"] == NOTICED:
            first[line["fault"]] = line
        elif line["event"] in (RECOVERED, GIVEN_UP):
            last[line["fault"]] = line
    found: dict[str, list[int]] = {}
    for number, line in first.items():
        found.setdefault(f"{line['who'].partition('[')[0]} {line['what']}", []).append(number)
    kinds = [
        FaultKind(
            name=name,
            times=len(numbers),
            noticed_s=[seconds for each in numbers if (seconds := first[each].get("noticed_s")) is not None],
            stood_s=[last[each]["stood_s"] for each in numbers if each in last],
            done=Counter(_done(last.get(each)) for each in numbers),
            redone_steps=sum(last[each].get("redone_steps") or 0 for each in numbers if each in last),
        )
        for name, numbers in found.items()
    ]
    return sorted(kinds, key=lambda kind: (-kind.times, kind.name))


def fault_lines(lines: Sequence[Line], rows: Sequence[Row], width: int) -> list[str]:
    """A table of the kinds, and how much of the time was effective; nothing where there was no fault.

    Args:
        lines: of the run's events.
        rows: of its metrics.
        width: in cells; where a table does not fit, each kind is a sentence.
    """
    kinds = kinds_of(lines)
    if not kinds:
        return []
    cells = [_HEADS, *((f"  {kind.name}", *_numbers(kind), _all_done(kind)) for kind in kinds)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADS))]
    if sum(widths) + 2 * (len(widths) - 1) <= width:
        told = [_aligned(row, widths) for row in cells]
    else:
        labels = ["faults:", *[""] * (len(kinds) - 1)]
        sentences = [_sentence(kind, label) for kind, label in zip(kinds, labels, strict=True)]
        told = [line for parts in sentences for line in flowed(parts, width, indent=11, gap=" ", cut=False)]
    return told + flowed(_effective(rows), width, gap=" ", cut=False)


def _done(last: Line | None) -> str:
    if last is None:
        return "not over"
    return "given up" if last["event"] == GIVEN_UP else str(last["did"])  # why is told where the run ends


def _numbers(kind: FaultKind) -> list[str]:
    return [f"{kind.times}", *_middle_and_most(kind.noticed_s), *_middle_and_most(kind.stood_s)]


def _middle_and_most(seconds: Sequence[float]) -> tuple[str, str]:
    return (_seconds(median(seconds)), _seconds(max(seconds))) if seconds else ("-", "-")


def _all_done(kind: FaultKind) -> str:
    """Example: 3 rebuilt, 1 given up, 2 steps again"""
    several = len(kind.done) > 1
    ordered = sorted(kind.done.items(), key=lambda each: -each[1])
    told = [f"{times} {what}" if several else what for what, times in ordered]
    steps = kind.redone_steps
    return ", ".join([*told, *([f"{steps} step{'s' * (steps > 1)} again"] if steps else [])])


def _sentence(kind: FaultKind, label: str) -> list[str]:
    """Parts of lines. Example: faults:  rollout died 3 times, noticed after 0.7 s (at most 1.2 s), ..."""
    told = [f"{label:9}{kind.name} {kind.times} time{'s' * (kind.times > 1)},"]
    for what, seconds in (("noticed after", kind.noticed_s), ("stood", kind.stood_s)):
        middle, most = _middle_and_most(seconds)
        several = [f"{middle}", f"(at most {most}),"] if len(seconds) > 1 else [f"{middle},"]
        told += [f"{what} {several[0]}", *several[1:]] if seconds else []
    return [*told, *_all_done(kind).split(" ")]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, done = row
    right = map(str.rjust, numbers, widths[1:-1])
    return "  ".join([name.ljust(widths[0]), *right, done]).rstrip()


def _effective(rows: Sequence[Row]) -> list[str]:
    """Parts of a line; none before the first step."""
    told = [value for row in rows if (value := row.get("time/effective")) is not None]
    if not told:
        return []
    lost = math.fsum(row.get("time/lost") or 0.0 for row in rows)
    share = min(told[-1], _MOST_SHOWN) if lost else told[-1]
    return ["effective training time", f"{100 * share:.1f} %", f"({_seconds(lost, 10)} lost)"]


def _seconds(seconds: float, whole_from: float = 100) -> str:
    return f"{seconds:,.0f} s" if seconds >= whole_from else f"{seconds:.1f} s"
