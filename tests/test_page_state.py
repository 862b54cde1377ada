"""How a run is, by its files and its driver's process; and what a page may stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.config import UserError
from launch.page.files import Below
from launch.page.state import StopError, can_stop, current, state_of, stop_run
from launch.run.ending import STOPPED, Ending, outcome
from launch.tracking.events import Events, Fault
from tests.page_client import append, asked, client_of, write_grpo, write_now

_DRIVER = """
import sys, time
sys.argv[0] = "tandem"
with open(sys.argv[2], "a") as metrics:
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that looks as the driver of the run `one` does."""
    run = write_grpo(tmp_path / "one")
    command = [sys.executable, "-c", _DRIVER, "tandem", str(run / "metrics.jsonl")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def written(seconds_ago: float = 0.0) -> str:
    """A time as events have it."""
    return datetime.fromtimestamp(time.time() - seconds_ago, UTC).isoformat(timespec="milliseconds")


def state(run: Path) -> tuple[str, str]:
    below, events = Below(run.parent), [json.loads(line) for line in lines(run / "events.jsonl")]
    found = state_of(below, run, current(below, run), events)
    return found.name, found.why


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def old(run: Path, seconds: float = 1000.0) -> None:
    """Nothing of it has changed for so long."""
    for path in run.rglob("*"):
        os.utime(path, times=(time.time() - seconds, time.time() - seconds))


def test_a_run_is_running_while_its_driver_lives(tmp_path: Path, driver: subprocess.Popen[str]) -> None:
    run = tmp_path / "one"
    write_now(run, at=written(), driver=driver.pid, host=socket.gethostname())
    old(run)
    assert state(run) == ("running", "")
    found = asked(client_of(tmp_path), "run", id="one")
    assert found["can_stop"] and found["state"] == "running" and found["phase"] == "update"
    driver.kill()
    driver.wait()
    assert state(run) == ("died", "the driver has ended without a word in step 3, update")
    assert not asked(client_of(tmp_path), "run", id="one")["can_stop"]


def test_stop_reaches_the_driver_of_this_run_alone(tmp_path: Path, driver: subprocess.Popen[str]) -> None:
    run, header = tmp_path / "one", {"X-Tandem": "stop"}
    write_now(run, at=written(), driver=driver.pid)
    copy = write_grpo(tmp_path / "copy")
    write_now(copy, at=written(), driver=driver.pid)
    client = client_of(tmp_path)
    assert client.post("/api/stop?id=copy", headers=header).json() == {
        "error": "the run is not running, or ending already"
    }
    assert client.post("/api/stop?id=one").status_code == 403
    assert client.post("/api/stop?id=one", headers=header | {"X-Tandem-Token": "x"}).status_code == 403
    assert driver.poll() is None
    answer = client.post("/api/stop?id=one", headers=header)
    assert (answer.status_code, answer.json()) == (200, {"stopped": True})
    assert driver.wait(10) == -signal.SIGTERM
    assert client.post("/api/stop?id=one", headers=header).status_code == 409
    assert client.post("/api/stop?id=none", headers=header).status_code == 404
    assert client.get("/api/stop?id=one", headers=header).status_code in (404, 405)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"host": "another"}, "the run's driver is on another: stop it there"),
        ({"namespace": "pid:[1]"}, "the run's driver is in another container: stop it there"),
        ({"driver": 2**40}, "the run is not running"),
        ({"driver": "x"}, "the run is not running"),
        ({"ended": "finished"}, "the run is not running"),
        ({}, "the run is not running, or ending already"),
    ],
    ids=["of another machine", "of another container", "no process", "no number", "ended", "no driver"],
)
def test_what_is_not_this_runs_driver_gets_no_signal(tmp_path: Path, values: dict[str, Any], line: str) -> None:
    run = write_grpo(tmp_path / "one")
    write_now(run, **{"at": written(), "driver": os.getpid(), **values})
    with pytest.raises(StopError) as caught:
        stop_run(Below(tmp_path), run)
    assert str(caught.value) == line and not can_stop(Below(tmp_path), run, current(Below(tmp_path), run))


def test_a_process_that_has_begun_later_has_only_the_same_number(tmp_path: Path, driver: subprocess.Popen[str]) -> None:
    run = tmp_path / "one"
    write_now(run, at=written(60), driver=driver.pid, host=socket.gethostname())
    assert not can_stop(Below(tmp_path), run, current(Below(tmp_path), run)) and state(run)[0] == "died"


@pytest.mark.parametrize(
    "where",
    [{"host": "another"}, {"host": socket.gethostname(), "namespace": "pid:[1]"}, {"host": ""}, {"namespace": ""}],
    ids=["another machine", "another container", "no host", "an older version"],
)
def test_a_process_that_cannot_be_seen_is_never_called_dead(tmp_path: Path, where: dict[str, str]) -> None:
    """It says a word every 30 s; without one, it is open how the run is."""
    run = write_grpo(tmp_path / "one")
    known = {"driver": 2**22 - 1, "host": socket.gethostname(), **where}
    write_now(run, at=written(100), **known)
    old(run)
    assert state(run)[0] == "running"
    write_now(run, at=written(200), **known)
    old(run)
    host = f" on {known['host']}" if known["host"] else ""
    assert state(run) == ("unknown", f"no word for 3 min from the driver{host}")
    (run / "metrics.jsonl").touch()
    assert state(run)[0] == "running"
    write_now(run, at=written(9000), **known)
    old(run, 9000)
    assert state(run)[1] == f"no word for 2 h from the driver{host}"
    write_now(run, at=written(100), driver=2**22 - 1, host=socket.gethostname())
    assert state(run)[0] == "died", "its process would be here, and is not"


def test_a_process_that_proc_hides_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with hidepid, where only the kernel's answer to a signal tells of it."""
    run, here = write_grpo(tmp_path / "one"), socket.gethostname()

    def hidden(self: psutil.Process) -> float:
        raise psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(psutil.Process, "create_time", hidden)
    write_now(run, at=written(200), driver=os.getpid(), host=here)
    old(run)
    assert state(run) == ("unknown", f"no word for 3 min from the driver on {here}")
    assert not can_stop(Below(tmp_path), run, current(Below(tmp_path), run))
    write_now(run, at=written(200), driver=2**22 - 1, host=here)
    assert state(run)[0] == "died"


