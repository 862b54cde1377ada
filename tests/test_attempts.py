"""The process that starts a run's driver again, with drivers of a few lines: real processes and signals, no Ray."""

import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from launch.run import attempt_link
from launch.run.attempts import with_restarts
from launch.tracking.events import Events, Fault, ended, read_events

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 30.0
PROGRAM = """
import os, signal, subprocess, sys, time
from pathlib import Path
from launch.run import attempt_link as link, attempts
from launch.tracking.events import Events, Fault

attempts._FIRST_BACK_OFF_S = float(os.environ["BACK_OFF"])
HERE = Path(sys.argv[1])

def note(name, text=""):
    with (HERE / name).open("a") as file:
        file.write(f"{text}\\n")

def loaded(restarts=3, heartbeat_s=60.0):
    note("starts", os.getpid())
    link.say_loaded(restarts, heartbeat_s, HERE)
    return len((HERE / "starts").read_text().split())

def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)

def wait():
    note("waits")
    while True:
        time.sleep(0.01)

def drive():
"""


class Run:
    """A program whose driver is the lines of a function."""

    def __init__(self, directory: Path, *lines: str, back_off_s: float = 0.01, **options: Any) -> None:
        self.directory = directory
        body = "".join(f"    {line}\n" for line in lines)
        end = "\nsys.exit(attempts.with_restarts(drive))\n"
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM + body + end, str(directory)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "BACK_OFF": str(back_off_s)},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True} | options,
        )

    def end(self) -> int:
        """The exit code as `subprocess` has it; what was printed is in `out` and `said`."""
        self.out, self.said = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode

    def lines(self, name: str) -> list[str]:
        """Of a file that drivers have written."""
        path = self.directory / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def drivers(self) -> list[int]:
        """Process ids, in order."""
        return [int(line) for line in self.lines("starts") if line]

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Until it holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, f"no {what}; {self.process.communicate()}"
            assert time.monotonic() < deadline, f"no {what}"
            time.sleep(0.01)

    def until_it_waits(self, times: int = 1) -> None:
        """Until so many drivers have called `wait`."""
        self.wait_for(lambda: len(self.lines("waits")) >= times, "waiting driver")


@pytest.fixture
def started(tmp_path: Path) -> Any:
    """Starts a run, and kills what is left of it."""
    runs: list[Run] = []

    def start(*lines: str, **options: Any) -> Run:
        runs.append(Run(tmp_path, *lines, **options))
        return runs[-1]

    start.directory = tmp_path
    yield start
    for run in runs:
        for pid in run.drivers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.kill()
        run.process.wait(DEADLINE_S)


