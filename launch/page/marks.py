"""What befell a run, for its time axis: faults as one entry each, checkpoints, starts, ends, warnings and alerts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launch.page.files import Below
from launch.page.rows import number, text, whole_number
from launch.page.state import RUNNING, UNKNOWN, Current, RunState, seconds_of
from launch.run.manifest import step_of
from launch.tracking.events import GIVEN_UP, NOTICED, RECOVERED

Line = dict[str, Any]
_MOST_SAMPLES = 1000
_TOLD_ALREADY = "health", "faults"
"""Rules of alerts that tell of what has marks or entries of its own."""


def merged_faults(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """One entry for each fault, in their order: what was noticed, and how it was over."""
    found: dict[int, dict[str, Any]] = {}
    for line in lines:
        fault = whole_number(line.get("fault"))
        if fault is None:
            continue
        if line.get("event") == NOTICED and fault not in found:
            found[fault] = _noticed(fault, line)
        elif line.get("event") in (RECOVERED, GIVEN_UP) and fault in found:
            found[fault] |= _over(line)
    return list(found.values())


def _noticed(fault: int, line: Line) -> dict[str, Any]:
    texts = {name: text(line.get(name)) for name in ("who", "what", "phase", "noticed_by", "cause")}
    return {
        "fault": fault,
        **texts,
        "step": whole_number(line.get("step")),
        "at": seconds_of(line.get("at")),
        "attempt": whole_number(line.get("attempt")),
        "noticed_s": number(line.get("noticed_s")),
        "did": "",
        "stood_s": None,
        "samples": [],
        "redone_steps": 0,
        "state": "open",
    }


def _over(line: Line) -> dict[str, Any]:
    samples = line.get("samples")
    return {
        "did": text(line.get("did")),
        "stood_s": number(line.get("stood_s")),
        "samples": [text(each, 200) for each in samples[:_MOST_SAMPLES]] if isinstance(samples, list) else [],
        "redone_steps": whole_number(line.get("redone_steps")) or 0,
        "state": text(line.get("event")),
    }


def attempts(lines: Iterable[Line], now: Current | None) -> list[dict[str, Any]]:
    """The attempts at a run, `{"number", "step", "at"}`: where each began, and when, as far as that is known. The last
    one may be there twice: a run without faults that was stopped and goes on is still its first attempt."""
    found: dict[int, dict[str, Any]] = {1: {"number": 1, "step": 0, "at": None}}
    for line in lines:
        attempt, at = whole_number(line.get("attempt")), seconds_of(line.get("at"))
        if attempt is not None and attempt not in found:
            step, again = whole_number(line.get("step")), whole_number(line.get("redone_steps")) or 0
            # Else its first line is of a fault that it has met later.
            known = line.get("event") == RECOVERED and line.get("did") == "resumed" and step is not None
            step, at = (max(0, step - again), at) if known and step is not None else (None, None)
            found[attempt] = {"number": attempt, "step": step, "at": at}
    again = []
    if now is not None and now.attempt is not None:
        last = {"number": now.attempt, "step": now.began_step, "at": now.began_at}
        if now.attempt == 1 and now.began_step:
            again = [last]
        elif now.began_at is not None or now.attempt not in found:
            found[now.attempt] = last
    return [*(found[attempt] for attempt in sorted(found)), *again]


def marks(
    checkpoints: Iterable[int],
    starts: Iterable[dict[str, Any]],
    ended: tuple[RunState, int | None],
    warnings: Iterable[tuple[int, str]],
    alerts: Iterable[Line],
) -> list[dict[str, Any]]:
    """What happened at which step, `{"step", "kind", "text"}`, by step.

    Args:
        checkpoints: steps of those that are kept.
        starts: what `attempts` gives.
        ended: how the run is, and its last step.
        warnings: (step, line) of metrics out of their range.
        alerts: lines of alerts.jsonl.
    """
    found = [_mark(step, "checkpoint", f"checkpoint of step {step}") for step in checkpoints]
    found += [_mark(each["step"], "start", f"attempt {each['number']}") for each in starts if each["step"] is not None]
    state, last = ended
    if state.name not in (RUNNING, UNKNOWN) and last is not None:
        found.append(_mark(last, "stop", state.why or state.name))
    found += [_mark(step, "health", line) for step, line in warnings]
    for line in alerts:
        step = whole_number(line.get("step"))
        if step is not None and line.get("rule") not in _TOLD_ALREADY:
            found.append(_mark(step, "alert", text(line.get("text"))))
    return sorted(found, key=lambda mark: mark["step"])


def kept_checkpoints(below: Below, directory: Path) -> list[int]:
    """Steps of the complete checkpoints that are there, in order."""
    folders = below.folders(directory / "checkpoints")
    return sorted(
        step for folder in folders if (step := step_of(folder)) >= 0 and below.stamp(folder / "manifest.json")
    )


def _mark(step: int, kind: str, said: str) -> dict[str, Any]:
    return {"step": step, "kind": kind, "text": said}
