"""Kills and stops processes of a run at the moment that is asked for, and waits until the run has got over it.

Which process and which phase: as `logs/now.json` says, which is all that an outsider has, too.
"""

import json
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import psutil

from launch.tracking.events import GIVEN_UP, NOTICED, RECOVERED, read_events
from launch.tracking.now import NOW
from tests.chaos.schedule import KILL, Hit

PATIENCE_S = 90.0
"""Longest time from a fault to its end."""
_TRIES = 4
_STEPS = 8
"""Most steps in which a phase is waited for."""
_TICK_S = 0.002
_GROUPS = {"engine": "rollout"}
_WHERE = "attempt", "step", "phase"


class _Process(Protocol):
    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        ...


class Hittable(Protocol):
    """A run that is going on."""

    @property
    def process(self) -> _Process:
        """Of its command."""
        ...

    @property
    def directory(self) -> Path:
        """Of what it writes."""
        ...


class Unlike(AssertionError):
    """The run has not taken a fault as it should have."""


@dataclass(slots=True)
class Injected:
    """A fault as it was, and what has become of it."""

    hit: Hit
    who: str
    pid: int
    step: int
    at: float
    """Seconds since 1970."""
    noticed_s: float = 0.0
    """From the fault to the line that tells of it."""
    stood_s: float = 0.0
    """From the fault to its end."""
    did: str = ""
    fault: int = 0
    """Its number in events.jsonl."""

    @property
    def text(self) -> str:
        """In one line."""
        times = f"noticed within {self.noticed_s:.1f} s, over after {self.stood_s:.1f} s ({self.did})"
        return f"{self.hit.text} of step {self.step}: {self.who}, process {self.pid}: {times}"