def state_of(pid: int) -> str:
    """As /proc has it; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 130, 141])
def test_an_exit_code_that_is_no_fault_is_passed_on(started: Any, code: int) -> None:
    run = started("loaded()", f"return {code}")
    assert (run.end(), run.said, len(run.drivers)) == (code, "", 1)
    assert not (run.directory / "events.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_death_before_the_configuration_is_loaded_is_passed_on(started: Any, number: int) -> None:
    """Shells see the same signal as without a parent."""
    run = started("note('starts', os.getpid())", f"die({int(number)})")
    assert (run.end(), run.said, len(run.drivers)) == (-number, "", 1)
    assert not (run.directory / "events.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_death_is_written_down_where_nothing_is_to_be_survived(started: Any, number: int) -> None:
    """And passed on."""
    run = started("loaded(0)", f"die({int(number)})")
    assert (run.end(), len(run.drivers)) == (-number, 1)
    why = f"the driver was killed by signal {int(number)}; no fault is survived (run.max_restarts, --retries)"
    assert run.said == f"run failed: {why}\n"
    lines = read_events(run.directory / "events.jsonl")
    assert [(line["event"], line["who"], line["attempt"]) for line in lines] == [
        ("noticed", "driver", 1), ("given up", "driver", 1),
    ]  # fmt: skip


def test_the_code_of_a_fault_is_passed_on_before_the_configuration_is_loaded(started: Any) -> None:
    assert started(f"return {attempt_link.AGAIN}").end() == 76


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_killed_driver_is_started_again(started: Any, number: int) -> None:
    """SIGTERM too, where it was not this process that had passed it on."""
    run = started("if loaded() == 3: return 0", f"die({int(number)})")
    assert (run.end(), len(run.drivers)) == (0, 3)
    assert run.said.splitlines() == [
        f"warning: the driver was killed by signal {int(number)}; starting again anew, as there is no checkpoint yet "
        f"(restart {restart} of 3)"
        for restart in (1, 2)
    ]
    faults = read_events(run.directory / "events.jsonl")
    told = [(line["attempt"], line["who"], line["what"], line["noticed_by"], line["pid"]) for line in faults]
    assert told == [(each + 1, "driver", "died", "exit", pid) for each, pid in enumerate(run.drivers[:2])]
    assert {line["cause"] for line in faults} == {f"killed by signal {int(number)}"}
    assert all(0 <= line["noticed_s"] < 5 for line in faults)


def test_a_checkpoint_is_what_is_gone_on_from(started: Any) -> None:
    run = started(
        "if loaded() == 2: return 0",
        "(HERE / 'checkpoints/step-3').mkdir(parents=True)",
        "(HERE / 'checkpoints/step-3/manifest.json').touch()",
        f"return {attempt_link.AGAIN}",
    )
    assert (run.end(), run.said) == (0, "warning: starting again from the last checkpoint (restart 1 of 3)\n")


@pytest.mark.parametrize(("last", "code"), [("die()", -signal.SIGKILL), ("return 76", 1)])
def test_faults_in_a_row_are_bounded(started: Any, last: str, code: int) -> None:
    """The run ends by the last one's signal, or as a run that has failed; what is open in events.jsonl is given up, and
    alerted to, as there is no driver that could."""
    sent = alerting(started.directory)
    run = started("loaded(2)", "events = Events(HERE)", "link.say_attempt(events.attempt)", *NOTE, last)
    assert (run.end(), len(run.drivers)) == (code, 3)
    cause = "the driver was killed by signal 9" if code < 0 else "the run has met a fault"
    row = "3 faults in a row, without a finished step between them"
    assert run.said.splitlines()[-1].startswith(f"run failed: {cause}; {row}, and 2 are survived")
    lines = read_events(run.directory / "events.jsonl")
    assert {line["attempt"] for line in lines if line["event"] == "noticed"} == {1, 2, 3}
    assert {line["did"] for line in ended(lines)} == {row}
    assert Events(run.directory).open() == []
    assert len(ended(lines)) == (6 if code < 0 else 3)
    alerts = sent()
    given_up = [alert["fault"] for alert in alerts if alert["event"] == "given up"]
    assert given_up == [line["fault"] for line in ended(lines)]
    assert {alert["attempt"] for alert in alerts} == {3}


@pytest.mark.parametrize(
    ("restarts", "lines", "code"),
    [(0, ["die()"], -signal.SIGKILL), (3, ["die() if number == 1 else None", "return 2"], 2)],
    ids=["no restarts", "a restart that fails as it prepares"],
)
def test_an_end_of_which_no_driver_could_tell_is_alerted_to(
    started: Any, restarts: int, lines: list[str], code: int
) -> None:
    sent = alerting(started.directory)
    rows = [{"at": "", "attempt": number, "step": 1, "rule": "x", "level": "warn", "text": "old"} for number in (0, 1)]
    (started.directory / "alerts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = "link.say_attempt(Events(HERE).attempt) if number == 1 else None"
    assert started(f"number = loaded({restarts})", said, *lines).end() == code
    [undelivered, *alerts] = sent()
    assert (undelivered["attempt"], undelivered["text"]) == (1, "old"), "of this command, and of no other"
    assert [(alert["event"], alert["level"]) for alert in alerts] == [("noticed", "warn"), ("given up", "error")]
    why = "started again, it ended with 2 before it began" if restarts else "no fault is survived"
    assert alerts[1]["text"].endswith(why)


def alerting(directory: Path) -> Callable[[], list[dict[str, Any]]]:
    """Give the run a configuration with a command for alerts; gives what it has got."""
    sent = directory / "sent"
    config: dict[str, Any] = {"algorithm": {"name": "sft", "steps": 3}, "model": {"init": {}}, "data": {"train": "x"}}
    config["run"] = {"output": str(directory.parent), "name": directory.name}
    config["tracking"] = {"alert_command": ["sh", "-c", 'cat >> "$0"', str(sent)]}
    (directory / "config.json").write_text(json.dumps(config))
    return lambda: [json.loads(line) for line in sent.read_text().splitlines()]


NOTE = ('events.noticed(Fault(who="policy[0]", what="died", noticed_by="call"))',)


def test_a_finished_step_ends_the_row(started: Any) -> None:
    run = started("number = loaded(1)", "link.say_step(number)", "die() if number < 5 else None", "return 0")
    assert (run.end(), len(run.drivers)) == (0, 5)
    assert {line["step"] for line in read_events(run.directory / "events.jsonl")} == {1, 2, 3, 4}
    assert run.said.count("(restart 1 of 1)") == 4


def test_a_driver_knows_whether_there_is_another_attempt(started: Any) -> None:
    known = 'note("known", f"{link.is_restarted()} {link.survives_faults()} {link.may_restart()}")'
    run = started("number = loaded(1)", known, "if number == 2: link.say_step(7)", known, "die()")
    assert run.end() == -signal.SIGKILL
    # The second one finishes a step.
    assert run.lines("known") == [
        *["False True True"] * 2,
        "True True False",
        "True True True",
        *["True True False"] * 2,
    ]


def test_attempts_are_numbered_on_from_an_earlier_command(started: Any) -> None:
    earlier = Events(started("return 0").directory)
    earlier.noticed(Fault(who="driver", what="died", noticed_by="exit"))
    run = started("number = loaded()", "if number == 2: return 0", "die()")
    assert run.end() == 0
    assert [line["attempt"] for line in read_events(run.directory / "events.jsonl")] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_driver_once(started: Any, number: int) -> None:
    """Also where it was sent to the parent's whole group, as a terminal does."""
    run = started(
        "loaded()",
        "signal.signal(signal.SIGALRM, lambda *_: sys.exit(7))",
        f"signal.signal({int(number)}, lambda *_: (note('got'), signal.setitimer(signal.ITIMER_REAL, 0.3)))",
        "wait()",
    )
    run.until_it_waits()
    os.killpg(run.process.pid, number)
    assert (run.end(), run.lines("got"), len(run.drivers)) == (7, [""], 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_driver_that_was_told_to_end_is_not_started_again(started: Any, number: int) -> None:
    run = started("loaded()", "wait()")
    run.until_it_waits()
    run.process.send_signal(number)
    assert (run.end(), run.said, len(run.drivers)) == (-number, "", 1)


@pytest.mark.parametrize(("last", "code"), [("die()", -signal.SIGKILL), ("return 76", 130)])
def test_nor_is_one_that_meets_a_fault_meanwhile(started: Any, last: str, code: int) -> None:
    run = started("loaded()", "got = []", "signal.signal(signal.SIGTERM, lambda *_: got.append(1))", *PATIENT, last)
    run.until_it_waits()
    run.process.send_signal(signal.SIGTERM)
    assert (run.end(), len(run.drivers)) == (code, 1)
    assert ("interrupted; continue with the same command" in run.said) == (code == 130)


PATIENT = ("note('waits')", "while not got: time.sleep(0.01)")


def on_a_terminal(started: Any, *lines: str) -> tuple[Run, int]:
    """A run in the foreground of a terminal of its own, which stops who writes from the background."""
    ours, theirs = os.openpty()
    settings = termios.tcgetattr(theirs)
    settings[3] |= termios.TOSTOP
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    # A terminal that a session's first process makes its own; its group is in the foreground then.
    run = started(
        *lines,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    return run, ours


def test_ctrl_c_reaches_the_driver_once(started: Any) -> None:
    """In the background, as the terminal has it, the driver may write all the same, and who reads is told."""
    run, terminal = on_a_terminal(
        started,
        "loaded()",
        "signal.signal(signal.SIGALRM, lambda *_: sys.exit(7))",
        "signal.signal(signal.SIGINT, lambda *_: (note('got'), signal.setitimer(signal.ITIMER_REAL, 0.3)))",
        "print('written', flush=True)",
        "try: os.read(0, 1)",
        "except OSError as error: note('read', error.errno)",
        "wait()",
    )
    run.until_it_waits()
    os.write(terminal, b"\x03")
    assert run.process.wait(DEADLINE_S) == 7
    assert (run.lines("got"), run.lines("read"), len(run.drivers)) == ([""], ["5"], 1)
    assert b"written" in os.read(terminal, 1000)
    os.close(terminal)


def test_ctrl_z_stops_both_and_continuing_goes_on(started: Any) -> None:
    """However long it takes: the driver is not held for frozen."""
    run = started("loaded(heartbeat_s=0.3)", "wait()")
    run.until_it_waits()
    run.process.send_signal(signal.SIGTSTP)
    both = run.process.pid, run.drivers[0]
    run.wait_for(lambda: [state_of(pid) for pid in both] == ["T", "T"], "stopped processes")
    time.sleep(1)
    run.process.send_signal(signal.SIGCONT)
    run.wait_for(lambda: "T" not in [state_of(pid) for pid in both], "processes that go on")
    time.sleep(1)
    assert len(run.drivers) == 1 and state_of(run.drivers[0]) in ("S", "R"), run.process.poll()
    run.process.send_signal(signal.SIGTERM)
    assert (run.end(), run.said) == (-signal.SIGTERM, "")


def test_a_frozen_driver_is_killed_and_started_again(started: Any) -> None:
    run = started("number = loaded(heartbeat_s=0.5)", "wait() if number == 1 else None", "return 0")
    run.until_it_waits()
    os.kill(run.drivers[0], signal.SIGSTOP)
    assert (run.end(), len(run.drivers)) == (0, 2)
    [line] = read_events(run.directory / "events.jsonl")
    assert (line["who"], line["what"], line["noticed_by"]) == ("driver", "froze", "stopped")
    assert line["pid"] == run.drivers[0] and line["noticed_s"] > 0.5
    assert "the driver was stopped for" in run.said


def test_a_driver_that_is_stopped_for_a_moment_is_left_alone(started: Any) -> None:
    """Nor is one whose parent stood still meanwhile."""
    run = started("loaded(heartbeat_s=1.5)", "wait()")
    run.until_it_waits()
    for pids in ([run.drivers[0]], [run.drivers[0], run.process.pid]):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.7 * len(pids) ** 2)
        for pid in reversed(pids):  # the parent first: it sees a driver that is stopped still
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.1)
    time.sleep(0.5)
    assert len(run.drivers) == 1 and state_of(run.drivers[0]) in ("S", "R"), run.process.poll()


