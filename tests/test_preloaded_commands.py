"""Commands forked with their imports done are what a user would have started: same words, exit codes, processes."""

import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.preloaded import MARK
from tests.preloaded_commands import ROOT, Commands, Hidden

MARKED = "a" * 32
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
SECONDS = "import time\ndef rows(split):\n    open('there', 'w').close()\n    time.sleep(60)\n"
TELLS = """import os, sys
def rows(split):
    names = [name for name in ("ray", "torch", "launch.run.run") if name in sys.modules]
    print("loaded:", names, "directory:", os.getcwd(), "path:", os.getcwd() in sys.path, "argv:", sys.argv[1:])
    return [{"prompt": "a", "completion": "b"}] * 4
"""
JOB = "algorithm: {name: sft, steps: 1, samples_per_update: 2}\nmodel: {init: {}}\ndata: {train: 'mine.py:rows'}\n"


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands(ENVIRONMENT, runs=True) as forking:
        yield forking


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "mine.py").write_text(TELLS)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    ["--version", "", "chek", "help policy.ranks", "check job.yaml", "check job.yaml --json", "check job.yaml x=1"],
)
def test_a_forked_command_says_what_a_started_one_does(commands: Commands, project: Path, words: str) -> None:
    """On both streams, code of the user's included, which sees the same modules, directory and arguments."""
    forked = commands.run(*words.split(), cwd=project, env=ENVIRONMENT, timeout=60)
    command = [sys.executable, "-m", "launch", *words.split()]
    done = subprocess.run(command, cwd=project, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (forked.returncode, forked.stdout, forked.stderr) == (done.returncode, done.stdout, done.stderr)
    assert ("loaded: []" in forked.stderr) == (words in ("check job.yaml", "check job.yaml --json"))


def test_its_processes_are_found_and_a_signal_is_its_own(commands: Commands, project: Path) -> None:
    (project / "mine.py").write_text(SECONDS)
    words = ["check", "job.yaml"]
    with (project / "output").open("w") as stream:
        given = ENVIRONMENT | {MARK: MARKED}
        command = commands.start(words, cwd=project, env=given, stdout=stream, stderr=stream)
    while not (project / "there").exists():
        assert command.poll() is None, (project / "output").read_text()
        time.sleep(0.02)
    marked = [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if has_mark(path)]
    assert str(command.pid) in marked and len(marked) == 2  # with the one that reads the rows
    assert os.getsid(command.pid) == command.pid
    with pytest.raises(subprocess.TimeoutExpired):
        command.wait(0.1)
    command.send_signal(signal.SIGINT)
    assert command.wait(30) == command.poll() == 130
    assert "interrupted" in (project / "output").read_text()
    command = commands.start(words, cwd=project, env=given, stdout=sys.__stdout__, stderr=sys.__stdout__)
    command.send_signal(signal.SIGKILL)
    assert command.wait(30) == -signal.SIGKILL


def has_mark(path: Path) -> bool:
    """Whether a process of this test has this environment."""
    try:
        return f"{MARK}={MARKED}".encode() in path.read_bytes().split(b"\0")
    except OSError:
        return False


def test_another_environment_is_refused(commands: Commands, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the environment must be that"):
        commands.run("--version", cwd=tmp_path, env=ENVIRONMENT | {"HF_HOME": "/elsewhere"}, timeout=9)


def test_hidden_modules_are_there_once_one_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were, specification included; those behind them come with them, and not the other way round."""
    made = {name: types.ModuleType(name) for name in ("hidden_first", "hidden_first.part", "hidden_second")}
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    made["hidden_first"].__path__ = []
    first = Hidden({name: module for name, module in made.items() if "first" in name})
    second = Hidden({"hidden_second": made["hidden_second"]}, also=first)
    monkeypatch.setattr(sys, "meta_path", [first, second, *sys.meta_path])
    assert not made.keys() & sys.modules.keys()
    import hidden_first.part  # type: ignore[import-not-found]

    assert sys.modules["hidden_first.part"] is made["hidden_first.part"] and hidden_first is made["hidden_first"]
    assert hidden_first.__spec__ is None and "hidden_second" not in sys.modules
    for name in ("hidden_first", "hidden_first.part"):
        del sys.modules[name]
    sys.meta_path.insert(0, first)
    import hidden_second  # type: ignore[import-not-found]

    assert hidden_second is made["hidden_second"] and made.keys() <= sys.modules.keys()