@dataclass
class Injector:
    """Of one run.

    Example:
        injector = Injector(job)
        for hits in schedule(seed=1, hits=12):
            injector.inject(*hits)
    """

    job: Hittable
    done: list[Injected] = field(default_factory=list)
    missed: list[Hit] = field(default_factory=list)
    """What there was no moment for."""
    _phase: tuple[int, int, str] = (0, 0, "")
    _since: float = 0.0
    _took: dict[str, float] = field(default_factory=dict)
    """Phase -> how long it was the last time."""

    def inject(self, *hits: Hit) -> None:
        """Do something to processes at one time, and wait until the run has got over it. Raises Unlike."""
        lines = len(self._lines())
        injected = self._hit_in_time(hits)
        missed = [hit for hit in hits if hit not in [each.hit for each in injected]]
        if missed:
            self.missed += missed
            print(f"no moment for: {', '.join(hit.text for hit in missed)}", flush=True)
        self.done += injected
        self._wait_for_end(injected, lines)
        for each in injected:
            print(each.text, flush=True)

    def _lines(self) -> list[dict[str, Any]]:
        return read_events(self.job.directory / "events.jsonl")

    def _look(self) -> dict[str, Any]:
        """What now.json says, an empty one where it says nothing yet; keeps how long phases take."""
        code = self.job.process.poll()
        if code is not None:
            raise Unlike(f"the run has ended with {code}")
        try:
            found = json.loads((self.job.directory / NOW).read_bytes())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        phase, now = (found["attempt"], found["step"], found["phase"]), time.monotonic()
        if phase != self._phase:
            self._took[self._phase[2]] = now - self._since
            self._phase, self._since = phase, now
        return found

    def _hit_in_time(self, hits: Sequence[Hit]) -> list[Injected]:
        """None where the phase was over too soon, or has not come."""
        first, until = hits[0], self._look().get("step", 0) + _STEPS
        for left in range(_TRIES, 0, -1):
            found = self._wait_for_phase(hits, until)
            if not found:
                return []
            # At last without any delay: some phases take a few milliseconds.
            delay_s = first.share * self._took.get(first.phase, 0.0) * (left - 1) / (_TRIES - 1)
            injected = self._hit_after(hits, found, delay_s)
            if injected:
                return injected
            self._wait_for_other_phase()
        return []

    def _wait_for_phase(self, hits: Sequence[Hit], until: int) -> dict[str, Any]:
        """Until the phase has come, and those that are meant are there."""
        while True:
            found = self._look()
            if found and found["phase"] == hits[0].phase:
                with suppress(LookupError, StopIteration, psutil.NoSuchProcess):
                    _targets(hits, found)
                    return found
            if found and found["step"] > until:
                return {}
            time.sleep(_TICK_S)

    def _wait_for_other_phase(self) -> None:
        before = self._phase
        while self._look() and self._phase == before:
            time.sleep(_TICK_S)

    def _hit_after(self, hits: Sequence[Hit], found: dict[str, Any], delay_s: float) -> list[Injected]:
        """Nobody is hit where the phase is over by then, or a process is not there."""
        try:
            targets = _targets(hits, found)
        except (psutil.NoSuchProcess, LookupError, StopIteration):
            return []
        time.sleep(delay_s)
        again = self._look()
        if not again or [again[name] for name in _WHERE] != [found[name] for name in _WHERE]:
            return []
        injected = []
        for hit, who, process in targets:
            at = time.time()
            with suppress(psutil.NoSuchProcess):
                # Which looks at the time of its start: nobody else is hit that has got its number meanwhile.
                process.send_signal(signal.SIGKILL if hit.how == KILL else signal.SIGSTOP)
                injected.append(Injected(hit, who, process.pid, found["step"], at))
        return injected

    def _wait_for_end(self, injected: Sequence[Injected], before: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while any(not each.did for each in injected):
            self._look()
            for line in self._lines()[before:]:
                before += 1
                self._take_in(line, injected)
            if time.monotonic() > deadline:
                text = ", ".join(f"{each.hit.text} ({each.who})" for each in injected if not each.did)
                raise Unlike(f"not over after {PATIENCE_S:g} s: {text}")
            time.sleep(0.02)

    def _take_in(self, line: dict[str, Any], injected: Sequence[Injected]) -> None:
        at = datetime.fromisoformat(line["at"]).timestamp()
        if line["event"] == NOTICED:
            # One that is hit twice has another process then.
            of = [each for each in injected if each.who == line["who"] and line["pid"] in (None, each.pid)]
            each = next((each for each in of if not each.fault), None)
            if each is None or line["what"] != ("died" if each.hit.how == KILL else "froze"):
                raise Unlike(f"hit was {', '.join(each.who for each in injected)}; told was {line}")
            each.fault, each.noticed_s = line["fault"], at - each.at
        elif line["event"] == GIVEN_UP:
            raise Unlike(f"it is not over: {line}")
        elif line["event"] == RECOVERED:
            [each] = [each for each in injected if each.fault == line["fault"]]
            each.stood_s, each.did = at - each.at, line["did"]


def _targets(hits: Sequence[Hit], found: dict[str, Any]) -> list[tuple[Hit, str, psutil.Process]]:
    """Whom to hit: of several of one kind, each another process. Raises LookupError, or psutil's NoSuchProcess, where
    there is none."""
    targets, left = list[tuple[Hit, str, psutil.Process]](), dict(found["processes"])
    for hit in hits:
        who, process = _target(hit, found["driver"], left)
        left.pop(who, None)
        targets.append((hit, who, process))
    return targets


def _target(hit: Hit, driver: int, processes: dict[str, int]) -> tuple[str, psutil.Process]:
    if hit.kind == "driver":
        return "driver", psutil.Process(driver)
    if hit.kind == "raylet":
        children = psutil.Process(driver).children()
        return "raylet", next(child for child in children if child.name() == "raylet")
    group = _GROUPS.get(hit.kind, hit.kind)
    names = sorted(name for name in processes if name.partition("[")[0] == group)
    name = names[int(hit.share * len(names))]
    return name, psutil.Process(processes[name])
