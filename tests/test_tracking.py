"""metrics.jsonl and samples.jsonl: strict JSON, written at once, cut on resume; W&B offline beside them."""

import json
import math
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from launch.config import RunConfig, validate
from launch.tracking import tracker as tracking
from launch.tracking.tracker import Tracker


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


class Mute:
    """A value that does not let itself be shown."""

    def __str__(self) -> str:
        raise RuntimeError("not now")


def test_a_column_that_cannot_be_shown_costs_no_run_and_no_line(tmp_path: Path) -> None:
    """The others are written; an integer may have more digits than Python writes out."""
    tracker = Tracker(tmp_path, config_for(tmp_path))
    endless: list[Any] = []
    endless.append(endless)
    tracker.samples(1, [{"completion": "b", "mute": Mute(), "long": 10**5000, "deep": endless, "by": {"x": [1]}}])
    tracker.close()
    [line] = lines(tmp_path / "samples.jsonl")
    assert line == {
        "step": 1,
        "completion": "b",
        "mute": "cannot be shown (RuntimeError)",
        "long": "cannot be shown (ValueError)",
        "deep": "cannot be shown (RecursionError)",
        "by": {"x": [1]},
    }


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


def test_a_last_line_that_lacks_only_its_end_stays_whole(tmp_path: Path) -> None:
    """As a power cut may leave it: the next line is one of its own."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 1.0}\n{"step": 2, "reward/mean": 2.0}')
    resumed = Tracker(tmp_path, config_for(tmp_path), resumed_step=2)
    resumed.log(3, {"reward/mean": 3.0})
    resumed.close()
    assert [(line["step"], line["reward/mean"]) for line in lines(tmp_path / "metrics.jsonl")] == [
        (1, 1.0), (2, 2.0), (3, 3.0),
    ]  # fmt: skip


class FakeSink:
    """A service that keeps what it is given, or hangs."""

    def __init__(self, *arguments: object, hangs: threading.Event | None = None) -> None:
        self.arguments, self.hangs = arguments, hangs
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.hangs:
            self.hangs.wait()
        self.logged.append((step, metrics))

    def close(self) -> None:
        self.closed = True


def test_a_service_gets_every_step_as_it_was_before_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    made: list[FakeSink] = []

    def make(directory: Path, config: RunConfig, *, goes_on: bool) -> FakeSink:
        made.append(FakeSink(directory, config, goes_on))
        return made[-1]

    monkeypatch.setattr(tracking, "_WandbSink", make)
    config = config_for(tmp_path, wandb=True)
    for resumed_step in (0, 2):
        tracker = Tracker(tmp_path, config, resumed_step, warn=print)
        metrics = {"reward/mean": math.nan}
        tracker.log(3, metrics)
        metrics["reward/mean"] = 7.0
        tracker.log(4, metrics)
        tracker.close()
        sink = made[-1]
        assert sink.arguments == (tmp_path, config, resumed_step > 0) and sink.closed
        assert [step for step, _ in sink.logged] == [3, 4]
        assert math.isnan(sink.logged[0][1]["reward/mean"]) and sink.logged[1][1] == {"reward/mean": 7.0}


def test_a_service_that_hangs_is_not_awaited_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(tracking, "CLOSE_DEADLINE_S", 0.05)
    monkeypatch.setattr(tracking, "_WandbSink", lambda *_, **options: FakeSink(hangs=hangs))
    warned: list[str] = []
    tracker = Tracker(tmp_path, config_for(tmp_path, wandb=True), warn=warned.append)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.close()
    hangs.set()
    assert warned == ["tracking: metrics were not all delivered within 0.05 s; files are complete"]
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize(
    ("mode", "wandb", "made"), [("disabled", True, 0), ("offline", True, 1), ("offline", False, 0)]
)
def test_a_service_that_is_not_wanted_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, wandb: bool, made: int
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    found: list[FakeSink] = []
    monkeypatch.setattr(tracking, "_WandbSink", lambda *_, **options: found.append(FakeSink()) or found[-1])
    tracker = Tracker(tmp_path, config_for(tmp_path, wandb=wandb), warn=print)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.close()
    assert len(found) == made


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


def test_wandb_is_sent_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_MODE": "offline", "WANDB_SAVE_CODE": "true", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@example.com"]
    for words in (["init", "--quiet"], ["add", "notes.txt"], ["commit", "--quiet", "--message", "notes"]):
        (tmp_path / "notes.txt").write_text("before")
        subprocess.run([*git, *words], check=True)
    (tmp_path / "notes.txt").write_text("hunter2")
    tracker = Tracker(tmp_path, config_for(tmp_path, wandb=True))
    tracker.log(1, {"reward/mean": 0.5})
    tracker.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    sent = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert [path.name for path in sent if path.name == "diff.patch" or b"hunter2" in path.read_bytes()] == []


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


def test_a_machine_without_room_for_a_thread_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(tracking.threading.Thread, "start", refuse)
    warned: list[str] = []
    tracker = Tracker(tmp_path, config_for(tmp_path, wandb=True), warn=warned.append)
    for step in (1, 2):
        tracker.log(step, {"reward/mean": 0.5})
    tracker.close()
    assert warned == ["tracking: can't start new thread; files are written as before"]
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_wandb_survives_a_signal_to_all_children_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray stops a job: everything that was logged is written."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    warned: list[str] = []
    # Of other tests: a Ray whose processes end takes this one along, a minute later.
    others = {child.pid for child in psutil.Process().children(recursive=True)}
    tracker = Tracker(tmp_path, config_for(tmp_path, wandb=True), warn=warned.append)
    tracker.log(1, {"reward/mean": 0.5})
    deadline = time.monotonic() + 60
    while not list((tmp_path / "wandb").glob("offline-run-*/*.wandb")) and time.monotonic() < deadline:
        time.sleep(0.1)
    for child in psutil.Process().children(recursive=True):
        if child.pid not in others:
            child.terminate()
    for step in range(2, 100):
        tracker.log(step, {"reward/mean": step / 7})
    tracker.close()
    assert warned == []
    [written] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert written.stat().st_size > 99 * 20, "the last step is there as well"


FAKE_WANDB = """
import json, os
class Settings:
    def __init__(self, **settings): assert settings["save_code"] is False
