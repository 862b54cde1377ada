"""What brings alerts to whoever wants them, on a thread of its own: a target that fails or hangs harms no run."""

import queue
import threading
import time
from collections.abc import Callable, Mapping

MOST_WAITING = 100
"""Alerts that wait for a target that is slow; later ones are left out."""

Row = Mapping[str, object]
"""One of alerts.jsonl."""


class DeliveryError(Exception):
    """An alert did not arrive: one line says why, without secrets."""


class Delivery:
    """Hands alerts to one target, in their order."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[Row], None],
        warn: Callable[[str], None],
        tried: Callable[[Row], None] = lambda row: None,
    ) -> None:
        """
        Args:
            name: of the target, for people.
            deliver: brings one alert there; may take its time, and raise DeliveryError.
            warn: called once, from another thread, with one line when an alert has not arrived.
            tried: hears of each alert that has arrived, or failed to, from that thread.
        """
        self.name, self._deliver, self._warn, self._tried = name, deliver, warn, tried
        self._waiting: queue.Queue[Row | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._failed, self._lock = False, threading.Lock()

    def put(self, row: Row) -> None:
        """Deliver an alert, some time; returns at once."""
        try:
            self._waiting.put_nowait(row)
        except queue.Full:
            self._fail(f"{MOST_WAITING} of them wait for it already")
        with self._lock:
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        # Daemon: a target that hangs must not keep a finished run alive.
        thread = threading.Thread(target=self._feed, name="alerts", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system gives this user no further one
            self._fail(str(error))
            return
        self._thread = thread

    def close(self, until: float) -> None:
        """Wait, until this time on time.monotonic() at most, for what is still to be delivered."""
        if self._thread is None:
            return
        try:
            self._waiting.put(None, timeout=max(0.0, until - time.monotonic()))
        except queue.Full:
            pass
        else:
            self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._fail("the last of them were not all delivered before the run ended")

    def _feed(self) -> None:
        while (row := self._waiting.get()) is not None:
            try:
                self._deliver(row)
            except DeliveryError as error:
                self._fail(str(error))
            except Exception as error:  # of a library; the next alert may arrive, and none may end the thread
                self._fail(type(error).__name__)
            self._tried(row)

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._warn(f"alerts do not arrive at {self.name}: {why}; they are in alerts.jsonl")
