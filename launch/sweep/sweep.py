"""The verb `sweep`: trials as runs, one after the other or several at a time, until there is no other to try."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import UserError
from launch.kinds.table import job_kind
from launch.run.ending import PREEMPTED, STOPPED
from launch.run.taken_signals import ENDING, TakenSignals
from launch.screen.stdout import tell
from launch.sweep import record as states
from launch.sweep.prepare import Options, Plan, make_directory, prepare
from launch.sweep.process import TrialProcess, run_command, start, taken
from launch.sweep.record import LOCK, SweepTrial
from launch.sweep.rows import MetricRows
from launch.sweep.search import KnownPoints, Search
from launch.sweep.settled import assignments, settle
from launch.sweep.table import print_sweep
from launch.tracking.now import END, read_now

if TYPE_CHECKING:
    from launch.sweep.tuned import EarlyStop

TICK_S = 0.25
"""Between two looks at the trials."""
_ALIKE = 2
"""First trials that end by the same mistake: the others would, too."""


def run_sweep(options: Options) -> int:
    """Check, try, and print the table.

    Returns:
        The exit code: 0 where a trial has come to a value, 1 where none has, 130 interrupted.

    Raises:
        UserError: the user's mistake, told before anything starts.
    """
    plan = prepare(options)
    make_directory(plan, options.config)
    for warning in plan.warnings:
        tell(f"warning: {warning}")
    with _locked(plan.directory):
        sweep = Sweep(plan)
        try:
            interrupted = sweep.run()
        finally:
            sweep.close()
    print_sweep(plan.record, plan.directory, running=False)
    if interrupted:
        tell(f"interrupted; continue with the same command, results so far are in {plan.directory}")
        return STOPPED
    return 0 if any(trial.value is not None for trial in plan.record.trials) else 1


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Within it, no other process runs this sweep. Raises UserError."""
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not taken(lock):
            raise UserError(f"--name: must be that of a sweep that nobody runs, and {directory} is being run")
        yield
    finally:
        os.close(lock)


@dataclass
class _Running:
    """A trial that runs."""

    trial: SweepTrial
    process: TrialProcess
    rows: MetricRows
    steps: int | None
    """It has; None: not known."""
    told: int
    """The last step that was told: of a run that goes on, those before are read again."""


