"""How long the page takes over many runs: python -m benchmarks.page [--runs 100] [--steps 5000] [--metrics 60]

Runs are written into a temporary directory, one of them with samples, and `tandem watch` serves them as a process of
its own. It is asked as a browser asks: for the list, for a run with all of its curves, for what is searched; then steps
are appended to one of the runs, and the time is taken until an event has brought them. Processor time of a server that
nobody asks, and of one with a page open, is what a run beside it loses.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from benchmarks import results

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "token-of-a-benchmark"
LIMITS = {"list": 1.0, "run": 2.0, "step": 2.0, "rss": 300.0}
"""Seconds, and MB of memory."""
OPENED, APPENDED, IDLE_S = 10, 10, 10.0
SAMPLES = 8
NAMES = (
    "reward/mean",
    "reward/max",
    "eval/reward/mean",
    "policy/entropy",
    "policy/kl",
    "grad_norm",
    "tokens_per_second",
)
TIMES = ("time/rollout", "time/update", "time/sync", "time/step", "time/elapsed")


def write_runs(directory: Path, runs: int, steps: int, metrics: int) -> int:
    """Runs of GRPO; returns their bytes. Lines are made once, and are the same in each run but for one metric."""
    names = [*NAMES, *TIMES, *(f"other/{number}" for number in range(metrics - len(NAMES) - len(TIMES)))]
    config = {"algorithm": {"name": "grpo", "steps": steps}, "model": {"path": "model"}, "run": {"name": "run"}}
    tails = [_line(step, names[1:]) for step in range(1, steps + 1)]
    for number in range(runs):
        run = directory / f"run-{number:03d}"
        (run / "logs").mkdir(parents=True)
        (run / "config.json").write_text(json.dumps(config))
        with (run / "metrics.jsonl").open("w") as file:
            for step, tail in enumerate(tails, start=1):
                file.write(f'{{"step": {step}, "reward/mean": {math.tanh(step / (500 + number)):.16f}, {tail}}}\n')
    with (directory / "run-000/samples.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            file.writelines(_sample(step, number) for number in range(SAMPLES))
    return sum(path.stat().st_size for path in directory.rglob("*.jsonl"))


def _line(step: int, names: list[str]) -> str:
    values = {name: math.sin(step * (place + 1) / 100) + place for place, name in enumerate(names)}
    return json.dumps(values)[1:-1]


def _sample(step: int, number: int) -> str:
    row = {"step": step, "group": number // 4, "sample": number % 4, "prompt": f"prompt {step} {number // 4}"}
    row |= {
        "completion": f"answer {step} " + "word " * 100,
        "reward": number / SAMPLES,
        "advantage": 0.0,
        "status": "ok",
    }
    return json.dumps(row) + "\n"


@contextmanager
def served(directory: Path) -> Iterator[tuple[httpx.Client, psutil.Process, float]]:
    """A client of the server, its process, and the seconds from the command to its address."""
    command = [sys.executable, "-m", "launch", "watch", str(directory), "--token", TOKEN]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        began = time.perf_counter()
        address = process.stdout.readline().partition("?")[0]
        with httpx.Client(base_url=address, headers={"X-Tandem-Token": TOKEN}, timeout=120) as client:
            yield client, psutil.Process(process.pid), time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def asked(client: httpx.Client, path: str, **words: object) -> tuple[float, Any]:
    """Seconds, and the answer."""
    began = time.perf_counter()
    answer = client.get(f"api/{path}", params={name: str(value) for name, value in words.items()})
    answer.raise_for_status()
    return time.perf_counter() - began, answer.json()


def opened(client: httpx.Client, number: int) -> float:
    """Seconds for a run, with all of its curves."""
    name = f"run-{number:03d}"
    run_s, run = asked(client, "run", id=name)
    curves_s, found = asked(client, "metrics", id=name)
    assert run["step"] == found["step"][-1] and len(found["values"]) == len(run["metrics"])
    return run_s + curves_s


def seconds_to_appear(client: httpx.Client, directory: Path, steps: int) -> list[float]:
    """Of lines that are appended one after the other, until their event has come."""
    path, found = directory / "run-001/metrics.jsonl", list[float]()
    mark = asked(client, "metrics", id="run-001", names="reward/mean")[1]["mark"]
    with client.stream("GET", "api/live", params={"id": "run-001", "mark": mark}) as answer:
        lines = answer.iter_lines()
        for step in range(steps + 1, steps + 1 + APPENDED):
            time.sleep(0.13 * (step % 7))  # at different moments between two looks of the server
            with path.open("a") as file:
                file.write(json.dumps({"step": step, "reward/mean": 0.5}) + "\n")
            began = time.perf_counter()
            wanted = f'"step":[{step}]'
            assert any(wanted in line for line in lines), "the connection has ended"
            found.append(time.perf_counter() - began)
    return found


def share_of_a_core(process: psutil.Process, seconds: float) -> float:
    """Processor time of the server in so many seconds, as a share of one core."""
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / seconds


def measure(directory: Path, runs: int, steps: int) -> dict[str, float]:
    """All figures, by name: seconds, MB, and shares of a core."""
    with served(directory) as (client, process, started_s):
        found = {"started": started_s, "first": asked(client, "runs")[0]}
        found["list"] = median(asked(client, "runs")[0] for _ in range(5))
        pages = [opened(client, number) for number in range(min(OPENED, runs))]
        found |= {"run": max(pages), "again": opened(client, min(OPENED, runs) - 1)}
        found["samples"] = asked(client, "samples", id="run-000")[0]
        found["groups"] = asked(client, "groups", id="run-000", step=steps)[0]
        found["search"] = asked(client, "search", id="run-000", text=f"answer {steps} word")[0]
        appeared = seconds_to_appear(client, directory, steps)
        found |= {"step": max(appeared), "step median": median(appeared)}
        found["idle"] = share_of_a_core(process, IDLE_S)
        with client.stream("GET", "api/live", params={"id": "run-001"}):
            found["run open"] = share_of_a_core(process, IDLE_S)
        with client.stream("GET", "api/live"):
            found["list open"] = share_of_a_core(process, IDLE_S)
        found["rss"] = _peak_mb(process.pid)
    return found


def _peak_mb(pid: int) -> float:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def report(found: dict[str, float], options: argparse.Namespace, gigabytes: float, load: float) -> str:
    """The section of RESULTS.md."""

    def row(what: str, name: str, unit: str, limit: str = "") -> tuple[str, str, str]:
        value = f"{100 * found[name]:.1f} % of a core" if not unit else f"{found[name]:.3g} {unit}"
        bound = LIMITS.get(limit)
        return what, value, "" if bound is None else f"{bound:g} {unit}{'' if found[name] < bound else ': MISSED'}"

    rows = [
        row("from the command to its address", "started", "s"),
        row("the list of runs, first time", "first", "s", "list"),
        row("the list of runs, again (median of 5)", "list", "s", "list"),
        row(f"a run with all its curves, first time (worst of {OPENED})", "run", "s", "run"),
        row("the same run again", "again", "s", "run"),
        row("which steps have samples", "samples", "s"),
        row("the samples of a step", "groups", "s"),
        row("a search through all samples, hit in the last step", "search", "s"),
        row(f"a new step on the page, after it is written (worst of {APPENDED})", "step", "s", "step"),
        row("the same, median", "step median", "s"),
        row("processor time of a server that nobody asks", "idle", ""),
        row("with a run's page open", "run open", ""),
        row("with the list open", "list open", ""),
        row("most memory of the server", "rss", "MB", "rss"),
    ]
    command = f"python -m benchmarks.page --runs {options.runs} --steps {options.steps} --metrics {options.metrics}"
    return (
        f"## The page over {options.runs} runs\n\n"
        f"`{command}`, {time.strftime('%Y-%m-%d')}, on {results.machine()}, loaded by other work (a mean of {load:.1f} "
        f"processes that run). {options.runs} runs of {options.steps:,} steps with {options.metrics} metrics, one with "
        f"{SAMPLES} samples a step: {gigabytes:.2f} GB.\n\n" + results.table(("what", "takes", "limit"), rows)
    )


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--metrics", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="page-") as name:
        directory = Path(name)
        size = write_runs(directory, options.runs, options.steps, options.metrics)
        found = measure(directory, options.runs, options.steps)
    body = report(found, options, size / 1e9, os.getloadavg()[1])
    results.write_section("page", body)
    print(body)


if __name__ == "__main__":
    main()
