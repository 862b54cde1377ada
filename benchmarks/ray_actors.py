"""What Ray itself takes for many actors: empty ones, as many as a machine carries in a minute and a half.

They do nothing and have nothing, so that what is left is Ray's: a lower bound of what a driver pays for engines.
"""

import asyncio
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ray
from ray import ObjectRef

from benchmarks import results

RAMP = (10, 25, 50, 100, 200, 400, 800)
LIMIT_S = 90.0
"""After which no more are started."""
SPARE_GIB = 4.0
"""Memory that is left free."""
ROUNDS = 20
HEADER = (
    "actors", "start, s", "calls/s", "one call to each and all answers, ms", "ms per actor",
    "a look at one outstanding call of each, ms", "MiB per actor",
)  # fmt: skip


class Empty:
    """An actor without anything."""

    async def ping(self) -> int:
        """Its process."""
        return os.getpid()

    async def hang(self) -> None:
        """An outstanding call, as a poll is."""
        await asyncio.sleep(3600)


def measured() -> str:
    """A table, a row for each number of actors that was reached."""
    began, rows = time.monotonic(), list[list[str]]()
    with tempfile.TemporaryDirectory(prefix="scale-") as directory:
        ray.init(
            address="local",
            num_cpus=2 * RAMP[-1],  # counted, and not used
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
            _temp_dir=directory,
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}},
        )
        try:
            actors, spent = list[Any](), 0.0
            for number in RAMP:
                started = time.monotonic()
                more, gone = number - len(actors), started - began
                if why := _enough(more, gone, spent / max(1, len(actors)), rows):
                    break
                actors += [ray.remote(Empty).options(num_cpus=0.01).remote() for _ in range(more)]
                ray.get([actor.ping.remote() for actor in actors], timeout=120)
                spent += time.monotonic() - started
                rows.append(_row(actors, time.monotonic() - started))
                print(results.table(HEADER, rows[-1:]), flush=True)
            else:
                why = "more were not asked for"
        finally:
            ray.shutdown()
    return f"Ray {ray.__version__}; stopped as {why}.\n\n{results.table(HEADER, rows)}"


def _enough(more: int, gone_s: float, each_s: float, rows: Sequence[list[str]]) -> str:
    """Why no more actors are started; empty where they are."""
    if gone_s + more * each_s > LIMIT_S:
        return f"{more} more would take until after {LIMIT_S:g} s"
    each_gib = float(rows[-1][-1]) / 1024 if rows else 0.0
    if free_gib() - more * each_gib < SPARE_GIB:
        return f"{more} more would leave less than {SPARE_GIB:g} GiB free"
    return ""


def _row(actors: list[Any], start_s: float) -> list[str]:
    pids: list[int] = ray.get([actor.ping.remote() for actor in actors])
    all_s = median(_seconds(lambda: ray.get([actor.ping.remote() for actor in actors])) for _ in range(ROUNDS))
    calls = max(1, 4000 // len(actors))
    busy_s = _seconds(lambda: ray.get([actor.ping.remote() for _ in range(calls) for actor in actors]))
    outstanding: list[ObjectRef[None]] = [actor.hang.remote() for actor in actors]
    # As the driver does after every event: which of all polls have something to tell?
    look_s = median(_seconds(lambda: ray.wait(outstanding, num_returns=len(actors), timeout=0)) for _ in range(ROUNDS))
    for each in outstanding:
        ray.cancel(each)
    mib = sum(map(own_mib, pids)) / len(pids)
    return [
        str(len(actors)), f"{start_s:.1f}", f"{calls * len(actors) / busy_s:.0f}", f"{1e3 * all_s:.1f}",
        f"{1e3 * all_s / len(actors):.3f}", f"{1e3 * look_s:.2f}", f"{mib:.0f}",
    ]  # fmt: skip


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def own_mib(process: int) -> float:
    """Memory of a process, with its share of what it has in common with others."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
    found = re.search(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)
    assert found, "the kernel tells it of every process of ours"
    return int(found.group(1)) / 1024


def free_gib() -> float:
    """Memory that this machine can still give."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
    assert found, "Linux tells it"
    return int(found.group(1)) / 2**20
