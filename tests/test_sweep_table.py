"""What a sweep writes down and shows: sweep.json, the table, a trial's metric, and why one has failed."""

import json
from pathlib import Path

import pytest

from launch.cli import main
from launch.sweep.process import failure_of
from launch.sweep.record import Record, SweepTrial, read_record
from launch.sweep.rows import MetricRows

METRIC = "eval/reward/mean"


def test_rows_are_read_on_and_anew_where_the_file_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    found = MetricRows(path, METRIC)
    assert found.update() == []
    path.write_text('{"step": 0, "eval/reward/mean": 0.1}\n{"step": 1}\nno json\n[1]\n{"step": 2, "eval/rew')
    assert found.update() == [0]
    with path.open("a") as file:
        file.write('ard/mean": null}\n{"step": 3, "eval/reward/mean": 0.4}\n{"step": 4, "eval/reward/mean": true}\n')
    assert found.update() == [2, 3, 4]
    assert found.step == 4
    assert found.best(least=False) == (3, 0.4)
    assert found.best(least=True) == (3, 0.4), "step 0 is the untrained model's"
    assert found.last() is None, "the last row has no number"
    partial = tmp_path / "partial"
    partial.write_text('{"step": 0, "eval/reward/mean": 0.1}\n')
    partial.rename(path)
    assert found.update() == [0]
    assert (found.step, found.last(), found.best(least=False)) == (0, None, None)
    with path.open("a") as file:
        file.write('{"step": 1, "eval/reward/mean": 0.2}\n')
    assert found.update() == [1]
    assert (found.step, found.last()) == (1, (1, 0.2))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"trials": [{"number": 1}]}', '{"trials": 3}', "[" * 10_000, '{"trials": [{"state": NaN}]}'],
)
def test_a_damaged_sweep_is_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert main(["sweep", "--table", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/sweep.json: must be as a sweep has written it, got another text\n"
    )


def test_a_table_of_no_sweep_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--table", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: --table: must be the directory of a sweep, with sweep.json, got")


def test_the_table_shows_short_names_and_who_is_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    varied = {"policy.optimizer.lr": "loguniform(1e-6,1e-4)", "critic.optimizer.lr": "1e-4,1e-3", "a.b": "1,2"}
    record = Record("c.yaml", [], varied, "eval/loss", "min", "random", 0, 4)
    point = {"policy.optimizer.lr": "3.1622776601683795e-05", "critic.optimizer.lr": "1e-4", "a.b": "[red]"}
    record.trials = [
        SweepTrial(1, point, [], "finished", 0.5, 100, 100),
        SweepTrial(2, point, [], "failed", cause="error: x"),
        SweepTrial(3, point, [], "running", 0.25, 50, 60),
    ]
    record.write(tmp_path)
    assert main(["sweep", "--table", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "trial",
        "policy.optimizer.lr",
        "critic.optimizer.lr",
        "b",
        "eval/loss",
        "step",
        "state",
    ]
    assert [line.split() for line in lines[2:5]] == [
        ["3", "3.162e-05", "1e-4", "[red]", "0.25", "50", "interrupted"],
        ["1", "3.162e-05", "1e-4", "[red]", "0.5", "100", "finished"],
        ["2", "3.162e-05", "1e-4", "[red]", "0", "failed:", "error:", "x"],
    ]
    assert lines[5] == f"{tmp_path}: 2 of 4 trials have ended, 1 failed; the same command goes on"
    assert lines[6].startswith(f"best: {tmp_path}/trial-3, eval/loss 0.25, with policy.optimizer.lr=3.16")


def test_the_cause_is_that_of_the_last_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("error: old\n")
    begins = log.stat().st_size
    with log.open("a") as file:
        file.write("warning: x\n")
    assert failure_of(log, 3, begins) == "ended with exit code 3"
    assert failure_of(log, -9, begins) == "killed by signal 9"
    with log.open("a") as file:
        file.write("run failed: policy[0]: died\nfull log: x\n")
    assert failure_of(log, 1, begins) == "run failed: policy[0]: died"


def test_a_sweep_writes_strict_json(tmp_path: Path) -> None:
    record = Record("c.yaml", ["a=ä"], {"x": "1,2"}, METRIC, "max", "grid", 0, 2, [SweepTrial(1, {"x": "1"}, [])])
    record.write(tmp_path)
    assert json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["fixed"] == ["a=ä"]
    assert read_record(tmp_path) == record
