"""metrics.jsonl and samples.jsonl: strict JSON, written at once, cut on resume; W&B offline beside them."""

import json
import math
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from launch import tracking
from launch.config import RunConfig, validate
from launch.tracking import Tracker


def config_for(directory: Path, **tracking: object) -> RunConfig:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 3},
            "model": {"init": {}},
            "data": {"train": "rows.jsonl"},
            "tracking": {"wandb": False, **tracking},
            "run": {"output": str(directory)},
        }
    )


def lines(path: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_is_readable_before_close_and_strict_json(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "new", config_for(tmp_path))
    tracker.log(1, {"reward/mean": 0.25, "loss/policy": math.nan, "policy/kl": math.inf})
    tracker.samples(1, [{"prompt": "sort: ü\n", "reward": -math.inf, "parts": [1.0, math.nan]}])
    assert lines(tmp_path / "new/metrics.jsonl") == [
        {"step": 1, "reward/mean": 0.25, "loss/policy": None, "policy/kl": None}
    ]
    assert lines(tmp_path / "new/samples.jsonl") == [
        {"step": 1, "prompt": "sort: ü\n", "reward": None, "parts": [1.0, None]}
    ]
    tracker.close()


def test_columns_of_any_kind_are_written(tmp_path: Path) -> None:
    """Rows of a generator, and text that UTF-8 lacks, must not end a run."""
    tracker = Tracker(tmp_path, config_for(tmp_path))
    tracker.samples(1, [{"completion": "答案\udc80", "when": Path("a"), "by": {1: math.nan}}])
    tracker.close()
    [line] = lines(tmp_path / "samples.jsonl")
    assert line == {"step": 1, "completion": "答案\udc80", "when": "a", "by": {"1": None}}
    assert "答案" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")


def test_resume_cuts_later_and_broken_lines_and_a_new_run_starts_anew(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    tracker = Tracker(tmp_path, config)
    for step in range(5):
        tracker.log(step, {"reward/mean": float(step)})
        tracker.samples(step, [{"reward": 0.0}, {"reward": 1.0}])
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 1, "rew')

    resumed = Tracker(tmp_path, config, resumed_step=2)
    resumed.log(3, {"reward/mean": 30.0})
    resumed.close()
    assert [(line["step"], line["reward/mean"]) for line in lines(tmp_path / "metrics.jsonl")] == [
        (0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0),
    ]  # fmt: skip
    assert [line["step"] for line in lines(tmp_path / "samples.jsonl")] == [0, 0, 1, 1, 2, 2]

    Tracker(tmp_path, config, resumed_step=0).close()
    assert lines(tmp_path / "metrics.jsonl") == []


def test_completions_of_evaluations_have_a_file_where_there_are_any(tmp_path: Path) -> None:
    kept = tmp_path / "eval_samples.jsonl"
    values = config_for(tmp_path).model_dump(mode="json", exclude={"algorithm"})
    values |= {"algorithm": {"name": "grpo", "eval_every": 2}, "reward": {"functions": ["exact_match"]}}
    values["data"]["eval"] = "rows.jsonl"
    config = validate(values)
    tracker = Tracker(tmp_path, config)
    for step in (0, 2, 4):
        tracker.evaluation(step, [{"completion": "b", "columns": {"day": date(2026, 1, 2)}}, {"completion": "c"}])
    tracker.close()
    assert lines(kept)[0] == {"step": 0, "completion": "b", "columns": {"day": "2026-01-02"}}
    Tracker(tmp_path, config, resumed_step=2).close()
    assert [line["step"] for line in lines(kept)] == [0, 0, 2, 2]
    Tracker(tmp_path, config_for(tmp_path)).close()
    assert not kept.exists(), "an earlier run's are not this one's"


def test_wandb_is_offline_without_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    warned: list[str] = []
    named = {"project": "our-project", "entity": "our-team", "group": "ablation", "tags": ["first-tag", "second-tag"]}
    tracker = Tracker(tmp_path, config_for(tmp_path, wandb=True, **named), warn=warned.append)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.close()
    assert warned == []
    [written] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    # The record of the run, in protobuf: field number and type, length, text.
    for tag, name in {0x12: "our-team", 0x1A: "our-project", 0x32: "ablation"}.items():
        assert bytes([tag, len(name)]) + name.encode() in written.read_bytes()
    assert b"R\x09first-tagR\x0asecond-tag" in written.read_bytes()


def test_without_a_group_the_run_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict] = []
    monkeypatch.setattr(tracking._WandbSink, "_write", lambda self, value: given.append(value))
    monkeypatch.setattr(tracking.subprocess, "Popen", lambda *arguments, **options: SimpleNamespace(wait=int))
    tracking._WandbSink(tmp_path, config_for(tmp_path, wandb=True))
    assert (given[0]["group"], given[0]["entity"], given[0]["tags"]) == ("run", None, [])


def test_a_failing_service_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    warned: list[str] = []
    tracker = Tracker(tmp_path, config_for(tmp_path, wandb=True), warn=warned.append)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.log(2, {"reward/mean": 0.6})
    tracker.close()
    (line,) = warned
    assert line.startswith("tracking: ")
    assert "\n" not in line
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_wandb_survives_a_signal_to_all_children_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray stops a job: everything that was logged is written."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    warned: list[str] = []
    tracker = Tracker(tmp_path, config_for(tmp_path, wandb=True), warn=warned.append)
    tracker.log(1, {"reward/mean": 0.5})
    deadline = time.monotonic() + 60
    while not list((tmp_path / "wandb").glob("offline-run-*/*.wandb")) and time.monotonic() < deadline:
        time.sleep(0.1)
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    for step in range(2, 100):
        tracker.log(step, {"reward/mean": step / 7})
    tracker.close()
    assert warned == []
    [written] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert written.stat().st_size > 99 * 20, "the last step is there as well"
