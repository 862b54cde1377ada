"""A deadline for a whole call to another machine, however slowly its bytes come."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class DeadlinePassed(Exception):
    """A call took longer than its deadline. No OSError, which libraries would take for one of their sockets'."""


def within(deadline_s: float, call: Callable[[], T]) -> T:
    """What `call` returns; timeouts of sockets are for one read each, and a server may send a byte before each ends.

    The deadline is that of the main thread alone, where a signal interrupts what waits; elsewhere it is not kept.

    Raises:
        DeadlinePassed: the deadline has passed.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()

    def late(_number: int, _frame: FrameType | None) -> None:
        raise DeadlinePassed(f"no whole answer within {deadline_s:g} s")

    began, handler = time.monotonic(), signal.signal(signal.SIGALRM, late)
    left, _ = signal.setitimer(signal.ITIMER_REAL, deadline_s)
    try:
        return call()
    finally:
        # First the alarm, then its handler: between the two, it would end the process.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - began)))
