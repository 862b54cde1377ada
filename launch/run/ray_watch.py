"""Whether the processes of a run's own Ray live and move: looked at each second, beside whatever the run does.

A call may wait for minutes before it tells that the raylet has died, and for ever where it is only stopped.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

from launch.run.attempt_link import AGAIN, survives_faults
from launch.run.attempts import is_stopped
from launch.run.faults import Faults
from launch.run.ray_lost import end_in_words, own_processes
from launch.screen.stdout import tell
from launch.tracking.events import Fault

_LOOK_S = 1.0
_GRACE_S, _ENDING_S = 2.0, 10.0
"""What the run has, once Ray has died, to fail by itself, in order; and what is left where it was ending already."""


@contextmanager
def watched_ray(faults: Faults) -> Iterator["RayWatch"]:
    """Within the block Ray is started, watched, and ended."""
    watch = RayWatch(faults)
    try:
        yield watch
    finally:
        watch.stop()


class RayWatch:
    """Ends the driver when Ray's raylet or GCS on this machine has died or stands still.

    Only where the run survives that, and where this process has started them.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._ending, self._over = threading.Event(), threading.Event()
        self._leaving = False
        self._seen: dict[int, float] = {}
        """Process id -> when it was last seen to live and move."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ray is there within the block, and ended after it."""
        if survives_faults() and own_processes():
            threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()
        try:
            yield
        finally:
            # That its processes die is no fault any more; and one that is stopped does not die.
            self._leaving = True
            self.ending()

    def ending(self) -> None:
        """The run ends its processes, which takes a while."""
        self._ending.set()

    def stop(self) -> None:
        """Ray has ended."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            if found := self._noticed():
                self._end(found)
                return

    def _noticed(self) -> list[Fault]:
        found = [fault for who, process in own_processes() if (fault := self._look(who, process))]
        for fault in found:
            self._faults.events.noticed(fault)  # at once: Ray may take this process along
        return found

    def _look(self, who: str, process: Popen) -> Fault | None:
        now = time.monotonic()
        since = now - self._seen.get(process.pid, now)
        code = process.poll()
        if code is not None and self._leaving:
            return None
        if code is not None:
            cause, what, noticed_by = end_in_words(code), "died", "exit"
        elif not is_stopped(process.pid):
            self._seen[process.pid] = now
            return None
        elif since < 2 * _LOOK_S:  # at a second look: a debugger may have stopped it for a moment
            self._seen.setdefault(process.pid, now)
            return None
        else:
            process.kill()
            cause, what, noticed_by = "stopped, and killed", "froze", "stopped"
        return Fault(who=who, what=what, noticed_by=noticed_by, noticed_s=round(since, 3), pid=process.pid, cause=cause)

    def _end(self, found: list[Fault]) -> None:
        # The loop may have met it, too; what it does then calls Ray again, and waits for it.
        if self._ending.wait(_GRACE_S) and self._over.wait(_ENDING_S):
            return
        found += [fault for fault in self._noticed() if fault.who not in [each.who for each in found]]
        for fault in found:
            tell(f"warning: {fault.who} (process {fault.pid}) {fault.what}: {fault.cause}")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Not by an exception: the loop waits in a call that nothing answers. Results are written as they are made.
        os._exit(AGAIN)
