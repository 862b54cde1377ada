"""The driver of a run as a child of a process that does nothing but wait: whatever ends the driver, it starts again.

    parent                 waits, forwards signals, looks whether the driver is stopped; forks the next attempt
    driver (a child)       everything else; exact resume goes on from the last checkpoint

Nothing is in the parent that could fail with the driver: it is forked before any library is imported. It ends as the
driver does, so that shells, jobs and schedulers see what they would see without it; who kills it ends the run at once.
Only the standard library.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from launch.run.attempt_link import AGAIN, become_driver
from launch.run.leftovers import Guard, end_leftovers, new_mark
from launch.run.taken_signals import ENDING, TakenSignals
from launch.tracking.events import Events, Fault

_TICK_S = 0.25
"""Between two looks at the driver."""
_FIRST_BACK_OFF_S, _LONGEST_BACK_OFF_S = 1.0, 60.0
_INTERRUPTED = 130
_ALERTS_S = 30.0
"""Of the process that alerts for a driver: imports, and what `launch.alerts.alerts` waits for."""


def with_restarts(drive: Callable[[], int]) -> int:
    """Run `drive` in a child, again and again while it ends by a fault and may; returns in parent and child alike.

    Returns:
        The exit code, in the parent that of the last child. Where that was killed by a signal, so is this process.
    """
    if sys.platform != "linux" or threading.active_count() > 1:  # a fork would copy locks that other threads hold
        return drive()
    code = _Parent().run()
    return drive() if code is None else code


@dataclass
class _Driver:
    """A child that drives the run."""

    pid: int
    reading: int
    mark: str
    told: bytes = b""
    attempt: int = 0
    """In events.jsonl; 0: it has not said."""
    leaves: list[str] = field(default_factory=list)
    """Directories that are nobody's when it is killed."""
    moved: bool = False
    """Whether it has finished a step."""
    code: int | None = None
    looked_at: float = field(default_factory=time.monotonic)
    alive_at: float = field(default_factory=time.monotonic)
    """When it was last seen to run."""
    stopped_s: float = 0.0
    froze: bool = False
    """It was stopped for too long, and killed."""