class Run:
    def __init__(self, file, key):
        self.file, self.key = file, key
        there = [json.loads(line) for line in open(file)] if os.path.exists(file) else []
        mine = [line[1] for line in there if line[0] == key]
        self.resumed, self.step = bool(mine), max(mine, default=-1) + 1
    def log(self, metrics, step):
        with open(self.file, "a") as file:
            print(json.dumps([self.key, step, metrics]), file=file)
    def finish(self): pass
def login(prompt): return True
def init(*, id, resume, mode, settings, **others):
    assert resume == "allow" and "file" not in others, others
    run = Run(os.environ["FAKE_WANDB"], id)
    run.resumed = run.resumed and mode == "online"
    return run
"""
"""A module `wandb` that keeps what is logged, [id, step, metrics] a line, and knows a run's last step when online."""


class Service:
    """Weights & Biases, as the feeder's process finds it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
        (directory / "fake").mkdir()
        (directory / "fake/wandb.py").write_text(FAKE_WANDB)
        self.file = directory / "service.jsonl"
        monkeypatch.setenv("PYTHONPATH", str(directory / "fake"))
        monkeypatch.setenv("FAKE_WANDB", str(self.file))
        monkeypatch.setenv("WANDB_MODE", mode)

    def runs(self) -> list[list[int]]:
        """Steps of each run, in the order they came."""
        found: dict[str, list[int]] = {}
        for key, step, _ in lines(self.file):
            found.setdefault(key, []).append(step)
        return list(found.values())


def track(directory: Path, config: RunConfig, steps: range, resumed_step: int = 0) -> None:
    warned: list[str] = []
    tracker = Tracker(directory, config, resumed_step, warned.append)
    for step in steps:
        tracker.log(step, {"reward/mean": step / 7})
    tracker.close()
    assert [line for line in warned if not line.endswith("they are done again")] == []


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_resumed_run_goes_on_in_wandb_with_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Killed at step 5, continued twice from checkpoints of step 2 and 4, as retries of KubeRay do."""
    service, config = Service(tmp_path, monkeypatch, mode), config_for(tmp_path, wandb=True)
    track(tmp_path / "run", config, range(6))
    track(tmp_path / "run", config, range(3, 8), resumed_step=2)
    longer = config.model_copy(update={"algorithm": config.algorithm.model_copy(update={"steps": 10})})
    track(tmp_path / "run", longer, range(5, 11), resumed_step=4)
    assert service.runs() == [list(range(11))]
    track(tmp_path / "another", config, range(3))
    assert service.runs()[1:] == [[0, 1, 2]]


def test_a_try_before_the_first_checkpoint_is_the_same_run_unless_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, config = Service(tmp_path, monkeypatch, "online"), config_for(tmp_path, wandb=True)
    track(tmp_path / "run", config, range(3))
    track(tmp_path / "run", config, range(6))
    assert service.runs() == [[0, 1, 2, 3, 4, 5]]
    other = config.model_copy(update={"policy": config.policy.model_copy(update={"micro_batch_tokens": 77})})
    track(tmp_path / "run", other, range(3))
    anew = other.model_copy(update={"checkpoint": other.checkpoint.model_copy(update={"resume": False})})
    track(tmp_path / "run", anew, range(2))
    (tmp_path / "run/wandb/run.json").write_text("[]")
    track(tmp_path / "run", other, range(2))
    assert service.runs()[1:] == [[0, 1, 2], [0, 1], [0, 1]]


def test_steps_that_a_lost_node_has_not_delivered_are_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, config = Service(tmp_path, monkeypatch, "online"), config_for(tmp_path, wandb=True)
    track(tmp_path / "run", config, range(6))
    service.file.write_text("".join(service.file.read_text().splitlines(keepends=True)[:4]))
    track(tmp_path / "run", config, range(3, 8), resumed_step=2)
    assert service.runs() == [list(range(8))]


def test_tensorboard_shows_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer hides what is there from `purge_step` on."""
    purged: list[int] = []

    def writer(_: str, *, purge_step: int) -> SimpleNamespace:
        purged.append(purge_step)
        return SimpleNamespace(add_scalar=lambda *_: None, close=lambda: None)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer))
    config = config_for(tmp_path, tensorboard=True)
    track(tmp_path / "run", config, range(6))
    track(tmp_path / "run", config, range(3, 8), resumed_step=2)
    assert purged == [0, 3]
