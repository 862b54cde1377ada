"""The report on mutations, of made-up results: what is counted, what fails, and what the kept reasons must have."""

import tomllib
from pathlib import Path

import pytest

from tests.mutants import Entry, Mutant, change_of, entries_of, function_of, report, status_of

ROOT = Path(__file__).resolve().parent.parent
DIFF = """--- actors/a.py
+++ actors/a.py
@@ -1,4 +1,3 @@
 def f(a, b):
-    return g(
-        a,
-        b,
-    )
+    return g(
+        b,
+    )"""


def mutant(status: str, change: str = "a => b", function: str = "actors.a.f") -> Mutant:
    return Mutant(function.rpartition(".")[0], function, change, status)


def reported(mutants: list[Mutant], *entries: Entry, modules: tuple[str, ...] = ("actors.a",)) -> int:
    return report(mutants, entries, modules, "12 s")


def test_the_table_counts_what_is_seen_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """One in ten may be without a reason, not more."""
    mutants = [mutant("seen")] * 6 + [mutant("timeout"), mutant("survived"), mutant("no tests", "c => d")]
    mutants += [mutant("suspicious", "e => f", "actors.b.g")]
    entries = [Entry("actors.a.f", "equal", ["a => b"]), Entry("actors.a.*", "text", pattern="^c => ")]
    assert reported(mutants, *entries, modules=("actors.a", "actors.b")) == 0
    told, errors = capsys.readouterr()
    lines = told.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["actors.a", "9", "7", "1", "2", "0"],
        ["actors.b", "1", "0", "0", "0", "1"],
        ["all", "10", "7", "1", "2", "1"],
    ]
    assert lines[4].endswith("; 12 s") and errors == ""
    assert lines[5:] == ["timeout: actors.a.f: a => b", "suspicious: actors.b.g: e => f"]
    assert reported(mutants[1:], *entries, modules=("actors.a", "actors.b")) == 1
    assert capsys.readouterr().err == "error: unexplained: at most 10% of 9 mutations, got 1\n"


@pytest.mark.parametrize(
    ("entry", "stale"),
    [
        (Entry("actors.a.f", "equal", ["x => y"]), "actors.a.f: no longer unseen: x => y"),
        (Entry("actors.a.g", "equal", ["a => b"]), "actors.a.g: no longer unseen: a => b"),
        (Entry("actors.*", "text", pattern="^x"), "actors.*: no longer unseen: ^x"),
        (Entry("actors.*", "text", ["s => t"]), "actors.*: no longer unseen: s => t"),
    ],
)
def test_a_reason_that_fits_nothing_is_told(entry: Entry, stale: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the mutation is still made, but some test sees it now."""
    mutants = [mutant("seen", "s => t")] * 20 + [mutant("survived")]
    assert reported(mutants, Entry("actors.a.f", "equal", ["a => b"])) == 0
    assert reported(mutants, Entry("actors.a.f", "equal", ["a => b"]), entry) == 1
    assert capsys.readouterr().err == f"error: {stale}\n"


def test_nothing_run_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert reported([], modules=()) == 1
    assert capsys.readouterr().err == "error: all: no mutation was made\n"
    assert reported([]) == 1
    assert capsys.readouterr().err == "error: actors.a: no mutation was made\n"
    assert reported([mutant("seen")] * 50 + [mutant("not run")]) == 1
    assert capsys.readouterr().err == "error: 1 mutations were not run\n"
    assert reported([mutant("seen")], modules=("actors.a", "actors.b")) == 1
    assert capsys.readouterr().err == "error: actors.b: no mutation was made\n"


@pytest.mark.parametrize(
    ("exit_code", "status"),
    [
        (1, "seen"), (3, "seen"), (0, "survived"), (33, "no tests"), (5, "no tests"), (None, "not run"),
        (2, "not run"), (-24, "timeout"), (36, "timeout"), (-11, "suspicious"), (4, "suspicious"),
    ],
)  # fmt: skip
def test_what_exit_codes_say(exit_code: int | None, status: str) -> None:
    assert status_of(exit_code) == status


def test_a_mutation_is_known_by_function_and_lines() -> None:
    assert change_of(DIFF) == "return g( a, b, ) => return g( b, )"
    assert function_of("actors.a.x_f__mutmut_12") == "actors.a.f"
    assert function_of("actors.a.xǁPackedǁ_x_sums__mutmut_1") == "actors.a.Packed._x_sums"


def test_every_kept_reason_says_something_of_modules_that_are_mutated() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    modules = [file.removesuffix(".py").replace("/", ".") for file in settings["only_mutate"]]
    assert all((ROOT / file).is_file() for file in settings["only_mutate"])
    assert all((ROOT / file).is_file() for file in settings["pytest_add_cli_args_test_selection"])
    entries = entries_of(ROOT / "tests/mutants.toml")
    for entry in entries:
        assert len(entry.reason.split()) > 3, entry
        assert bool(entry.changes) != bool(entry.pattern), entry
        assert entry.where == "*" or any(entry.where.startswith(f"{module}.") for module in modules), entry
    whole = [(entry.where, change) for entry in entries for change in entry.changes]
    assert len(set(whole)) == len(whole)