def test_a_frozen_driver_is_waited_for_where_nothing_is_survived(started: Any) -> None:
    run = started("loaded(0, heartbeat_s=0.3)", "wait()")
    run.until_it_waits()
    os.kill(run.drivers[0], signal.SIGSTOP)
    time.sleep(1.2)
    assert state_of(run.drivers[0]) == "T"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, -signal.SIGHUP)]
)
def test_a_signal_ends_the_wait_before_a_restart(started: Any, number: int, code: int) -> None:
    """While there is no driver, nor a zombie of one."""
    run = started("loaded()", "die()", back_off_s=300.0)
    run.wait_for(lambda: (run.directory / "events.jsonl").exists(), "fault")
    run.wait_for(lambda: len(children(run.process.pid)) == 1, "end of the driver")  # the other one is its guard
    time.sleep(0.2)
    run.process.send_signal(number)
    assert (run.end(), len(run.drivers)) == (code, 1)
    assert f"results so far are in {run.directory}" in run.said


def children(pid: int) -> list[str]:
    """Process ids, zombies too."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_the_wait_grows_from_restart_to_restart(started: Any) -> None:
    """0.2, 0.4 and 0.8 s."""
    run = started("note('times', time.monotonic())", "if loaded() == 4: return 0", "die()", back_off_s=0.2)
    assert run.end() == 0
    times = [float(line) for line in run.lines("times")]
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert all(wait >= least for wait, least in zip(waits, (0.2, 0.4, 0.8), strict=True))


def test_who_kills_the_parent_kills_the_run(started: Any) -> None:
    run = started("loaded()", "wait()")
    run.until_it_waits()
    run.process.kill()
    run.process.wait(DEADLINE_S)
    gone(run.drivers[0])


def gone(pid: int) -> None:
    """Wait until a process has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while state_of(pid) not in ("", "Z"):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.01)