@dataclass
class Sweep:
    """Trials that run, and the choice of the next."""

    plan: Plan
    command: Callable[[Path, list[str]], list[str]] = run_command
    """Of a trial: of its configuration and overrides."""
    _running: list[_Running] = field(default_factory=list)
    _left: list[SweepTrial] = field(default_factory=list)
    """Those that are known and wait for their turn."""
    _asked: bool = False
    """To end."""
    _waits_for: int = 0
    """Number of the trial of which a process of an earlier start has not ended; 0: none."""
    _waits_told: int = 0
    """The one of which that was said."""

    def __post_init__(self) -> None:
        plan, record = self.plan, self.plan.record
        self._search = _search(plan)
        self._early = _early_stop(plan)
        self._recall()
        while plan.points is not None and len(record.trials) < record.count:
            self._next_trial()
        self._left = [trial for trial in record.trials if trial.state == states.WAITING]
        record.write(plan.directory)
        self._signals = TakenSignals()

    def run(self) -> bool:
        """Run the trials; returns whether it was interrupted. Raises UserError for a mistake that all of them have."""
        self._tell_what_begins()
        while True:
            self._start_due()
            if not self._running and not self._waits_for:
                break
            self._heed(self._signals.wait(TICK_S))
            for item in list(self._running):
                self._look_at(item)
            if self._asked and not self._running:
                break
        return self._asked

    def close(self) -> None:
        """Signals are again what they were; a trial that still runs, because something has failed here, is ended."""
        for item in self._running:
            item.process.stop(self.plan.stop_wait_s)
        while any(item.process.ended() is None for item in self._running):
            time.sleep(TICK_S)
        self._signals.give_back()

    # Which trial is next.

    def _recall(self) -> None:
        """Take in what trials of earlier starts have come to; those that did not end have their turn again."""
        least = self._least
        for trial in self.plan.record.trials:
            rows = self._rows(trial)
            rows.update()
            if self._early:
                for step, value in rows.values.items():
                    if math.isfinite(value):
                        self._early.goes_on(trial.number, step, value)
            self._score(trial, rows, least=least)
            if trial.state == states.STOPPING:
                trial.state = states.STOPPED
            if trial.state in (states.FINISHED, states.STOPPED):
                self._search.tell(trial.number, trial.point, trial.value)
            else:
                trial.state, trial.cause = states.WAITING, ""

    def _next_trial(self) -> SweepTrial | None:
        """Another trial by the searcher, its point checked; None where there is none."""
        record = self.plan.record
        number = len(record.trials) + 1
        point = self._search.point(number) if number <= record.count else None
        if point is None:
            return None
        record.trials.append(SweepTrial(number, point, []))
        return record.trials[-1]

    def _start_due(self) -> None:
        self._waits_for = 0
        while not self._asked and len(self._running) < self.plan.parallel:
            trial = self._left[0] if self._left else self._next_trial()
            if trial is None:
                return
            if trial not in self._left:
                self._left.append(trial)
            if not self._start(trial):
                self._waits_for = trial.number
                return
            self._left.remove(trial)

    def _start(self, trial: SweepTrial) -> bool:
        """Whether it has begun, or has failed to; False while a process of it from before has not ended."""
        plan = self.plan
        try:
            settled = settle(str(plan.base), plan.record.fixed, trial.point)
        except UserError as error:  # of a point that a searcher has chosen since
            self._ends(trial, states.FAILED, f"error: {error.problems[0]}")
            return True
        trial.overrides = settled.overrides
        process = start(self.command(plan.base, plan.overrides_of(trial)), plan.directory, trial.name)
        if process is None:
            if self._waits_told != trial.number:
                self._waits_told = trial.number
                tell(f"trial {trial.number}: waiting for the end of a process of it, which an earlier start has begun")
            return False
        steps = job_kind(settled.config).known_steps
        self._running.append(_Running(trial, process, self._rows(trial), steps, trial.step or -1))
        goes_on = f", from step {trial.reached}" if trial.reached else ""
        trial.state = states.RUNNING
        tell(f"trial {trial.number} of {plan.record.count}{goes_on}: {' '.join(assignments(trial.point))}")
        self._write()
        return True

    # What trials come to.

    def _look_at(self, item: _Running) -> None:
        trial, code = item.trial, item.process.ended()
        steps = item.rows.update()  # after it has ended, if it has
        if steps or item.rows.step != trial.reached:
            self._score(trial, item.rows, least=self._least)
            self._write()
        for step in steps:
            value = item.rows.values[step]
            if step > item.told:
                item.told = step
                shown = f"{value:.6g}" if math.isfinite(value) else "is no number"
                tell(f"trial {trial.number}: step {step}, {self.plan.record.metric} {shown}")
            why = self._why_stop(item, step, value)  # also of one that has ended: the others are compared with it
            if why and code is None and trial.state == states.RUNNING:
                trial.state, trial.cause = states.STOPPING, why
                self._write()  # first: whoever goes on after a kill knows that it is not to be resumed
                item.process.stop(self.plan.stop_wait_s)
        if code is not None:
            self._running.remove(item)
            self._ended(item, code)

    def _why_stop(self, item: _Running, step: int, value: float) -> str:
        """Why a trial ends early; empty if it goes on."""
        if self._early is None or self.plan.grace is None:
            return ""
        if math.isfinite(value):
            behind = not self._early.goes_on(item.trial.number, step, value)
            why = f"at step {step} not among the best 1/{self.plan.reduction}" if behind else ""
        else:
            why = f"no number at step {step}" if step >= self.plan.grace else ""
        return "" if why and self._is_done(item, step) else why

    def _is_done(self, item: _Running, step: int) -> bool:
        """Whether this was its last step, or it is exporting: nothing is saved by stopping it."""
        where = read_now(self._directory_of(item.trial))
        return (item.steps is not None and step >= item.steps) or (where is not None and where.phase == END)

    def _ended(self, item: _Running, code: int) -> None:
        """A trial's process has ended."""
        trial = item.trial
        if trial.state == states.STOPPING and code != 0:
            self._ends(trial, states.STOPPED, trial.cause)
        elif code == 0:
            cause = "" if trial.value is not None else f"it wrote no {self.plan.record.metric} after a step"
            self._ends(trial, states.FINISHED, cause)
        elif self._asked or code in (STOPPED, PREEMPTED, -signal.SIGTERM, -signal.SIGINT):
            self._ends(trial, states.INTERRUPTED, "")
        else:
            self._ends(trial, states.FAILED, item.process.cause())
            tell(f"full log: {item.process.log}")
            self._require_other_mistakes(code)

    def _ends(self, trial: SweepTrial, state: str, cause: str) -> None:
        trial.state, trial.cause = state, cause
        if state == states.FAILED:  # what it came to before is no trial's end: it is neither best nor learnt from
            trial.step, trial.value = None, None
        if state in states.ENDED:
            self._search.tell(trial.number, trial.point, trial.value)
        record = self.plan.record
        value = f", {record.metric} {trial.value:.6g} at step {trial.step}" if trial.value is not None else ""
        tell(f"trial {trial.number}: {state}{value}{f' ({cause})' if cause else ''}")
        self._write()

    def _require_other_mistakes(self, code: int) -> None:
        """Raise UserError where the first trials have all ended by one mistake of the user's, before any step."""
        begun = [trial for trial in self.plan.record.trials if trial.state != states.WAITING]
        causes = {trial.cause if trial.state == states.FAILED and not trial.reached else None for trial in begun}
        if code == 2 and len(begun) >= _ALIKE and len(causes) == 1 and None not in causes:
            (cause,) = causes
            raise UserError(f"{str(cause).removeprefix('error: ')} (the first {len(begun)} trials ended so)")

    def _score(self, trial: SweepTrial, rows: MetricRows, *, least: bool) -> None:
        found = rows.best(least=least) if self.plan.by_best else rows.last()
        trial.step, trial.value = found or (None, None)
        trial.reached = rows.step

    # The rest.

    def _heed(self, number: signal.Signals | None) -> None:
        """Do what a signal asks for."""
        if number == signal.SIGTSTP:  # Ctrl-Z
            self._pass_on(number)
            os.kill(os.getpid(), signal.SIGSTOP)
        elif number == signal.SIGCONT:
            self._pass_on(number)
        elif number in ENDING and self._asked:
            self._pass_on(signal.SIGINT)
        elif number in ENDING:
            self._asked = True
            for item in self._running:
                tell(f"trial {item.trial.number}: finishing its step and saving a checkpoint; Ctrl-C ends it at once")
                item.process.stop(self.plan.stop_wait_s)

    def _pass_on(self, number: signal.Signals) -> None:
        for item in self._running:
            item.process.signal(number)

    def _write(self) -> None:
        self.plan.record.write(self.plan.directory)

    def _rows(self, trial: SweepTrial) -> MetricRows:
        return MetricRows(self._directory_of(trial) / "metrics.jsonl", self.plan.record.metric)

    def _directory_of(self, trial: SweepTrial) -> Path:
        return self.plan.directory / trial.name

    @property
    def _least(self) -> bool:
        return self.plan.record.mode == "min"

    def _tell_what_begins(self) -> None:
        plan, record = self.plan, self.plan.record
        order = "lowest" if self._least else "highest"
        early = f", stopped early from step {plan.grace} on" if self._early else ""
        left = len(self._left) + record.count - len(record.trials)
        of = f" of {record.count}" if left < record.count else ""
        how = f"{plan.parallel} at a time{early}"
        tell(f"{plan.directory}: {left}{of} trials, {how}; best is the {order} {record.metric}")


def _search(plan: Plan) -> Search:
    if plan.points is not None:
        return KnownPoints(plan.points)
    from launch.sweep.tuned import Optuna

    record = plan.record
    return Optuna(plan.space, record.metric, record.mode, record.seed, known=len(record.trials))


def _early_stop(plan: Plan) -> "EarlyStop | None":
    if plan.grace is None:
        return None
    from launch.sweep.tuned import EarlyStop

    record = plan.record
    return EarlyStop(record.metric, record.mode, grace=plan.grace, reduction=plan.reduction, steps=plan.steps)
