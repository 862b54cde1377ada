"""Signals that a process takes one at a time, where it waits for them, instead of being interrupted by them.

By a pipe that Python's own handler writes to: `signal.sigtimedwait` of Python 3.11 returns what is no signal at all
when the process was stopped meanwhile.
"""

import os
import select
import signal
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TAKEN = (*ENDING, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD)


class TakenSignals:
    """Those of this process from now on, until `give_back`; what it ignores, as `nohup` has it, stays ignored."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        for end in (self._reading, self._writing):
            os.set_blocking(end, False)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        self._before = {number: signal.getsignal(number) for number in _TAKEN}
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number, handler in self._before.items():
            if handler != signal.SIG_IGN or number == signal.SIGCHLD:  # whose children no one could wait for
                signal.signal(number, _noted)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def wait(self, within_s: float) -> signal.Signals | None:
        """The next one; None where none comes within so many seconds."""
        ready, _, _ = select.select([self._reading], [], [], within_s)
        return signal.Signals(os.read(self._reading, 1)[0]) if ready else None

    def hold(self) -> None:
        """From now on none arrives: a process that is forked now has to `give_back` before it gets its own."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)

    def release(self) -> None:
        """Those that were held arrive now."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def give_back(self) -> None:
        """All is as it was before."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            if handler is not None:  # one that was none of Python's cannot be put back
                signal.signal(number, handler)
        os.close(self._reading)
        os.close(self._writing)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _noted(number: int, frame: FrameType | None) -> None:
    """Nothing: the number is in the pipe."""
