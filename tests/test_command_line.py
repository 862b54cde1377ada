"""Command lines of every verb that are wrong in themselves: one line each, exit code 2, before anything is read."""

from pathlib import Path

import pytest

from launch.cli import main

CLUSTER = ["--address", "http://127.0.0.1:1"]
MINE = ["mine", "adir", "--data", "rows.jsonl", "--output", "o.jsonl"]
NOTHING = "must be a model directory or a run directory with an export, got"
REQUIRED = {
    "run": "CONFIG",
    "check": "CONFIG",
    "data": "CONFIG",
    "submit": "CONFIG",
    "mine": "--data, --output",
    "chat": "MODEL",
    "search": "MODEL",
    "export": "RUN",
    "status": "ID",
    "logs": "ID",
    "stop": "ID",
}
MISTAKES = [
    # Options that there are not, with the nearest one; before what is missing.
    ("run job.yaml --rows 3", "--rows: unknown option of tandem run (see tandem run --help)"),
    ("check job.yaml --jso", "--jso: unknown option of tandem check (did you mean --json?)"),
    ("check --jsn", "--jsn: unknown option of tandem check (did you mean --json?)"),
    ("data job.yaml --ROWS 3", "--ROWS: unknown option of tandem data (did you mean --rows?)"),
    ("mine m --dta rows.jsonl", "--dta: unknown option of tandem mine (did you mean --data?)"),
    ("submit job.yaml --adress=x", "--adress: unknown option of tandem submit (did you mean --address?)"),
    ("logs id --flow", "--flow: unknown option of tandem logs (did you mean --follow?)"),
    ("stop id --time 3", "--time: unknown option of tandem stop (did you mean --timeout?)"),
    ("list --al", "--al: unknown option of tandem list (did you mean --all?)"),
    ("k8s job.yaml --knd rayjob", "--knd: unknown option of tandem k8s (did you mean --kind?)"),
    # Given twice.
    ("data job.yaml --rows 2 --rows=3", "--rows: must be given once, got it 2 times"),
    ("logs id -f --follow", "--follow: must be given once, got it 2 times"),
    # Too much, and nothing.
    ("status one two", "two: must be left out, as tandem status takes no such argument, got 'two'"),
    ("list extra", "extra: must be left out, as tandem list takes no such argument, got 'extra'"),
    ("data job.yaml --rows", "--rows: needs a value, got nothing (see tandem data --help)"),
    ("check job.yaml --json=1", "--json: takes no value, got 1 (see tandem check --help)"),
    # Numbers.
    *[
        (
            f"data job.yaml --rows {number}",
            f"--rows: must be a whole number from 1, got {number} (see tandem data --help)",
        )
        for number in ("0", "-1", "1e9", "nan", "1.5", "²")
    ],
    (
        "chat m --prompt x --max-tokens 99999999999",
        "--max-tokens: must be a whole number from 1 to 2147483647, got 99999999999 (see tandem chat --help)",
    ),
    (f"search m --top {'9' * 6000}", f"--top: must be a whole number from 1 to 2147483647, got {'9' * 77}... (see"),
    *[
        (f"chat m --temperature {text}", f"--temperature: must be a number from 0, got {text} (see tandem chat --help)")
        for text in ("nan", "inf", "-1", "hot")
    ],
    ("stop id --timeout nan", "--timeout: must be seconds from 0, got nan (see tandem stop --help)"),
    ("logs id --tail 0", "--tail: must be a whole number from 1, got 0 (see tandem logs --help)"),
    # Choices.
    ("k8s job.yaml --kind RayJob", "--kind: must be one of rayjob, raycluster (did you mean rayjob?), got RayJob"),
    ("k8s job.yaml --kind pod", "--kind: must be one of rayjob, raycluster, got pod (see tandem k8s --help)"),
    # Files and directories of the wrong kind.
    ("run adir", "config file: must be a file, got a directory, adir"),
    ("k8s --check adir", "--check: must be a YAML file that can be read, got adir (Is a directory)"),
    *[
        (command.format(path), f"{field}: {rule}")
        for command, field in (("chat {} --prompt x", "MODEL"), ("export {}", "RUN"))
        for path, rule in {
            "adir": "must be a model directory with a config.json, got the empty directory adir",
            "afile": "must be a directory with a config.json, not a file, got afile",
            "nosuch": f"{NOTHING} nosuch",
        }.items()
    ],
    # Options that exclude each other.
    ("list --namespace x --address http://a:1", "--namespace: needs --kube, got x"),
    ("list --kube --address http://a:1", "--address: is not for --kube, got http://a:1"),
    # Verbs.
    ("RUN job.yaml", "verb: must be one of init, run, "),
    ("--versio", "verb: must be one of init, run, "),
]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adir").mkdir()
    for name in ("afile", "rows.jsonl", "job.yaml"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # so that what `main` adds goes with the test


def line_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong command prints."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize(("command", "expected"), MISTAKES)
def test_a_wrong_command_line_is_one_line(capsys: pytest.CaptureFixture[str], command: str, expected: str) -> None:
    assert line_of(capsys, *command.split(" ")).startswith(f"error: {expected}")


@pytest.mark.parametrize(("verb", "needed"), REQUIRED.items())
def test_a_verb_alone_says_what_it_needs(capsys: pytest.CaptureFixture[str], verb: str, needed: str) -> None:
    example = " a YAML file, such as configs/own-task.yaml," if needed.startswith("CONFIG") else ""
    assert line_of(capsys, verb) == f"error: {needed}: required,{example} got nothing (see tandem {verb} --help)"


@pytest.mark.parametrize(
    "words",
    [
        *[[verb, ""] for verb in ("run", "check", "data", "submit", "k8s")],
        ["chat", "", "--prompt", "x"],
        ["chat", "m", "--prompt", ""],
        ["export", "m", "--output", ""],
        ["search", "m", "--corpus", ""],
        ["status", "", *CLUSTER],
        ["submit", "job.yaml", "--id", ""],
        ["list", "--address", ""],
        ["k8s", "--check", ""],
    ],
)
def test_an_empty_argument_is_none(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert line_of(capsys, *words).endswith(": must not be empty, got ''")


def test_an_empty_instruction_is_one_for_mine(capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(capsys, *MINE, "--query-prompt", "").startswith("error: MODEL: must be a model directory")


@pytest.mark.parametrize(
    ("word", "near"),
    [("RUN", "run"), ("Check", "check"), ("train", "run"), ("kill", "stop"), ("job.yaml", "run job.yaml")],
)
def test_a_wrong_verb_names_the_nearest(capsys: pytest.CaptureFixture[str], word: str, near: str) -> None:
    assert line_of(capsys, word).endswith(f" (did you mean {near}?), got {word}")


def test_a_word_that_is_like_no_verb_has_no_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(capsys, "bogus").endswith("k8s, completion, help, got bogus")


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tandem ")


def test_a_working_directory_that_is_gone_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    line = line_of(capsys, "export", "m")
    monkeypatch.chdir(tmp_path)
    assert line == "error: working directory: must exist (No such file or directory), got one that is gone"