class _Parent:
    """Waits for one driver after the other."""

    def __init__(self) -> None:
        self._pid, self._mark = os.getpid(), new_mark()
        self._guard = Guard(self._mark)
        self._signals = TakenSignals()
        self._number, self._in_a_row, self._step = 0, 0, 0
        self._restarts: int | None = None
        """None: no driver has said how many there may be."""
        self._heartbeat_s = 0.0
        self._directory = Path()
        self._asked: signal.Signals | None = None
        """The last signal that it was told to end by."""
        self._paused = False

    def run(self) -> int | None:
        """The exit code; None in a child, which is to drive the run."""
        code = self._attempts()
        self._signals.give_back()
        if code is None:
            self._guard.leave()
        elif code < 0:
            _end_as(-code)
        else:
            self._guard.dismiss()
        return code if code is None or code >= 0 else 128 - code

    def _attempts(self) -> int | None:
        """How the run ends, below 0 for a signal; None in a child."""
        while True:
            driver = self._fork()
            if driver is None:
                return None
            code = self._wait_for(driver)
            os.close(driver.reading)
            if not self._is_fault(code):
                if code > 0 and self._number > 1 and not driver.attempt and not self._asked:
                    # Before it could alert to anything, and nobody looks at a run that starts again by itself.
                    self._give_up(self._witness(driver, ""), f"started again, it ended with {code} before it began")
                return self._interrupted() if code == AGAIN and self._asked else code
            self._in_a_row = 1 if driver.moved else self._in_a_row + 1
            goes_on = self._may_go_on(driver, code)
            self._make_way(driver)
            if not goes_on:
                return 1 if code == AGAIN else code
            self._back_off()
            if self._asked:
                return self._interrupted()

    def _interrupted(self) -> int:
        """Told to end while there is no driver that could."""
        _say(f"interrupted; continue with the same command, results so far are in {self._directory}")
        return -signal.SIGHUP if self._asked == signal.SIGHUP else _INTERRUPTED

    def _fork(self) -> _Driver | None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()  # else what it holds is written twice
        reading, writing = os.pipe()
        mark = f"{self._mark}{self._number}."
        self._signals.hold()
        if not (pid := os.fork()):
            os.close(reading)
            become_driver(self._pid, writing, mark, restarted=self._number > 0, in_a_row=self._in_a_row)
            return None
        self._signals.release()
        with suppress(OSError):  # as the child does itself: whoever comes first
            os.setpgid(pid, pid)
        self._guard.has(pid)
        os.close(writing)
        os.set_blocking(reading, False)
        self._number += 1
        self._paused = False
        return _Driver(pid, reading, mark)

    def _wait_for(self, driver: _Driver) -> int:
        """Its exit code, below 0 for a signal."""
        while True:
            number = self._signal(_TICK_S)
            self._hear(driver)
            pid, status = os.waitpid(driver.pid, os.WNOHANG)
            if pid:
                self._hear(driver)  # what it has said since
                return os.waitstatus_to_exitcode(status)
            if number:
                self._pass_on(number, driver.pid)
            self._look_at(driver)

    def _signal(self, within_s: float) -> signal.Signals | None:
        number = self._signals.wait(within_s)
        if number in ENDING:
            self._asked = number
        return None if number == signal.SIGCHLD else number

    def _pass_on(self, number: signal.Signals, pid: int) -> None:
        """To the driver, which no signal of a terminal reaches: it is in a process group of its own."""
        if number == signal.SIGTSTP:
            self._paused = True
            os.kill(pid, signal.SIGSTOP)
            os.kill(self._pid, signal.SIGSTOP)
        elif number == signal.SIGCONT:
            self._paused = False
            os.kill(pid, signal.SIGCONT)
        else:
            os.kill(pid, number)

    def _hear(self, driver: _Driver) -> None:
        """Take in what the driver has said."""
        with suppress(BlockingIOError):
            while more := os.read(driver.reading, 1 << 16):
                driver.told += more
        *lines, driver.told = driver.told.split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "restarts" in said:
                self._restarts, self._heartbeat_s = said["restarts"], said["heartbeat_s"]
                self._directory = Path(said["directory"])
            driver.attempt = said.get("attempt", driver.attempt)
            driver.leaves += said.get("leaves", [])
            if "step" in said:
                self._step, driver.moved = said["step"], True

    def _look_at(self, driver: _Driver) -> None:
        """Kill a driver that somebody else has stopped for longer than a heartbeat."""
        now = time.monotonic()
        # No longer than two ticks: this process itself may have stood still.
        passed, driver.looked_at = min(now - driver.looked_at, 2 * _TICK_S), now
        if not self._restarts or self._paused or not is_stopped(driver.pid):
            driver.alive_at, driver.stopped_s = now, 0.0
            return
        driver.stopped_s += passed
        if driver.stopped_s > self._heartbeat_s and not driver.froze:
            driver.froze = True
            os.kill(driver.pid, signal.SIGKILL)

    def _is_fault(self, code: int) -> bool:
        """Whether an end is one that nobody has asked for, and after which the run shall go on, if it may."""
        if self._restarts is None or self._asked in (signal.SIGINT, signal.SIGTERM):
            return False
        return (code == AGAIN and self._restarts > 0) or (code < 0 and code != -(self._asked or 0))

    def _may_go_on(self, driver: _Driver, code: int) -> bool:
        """Write down what has ended the driver, and say whether it is started again."""
        cause = "" if code == AGAIN else _cause(driver, code)
        events = self._witness(driver, cause)
        restarts = self._restarts or 0
        if self._in_a_row > restarts:
            faults = f"{self._in_a_row} faults in a row, without a finished step between them"
            survived = f"{faults}, and {restarts} are survived" if restarts else "no fault is survived"
            what = f"the driver was {cause}" if cause else "the run has met a fault"
            _say(f"run failed: {what}; {survived} (run.max_restarts, --retries)")
            self._give_up(events, faults if restarts else survived)
            return False
        saved = _has_checkpoint(self._directory)
        where = "from the last checkpoint" if saved else "anew, as there is no checkpoint yet"
        how = f"starting again {where} (restart {self._in_a_row} of {restarts})"
        _say(f"warning: the driver was {cause}; {how}" if cause else f"warning: {how}")
        return True

    def _give_up(self, events: Events, why: str) -> None:
        """Write down that the run does not go on, and alert to it."""
        for number in events.open():
            events.given_up(number, why)
        _alert(self._directory, restarted=self._number > 1)

    def _witness(self, driver: _Driver, cause: str) -> Events:
        """The run's events, with the driver's end; one that has asked for another attempt has written why itself."""
        with suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
        events = Events(self._directory)
        events.attempt, events.step = driver.attempt or events.attempt, self._step
        from launch.tracking.now import read_now  # only where something has happened: this process stays small

        if where := read_now(self._directory):
            events.step, events.phase = where.step, where.phase
        if cause:
            what, noticed_by = ("froze", "stopped") if driver.froze else ("died", "exit")
            since = round(time.monotonic() - driver.alive_at, 3)
            fault = Fault(who="driver", what=what, noticed_by=noticed_by, noticed_s=since, pid=driver.pid, cause=cause)
            events.noticed(fault)
        return events

    def _make_way(self, driver: _Driver) -> None:
        """Wait until nothing of the last attempt is in the way of the next."""
        left = end_leftovers(driver.mark, lambda seconds: bool(self._signal(seconds) and self._asked), [driver.pid])
        if left and not self._asked:
            _say(f"warning: waited in vain for the end of {', '.join(left)}, of the driver before: going on beside it")
        for directory in driver.leaves:
            shutil.rmtree(directory, ignore_errors=True)

    def _back_off(self) -> None:
        """Longer after each fault in a row; the wait ends when the run is told to end."""
        until = time.monotonic() + min(_FIRST_BACK_OFF_S * 2.0 ** (self._in_a_row - 1), _LONGEST_BACK_OFF_S)
        while not self._asked and (left := until - time.monotonic()) > 0:
            if self._signal(left) == signal.SIGTSTP:
                os.kill(self._pid, signal.SIGSTOP)


