"""The lines that an earlier start has written, when a run goes on: which are kept, and which steps have none."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from launch.run.earlier import place_aside

_MOST_RANGES = 5


@dataclass(slots=True)
class History:
    """What was in a file of lines with steps."""

    there: bool
    """Whether there was such a file."""
    kept: set[int] = field(default_factory=set)
    """Steps of the lines that stay."""
    again: set[int] = field(default_factory=set)
    """Steps after the one that the run goes on from: they are done again."""
    broken: list[int] = field(default_factory=list)
    """Numbers of the lines that are none of a run's, without the last one, which a killed run was writing."""
    aside: Path | None = None
    """Where the file is as it was, when lines are broken."""


def cut(path: Path, reached: int) -> History:
    """Keep the lines of steps up to `reached`; a file with broken lines is kept aside as it was.

    NUL bytes, which a power cut leaves where a disk had room but no content yet, are left out of lines.
    """
    found = History(there=path.is_file())
    if not found.there:
        return found
    partial = path.with_suffix(".jsonl.new")
    changed = False
    partial.unlink(missing_ok=True)
    with path.open("rb") as old, partial.open("xb") as new:  # "x" follows no link that somebody has put there
        for number, line in enumerate(old, start=1):
            content = line.strip(b"\0\r\n ")
            step = _step(content)
            if step is None:
                # Else it is the last line, cut off by a kill: nothing to report.
                if line.endswith(b"\n") or b"\0" in line:
                    found.broken.append(number)
            elif step > reached:
                found.again.add(step)
            else:
                found.kept.add(step)
                new.write(content + b"\n")
            # Also where only bytes around the row are left out.
            changed |= step is None or step > reached or line != content + b"\n"
    if found.broken:
        found.aside = place_aside(path.parent)
        os.replace(path, found.aside / path.name)
    if changed:
        os.replace(partial, path)
    else:
        partial.unlink()
    return found


def steps_of(path: Path) -> set[int]:
    """Steps, from 1, of which a file has lines; none where there is no file."""
    try:
        with path.open("rb") as file:
            found = {_step(line.strip(b"\0\r\n ")) for line in file}
    except OSError:
        return set()
    return {step for step in found if step}


def gaps(name: str, found: History, wanted: Iterable[int]) -> str | None:
    """What is wrong with a file of which each of the steps `wanted` should have a line, in one line."""
    missing = sorted(set(wanted) - found.kept)
    lacks = f"has nothing of {steps_in_words(missing)}, which {'is' if len(missing) == 1 else 'are'} done"
    if not found.there:
        return f"{name} is gone: it {lacks}" if missing else None
    if found.broken:
        lines = f"{len(found.broken)} broken line{'s' * (len(found.broken) > 1)}, the first is line {found.broken[0]}"
        told = f"{name} had {lines}; as it was, it is kept in {found.aside}"
        return f"{told}; it {lacks}" if missing else told
    return f"{name} {lacks}" if missing else None


def steps_in_words(steps: Iterable[int]) -> str:
    """Example: steps_in_words([3, 5, 6, 7]) == "steps 3, 5 to 7"."""
    ranges: list[list[int]] = []
    for step in sorted(steps):
        if ranges and step == ranges[-1][1] + 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    words = [f"{first}" if first == last else f"{first} to {last}" for first, last in ranges]
    more = f" and {len(words) - _MOST_RANGES} ranges more" if len(words) > _MOST_RANGES else ""
    one = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
    return f"{'step' if one else 'steps'} {', '.join(words[:_MOST_RANGES])}{more}"


def _step(line: bytes) -> int | None:
    """The step of a line; None when it is none of a run's."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if type(step) is int and step >= 0 else None  # not isinstance: to it, true is an int
