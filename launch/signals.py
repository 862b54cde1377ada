"""How a run ends on Ctrl-C and SIGTERM: once, in order, and not interrupted by the next signal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block, the first SIGINT or SIGTERM raises KeyboardInterrupt and later ones are ignored."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    arm()
    try:
        yield
    finally:
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


def _interrupt(number: int, frame: FrameType | None) -> None:
    hold()
    raise KeyboardInterrupt
