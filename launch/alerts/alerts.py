"""Alerts of a run: what rules find, and events tell, goes to the screen, alerts.jsonl, a webhook and a command."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from actors.secret_text import masked
from launch.alerts.command import AlertCommand
from launch.alerts.delivery import Delivery, Row
from launch.alerts.lookout import Lookout
from launch.alerts.record import AlertRecord, read_alerts, read_untried
from launch.alerts.room import Room
from launch.alerts.rules import Finding, MetricRules, Metrics
from launch.alerts.standstill import Standstill
from launch.alerts.webhook import Webhook, is_web_address
from launch.config import RunConfig
from launch.sizes.machine import free_disk
from launch.tracking.events import GIVEN_UP, NAME, NOTICED, Events, fault_in_words, read_events

CLOSE_S, RESTART_S = 10.0, 2.0
"""Longest time that the end of a run waits for alerts to be delivered, and that of an attempt which another follows."""
FILE_S = 1.0
"""And then for alerts.jsonl."""


class Alerts:
    """Those of one attempt at a run. Any thread may tell of something; nothing here waits, or raises, but `close`
    waits, within limits."""

    def __init__(
        self,
        config: RunConfig,
        events: Events,
        *,
        show: Callable[[str, str], None],
        warn: Callable[[str], None],
        checkpoint_size: Callable[[], int | None] = lambda: None,
        untried_from: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            config: of the run, whose directory is there.
            events: of this attempt, which know where the run is.
            show: puts an alert on the screen: level and text.
            warn: called with one line when alerts do not arrive where they should.
            checkpoint_size: gives the bytes of the last checkpoint, None where there is none.
            untried_from: the first of the attempts before this one whose alerts are delivered where they did not do so;
                None: of no one.
            clock: seconds.
        """
        self._config, self._rules = config.tracking.alerts, MetricRules(config.tracking.alerts)
        self._run, self._directory = config.run.name, config.directory
        self._events, self._show, self._warn = events, show, warn
        self._record, self._lock = AlertRecord(config.directory), threading.Lock()
        stalled, disk = self._config.stalled, self._config.disk
        self._lookout = Lookout(
            Standstill(stalled) if stalled else None,
            Room(disk) if disk else None,
            sizes=lambda: (free_disk(config.directory), checkpoint_size()),
            doing=lambda: events.phase,
            tell=self.tell,
            warn=warn,
            clock=clock,
        )
        self._command: AlertCommand | None = None
        self._deliveries = list(self._targets(config))
        self._gave_up, self._broken = False, False
        with self._harmless():
            self._deliver_untried(untried_from)
            self._tell_unheard()
        self._gave_up = False  # in an earlier attempt
        events.heard = self.event

    def _targets(self, config: RunConfig) -> Iterable[Delivery]:
        tracking = config.tracking
        if name := tracking.alert_webhook_env:
            url = os.environ.get(name, "").strip()
            if is_web_address(url):
                webhook = Webhook(url)
                yield self._delivery("the webhook", lambda row: webhook.send(self._in_a_line(row)))
            else:
                problem = "holds no http or https address (not shown)" if url else "is not set where the run is driven"
                self._warn(f"tracking.alert_webhook_env: {name} {problem}: no alerts are sent there")
        if tracking.alert_command:
            self._command = AlertCommand(tracking.alert_command)
            yield self._delivery("tracking.alert_command", self._command.run)

    def _delivery(self, name: str, deliver: Callable[[Row], None]) -> Delivery:
        return Delivery(name, deliver, self._warn, lambda row: self._record.tried(row, name))

    @property
    def replaced(self) -> frozenset[str]:
        """Metrics whose health warnings give way to rules of the user's."""
        return frozenset(rule.metric for rule in self._config.limits)

    def begin(self) -> None:
        """The loop begins."""
        with self._harmless():  # there may be no further thread
            self._lookout.begin()

    def end_of_loop(self) -> None:
        """The loop has ended: no step is to come."""
        self._lookout.end()

    def step(self, step: int, metrics: Metrics) -> None:
        """A step's metrics."""
        self._lookout.step()
        with self._harmless():
            for finding in self._rules.step(step, metrics):
                self.tell(finding)

    def health(self, metric: str, value: float, line: str) -> None:
        """A health warning, which is on the screen."""
        if level := self._config.health:
            self.tell(Finding(rule="health", level=level, text=line, metric=metric, value=value), shown=True)

    def event(self, line: Mapping[str, Any]) -> None:
        """A line of events.jsonl, which is on the screen."""
        what = line["event"]
        self._gave_up |= what == GIVEN_UP
        level = {NOTICED: self._config.faults.noticed, GIVEN_UP: self._config.faults.given_up}.get(what)
        if level:
            with self._harmless():
                fault = {"fault": line["fault"], "event": what}
                self.tell(Finding(rule="faults", level=level, text=fault_in_words(line)), shown=True, more=fault)

    def failed(self, why: str) -> None:
        """The run has ended by an error; said once where a fault that was given up has said it already."""
        if (level := self._config.failed) and not self._gave_up:
            self.tell(Finding(rule="failed", level=level, text=f"the run has failed: {masked(why)}"), shown=True)

    def tell(self, finding: Finding, *, shown: bool = False, more: Mapping[str, object] | None = None) -> None:
        """Tell of something everywhere; `shown`: the screen has it already, or will; `more`: fields of its row."""
        row: dict[str, object] = {"attempt": self._events.attempt, "step": self._events.step}
        row |= {"phase": self._events.phase, "rule": finding.rule, "level": finding.level, "text": finding.text}
        if finding.metric is not None:
            row["metric"] = finding.metric
        if finding.value is not None:
            row["value"] = float(finding.value) if math.isfinite(finding.value) else None
        with self._lock:  # in one order everywhere
            whole = self._record.write(row | dict(more or {}))
            for delivery in self._deliveries:
                self._put(delivery, whole)
        if not shown:
            self._show(finding.level, finding.text)

    def close(self, *, again: bool = False) -> None:
        """Wait, for CLOSE_S at most, or RESTART_S where there is to be another attempt, until what was told has
        arrived, and for FILE_S until it is written; what then runs for it is ended."""
        self._lookout.end()
        self._events.heard = None
        until = time.monotonic() + (RESTART_S if again else CLOSE_S)
        for delivery in self._deliveries:
            delivery.close(until)
        self._record.close(max(until, time.monotonic() + FILE_S))
        if self._command:  # last: one that is ended here has not been tried, which is written no more
            self._command.end()

    def _put(self, delivery: Delivery, row: Row) -> None:
        delivery.put({"run": self._run, "directory": str(self._directory.absolute()), **row})

    def _deliver_untried(self, attempt: int | None) -> None:
        """What an attempt that was killed, or could not wait, has told and not delivered; it is in the file."""
        if attempt is None:
            return
        for delivery in self._deliveries:
            for row in read_untried(self._directory, delivery.name, attempt):
                self._put(delivery, row)

    def _tell_unheard(self) -> None:
        """Of faults that nobody has heard of who alerts: a driver that dies is noticed by the process that starts the
        next one."""
        told = {(row.get("fault"), row.get("event")) for row in read_alerts(self._directory)}
        for line in read_events(self._directory / NAME):
            recent = line["attempt"] >= self._events.attempt - 1
            if recent and line["event"] in (NOTICED, GIVEN_UP) and (line["fault"], line["event"]) not in told:
                self.event(line)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: no run shall end because of what watches it
            if not self._broken:
                self._broken = True
                self._warn(f"alerts: {type(error).__name__}: {masked(' '.join(str(error).split()))}; the run goes on")

    def _in_a_line(self, row: Row) -> str:
        where = f"step {row['step']}: " if row["step"] else ""
        return f"[{row['level']}] {self._run}, {where}{row['text']}"
