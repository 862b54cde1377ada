"""Alerts of a run, driven by its reporter, without Ray: where each is told, what is not told twice, how a run ends."""

import io
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.config import UserError
from launch.alerts import alerts as alerts_module
from launch.alerts.alerts import Alerts
from launch.alerts.lookout import Lookout
from launch.alerts.record import NAME, AlertRecord, read_alerts
from launch.config import RunConfig, load, validate
from launch.run.earlier import set_results_aside
from launch.screen.display import Display
from launch.screen.reporter import RunReporter
from launch.tracking.events import Events, Fault
from launch.tracking.now import Now
from launch.tracking.tracker import Tracker
from tests.test_alert_targets import FAR, HANGS, hook, is_gone, pids

NAN = math.nan


def job(output: Path, algorithm: str = "grpo", **tracking: Any) -> RunConfig:
    return validate(
        {
            "algorithm": {"name": algorithm, "steps": 30},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl"},
            "reward": {"functions": ["exact_match"]} if algorithm == "grpo" else {},
            "tracking": {"wandb": False, **tracking},
            "run": {"output": str(output), "name": "first"},
        }
    )


class Attempt:
    """One start of a run, up to where `launch.run.run` starts the cluster."""

    def __init__(self, config: RunConfig, **more: Any) -> None:
        self.directory, self.screen, self.warned = config.directory, io.StringIO(), list[str]()
        (self.directory / "logs").mkdir(parents=True, exist_ok=True)
        self.display = Display(Console(file=self.screen, width=250))
        self.events = Events(self.directory)
        self.alerts = Alerts(config, self.events, show=self.display.alert, warn=self.warned.append, **more)
        self.tracker = Tracker(self.directory, config)
        now = Now(self.directory, self.events)
        self.reporter = RunReporter(self.display, self.tracker, now, alerts=self.alerts)
        self.reporter.start("GRPO", 30, 0)

    def step(self, step: int, **metrics: float) -> None:
        self.reporter.phase("rollout")
        self.reporter.step(step, {name.replace("__", "/"): value for name, value in metrics.items()})

    def close(self) -> None:
        self.tracker.close()
        self.alerts.close()
        self.display.close()

    def rows(self) -> list[dict[str, Any]]:
        return read_alerts(self.directory)

    def said(self, word: str) -> list[str]:
        return [line for line in self.screen.getvalue().splitlines() if line.startswith(word)]


def test_an_alert_is_on_the_screen_in_the_file_and_at_both_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with hook(200) as server:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", server.url)
        command = ["sh", "-c", 'cat >> "$0"', str(out)]
        run = Attempt(job(tmp_path, alert_webhook_env="SLACK_WEBHOOK_URL", alert_command=command))
        for step, loss in enumerate((1.0, NAN, NAN, 1.0, NAN), start=1):
            run.step(step, loss__policy=loss)
        run.close()
    first, second = run.rows()
    assert {name: first[name] for name in first if name != "at"} == {
        "attempt": 1, "step": 2, "phase": "rollout", "rule": "not_finite", "level": "error",
        "text": "loss/policy is NaN", "metric": "loss/policy", "value": None,
    }  # fmt: skip
    assert second["step"] == 5
    assert run.said("alert:") == ["alert: loss/policy is NaN"] * 2
    assert [body for _, _, body in server.got] == [
        {"text": f"[error] first, step {step}: loss/policy is NaN"} for step in (2, 5)
    ]
    given = [json.loads(line) for line in out.read_text().splitlines()]
    assert given == [{"run": "first", "directory": str(run.directory), **row} for row in (first, second)]
    assert run.warned == []
    everything = run.screen.getvalue() + "".join(
        path.read_text() for path in run.directory.rglob("*") if path.is_file()
    )
    assert "SECRETPART" not in everything


