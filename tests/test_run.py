"""How a run begins and fails: an old run's files go, mistakes are one line, a death names the right log."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from actors.config import UserError
from actors.group import GroupError
from launch.alerts.alerts import Alerts
from launch.config import RunConfig, validate
from launch.run import signals
from launch.run.ending import PREEMPTED, STOPPED, Ending
from launch.run.farewell import _explain, farewell
from launch.run.run import _close, _prepare
from launch.screen.display import Display
from launch.tracking.events import Events
from launch.tracking.redraw import CurveDrawer
from launch.tracking.tracker import Tracker


def config_for(output: Path, resume: bool = True, **algorithm: Any) -> RunConfig:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 3, **algorithm},
            "model": {"init": {}},
            "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
            "checkpoint": {"resume": resume},
            "run": {"output": str(output), "name": "first"},
        }
    )


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    for name in ("policy-0", "policy-3", "rollout-1"):
        (tmp_path / f"logs/{name}.log").write_text("what happened")
    return tmp_path / "logs"


def test_a_new_run_starts_without_the_model_of_an_earlier_one(tmp_path: Path) -> None:
    export = tmp_path / "first/export"
    export.mkdir(parents=True)
    (tmp_path / "first/curves.png").write_bytes(b"")
    told: list[str] = []
    assert _prepare(config_for(tmp_path, resume=False), told.append) is None
    directory = tmp_path / "first"
    assert told == [f"checkpoint.resume is false: removed curves.png, export of an earlier run in {directory}"]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["config.json", "logs"]


def test_an_output_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        _prepare(config_for(tmp_path / "file"), print)
    (line,) = caught.value.problems
    assert line.startswith("run.output: must be a directory that can be written (Not a directory: ")
    assert line.endswith(f"got {tmp_path}/file")


@pytest.mark.parametrize(
    ("message", "log"),
    [
        ("policy[3].update: RuntimeError: out of memory", "policy-3"),
        ("rollout[1].generated: the process died (killed)", "rollout-1"),
        ("policy.update: no answer from rank(s) [3, 5] within 600 s", "policy-3"),
        ("policy[7].update: on another node", "driver"),
        ("3 of 8 rollouts of a step failed in the engines", "driver"),
    ],
)
def test_a_failure_names_the_log_of_its_process(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str], message: str, log: str
) -> None:
    _explain(GroupError(message), tmp_path)
    assert capsys.readouterr().err == f"run failed: {message}\nfull log: {logs}/{log}.log\n"
    assert message in (logs / "driver.log").read_text()


def test_a_users_mistake_found_in_an_actor_is_reported_as_one(tmp_path: Path, logs: Path) -> None:
    cause = UserError("model.path: must hold a tokenizer, got x", "model.dtype: must be bf16, got fp32")
    error = GroupError("policy[0].build: UserError: model.path: must hold a tokenizer, got x")
    error.__cause__ = RayTaskError("build", "traceback", cause)
    with pytest.raises(UserError) as caught:
        _explain(error, tmp_path)
    assert caught.value.problems == cause.problems


STOP = {"metric": "eval/loss", "at_most": 0.5}


@pytest.fixture
def _signals() -> Iterator[None]:
    """What ends a run ignores signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("done", "before", "ended_by", "algorithm", "code", "why", "said"),
    [
        (3, 0, None, {}, 0, "done: all 3 steps", ""),
        (2, 0, None, {"stop_when": STOP}, 0, "done: stop_when (eval/loss at most 0.5) met at step 2 of 3", ""),
        (3, 3, None, {}, 0, "done: an earlier start had finished already (all 3 steps), so nothing was trained", ""),
        (2, 0, KeyboardInterrupt(), {}, 130, "stopped by you (Ctrl-C) after step 2 of 3", "interrupted; continue with"),
        (2, 0, Ending("stopped", STOPPED), {}, 130, "stopped by SIGTERM after step 2 of 3", "stopped; a checkpoint is"),
        (2, 1, Ending("preempted, as n is about to go", PREEMPTED), {}, 75,
         "preempted, as n is about to go, after step 2 of 3", "preempted, as n is about to go; a checkpoint is"),
        (2, 0, OSError("disk full"), {}, 1, "failed after step 2 of 3", "run failed: OSError: disk full"),
    ],
)  # fmt: skip
def test_the_last_screen_says_why_what_and_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, _signals: None,
    done: int, before: int, ended_by: Exception | None, algorithm: dict, code: int, why: str, said: str,
) -> None:  # fmt: skip
    """However a run has ended, the curves are drawn and the next command is there."""
    monkeypatch.setattr(signals, "_interrupted_by", "Ctrl-C")
    config = config_for(tmp_path, **algorithm)
    _prepare(config, print)
    tracker, display = Tracker(config.directory, config), Display()
    display.phase("starting Ray")
    display.start("SFT", 3, before)
    for step in range(1, done + 1):
        metrics = {"loss/nll": 3.0 - step, "eval/loss": [0.9, 0.4, 0.6][step - 1], "eval/accuracy": step / 4}
        tracker.log(step, metrics)
        if step > before:
            display.step(step, metrics)
    curves = CurveDrawer(config.directory, display.warning)
    draws = isinstance(ended_by, KeyboardInterrupt)
    if not draws:
        monkeypatch.setattr(curves, "finish", lambda: None)  # once is enough: it takes seconds
    alerts = Alerts(config, Events(config.directory), show=display.alert, warn=display.warning)
    picture = _close(display, tracker, curves, alerts)
    assert farewell(config, display, ended_by, picture) == code
    out, err = capsys.readouterr()
    lines = out[out.index(why) :].splitlines()
    last = {2: "0.400", 3: "0.600"}[done]
    assert lines[0].startswith(f"{why}  (") and lines[0].endswith(" in all)")
    assert lines[1].split() == ["step", "1", "step", str(done), "best"]
    assert ["eval/loss", "0.900", last, "0.400", "at", "step", "2"] in [line.split() for line in lines]
    assert ["eval/accuracy", "0.250", f"{done / 4:.3f}", f"{done / 4:.3f}", "at", "step", str(done)] in [
        line.split() for line in lines
    ]
    assert any(line.startswith("time:    ") and "% starting" in line for line in lines)
    drawn = f"curves:  {tmp_path}/first/curves.png" in lines and (tmp_path / "first/curves.png").is_file()
    assert drawn == draws
    again = f"tandem run {tmp_path}/first/config.json  # starts again, as there is no checkpoint yet"
    assert lines[-2 if code else -3][9:] == (again if code else f"tandem chat {tmp_path}/first  # talk to it")
    assert lines[-1][9:] == f"tandem watch {tmp_path}/first  # curves, completions and faults in a browser"
    assert err.startswith(said) and (said or not err)


def test_a_mistake_before_the_first_step_is_only_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError):
        farewell(config_for(tmp_path), Display(), UserError("cluster.wait_s: no resources"), None)
    assert capsys.readouterr() == ("", "")
