"""A table of what was done to runs, by kind of process, and how long it took them to notice and to get over it."""

from collections.abc import Iterable
from datetime import UTC, datetime
from statistics import median

from benchmarks.results import machine, table, write_section
from tests.chaos.injector import Injected

_HEADER = "process", "how", "times", "noticed within, median", "at most", "stood, median", "at most"


def rows(faults: Iterable[Injected]) -> list[tuple[object, ...]]:
    """A row for each kind of process and each of kill and stop; seconds."""
    found: dict[tuple[str, str], list[Injected]] = {}
    for each in faults:
        found.setdefault((each.hit.kind, each.hit.how), []).append(each)
    return [
        (*key, len(of), *_seconds([each.noticed_s for each in of]), *_seconds([each.stood_s for each in of]))
        for key, of in sorted(found.items())
    ]


def report(faults: list[Injected], missed: int, command: str, runs: int, *, write: bool) -> str:
    """The table; with `write` it becomes a section of benchmarks/RESULTS.md."""
    body = table(_HEADER, rows(faults))
    if write:
        head = f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, on {machine()}. {len(faults)} faults in {runs} runs"
        note = f"; for {missed} the phase was too short" if missed else ""
        write_section("chaos", f"## Faults that runs survive\n\n{head}{note}; seconds.\n\n{body}")
    return body


def _seconds(values: list[float]) -> tuple[str, str]:
    return f"{median(values):.1f}", f"{max(values):.1f}"
