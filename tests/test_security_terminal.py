"""Control characters of data, models, names and logs do not reach the terminal, whoever prints them."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.cli import main
from launch.screen.console import VisibleConsole
from launch.screen.display import Display
from launch.screen.stdout import VisibleOutput, tell

ROOT = Path(__file__).resolve().parent.parent
TITLE, CLEAR, C1, BIDI, RETURN, BACK = "\x1b]0;mine\x07", "\x1b[2J", "\x9b31m", "\u202e", "\rover", "\x08"
ACTS = f"a{TITLE}{CLEAR}{C1}{BIDI}{RETURN}{BACK}z"
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What rich writes of its own where there is no panel."""


def console() -> VisibleConsole:
    return VisibleConsole(file=io.StringIO(), force_terminal=True, width=120, color_system="standard")


def written(to: VisibleConsole) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def test_all_that_rich_prints() -> None:
    to = console()
    table = Table(ACTS, title=ACTS)
    table.add_row(ACTS)
    for shown in (ACTS, Text(ACTS, "bold red"), f"[bold]{ACTS}[/]", table, Panel(ACTS, title=ACTS, subtitle=ACTS)):
        to.print(shown)
    assert "\x1b[1" in written(to), "its own colours stay"
    assert not UNSEEN.search(COLOURS.sub("", written(to)))
    assert "\\x1b[2J" in written(to)
    assert "\\u202e" in written(to)


def test_all_that_a_run_shows() -> None:
    to = console()
    display = Display(to)
    display._lively = False  # the panel moves the cursor itself
    display.open([ACTS])
    display.phase(ACTS, ACTS)
    display.start(ACTS, 3)
    display.progress(1, 2, ACTS)
    display.samples([{"prompt": ACTS, "completion": ACTS, "reward": 1.0, "version": 0}])
    display.step(3, {"reward/mean": 1.0, f"eval/reward/{ACTS}/mean": 0.5})
    for method in (display.note, display.warning):
        method(ACTS)
    display.lines([ACTS])
    display.close()
    assert written(to).count("\\u202e") >= 8
    assert not UNSEEN.search(COLOURS.sub("", written(to)))


def test_all_that_is_printed_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    behind = io.StringIO()
    monkeypatch.setattr(sys, "stderr", VisibleOutput(behind))
    tell(f"run failed: {ACTS}")
    print(ACTS, "as it is: \t\u00e9 \u7b54 \u200d", file=sys.stderr)
    sys.stderr.writelines([ACTS, "\n"])
    assert behind.getvalue().count("\\u202e") == 3
    assert "as it is: \t\u00e9 \u7b54 \u200d" in behind.getvalue()
    assert not UNSEEN.search(behind.getvalue())
    value = json.dumps({"a": ACTS + "\U000e0041"}, ensure_ascii=False)
    print(value, file=sys.stderr)
    assert json.loads(behind.getvalue().splitlines()[-1]) == json.loads(value), "it is JSON as before"
    print("\r50%", end="", file=sys.stderr)
    assert behind.getvalue().endswith("\r50%"), "bars of progress stay"


JOB = """
algorithm: {name: grpo, steps: 1, prompts_per_step: 1, samples_per_prompt: 2}
model: {init: {}}
data: {train: rows.jsonl, system_prompt: SAYS}
reward: {functions: [exact_match]}
run: {name: x}
"""
VERBS = {
    "check": (["check", "job.yaml"], 0),
    "json": (["check", "job.yaml", "--json"], 0),
    "data": (["data", "job.yaml"], 0),
    "file": (["check", f"no{ACTS}.yaml"], 2),
    "override": (["check", "job.yaml", f"data.system_prompt{ACTS}=1"], 2),
    "value": (["check", "job.yaml", f"data.train=no{BIDI}.jsonl"], 2),
    "verb": ([f"che{ACTS}"], 2),
    "option": (["check", "job.yaml", f"--{ACTS}"], 2),
    "help": (["help", ACTS], 2),
    "chat": (["chat", f"no{ACTS}"], 2),
    "search": (["search", f"no{ACTS}", "--query", "a"], 2),
    "mine": (["mine", f"no{ACTS}", "--data", "x.jsonl", "--output", "y.jsonl"], 2),
    "export": (["export", f"no{ACTS}"], 2),
    "curves": (["curves", f"no{ACTS}"], 2),
    "manifest": (["k8s", "--check", f"no{ACTS}.yaml"], 2),
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(json.dumps({"prompt": ACTS, "answer": ACTS, f"column{ACTS}": ACTS}) + "\n")
    Path("job.yaml").write_text(JOB.replace("SAYS", json.dumps(ACTS)))
    words, code = VERBS[verb]
    assert main(words) == code
    said = capsys.readouterr()
    assert not UNSEEN.search(said.out + said.err)
    assert "\\u202e" in said.out + said.err
    if verb == "json":
        assert json.loads(said.out)["config"]["data"]["system_prompt"] == ACTS


def test_even_a_traceback() -> None:
    code = f"from launch.screen.stdout import show_what_acts; show_what_acts(); raise ValueError({ACTS!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert not UNSEEN.search(done.stderr.decode())
    assert "\\u202e" in done.stderr.decode()
