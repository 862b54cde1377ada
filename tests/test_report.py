"""The report: one file with the page and what it shows, which nothing has to be fetched for."""

import base64
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.page import report_file
from launch.page.report_file import MOST_BYTES
from tests.page_runs import add_faults, write_run


def report_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], *runs: Path) -> str:
    assert main(["report", *map(str, runs), "--output", str(tmp_path / "report.html")]) == 0
    assert re.fullmatch(r"report:  \S+ \(\d\.\d MB, \d+ runs?\)\n", capsys.readouterr().out)
    return (tmp_path / "report.html").read_text()


def answers_in(html: str) -> dict[str, Any]:
    [packed] = re.findall(r'id="inlined">([^<]*)<', html)
    return json.loads(gzip.decompress(base64.b64decode(packed)))["answers"]


def multiplied(run: Path, times: int) -> None:
    """A run with so many times its steps, whose contents come again."""
    for path in run.glob("*.jsonl"):
        lines = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith('{"step": 0,')]
        last = int(lines[-1].split(",")[0].removeprefix('{"step": '))
        with path.open("a") as out:
            for before in range(last, times * last, last):
                again = (re.sub(r"\d+", lambda step, n=before: str(int(step[0]) + n), line, count=1) for line in lines)
                out.writelines(again)


def test_a_report_needs_nothing_but_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "first", steps=30)
    add_faults(run, 30)
    with (run / "samples.jsonl").open("a") as file:
        row = {"step": 30, "prompt": "</script><script>alert(1)", "completion": "<img src=https://example.org/x>"}
        file.write(json.dumps(row) + "\n")
    html = report_of(tmp_path, capsys, run)
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html) == []
    assert "@import" not in html and "url(" not in html
    assert "alert(1)" not in html and "example.org" not in html  # what a run has written is packed data
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none';") and "http" not in policy
    modules = json.loads(re.findall(r'<script type="importmap">(.*?)</script>', html)[0])["imports"]
    for name, address in modules.items():
        code = base64.b64decode(address.removeprefix("data:text/javascript;base64,")).decode()
        for used in re.findall(r'^(?:import|\}).* from "([^"]*)";', code, re.MULTILINE):
            assert used in modules, f"{name} imports {used}"
    assert "Permission is hereby granted" in html, "uPlot's licence goes with it"
    answers = answers_in(html)
    assert answers["/api/run?id=."]["events"][0]["who"] == "rollout[1]"
    groups = answers["/api/groups?id=.&step=30"]["groups"]
    assert groups[-1]["samples"][0]["completion"] == "<img src=https://example.org/x>"


def test_ten_thousand_steps_fit_into_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "long", steps=200, prompts=1)
    multiplied(run, 50)
    html = report_of(tmp_path, capsys, run)
    assert len(html) < MOST_BYTES == 6_000_000
    answers = answers_in(html)
    assert answers["/api/run?id=."]["step"] == 10_000
    steps = [each["step"] for each in answers["/api/samples?id=."]["steps"]]
    assert steps[0] == 1 and steps[-1] == 10_000 and len(steps) > 100
    assert {each["samples"] for each in answers["/api/samples?id=."]["steps"]} == {8}


def test_texts_that_hardly_pack_are_fewer_in_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "random", steps=1)
    with (run / "samples.jsonl").open("a") as file:
        for step in range(2, 1200):
            completion = base64.b85encode(os.urandom(7500)).decode()
            file.write(json.dumps({"step": step, "prompt": "p", "completion": completion, "reward": 1.0}) + "\n")
    html = report_of(tmp_path, capsys, run)
    assert 0.7 * MOST_BYTES < len(html) < MOST_BYTES
    steps = [each["step"] for each in answers_in(html)["/api/samples?id=."]["steps"]]
    assert steps[0] == 1 and steps[-1] == 1199 and 300 < len(steps) < 800


def test_runs_of_several_directories_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "a/one", steps=3)
    other = write_run(tmp_path / "b/deeper/one", steps=3, lr=2e-6)
    write_run(tmp_path / "a/third", steps=1)
    answers = answers_in(report_of(tmp_path, capsys, one, other, one))
    assert {run["id"] for run in answers["/api/runs"]["runs"]} == {"a/one", "b/deeper/one"}
    compared = answers["/api/config?id=a%2Fone&other=b%2Fdeeper%2Fone"]["differences"]
    assert {"field": "policy.optimizer.lr", "ours": 1e-6, "theirs": 2e-6} in compared


def test_a_run_that_is_cut_back_meanwhile_is_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, left, real = write_run(tmp_path / "run", steps=1), [2], report_file.snapshot

    def snapshot(*given: Any) -> dict[str, Any]:
        left[0] -= 1
        if left[0] >= 0:
            raise FileNotFoundError("step: must be one with samples, got 7")
        return real(*given)

    monkeypatch.setattr(report_file, "snapshot", snapshot)
    assert answers_in(report_of(tmp_path, capsys, run))["/api/run?id=."]["step"] == 1
    left[0] = 3
    assert main(["report", str(run), "--output", str(tmp_path / "other.html")]) == 2
    line = "error: RUN: must be there until it is read, got one that changes: step: must be one with samples, got 7\n"
    assert capsys.readouterr().err == line and not (tmp_path / "other.html").exists()


def test_what_is_no_run_or_no_report_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = write_run(tmp_path / "run", steps=1), tmp_path / "mine.html"
    other.write_text("mine")
    for arguments, line in (
        ([str(tmp_path)], f"error: RUN: must be the directory of a run, got {tmp_path}, which is none\n"),
        (
            [str(run), "--output", str(other)],
            f"error: --output: must be a new file, or a report to write anew, got {other}, which is another file\n",
        ),
        (
            [str(run), "--output", str(tmp_path / "no/report.html")],
            f"error: --output: must be a file that can be written (No such file or directory), "
            f"got {tmp_path}/no/report.html\n",
        ),
        (
            [str(run), str(write_run(tmp_path / "1/2/3/deep", steps=0))],
            f"error: RUN: must lie at most three levels below what is common to all, {tmp_path}, and in no other run, "
            f"got {tmp_path}/1/2/3/deep\n",
        ),
    ):
        assert main(["report", *arguments]) == 2
        assert capsys.readouterr().err == line
    assert other.read_text() == "mine"
    for _ in range(2):
        report_of(tmp_path, capsys, run)