def is_stopped(pid: int) -> bool:
    """Whether a process stands still because a signal, or a debugger, has stopped it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def _cause(driver: _Driver, code: int) -> str:
    if driver.froze:
        return f"stopped for {driver.stopped_s:.1f} s, and then killed"
    return f"killed by signal {-code}"


def _alert(directory: Path, *, restarted: bool) -> None:
    """Let a process of its own tell of what no driver is there to tell; it ends in time."""
    if not (directory / "config.json").is_file():  # it says what there is to tell, and whom
        return
    program = Path(__file__).parents[1] / "alerts" / "after_driver.py"
    with suppress(OSError, subprocess.SubprocessError):
        # -P: the file's directory is no place to import from.
        command = [sys.executable, "-P", str(program), str(directory.absolute())] + ["restarted"] * restarted
        subprocess.run(command, stdin=subprocess.DEVNULL, timeout=_ALERTS_S)


def _has_checkpoint(directory: Path) -> bool:
    return any(directory.glob("checkpoints/step-*/manifest.json"))


def _end_as(number: int) -> None:
    """End this process by the signal that has ended its child; returns where that cannot be."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has left one, if there is to be any
    with suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)  # SIGKILL has no other
    with suppress(OSError, ValueError):
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def _say(line: str) -> None:
    with suppress(OSError):  # nobody may be there to read it
        print(line, file=sys.stderr, flush=True)
