"""What befell a run: `events.jsonl` says what died or froze, how that was noticed, what was done, and how long it took.

Every fault has a number and several lines: `noticed`, perhaps states on the way back (`restarting`, `stale`), and at
last `recovered` or `given up`, which repeats what the first line has said. The file outlives the driver: the process
that starts it again appends to it, too. Only the standard library: that process imports nothing else.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAME = "events.jsonl"
NOTICED, RECOVERED, GIVEN_UP = "noticed", "recovered", "given up"
WITHOUT = "done without"
"""How the fault of a node is over that has not come back: what it had begins anew, there or elsewhere."""
JOINED, DRAINED, LEFT = "joined", "drained", "left"
"""What is no fault: an engine is new, its node is about to go, it is not replaced."""
_OF_ITSELF = "event", "at", "attempt"
_KEPT = 1000
"""Most lines that wait for a disk that takes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that died, froze or failed."""

    who: str
    """A rank as `policy[1]`, or `driver`, `raylet`, ..."""
    what: str
    """died, froze or failed."""
    noticed_by: str
    """What told of it: exit, stopped, silent, or call, where an answer failed."""
    noticed_s: float | None = None
    """Seconds since its last sign of life: it went no earlier. None where nobody has looked before."""
    generation: int = 0
    """Of a rank: how often its process had been replaced; the same fault noticed twice is one fault."""
    pid: int | None = None
    node: str = ""
    """Address of its node; empty when there is only one."""
    cause: str = ""
    """In one line, where it has left one."""


class Events:
    """The faults of one run, over all attempts of its driver. Any thread may tell of one.

    Example:
        fault = events.noticed(Fault(who="rollout[1]", what="died", noticed_by="exit", noticed_s=0.7, pid=4711))
        events.state(fault, "restarting")
        events.recovered(fault, "restarted", samples=["data row 17"])
    """

    def __init__(
        self,
        directory: Path,
        *,
        anew: bool = False,
        told: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            directory: of the run.
            anew: the run begins now: what another one of this name has left is removed.
            told: hears a line of each fault when it is noticed, and one when it is over, from the thread that tells it.
            clock: seconds since 1970, as two attempts share no other.
        """
        self._path, self._clock, self._lock = directory / NAME, clock, threading.RLock()
        self._told = told
        self.heard: Callable[[dict[str, Any]], None] | None = None
        """Hears each line as it is written, from the thread that tells it: it must not wait."""
        if anew:
            self._path.unlink(missing_ok=True)
        self.step, self.phase = 0, ""
        """Where the run is; whoever knows sets it."""
        self._waiting: list[bytes] = []
        self._known: dict[tuple[int, str, int], int] = {}
        """(attempt, who, generation) -> number."""
        self._first: dict[int, dict[str, Any]] = {}
        """Number -> its first line."""
        self._open: dict[int, float] = {}
        """Number of a fault that is not over -> when the run began to stand."""
        found = read_events(self._path)
        for line in found:
            self._take_in(line)
        self.attempt = 1 + max((line["attempt"] for line in found), default=0)

    def noticed(self, fault: Fault, doing: str = "", *, told: bool = True) -> int:
        """Note a fault; returns its number, that of before where it is known already.

        Args:
            fault: what has happened.
            doing: what is done about it, for people: `restarting`.
            told: whether people are told; else the caller does it.
        """
        with self._lock:
            key = self.attempt, fault.who, fault.generation
            new = key not in self._known
            if new:
                self._write({"fault": 1 + len(self._first), "event": NOTICED, **asdict(fault)})
            number, where = self._known[key], self._where()
        if new and told and self._told:
            self._told(f"{where}{_noticed_line(fault)}{f': {doing}' if doing else ''}")
        return number

    def is_told(self, who: str, generation: int) -> bool:
        """Whether this attempt has a fault of that process."""
        with self._lock:
            return (self.attempt, who, generation) in self._known

    def state(self, number: int, state: str) -> None:
        """Note what has become of a fault so far."""
        with self._lock:
            self._write({"fault": number, "event": state, "who": self._first[number]["who"]})

    def recovered(self, number: int, did: str, *, samples: Sequence[str] = (), redone_steps: int = 0) -> None:
        """A fault is over; does nothing where it is already.

        Args:
            number: of the fault.
            did: what was done, in one word or two.
            samples: names of the prompts whose responses were begun anew, or went on elsewhere.
            redone_steps: steps that are trained again.
        """
        self._end(number, RECOVERED, {"did": did, "samples": list(samples), "redone_steps": redone_steps})

    def tell(self, event: str, who: str, node: str) -> None:
        """Note what is no fault, such as `joined`: lines without a number. `node`: address of where it is."""
        with self._lock:
            self._write({"event": event, "who": who, "node": node})
            where = self._where()
        if self._told:
            self._told(f"{where}{who} has {event if event != DRAINED else 'handed over what it had'} ({node})")

    def given_up(self, number: int, why: str) -> None:
        """A fault has ended the run, or this attempt at it."""
        self._end(number, GIVEN_UP, {"did": why})

    def open(self) -> list[int]:
        """Numbers of faults that are not over, those of earlier attempts included."""
        with self._lock:
            return list(self._open)

    def _end(self, number: int, how: str, more: dict[str, Any]) -> None:
        with self._lock:
            if number not in self._open:
                return
            stood = round(max(0.0, self._clock() - self._open[number]), 3)
            first = {
                name: value for name, value in self._first[number].items() if name not in ("event", "at", "attempt")
            }
            self._write({**first, "event": how, **more, "stood_s": stood})
        if self._told:
            self._told(_over_line(self._first[number]["who"], how, more, stood))

    def _where(self) -> str:
        step = f"step {self.step}, " if self.step else ""
        return f"{step}{self.phase}: " if self.phase else ""

    def _write(self, line: dict[str, Any]) -> None:
        at = self._clock()
        text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        where = {} if line["event"] in (RECOVERED, GIVEN_UP) else {"step": self.step, "phase": self.phase}
        line = {"at": text, "attempt": self.attempt, **where, **line}
        self._take_in(line)
        self._waiting.append(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        del self._waiting[:-_KEPT]
        with contextlib.suppress(OSError):  # a full disk shall not end a run that survives: the next line tries again
            append_whole(self._path, b"".join(self._waiting))
            self._waiting.clear()
        if self.heard:
            self.heard(line)

    def _take_in(self, line: dict[str, Any]) -> None:
        number = line.get("fault")
        if number is None:
            return
        if line["event"] == NOTICED:
            self._first[number] = line
            self._known[line["attempt"], line["who"], line["generation"]] = number
            self._open[number] = datetime.fromisoformat(line["at"]).timestamp() - (line["noticed_s"] or 0.0)
        elif line["event"] in (RECOVERED, GIVEN_UP):
            self._open.pop(number, None)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's events, without one that a kill has torn; none where there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = (_line(each) for each in text.splitlines())
    known = set[int]()
    lines = list[dict[str, Any]]()
    for line in found:
        # A line of a fault whose first was torn says nothing that can be used.
        if line and (line["event"] == NOTICED or line["fault"] in known):
            known.add(line["fault"])
            lines.append(line)
    return lines


def fault_in_words(line: Mapping[str, Any]) -> str:
    """The first line of a fault, or the one by which it is given up, for people. Raises LookupError and TypeError for a
    line that lacks what these have."""
    if line["event"] == GIVEN_UP:
        return _over_line(line["who"], GIVEN_UP, line, line["stood_s"])
    return _noticed_line(Fault(**{field.name: line[field.name] for field in fields(Fault) if field.name in line}))


def ended(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of every fault that is over, in order."""
    return [line for line in lines if line["event"] in (RECOVERED, GIVEN_UP)]


def _noticed_line(fault: Fault) -> str:
    """Example: rollout[1] died (noticed by exit after 0.7 s; killed by signal 9)"""
    after = "" if fault.noticed_s is None else f" after {fault.noticed_s:.1f} s"
    cause = f"; {fault.cause}" if fault.cause else ""
    by = {"silent": "its silence", "stopped": "its state"}.get(fault.noticed_by, fault.noticed_by)
    return f"{fault.who} {fault.what} (noticed by {by}{after}{cause})"


def _over_line(who: str, how: str, more: Mapping[str, Any], stood: float) -> str:
    """Example: policy[1] is back after 9.1 s; 2 steps are made again"""
    if how == GIVEN_UP:
        return f"{who} is given up after {stood:.1f} s: {more['did']}"
    if more["did"] == LEFT:
        return f"{who} is not replaced, {stood:.1f} s after it was lost"
    if more["did"] == WITHOUT:
        return f"{who} is {WITHOUT} after {stood:.1f} s"
    steps = more["redone_steps"]
    again = f"; {steps} step{'s are' if steps > 1 else ' is'} made again" if steps else ""
    return f"{who} is back after {stood:.1f} s{again}"


def _line(text: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict) and {"fault", "event", "attempt", "at", "who"} <= found.keys():
            return found
    return None


def append_whole(path: Path, lines: bytes) -> None:
    """All of it or nothing; a torn line of before is ended first. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        end = os.fstat(file).st_size
        if end and os.pread(file, 1, end - 1) != b"\n":
            lines = b"\n" + lines
        written = 0
        try:
            while written < len(lines):
                written += os.write(file, lines[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, end)
            raise
    finally:
        os.close(file)
