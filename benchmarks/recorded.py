"""Whether a change of the code changes what a run computes: small jobs, recorded before and after, and compared.

    python -m benchmarks.recorded record DIRECTORY/before
    python -m benchmarks.recorded record DIRECTORY/after --tree CHECKOUT
    python -m benchmarks.recorded compare DIRECTORY/before DIRECTORY/after

`record` runs the jobs of `benchmarks.recorded_jobs` one after the other on the CPU, by `tandem run` of the code in a
checkout, and keeps of each the losses, gradient norms, mean rewards and evaluations of every step, its samples, and a
SHA-256 of every tensor of the export. All start from one model, a short SFT run's: the first recording makes it, beside
itself. `compare` says what is equal and by how much the rest differs, and exits with 1 when anything does. Samples are
sorted: the order in which a run shows them is nothing that it computes.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from benchmarks.recorded_jobs import jobs, start, write_rows

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RECORDING = "recording.json"
DEADLINE_S = 600
"""Of one job, in seconds."""
METRICS = ("loss/", "eval/", "reward/mean", "grad_norm", "critic/grad_norm")
"""Metrics that are kept: by name, or by what it begins with."""
SAMPLES = ("prompt", "completion", "reward", "advantage")
"""Columns of samples.jsonl that are kept, in the order by which the samples of a step are sorted."""

Value = float | str | None
"""None is a number that is not finite, which JSON lacks."""
Series = dict[str, list[Value]]
"""Step -> its values: of a metric one, of a column of the samples one for each."""
Hashes = dict[str, str | None]
"""Name of a tensor -> SHA-256; None where it is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What `compare` says of one field of one job; `largest` is the relative difference, inf where none can be told."""

    job: str
    field: str
    largest: float
    text: str


class Kept(TypedDict):
    """What a recording keeps of a run."""

    series: dict[str, Series]
    """By the field's name."""
    tensors: Hashes
    """Of the export."""
    seconds: NotRequired[float]


class Recording(TypedDict):
    """The file RECORDING."""

    commit: str
    start: str
    """Directory of the model that all jobs start from."""
    model: Hashes
    jobs: dict[str, Kept]


def record(output: Path, tree: Path, model: Path, names: list[str]) -> None:
    """Run the jobs with the code in `tree` and write `output`/RECORDING; makes `model` if it is not there.

    Raises SystemExit when a job fails or another code than the tree's would run.
    """
    _check_tree(tree)
    (output / RECORDING).unlink(missing_ok=True)  # it would be of other runs than those beside it
    write_rows(output / "data")
    if not (model / "config.json").is_file():
        _run(output, tree, "model", start(output / "data"))
        shutil.copytree(output / "runs" / "model" / "export", model)
    found: dict[str, Kept] = {}
    for name, settings in jobs(output / "data", model).items():
        if name not in names:
            continue
        started = time.monotonic()
        _run(output, tree, name, {"model": {"path": str(model)}, **settings})
        seconds = time.monotonic() - started
        found[name] = {**kept(output / "runs" / name), "seconds": round(seconds, 1)}
        print(f"{name}: {seconds:.0f} s", flush=True)
    recording: Recording = {"commit": _commit(tree), "start": str(model), "model": _hashes(model), "jobs": found}
    (output / RECORDING).write_text(json.dumps(recording), encoding="utf-8")


def _check_tree(tree: Path) -> None:
    if not (tree / "launch" / "__main__.py").is_file():
        raise SystemExit(f"--tree: must be a checkout of Tandem, got {tree}")
    code = "import actors, algorithms, launch; print(actors.__file__, algorithms.__file__, launch.__file__)"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tree, env=_environment(tree), capture_output=True, text=True, check=True).stdout
    if wrong := [file for file in found.split() if not Path(file).is_relative_to(tree)]:
        raise SystemExit(f"--tree: its own code must run, got {wrong[0]}")


