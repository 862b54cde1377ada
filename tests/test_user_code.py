"""Names of the user's functions: one line for each mistake, whoever finds it; and what an import does to a process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.config import UserError
from algorithms.user.code import load_function
from algorithms.user.static_look import fault_unseen

CODE = """
import itertools
numbers = itertools.count()
limit = 3
def score(row):
    return next(numbers)
"""
MISTAKES = {
    "code.py:scoer": "code.py has no function scoer (did you mean score?)",
    "my_code:scoer": "my_code has no function scoer (did you mean score?)",
    "cdoe.py:score": "no such file cdoe.py (did you mean code.py?)",
    "~/code.py:score": f"no such file ~/code.py (~ is not expanded in a configuration: write {Path.home()}/code.py)",
    "my_cod:score": "no module named my_cod (did you mean my_code?)",
    "nowhere.at_all:score": "no module named nowhere",
    "code.py": "must name the function too, as code.py:function",
    ":score": "must have a file or module before the colon and a function behind it",
    "code:": "must have a file or module before the colon and a function behind it",
    "scoer": "must be exact, score, path.py:function or module:function (did you mean score?)",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {*sys.modules}
    (tmp_path / "aside").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    for name in ("code.py", "my_code.py"):
        Path(name).write_text(CODE)
    yield
    for name in {*sys.modules} - before:
        del sys.modules[name]


def said(name: str, *, alone: bool) -> str:
    with pytest.raises(UserError) as caught:
        load_function(name, "data.converter", known=("exact", "score"), alone=alone)
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_name_is_one_line_whoever_finds_it(name: str) -> None:
    """In a process of its own, in the driver, and without importing anything."""
    line = f"data.converter: {MISTAKES[name]}, got {name}"
    assert [said(name, alone=alone) for alone in (True, False)] == [line, line]
    unseen = fault_unseen(name, known=("exact", "score"))
    # What is not there for certain is not told of a package that is not looked into.
    assert unseen == MISTAKES[name].replace("named nowhere", "named nowhere.at_all")


def test_names_that_a_line_cannot_show_are_quoted() -> None:
    for name in ("", " ", "a\x1b[2J:b"):
        assert said(name, alone=False).endswith(f", got {name!r}")


def test_what_is_named_must_be_a_function() -> None:
    Path("folder.py").mkdir()
    for alone in (True, False):
        assert said("code.py:limit", alone=alone) == (
            "data.converter: limit must be a function, is a number 3, got code.py:limit"
        )
        assert said("folder.py:score", alone=alone) == (
            "data.converter: must be a file, folder.py is a directory, got folder.py:score"
        )


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("x = 1\ny = {}['gone']", "KeyError: 'gone' (fails.py line 2)"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package' (fails.py line 1)"),
        ("import sys\nsys.exit(3)", "SystemExit: 3 (fails.py line 2)"),
        ("import json\njson.loads('{')", "(fails.py line 2)"),
    ],
)
def test_an_import_that_fails_is_told_with_the_users_line(code: str, cause: str) -> None:
    """The last one in the file that is named, however deep it went from there."""
    Path("fails.py").write_text(code)
    for alone in (True, False):
        for source in ("fails.py", "fails"):
            line = said(f"{source}:score", alone=alone)
            assert line.startswith(f"data.converter: importing {source} failed with ")
            assert line.endswith(f"{cause}, got {source}:score")


def test_an_interrupt_is_the_codes_fault_only_where_nothing_else_runs() -> None:
    Path("interrupts.py").write_text("raise KeyboardInterrupt")
    assert "importing interrupts.py failed with KeyboardInterrupt" in said("interrupts.py:score", alone=True)
    with pytest.raises(KeyboardInterrupt):
        load_function("interrupts.py:score", "data.converter")


def test_an_import_has_a_deadline_where_other_things_wait() -> None:
    Path("stuck.py").write_text("while True:\n    pass\n")
    assert "importing stuck.py never ends: a loop without an end (line" in said("stuck.py:score", alone=False)


def test_a_file_counts_from_its_beginning_each_time_or_runs_once() -> None:
    """The rows of data.train and data.eval each begin anew; a reward function is asked for several times."""
    for alone, expected in ((False, [0, 0, 0]), (True, [0, 1, 2])):
        found = [load_function("code.py:score", "field", alone=alone) for _ in range(3)]
        if not alone:
            del sys.modules[found[0].__module__]
        assert [function({}) for function in found] == expected


def test_a_file_finds_its_neighbours_where_nothing_else_runs() -> None:
    """Elsewhere, what lies beside it could be imported in place of what another library looks for."""
    Path("aside/neighbour_of_code.py").write_text("VALUE = 7")
    Path("aside/asks.py").write_text(
        "def score(row):\n    import neighbour_of_code\n    return neighbour_of_code.VALUE\n"
    )
    function, path = load_function("aside/asks.py:score", "field"), [*sys.path]
    with pytest.raises(ModuleNotFoundError):
        function({})
    assert load_function("aside/asks.py:score", "field", alone=True)({}) == 7
    assert [place for place in sys.path if place not in path] == [str(Path("aside").absolute())]
    assert sys.path[-1] == str(Path("aside").absolute()), "last, so that it hides nothing that is installed"


def test_a_file_called_like_a_module_does_not_become_it() -> None:
    import math

    Path("math.py").write_text("def score(row):\n    return 7\n")
    for alone in (True, False):
        assert load_function("math.py:score", "field", alone=alone)({}) == 7
    assert sys.modules["math"] is math
