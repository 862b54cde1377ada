"""How a run ends on Ctrl-C and SIGTERM: once, in order, and not interrupted by the next signal.

Ctrl-C ends it at once. After the first step, SIGTERM, which is how Ray Jobs and schedulers stop a job, lets the step
finish; a second one ends it at once.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_S = 1.0
"""Within so many seconds, a second SIGTERM is the first one: Ray Jobs sends it to all processes of a job, and the
driver's parent passes its own on."""
_MARGIN_S = 10.0
"""Of the time that a job has to stop, for ending processes, and for what is still to be written and said."""
_asked = False
_asked_at = 0.0
_interrupted_by = ""


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block, the first SIGINT or SIGTERM raises KeyboardInterrupt and later ones are ignored."""
    global _asked, _interrupted_by
    _asked, _interrupted_by = False, ""
    # Put back at the end: tests, and whoever calls `run`, have handlers of their own.
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    arm()
    try:
        yield
    finally:
        _asked = False
        for number, handler in before.items():
            signal.signal(number, handler)


def arm() -> None:
    """Let the next SIGINT or SIGTERM raise KeyboardInterrupt, also where a library has put its own handler."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def hold() -> None:
    """Ignore both signals from now on: what is being ended is ended in full."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def finish_steps() -> None:
    """From now on, the first SIGTERM is only remembered: see `asked_to_stop`."""
    if not _asked:  # else a second one, which ends the run at once, would be taken for the first
        signal.signal(signal.SIGTERM, _ask)


def asked_to_stop() -> bool:
    """Whether SIGTERM has come since `finish_steps`."""
    return _asked


def left_to_stop_s(stop_wait_s: float) -> float | None:
    """Seconds that are left to wait for something, where whoever has sent SIGTERM sends SIGKILL `stop_wait_s` later;
    None while nobody has."""
    return max(0.0, _asked_at + stop_wait_s - _MARGIN_S - time.monotonic()) if _asked else None


def _ask(number: int, frame: FrameType | None) -> None:
    global _asked, _asked_at
    if not _asked:
        _asked, _asked_at = True, time.monotonic()
    elif time.monotonic() > _asked_at + _ONE_S:
        _interrupt(number, frame)  # who asks again does not want to wait


def interrupted_by() -> str:
    """What has ended the run at once: Ctrl-C, SIGTERM, or nothing yet."""
    return _interrupted_by


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted_by
    _interrupted_by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    hold()
    # After `hold`: another signal must not cut the ending short.
    raise KeyboardInterrupt
