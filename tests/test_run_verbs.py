"""`tandem metrics` and `tandem report --json`: numbers of a run for people and programs, whatever its files hold."""

import csv
import io
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.alerts.record import NAME as ALERTS
from launch.alerts.record import AlertRecord
from launch.cli import main
from launch.run.manifest import finished
from launch.tracking.events import Events, Fault
from launch.tracking.now import pid_namespace
from launch.verbs.run_rows import main_metrics, read_run_rows
from launch.verbs.run_summary import run_summary

METRICS = [
    {"step": 0, "eval/reward/mean": 0.1},
    {"step": 1, "reward/mean": 0.5, "policy/kl": math.nan, "loss/policy": -0.25, "time/rollout": 1.0, "time/step": 3.0},
    {"step": 2, "reward/mean": None, "policy/kl": 0.75, "loss/policy": 0.25, "time/rollout": 2.0, "time/update": 4.0},
    {"step": 3, "reward/mean": 0.25, "policy/kl": 0.001, "eval/reward/mean": 0.7, "left_out": {"stale": ["a"]},
     "time/elapsed": 30.0, "time/effective": 0.9, "time/lost": 3.0},
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory of a run, with three steps."""
    directory = tmp_path / "first"
    (directory / "logs").mkdir(parents=True)
    # As Python writes NaN, which the run itself does not.
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METRICS))
    config = {"algorithm": {"name": "grpo", "steps": 40}, "model": {"path": "org/model"}, "run": {"name": "first"}}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints; it must succeed and complain of nothing."""
    assert main([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def complained(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The line by which it refuses."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return line


def test_a_table_has_the_main_metrics_and_nothing_for_what_is_no_number(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "metrics", run).splitlines() == [
        "step  eval/reward/mean  reward/mean  policy/kl  loss/policy  time/step",
        "   0               0.1",
        "   1                            0.5                   -0.25          3",
        "   2                                      0.75         0.25",
        "   3               0.7         0.25      0.001",
    ]


def test_names_steps_and_the_last_ones_are_chosen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--last` counts what the others leave."""
    assert said(capsys, "metrics", run, "--last", "2", "--names", "^reward|kl").splitlines() == [
        "step  reward/mean  policy/kl",
        "   2                    0.75",
        "   3         0.25      0.001",
    ]
    assert said(capsys, "metrics", run, "--every", "2", "--names", "kl", "--last", "1").split() == [
        "step", "policy/kl", "2", "0.75",
    ]  # fmt: skip
    assert said(capsys, "metrics", run, "--names", "eval").split() == [
        "step",
        "eval/reward/mean",
        "0",
        "0.1",
        "3",
        "0.7",
    ]


def test_csv_and_json_have_all_metrics(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(said(capsys, "metrics", run, "--csv"))))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[1]["policy/kl"] == rows[0]["reward/mean"] == "" and rows[1]["time/rollout"] == "1.0"
    assert "left_out" not in rows[3]
    lines = [json.loads(line) for line in said(capsys, "metrics", run, "--json").splitlines()]
    assert lines[0] == {"step": 0, "eval/reward/mean": 0.1}
    assert lines[1]["policy/kl"] is None and lines[2]["reward/mean"] is None


def test_lines_that_are_none_of_a_runs_are_left_out_with_a_note(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (run / "metrics.jsonl").read_bytes()
    bad = [
        b"\xff\xfe",
        b"[" * 10**5,
        b'{"step": "2"}',
        b"[1]",
        b'{"step": true}',
        b'{"step": -1}',
        b'{"reward/mean": 1}',
    ]
    odd = b'{"step": 4, "a": "text", "b": [1], "c": true, "d": 1' + b"0" * 400 + b', "e": 1e999, "f": 7}'
    whole = b"\0\0" + b"\n".join([*bad, b"", odd]) + b"\n" + text + b'{"step": 5, "rew'
    (run / "metrics.jsonl").write_bytes(whole)
    assert main(["metrics", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "note: metrics.jsonl: 7 lines left out, which are none of a run's (the first is line 1)\n"
    first, *others = captured.out.splitlines()
    assert json.loads(first) == {"step": 4, "d": None, "e": None, "f": 7.0}
    assert len(others) == len(METRICS)


@given(st.binary(max_size=300))
def test_no_bytes_are_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.getbasetemp() / "bytes"
    directory.mkdir(exist_ok=True)
    for name in ("metrics.jsonl", "config.json", "events.jsonl", ALERTS, "logs/now.json", "checkpoints/latest"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    found = read_run_rows(directory)
    assert len(found.rows) + len(found.damaged) <= content.count(b"\n") + 1
    json.dumps(run_summary(str(directory)))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--names", "reward("],
            "--names: must be a regular expression (missing ), unterminated subpattern at position 6), got reward(",
        ),
        (["--names", "rewrd/mean"], "--names: no metric of the run has it (did you mean reward/mean?), got rewrd/mean"),
        (["--names", "zzz"], "--names: no metric of the run has it, got zzz"),
        (["--last", "0"], "--last: must be a whole number from 1, got 0 (see tandem metrics --help)"),
        (["--every", "x"], "--every: must be a whole number from 1, got x (see tandem metrics --help)"),
        (["--csv", "--json"], "--json: not allowed with argument --csv (see tandem metrics --help)"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(run: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert complained(capsys, "metrics", run, *words) == f"error: {line}"


def test_a_directory_without_metrics_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    for verb in (["metrics"], ["report", "--json"]):
        assert complained(capsys, *verb, "frist") == (
            "error: RUN: must be the directory of a run, with metrics.jsonl (did you mean first?), got frist"
        )
    os.unlink("first/metrics.jsonl")
    assert complained(capsys, "metrics", "first") == "error: RUN: must have metrics, and there are none yet, got first"
    (run / "metrics.jsonl").mkdir()
    assert complained(capsys, "metrics", "first") == (
        "error: RUN: its metrics cannot be read (Is a directory), got first"
    )


def test_the_object_is_of_one_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert complained(capsys, "report", run, run, "--json").startswith("error: --json: tells of one run, got 2")


def test_the_main_metrics_are_those_that_say_most() -> None:
    names = ["eval/a/ndcg@10", "eval/pass@4", "eval/rewards/accuracy", "weights/version", "loss/nll", "eval/b/map",
             "reward/std", "embedding/accuracy", "time/lost"]  # fmt: skip
    assert main_metrics(names) == ["eval/a/ndcg@10", "eval/pass@4", "eval/rewards/accuracy", "loss/nll",
                                   "embedding/accuracy"]  # fmt: skip


def add_all_that_befalls(run: Path) -> None:
    """Faults, alerts and checkpoints."""
    events = Events(run, clock=lambda: 1000.0)
    for pid in (1, 2):
        fault = events.noticed(Fault(who=f"rollout[{pid}]", what="died", noticed_by="exit", noticed_s=float(pid)))
        events.recovered(fault, "restarted")
    alerted(run, {"attempt": 2, "step": 3, "rule": "disk", "level": "warn", "text": "little room"})
    for step in (2, 3):
        folder = run / f"checkpoints/step-{step}"
        folder.mkdir(parents=True)
        manifest = {"step": step, "files": {"a": 5, "b": step}, "parts": {}, "identity": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (run / "checkpoints/step-4").mkdir()
    (run / "checkpoints/latest").write_text("step-3\n")


def test_a_report_says_what_has_become_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_all_that_befalls(run)
    found = json.loads(said(capsys, "report", run, "--json"))
    metrics, checkpoints = found.pop("metrics"), found.pop("checkpoints")
    [alert] = found.pop("alerts")
    assert (alert["rule"], alert["text"]) == ("disk", "little room")
    assert found == {
        "run": "first", "directory": str(run), "job": "GRPO", "model": "org/model", "state": "running", "why": "",
        "step": 3, "steps": 40, "attempts": 2,
        "time": {
            "elapsed_s": 30.0, "effective": 0.9, "lost_s": 3.0, "phases_s": {"update": 4.0, "rollout": 3.0},
        },
        "faults": [{
            "kind": "rollout died", "times": 2, "noticed_s": {"median": 1.5, "most": 2.0},
            "stood_s": {"median": 1.5, "most": 2.0}, "done": {"restarted": 2}, "redone_steps": 0,
        }],
        "health": [{
            "step": 2, "metric": "policy/kl", "text": "policy/kl is 0.75, usually below 0.5; the policy runs away from "
            "the reference: lower policy.optimizer.lr or raise kl_coef",
        }],
        "export": None, "damaged_lines": 0,
    }  # fmt: skip
    assert metrics["reward/mean"] == {
        "first": {"step": 1, "value": 0.5}, "last": {"step": 3, "value": 0.25}, "best": {"step": 1, "value": 0.5},
        "better": "up",
    }  # fmt: skip
    assert metrics["policy/kl"]["best"] is None and metrics["loss/policy"]["better"] is None
    assert [(each["step"], each["bytes"], each["latest"], each["best"]) for each in checkpoints] == [
        (2, 7, False, False), (3, 8, True, False), (4, None, False, False),
    ]  # fmt: skip
    assert [Path(each["path"]) for each in checkpoints] == finished(run / "checkpoints")


def test_the_best_of_a_loss_is_the_lowest(run: Path) -> None:
    (run / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "loss/nll": loss, "eval/a/loss": loss}) + "\n"
            for step, loss in ((1, 2), (2, 1), (3, 3))
        )
    )
    found = run_summary(str(run))["metrics"]
    for name in ("loss/nll", "eval/a/loss"):
        assert found[name]["best"] == {"step": 2, "value": 1.0} and found[name]["better"] == "down"


def test_fields_of_the_report_are_those_that_the_docs_have(run: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/verbs.md").read_text(encoding="utf-8").partition("## For programs")[2]
    assert [name for name in run_summary(str(run)) if f"`{name}`" not in page] == []


def whereabouts(run: Path, **fields: Any) -> None:
    """Write the run's now.json, as if an hour had passed since."""
    values = {"at": "2026-11-30T08:33:22.492+00:00", "attempt": 1, "step": 3, "phase": "update", "driver": 2**22 + 5}
    (run / "logs/now.json").write_text(json.dumps(values | fields))
    for path in (run / "logs/now.json", run / "metrics.jsonl"):
        os.utime(path, (0, 0))


def state(run: Path) -> tuple[str, str]:
    found = run_summary(str(run))
    return found["state"], found["why"]


def test_how_a_run_is_by_what_it_has_left(run: Path) -> None:
    """As the page has it."""
    for name in ("metrics.jsonl", "config.json"):
        os.utime(run / name, (0, 0))
    assert state(run) == ("unknown", "")
    whereabouts(run, ended="failed", why="FloatingPointError: the loss is nan")
    assert state(run) == ("failed", "FloatingPointError: the loss is nan")
    whereabouts(run, ended="stopped", why="")
    assert state(run) == ("stopped", "")
    whereabouts(run, host=socket.gethostname(), phase="end")
    (run / "export").mkdir()
    (run / "export/config.json").write_text("{}")
    assert state(run) == ("finished", "")


def test_a_process_that_only_has_the_number_of_a_driver_is_none(run: Path) -> None:
    """Although its command has a word of Tandem's: it has begun since."""
    with subprocess.Popen([sys.executable, "-S", "-c", "input()", "launch"], stdin=subprocess.PIPE) as other:
        whereabouts(run, driver=other.pid, host=socket.gethostname(), namespace=pid_namespace())
        found = state(run)
        other.kill()
    assert found == ("died", "the driver has ended without a word in step 3, update")


def alerted(run: Path, row: dict[str, Any]) -> None:
    """Add a row to the run's alerts."""
    record = AlertRecord(run)
    record.write(row)
    record.close(time.monotonic() + 60)