def test_a_copy_of_a_run_that_goes_on_is_not_called_dead(
    tmp_path: Path, driver: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, later = write_grpo(tmp_path / "copy"), time.time() + 200
    write_now(copy, at=written(), driver=driver.pid, host=socket.gethostname())
    old(copy)
    assert state(copy)[0] == "running"
    monkeypatch.setattr("launch.page.state.time.time", lambda: later)
    assert state(copy) == ("unknown", f"no word for 3 min from the driver on {socket.gethostname()}")


def test_a_run_whose_driver_is_started_again_goes_on(tmp_path: Path, driver: subprocess.Popen[str]) -> None:
    """However long that takes, as long as the process is there that does it."""
    run, here = tmp_path / "one", socket.gethostname()
    write_now(run, at=written(), driver=2**22 - 1, starter=driver.pid, host=here)
    old(run)
    assert state(run) == ("running", "is about to be started again")
    driver.kill()
    driver.wait()
    assert state(run)[0] == "died"


@pytest.mark.parametrize("pid", [0, -1, -(2**40), 2**40])
def test_numbers_that_no_process_has_mean_no_others(tmp_path: Path, pid: int) -> None:
    run = write_grpo(tmp_path / "one")
    write_now(run, at=written(), driver=pid, starter=pid + 1, host=socket.gethostname())
    assert state(run)[0] == "died"


@pytest.mark.parametrize(
    ("ended", "why"),
    [("finished", "done: all 9 steps"), ("stopped", "stopped by SIGTERM after step 3 of 9"), ("failed", "x")],
)
def test_how_a_run_has_ended_is_what_it_says(tmp_path: Path, ended: str, why: str) -> None:
    run = write_grpo(tmp_path / "one")
    write_now(run, phase="end", ended=ended, why=why)
    assert state(run) == (ended, why)
    marks = asked(client_of(tmp_path), "run", id="one")["marks"]
    assert marks[-1] == {"step": 3, "kind": "stop", "text": why}


def test_runs_that_do_not_say_how_they_ended_are_judged_by_their_files(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "one")
    old(run)
    assert state(run) == ("unknown", "")
    write_now(run, at=written(900), phase="end", driver=2**22 - 1, host=socket.gethostname())
    assert state(run) == ("stopped", "")
    append(run / "logs/driver.log", ["Traceback ...", "ValueError: wrong"])
    assert state(run) == ("failed", "ValueError: wrong")
    append(run / "export/config.json", ["{}"])
    assert state(run) == ("finished", "")
    (run / "config.json").touch()
    os.utime(run / "export/config.json", (time.time() - 900, time.time() - 900))
    assert state(run) == ("stopped", ""), "export and log are of an earlier start"


def test_a_fault_that_was_given_up_is_why_a_run_has_failed(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "one")
    events = Events(run)
    number = events.noticed(Fault(who="driver", what="died", noticed_by="exit"))
    write_now(run, at=written(), phase="update", driver=2**22 - 1, host=socket.gethostname())
    append(run / "events.jsonl", ['{"fault": [1], "event": "recovered"}', '{"fault": {}, "event": "noticed"}'])
    assert state(run) == ("running", "is about to be started again")
    events.given_up(number, "4 faults in a row")
    assert state(run) == ("died", "driver died: 4 faults in a row")


def test_an_outcome_is_one_word() -> None:
    found = [
        outcome(error)
        for error in (None, KeyboardInterrupt(), Ending("stopped", STOPPED), UserError("x"), ValueError())
    ]
    assert found == ["finished", "stopped", "stopped", "failed", "failed"]