MARKED, GROUPED = "start_new_session=True", "env={}"
"""How processes of a run are known: by the environment of its descendants, or by the driver's process group, where a
process has written over its environment, as Ray's agents do."""


@pytest.mark.parametrize(("known", "sent"), [(MARKED, "STOP"), (GROUPED, "CONT")])
@pytest.mark.parametrize("lines", [["wait()"], ["note('waits')", "die()"]])
def test_a_run_that_was_killed_leaves_nothing(started: Any, lines: list[str], known: str, sent: str) -> None:
    """Be it its parent, with all of its group, or its driver that was killed, for good. (The kernel itself ends what is
    stopped in the group.)"""
    left = f"process = subprocess.Popen(['sleep', '600'], {known})"
    run = started("loaded(0)", left, f"os.kill(process.pid, signal.SIG{sent})", "note('pid', process.pid)", *lines)
    run.until_it_waits()
    with suppress(ProcessLookupError):
        os.killpg(run.process.pid, signal.SIGKILL)
    assert run.process.wait(DEADLINE_S) == -signal.SIGKILL
    gone(int(run.lines("pid")[0]))


def test_a_run_that_has_ended_by_itself_may_leave_processes(started: Any) -> None:
    """What delivers metrics, for example."""
    left = "process = subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=-3, stderr=-3)"
    run = started("loaded()", left, "note('pid', process.pid)", "return 0")
    assert run.end() == 0
    time.sleep(0.3)
    pid = int(run.lines("pid")[0])
    assert state_of(pid) == "S"
    os.kill(pid, signal.SIGKILL)