def _environment(tree: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_", "WANDB_"))}
    return kept | {"PYTHONPATH": str(tree), "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}


def _commit(tree: Path) -> str:
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def _run(output: Path, tree: Path, name: str, settings: Mapping[str, object]) -> None:
    common = {
        "tracking": {"wandb": False, "samples_per_step": 64},
        "checkpoint": {"resume": False},
        "cluster": {"cpus": 2},
        "run": {"name": name, "output": str(output / "runs"), "seed": 5},
    }
    # Of a run in this place, only what this one writes may be kept.
    shutil.rmtree(output / "runs" / name, ignore_errors=True)
    config, log = output / f"{name}.yaml", output / f"{name}.log"
    config.write_text(json.dumps({**common, **settings}, indent=1) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "launch", "run", str(config)]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=tree, env=_environment(tree), stdout=out, stderr=subprocess.STDOUT)
        try:
            code: int | str = process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            code = f"nothing within {DEADLINE_S} s"
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # it ends its Ray
                process.wait(60)
    if code:
        raise SystemExit(f"{name}: the run must end with 0, got {code}, see {log}")


def kept(run: Path) -> Kept:
    """What a recording keeps of a run's directory."""
    series: dict[str, Series] = {}
    for row in _lines(run / "metrics.jsonl"):
        for name in row:
            if name in METRICS or name.startswith(tuple(item for item in METRICS if item.endswith("/"))):
                series.setdefault(name, {})[str(row["step"])] = [_finite(row[name])]
    samples = [row for row in _lines(run / "samples.jsonl") if row["step"] > 0]
    samples.sort(key=lambda row: [row["step"], *(str(row.get(name)) for name in SAMPLES)])
    for row in samples:
        for name in SAMPLES:
            if name in row:
                series.setdefault(f"samples/{name}", {}).setdefault(str(row["step"]), []).append(_finite(row[name]))
    return {"series": series, "tensors": _hashes(run / "export")}


def _lines(file: Path) -> Iterator[dict[str, Value]]:
    return map(json.loads, file.read_text(encoding="utf-8").splitlines() if file.is_file() else ())


def _finite(value: Value) -> Value:
    if isinstance(value, str):
        return value
    return float(value) if value is not None and math.isfinite(value) else None


def _tensors(directory: Path) -> "dict[str, np.ndarray]":
    """Arrays of all safetensors files, those of adapters too, by the file's name and their own."""
    from safetensors.numpy import load_file

    files = sorted(directory.rglob("*.safetensors"))
    return {f"{file.stem}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def _hashes(directory: Path) -> Hashes:
    """SHA-256 of each tensor's dtype, shape and bytes; None for one that is not finite."""
    found = {}
    for name, tensor in _tensors(directory).items():
        content = f"{tensor.dtype} {tensor.shape} ".encode() + tensor.tobytes()
        found[name] = hashlib.sha256(content).hexdigest() if math.isfinite(abs(tensor).max()) else None
    return found


def compare(ours: Path, others: Path) -> Iterator[Finding]:
    """Findings about every field of every job of two recordings, those that only one has included."""
    one, other = _read(ours), _read(others)
    yield _of_tensors("all", "model", one["model"], other["model"], (Path(one["start"]), Path(other["start"])))
    for job in one["jobs"] | other["jobs"]:
        if job not in one["jobs"] or job not in other["jobs"]:
            yield _only_in_one(job, "all fields", job in one["jobs"])
            continue
        mine, theirs = one["jobs"][job], other["jobs"][job]
        for field in sorted(mine["series"] | theirs["series"]):
            if field in mine["series"] and field in theirs["series"]:
                yield _of_series(job, field, mine["series"][field], theirs["series"][field])
            else:
                yield _only_in_one(job, field, field in mine["series"])
        places = ours / "runs" / job / "export", others / "runs" / job / "export"
        yield _of_tensors(job, "export", mine["tensors"], theirs["tensors"], places)


def _read(place: Path) -> Recording:
    if not (place / RECORDING).is_file():
        raise SystemExit(f"{place}: must be a recording, has no {RECORDING}")
    return json.loads((place / RECORDING).read_text(encoding="utf-8"))


def _only_in_one(job: str, field: str, first: bool) -> Finding:
    return Finding(job=job, field=field, largest=math.inf, text=f"only in the {'first' if first else 'second'} one")


def _of_series(job: str, field: str, ours: Series, others: Series) -> Finding:
    """How two Series of one field differ, and from which step on."""
    differing: dict[str, float] = {}
    for step in sorted(ours | others, key=int):
        mine, theirs = ours.get(step, []), others.get(step, [])
        if len(mine) != len(theirs):
            differing[step] = math.inf
        elif largest := max(map(relative_difference, mine, theirs), default=0.0):
            differing[step] = largest
    if not differing:
        return Finding(job=job, field=field, largest=0.0, text=f"equal, {len(ours)} steps")
    text = f"differs from step {next(iter(differing))}, in {len(differing)} of {len(ours | others)} steps, by "
    text += _reason([(ours.get(step, []), others.get(step, [])) for step in differing], max(differing.values()))
    return Finding(job=job, field=field, largest=max(differing.values()), text=text)


def _reason(pairs: list[tuple[list[Value], list[Value]]], largest: float) -> str:
    """What values that differ differ by, in words."""
    for mine, theirs in pairs:
        if len(mine) != len(theirs):
            return f"the number of values, {len(mine)} and {len(theirs)}"
    values = [value for pair in pairs for part in pair for value in part]
    if None in values:
        return "what is not finite" + (", in both" if all(mine == theirs for mine, theirs in pairs) else "")
    return "texts" if any(isinstance(value, str) for value in values) else f"at most {largest:.1e} of the value"


def relative_difference(ours: Value, others: Value) -> float:
    """Between two values as a share of the larger one; inf where a text is another, or one of them is not finite."""
    if ours is None or others is None:
        return math.inf
    if isinstance(ours, str) or isinstance(others, str):
        return 0.0 if ours == others else math.inf
    return 0.0 if ours == others else abs(ours - others) / max(abs(ours), abs(others))


def _of_tensors(job: str, field: str, ours: Hashes, others: Hashes, places: tuple[Path, Path]) -> Finding:
    """How tensors differ; by how much is told by the files in the directories `places`, if they are still there."""
    differing = [name for name in ours | others if ours.get(name) is None or ours.get(name) != others.get(name)]
    if not differing:
        return Finding(job=job, field=field, largest=0.0, text=f"equal, {len(ours)} tensors")
    text = f"{len(differing)} of {len(ours | others)} tensors differ, the first is {differing[0]}"
    one, other = (_tensors(place) for place in places)
    largest = max(_share(one.get(name), other.get(name)) for name in differing)
    if any(None in (ours.get(name, ""), others.get(name, "")) for name in differing):
        text += ", by what is not finite"
    elif math.isfinite(largest):
        text += f", at most by {largest:.1e} of a tensor's largest value"
    return Finding(job=job, field=field, largest=largest, text=text)


def _share(ours: "np.ndarray | None", others: "np.ndarray | None") -> float:
    """Largest difference of two arrays as a share of their largest value; inf where it cannot be told."""
    if ours is None or others is None or (ours.dtype, ours.shape) != (others.dtype, others.shape):
        return math.inf
    share = float(abs(ours - others).max() / max(abs(ours).max(), abs(others).max()))
    return math.inf if math.isnan(share) else share


def report(findings: Iterator[Finding], tolerance: float) -> bool:
    """Print the findings as a table, and return whether all are equal, or differ by at most `tolerance`."""
    good = True
    for finding in findings:
        within = finding.largest <= tolerance
        good &= within
        print(f"{'  ' if within else '! '}{finding.job:13} {finding.field:30} {finding.text}")
    print("all equal" if good and not tolerance else f"all within {tolerance:g}" if good else "not all equal")
    return good


def main(arguments: list[str] | None = None) -> int:
    """Record or compare; returns the exit code."""
    names = list(jobs(Path(), Path()))
    parser = argparse.ArgumentParser(description="Record what small jobs compute, or compare two recordings.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    recorder = verbs.add_parser("record", help="run the jobs and write a recording")
    recorder.add_argument("output", type=Path, help="directory of the recording")
    recorder.add_argument("--tree", type=Path, default=ROOT, help="checkout whose code runs (default: this one)")
    recorder.add_argument("--model", type=Path, help="initial model, made if missing (default: beside the recording)")
    recorder.add_argument("--jobs", nargs="+", choices=names, default=names, help="only these")
    comparer = verbs.add_parser("compare", help="compare two recordings; exit code 1 when they differ")
    comparer.add_argument("ours", type=Path)
    comparer.add_argument("others", type=Path)
    comparer.add_argument("--tolerance", type=float, default=0.0, help="relative difference that counts as equal")
    given = parser.parse_args(arguments)
    if given.verb == "compare":
        return 0 if report(compare(given.ours, given.others), given.tolerance) else 1
    output = given.output.resolve()
    model = given.model.resolve() if given.model else output.parent / "model"
    record(output, given.tree.resolve(), model, given.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
