"""Can the tests fail? Runs mutmut over the modules that pyproject.toml names, and compares what no test sees with
`tests/mutants.toml`, where each such mutation has a reason.

    .venv/bin/python tests/mutants.py            a quarter of an hour; exit code 1 when tests or reasons are missing
    .venv/bin/python tests/mutants.py --report   the same of the results that are there

A mutation is known by its function and its changed lines, `before => after`: mutmut's numbers change with the code.
"""

import fnmatch
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MOST_UNEXPLAINED = 0.1
"""Of all mutations."""
_STATUSES = {1: "seen", 3: "seen", 0: "survived", 5: "no tests", 33: "no tests", None: "not run", 2: "not run"}
_STATUSES |= dict.fromkeys((36, 24, -24, 152, -9), "timeout")
# One thread for each of two processes; the same examples of Hypothesis and the same order of sets each time; no hub.
_SETTINGS = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "CI": "true", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Mutant:
    """A mutation and what became of it. Example: algorithms.losses, algorithms.losses.bounded, "a < b => a <= b",
    survived."""

    module: str
    function: str
    change: str
    status: str


@dataclass
class Entry:
    """Mutations that no test sees, and why: of functions that fit `where`, by their changes or by a pattern in them."""

    where: str
    reason: str
    changes: list[str] = field(default_factory=list)
    pattern: str | None = None

    def covers(self, mutant: Mutant) -> bool:
        if not fnmatch.fnmatchcase(mutant.function, self.where):
            return False
        return mutant.change in self.changes or bool(self.pattern and re.search(self.pattern, mutant.change))

    def stale(self, unseen: Iterable[Mutant]) -> list[str]:
        """What of it fits no mutation that is unseen: the tests see it now, or the code is another."""
        mine = [mutant for mutant in unseen if fnmatch.fnmatchcase(mutant.function, self.where)]
        changes = {mutant.change for mutant in mine}
        found = [change for change in self.changes if change not in changes]
        if self.pattern is not None and not any(re.search(self.pattern, change) for change in changes):
            found.append(self.pattern)
        return found


def entries_of(path: Path) -> list[Entry]:
    """What the file explains."""
    return [Entry(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["unseen"]]


def status_of(exit_code: int | None) -> str:
    """In words, of pytest's exit code with a mutation: seen, survived, no tests, timeout, not run or suspicious."""
    return _STATUSES.get(exit_code, "suspicious")


def change_of(diff: str) -> str:
    """`before => after` of a unified diff, its lines joined. Example: "return a + b => return a - b"."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++", "@@"))]
    sides = [" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"]
    return " => ".join(sides)


def function_of(name: str) -> str:
    """Of mutmut's name of a mutation. Example: algorithms.losses.xǁPǁsums__mutmut_3 is algorithms.losses.P.sums."""
    module, _, mangled = name.partition("__mutmut_")[0].rpartition(".")
    return f"{module}.{mangled.removeprefix('x_').removeprefix('xǁ').replace('ǁ', '.')}"


def report(mutants: Sequence[Mutant], entries: Sequence[Entry], modules: Sequence[str], took: str) -> int:
    """Print the table, and what is wrong; the exit code is 1 if anything is."""
    unseen = [mutant for mutant in mutants if mutant.status not in ("seen", "timeout")]
    open_ = [mutant for mutant in unseen if not any(entry.covers(mutant) for entry in entries)]
    print(f"{'module':<34}{'mutants':>9}{'seen':>9}{'of time':>9}{'explained':>11}{'unexplained':>13}")
    for module in [*modules, "all"]:
        mine = [mutant for mutant in mutants if module in (mutant.module, "all")]
        late = sum(mutant.status == "timeout" for mutant in mine)
        left, missed = (sum(module in (mutant.module, "all") for mutant in each) for each in (open_, unseen))
        print(f"{module:<34}{len(mine):>9}{len(mine) - missed:>9}{late:>9}{missed - left:>11}{left:>13}")
    print(f"seen: a test fails, or (of time) does not end; {took}")
    for mutant in [*(mutant for mutant in mutants if mutant.status == "timeout"), *open_]:
        print(f"{mutant.status}: {mutant.function}: {mutant.change}")
    made = {mutant.module for mutant in mutants}
    problems = [f"{module}: no mutation was made" for module in modules or ["all"] if module not in made]
    problems += [f"{entry.where}: no longer unseen: {change}" for entry in entries for change in entry.stale(unseen)]
    if unfinished := sum(mutant.status == "not run" for mutant in mutants):
        problems.append(f"{unfinished} mutations were not run")
    if len(open_) > MOST_UNEXPLAINED * len(mutants):
        problems.append(f"unexplained: at most {MOST_UNEXPLAINED:.0%} of {len(mutants)} mutations, got {len(open_)}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def results(files: Sequence[str]) -> list[Mutant]:
    """What mutmut has written below mutants/ of these files."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    found = []
    for file in files:
        written = json.loads(Path("mutants", f"{file}.meta").read_text(encoding="utf-8"))
        for name, exit_code in written["exit_code_by_key"].items():
            change = change_of(get_diff_for_mutant(name, path=file))
            found.append(Mutant(name.rpartition(".")[0], function_of(name), change, status_of(exit_code)))
    return found


def main() -> int:
    os.chdir(ROOT)
    settings: dict[str, Any] = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    started, took = time.monotonic(), "an earlier run"
    if sys.argv[1:] != ["--report"]:
        # mutmut keeps what it found of a function that is as it was, also when the tests are others.
        shutil.rmtree("mutants", ignore_errors=True)
        command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "2"]
        if code := subprocess.run(command, env=os.environ | _SETTINGS).returncode:
            print(f"error: mutmut failed with exit code {code}, its words are above", file=sys.stderr)
            return 1
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        took = f"{time.monotonic() - started:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU"
    files = settings["only_mutate"]
    modules = [file.removesuffix(".py").replace("/", ".") for file in files]
    return report(results(files), entries_of(ROOT / "tests/mutants.toml"), modules, took)


if __name__ == "__main__":
    sys.exit(main())