def test_what_fails_or_hangs_delays_neither_steps_nor_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told once each."""
    monkeypatch.setattr(alerts_module, "CLOSE_S", 0.2)
    with hook(0) as server:
        monkeypatch.setenv("ALERT_WEBHOOK", server.url)
        command = ["sh", "-c", HANGS, str(tmp_path / "out")]
        run = Attempt(job(tmp_path, alert_webhook_env="ALERT_WEBHOOK", alert_command=command))
        began = time.monotonic()
        for step in range(1, 400):
            run.step(step, loss__policy=NAN if step % 2 else 1.0)
        running = pids(tmp_path)
        run.close()
        assert time.monotonic() - began < 600  # what the command alone would take
    assert all(is_gone(pid) for pid in running)
    assert len(run.rows()) == 200
    assert len(run.warned) == 2 and all("100 of them wait for it already" in line for line in run.warned)
    assert "SECRETPART" not in " ".join(run.warned)


def test_another_attempt_does_not_wait_as_long_as_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts_module, "RESTART_S", 0.0)
    monkeypatch.setattr(alerts_module, "CLOSE_S", FAR)
    with hook(0) as server:
        monkeypatch.setenv("ALERT_WEBHOOK", server.url)
        run = Attempt(job(tmp_path, alert_webhook_env="ALERT_WEBHOOK"))
        run.step(1, loss__policy=NAN)
        assert server.asked.wait(FAR)
        run.alerts.close(again=True)
    assert run.warned == [
        "alerts do not arrive at the webhook: the last of them were not all delivered before the run ended; they are "
        "in alerts.jsonl"
    ]


def test_a_webhook_without_an_address_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job(tmp_path, alert_webhook_env="SLACK_WEBHOOK_URL")
    for value, why in (
        ("", "is not set where the run is driven"),
        ("hooks/SECRETPART", "holds no http or https address (not shown)"),
    ):
        monkeypatch.setenv("SLACK_WEBHOOK_URL", value)
        run = Attempt(config)
        run.close()
        assert run.warned == [f"tracking.alert_webhook_env: SLACK_WEBHOOK_URL {why}: no alerts are sent there"]


def test_a_health_warning_is_one_line_and_one_alert(tmp_path: Path) -> None:
    run = Attempt(job(tmp_path))
    run.step(1, policy__kl=0.7)
    run.step(2, policy__kl=0.8)
    run.close()
    [row] = run.rows()
    assert (row["rule"], row["level"], row["metric"], row["value"]) == ("health", "warn", "policy/kl", 0.7)
    assert run.said("warning:") == [f"warning: {row['text']}"] and not run.said("alert:")


def test_a_limit_of_the_users_takes_the_place_of_a_health_warning(tmp_path: Path) -> None:
    run = Attempt(job(tmp_path, alerts={"limits": [{"metric": "policy/kl", "above": 0.6, "for_steps": 2}]}))
    run.step(1, policy__kl=0.55)  # health would warn from 0.5 on
    run.step(2, policy__kl=0.7)
    run.step(3, policy__kl=0.8)
    run.close()
    [row] = run.rows()
    assert (row["rule"], row["step"]) == ("limits", 3)
    assert run.said("warning:") == [f"warning: {row['text']}"]


def test_health_may_stay_on_the_screen_alone(tmp_path: Path) -> None:
    run = Attempt(job(tmp_path, alerts={"health": None}))
    run.step(1, policy__kl=0.7)
    run.close()
    assert run.rows() == [] and len(run.said("warning:")) == 1


def test_a_fault_is_an_alert_and_keeps_its_own_line_on_the_screen(tmp_path: Path) -> None:
    run = Attempt(job(tmp_path))
    fault = run.events.noticed(Fault(who="rollout[1]", what="died", noticed_by="exit", noticed_s=0.7, pid=1))
    run.events.state(fault, "restarting")
    run.events.recovered(fault, "restarted")
    other = run.events.noticed(Fault(who="disk", what="failed", noticed_by="call", cause="no room"), told=False)
    run.events.tell("joined", "rollout[2]", "")
    run.events.given_up(other, "too often")
    run.alerts.failed("the same")
    run.close()
    assert [(row["rule"], row["level"], row["fault"], row["event"], row["text"]) for row in run.rows()] == [
        ("faults", "warn", 1, "noticed", "rollout[1] died (noticed by exit after 0.7 s)"),
        ("faults", "warn", 2, "noticed", "disk failed (noticed by call; no room)"),
        ("faults", "error", 2, "given up", run.rows()[2]["text"]),
    ]
    assert run.rows()[2]["text"].startswith("disk is given up after 0.")
    assert run.said("warning:") == run.said("alert:") == []


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    run = Attempt(job(tmp_path))
    run.alerts.failed("FloatingPointError: the loss of an update is nan, https://a:b@c/d")
    run.close()
    [row] = run.rows()
    assert row["text"] == "the run has failed: FloatingPointError: the loss of an update is nan, https://***@c/d"
    assert (row["rule"], row["level"]) == ("failed", "error")


def test_a_driver_that_died_is_told_by_the_next_attempt_once(tmp_path: Path) -> None:
    """Nobody alerts when it dies; and alerts are kept over attempts."""
    config = job(tmp_path)
    run = Attempt(config)
    run.events.noticed(Fault(who="rollout[0]", what="died", noticed_by="exit"))
    run.close()
    parent = Events(run.directory)
    parent.attempt = 1
    parent.noticed(Fault(who="driver", what="died", noticed_by="exit", cause="killed by signal 9"))
    for _ in range(2):
        again = Attempt(config)
        again.close()
        assert [(row["attempt"], row["text"]) for row in again.rows()] == [
            (1, "rollout[0] died (noticed by exit)"),
            (2, "driver died (noticed by exit; killed by signal 9)"),
        ]


def test_what_has_ended_an_attempt_before_is_told_and_nothing_older(tmp_path: Path) -> None:
    """A run that fails anew says so, too."""
    config = job(tmp_path)
    config.directory.mkdir()
    for attempt in (1, 2):
        parent = Events(config.directory)
        parent.attempt = attempt
        parent.given_up(parent.noticed(Fault(who="driver", what="died", noticed_by="exit")), "too often")
    run = Attempt(config)
    run.alerts.failed("NaN")
    run.close()
    assert [(row["attempt"], row["rule"], row.get("fault")) for row in run.rows()] == [
        (3, "faults", 2), (3, "faults", 2), (3, "failed", None),
    ]  # fmt: skip


def test_alerts_of_a_run_that_begins_anew_are_set_aside(tmp_path: Path) -> None:
    run = Attempt(job(tmp_path))
    run.alerts.failed("x")
    run.close()
    set_results_aside(run.directory, same_command=True)
    assert len(run.rows()) == 1
    set_results_aside(run.directory)
    assert run.rows() == [] and len(list(run.directory.glob(f"set-aside-*/{NAME}"))) == 1


def test_a_run_that_stands_still_is_told_by_a_thread(tmp_path: Path) -> None:
    """Also with a loop that does nothing any more."""
    run = Attempt(job(tmp_path, alerts={"stalled": {"after_s": 0.1}}))
    run.reporter.phase("rollout")
    until = time.monotonic() + FAR
    while not run.rows():
        assert time.monotonic() < until
        time.sleep(0.01)
    run.close()
    [row] = run.rows()
    assert (row["rule"], row["level"], row["phase"]) == ("stalled", "error", "rollout")
    assert row["text"].endswith("; the run is in rollout") and len(run.said("alert:")) == 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_no_step_is_missed_when_the_loop_has_ended(tmp_path: Path) -> None:
    """Exports and uploads may take their time."""
    clock = Clock()
    run = Attempt(job(tmp_path), clock=clock)
    lookout: Lookout = run.alerts._lookout
    clock.now = 10.0
    run.step(1)
    for clock.now in (60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 420.0, 480.0, 540.0, 600.0, 609.0):
        wait_s = lookout.look()
    assert wait_s == 1.0
    run.reporter.phase("exporting")
    clock.now = 660.0
    lookout.look()
    run.close()
    assert run.rows() == []


def test_storage_that_hangs_holds_up_no_alert_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the disk's size, and of alerts.jsonl: neither says anything."""
    hangs, ended, out = threading.Event(), threading.Event(), tmp_path / "out"
    for name in ("launch.alerts.alerts.free_disk", "launch.alerts.record.append_whole"):
        monkeypatch.setattr(name, lambda *_: (hangs.set(), ended.wait(FAR)))
    monkeypatch.setattr(alerts_module, "CLOSE_S", 0.05)
    monkeypatch.setattr(alerts_module, "FILE_S", 0.05)
    alerts = {"stalled": {"after_s": 0.1}}
    run = Attempt(job(tmp_path, alerts=alerts, alert_command=["sh", "-c", 'cat >> "$0"', str(out)]))
    try:
        assert hangs.wait(FAR)
        run.step(1, loss__policy=NAN)
        until = time.monotonic() + FAR
        while not out.exists() or {json.loads(line)["rule"] for line in out.open()} != {"not_finite", "stalled"}:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert len(run.said("alert:")) >= 2
        run.close()
    finally:
        ended.set()