def test_a_driver_inherits_no_blocked_signal(started: Any) -> None:
    """Nor does what it starts; its input and output are the parent's, its process group is its own."""
    run = started(
        "number = loaded()",
        "note('blocked', len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))",
        "note('blocked', subprocess.check_output(['grep', 'SigBlk', '/proc/self/status'], text=True).split()[1])",
        "if number == 1: die()",
        "print(sys.stdin.readline().strip(), os.getpgid(0) == os.getpid())",
        "return 0",
        stdin=subprocess.PIPE,
    )
    run.process.stdin.write("a line\n")
    assert (run.end(), run.out) == (0, "a line True\n")
    assert run.lines("blocked") == ["0", "0" * 16] * 2


@pytest.mark.parametrize(("known", "sent"), [(MARKED, "STOP"), (GROUPED, "CONT")])
def test_what_a_killed_driver_leaves_is_ended_first(started: Any, known: str, sent: str) -> None:
    """Its processes, be they stopped and of another session, and its directories; what delivers metrics may end."""
    left = f"subprocess.Popen(['sleep', '600'], {known})"
    program = "import time; time.sleep(1); open({str(HERE / 'delivered')!r}, 'w')"
    feeder = f"subprocess.Popen([sys.executable, '-c', f\"{program}\", 'wandb_feeder.py'])"
    run = started(
        "number = loaded()",
        "if number == 2: note('second', f\"{(HERE / 'delivered').exists()} {(HERE / 'left').exists()}\"); return 0",
        f"process = {left}",
        f"os.kill(process.pid, signal.SIG{sent})",
        "note('pid', process.pid)",
        feeder,
        "(HERE / 'left/ray').mkdir(parents=True)",
        "link.say_leaves([HERE / 'left'])",
        "die()",
    )
    assert (run.end(), run.lines("second")) == (0, ["True False"])
    assert state_of(int(run.lines("pid")[0])) in ("", "Z")
    assert "waited in vain" not in run.said


def test_without_a_parent_nothing_is_survived_and_nobody_told() -> None:
    attempt_link.say_loaded(3, 4.0, Path())
    attempt_link.say_step(1)
    assert not attempt_link.may_restart() and not attempt_link.survives_faults() and not attempt_link.is_restarted()


def test_a_process_with_threads_drives_the_run_itself() -> None:
    """A fork would copy locks that they hold."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        pids = list[int]()
        assert with_restarts(lambda: pids.append(os.getpid()) or 5) == 5
        assert pids == [os.getpid()]
    finally:
        over.set()
        thread.join()


def test_the_parent_is_small(started: Any) -> None:
    """It has imported the standard library alone, and little of it."""
    program = "import json, sys, launch.run.attempts; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    names = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert names - {"launch", "__main__"} <= {*sys.stdlib_module_names} | {name for name in names if name[0] == "_"}
    assert {name for name in json.loads(done.stdout) if name.startswith("launch.")} == {
        *("launch.run", "launch.run.attempts", "launch.run.attempt_link", "launch.run.leftovers"),
        "launch.run.taken_signals",
        *("launch.tracking", "launch.tracking.events"),
    }
