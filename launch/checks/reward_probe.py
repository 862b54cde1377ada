"""The process in which `check` calls a reward function once, so that one that hangs takes nothing else with it.

It gets a `ProbeRequest` on stdin, imports the function, gets `Samples` there too, and answers in lines of JSON on a
pipe of its own: the function's prints go nowhere. A thread looks at where the function stands and ends the process when
it is late or in a loop without end. Runs without torch and ray.
"""

import inspect
import json
import os
import pickle
import sys
import threading
import time
from dataclasses import dataclass, field

from actors.config import UserError
from actors.user.confined import confine
from algorithms.config import RewardFunction
from algorithms.rewards.calls import LoadedFunction, Samples, check_signature, resolve
from algorithms.user.deadline import line_in, stack_of, stuck

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """What to import, and how long that and a call may take."""

    function: RewardFunction
    index: int
    import_s: float
    call_s: float
    deadline_s: float
    """What the run waits for."""
    memory_mib: int | None
    """What it may allocate."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What to call the function with; without columns nothing is known of the data, and it is not called."""

    columns: dict[str, list[str]] | None
    """data.train and data.eval -> the columns that every row has."""
    batches: list[Samples]
    """The first is called; the others only while the function gives no value."""
    lacking: dict[str, dict[str, str]] = field(default_factory=dict)
    """data.train and data.eval -> the columns that only some rows have, and the first row without."""


class _Reporter:
    """Writes what happens, and watches the time of what is going on."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._main = threading.get_ident()
        self._now = ("", 0.0, 0.0)
        self.file: str | None = None
        self.deadline_s = 0.0

    def say(self, **event: object) -> None:
        os.write(self._pipe, json.dumps(event).encode() + b"\n")

    def begin(self, doing: str, limit_s: float) -> None:
        """From now on the main thread is doing this, for so long at most; nothing ends the watch."""
        self._now = (doing, time.monotonic(), limit_s)  # one value: the other thread sees none that is half changed

    def watch(self) -> None:
        """Look at the main thread until the process ends."""
        while True:
            time.sleep(_LOOK_EVERY_S)
            (doing, began, limit_s), frame = self._now, stack_of(self._main)
            if not doing:
                continue
            passed = time.monotonic() - began
            reason = stuck(frame, self.file, passed, self.deadline_s)
            if reason is None and passed < limit_s:
                continue
            late = f"took longer than {limit_s:g} s{line_in(frame, self.file)}"
            # From this thread: the main one stands in the function, and would never get to it.
            self.say(event="late", doing=doing, reason=reason or late, stuck=reason is not None)
            os._exit(0)


def serve() -> None:
    """Serve one request; the argument is the number of the pipe to answer on."""
    source, reporter = os.fdopen(os.dup(0), "rb"), _Reporter(int(sys.argv[1]))
    # What the function prints or reads must not get into this conversation.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    request: ProbeRequest = pickle.load(source)
    function = request.function
    path = function.name.rpartition(":")[0]
    reporter.file = os.path.abspath(path if path.endswith(".py") else f"{path.replace('.', '/')}.py")
    reporter.deadline_s = request.deadline_s
    threading.Thread(target=reporter.watch, daemon=True).start()
    confine(os.environ, request.memory_mib)  # whoever started this process has left the secrets out
    reporter.begin("importing", request.import_s)
    try:
        call = resolve(function, request.index)
        reporter.begin("", 0)
        parameters = inspect.signature(call).parameters.values()
        takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters)
        reporter.say(event="imported", takes=[item.name for item in parameters], takes_any=takes_any)
        trial: Trial = pickle.load(source)
        for where, columns in (trial.columns or {}).items():
            check_signature(function, columns, request.index, where, trial.lacking.get(where))
        if trial.columns is not None:
            loaded = LoadedFunction(
                name=function.name, label="probe", weight=1, arguments=function.arguments, call=call
            )
            _try(loaded, trial.batches, reporter, request.call_s)
    except UserError as error:
        reporter.say(event="problems", problems=error.problems)
    # Then without waiting for threads that the function may have left.
    reporter.say(event="done")
    os._exit(0)


def _try(function: LoadedFunction, batches: list[Samples], reporter: _Reporter, call_s: float) -> None:
    for number, samples in enumerate(batches):
        reporter.begin("calling", call_s)
        began = time.monotonic()
        outcomes = function.evaluate(samples)
        reporter.begin("", 0)
        if any(outcome is not None for outcome in outcomes):
            reporter.say(event="called", batch=number, outcomes=outcomes, seconds=time.monotonic() - began)
            return
    reporter.say(event="called", batch=0, outcomes=[None] * len(batches[0].completions), seconds=0.0)