def test_what_an_attempt_could_not_deliver_comes_with_the_next_one_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a command that is started anew, what an earlier one could not deliver is in the file alone."""
    monkeypatch.setattr(alerts_module, "RESTART_S", 0.0)
    out, slow = tmp_path / "got", tmp_path / "slow"
    slow.touch()
    command = ["sh", "-c", 'if [ -e "$1" ]; then sleep 600; fi; cat >> "$0"', str(out), str(slow)]
    config = job(tmp_path, alert_command=command)
    first = Attempt(config)
    first.step(1, loss__policy=NAN)
    first.step(2, policy__kl=0.7)
    first.events.noticed(Fault(who="driver", what="died", noticed_by="exit"))
    first.alerts.close(again=True)
    slow.unlink()
    for untried_from in (None, 1, 1):
        other = Attempt(config, untried_from=untried_from)
        other.events.attempt = 1
        other.close()
        told = [json.loads(line)["rule"] for line in out.read_text().splitlines()] if out.exists() else []
        assert told == ([] if untried_from is None else ["not_finite", "health", "faults"])
    assert [row["rule"] for row in other.rows()] == ["not_finite", "health", "faults"]


def test_a_full_disk_loses_no_alert(tmp_path: Path) -> None:
    record = AlertRecord(tmp_path / "gone", clock=lambda: 0.0)
    row = {"attempt": 1, "step": 2, "rule": "faults", "level": "warn", "text": "ü"}
    record.write(row)
    until = time.monotonic() + FAR
    while not record._waiting.empty():
        assert time.monotonic() < until
    (tmp_path / "gone").mkdir()
    record.close(until)
    assert read_alerts(tmp_path / "gone") == [{"at": "1970-01-01T00:00:00.000+00:00", **row}]


def test_damaged_lines_of_the_file_are_left_out(tmp_path: Path) -> None:
    good = json.dumps({"at": "x", "attempt": 1, "step": 2, "rule": "faults", "level": "warn", "text": "a"})
    lines = [good, "", "[" * 10**5, "null", '{"at": "x"}', good.replace('"a"', "5"), "\udcff\0", good[:20]]
    (tmp_path / NAME).write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    assert read_alerts(tmp_path) == [json.loads(good)]
    assert read_alerts(tmp_path / "nowhere") == []


def test_a_mistake_of_ours_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Attempt(job(tmp_path))
    monkeypatch.setattr(run.alerts, "_rules", None)
    run.step(1)
    run.step(2)
    run.close()
    assert run.warned == ["alerts: AttributeError: 'NoneType' object has no attribute 'step'; the run goes on"]


def test_the_address_itself_is_refused_and_not_shown(tmp_path: Path) -> None:
    """Also in the command's arguments, where it holds a password."""
    url = "https://hooks.slack.com/services/T0/SECRETPART"
    with pytest.raises(UserError) as caught:
        job(tmp_path, alert_webhook_env=url)
    [line] = caught.value.problems
    assert line.startswith("tracking.alert_webhook_env must be the name of an environment variable")
    config = tmp_path / "config.yaml"
    config.write_text("algorithm: {name: sft, steps: 1}\nmodel: {init: {}}\ndata: {train: x}\n")
    with pytest.raises(UserError) as caught:
        load(str(config), ["tracking.alert_command=[curl, 'https://me:SECRETPART@example.org']"])
    [other] = caught.value.problems
    assert other.startswith("tracking.alert_command.1: must hold no secret")
    assert "SECRETPART" not in line + other
