"""One checkpoint that a thread writes beside training."""

import time
from collections.abc import Callable
from threading import Event, Thread


class Writing:
    """A thread that writes a checkpoint, and puts it in place when it may count.

    write  -->  written  -->  `let_count`, or `give_up`  -->  put in place, or not  -->  over
    """

    def __init__(
        self,
        step: int,
        write: Callable[[], object],
        put_in_place: Callable[[], object],
        failed: Callable[[BaseException], None] | None = None,
    ) -> None:
        """
        Args:
            step: that it is of.
            write: writes all of it aside.
            put_in_place: makes it the latest one.
            failed: hears of an error, on the thread (default: whoever waits does).
        """
        self.step = step
        self.began = time.monotonic()
        self.waited_for = failed is None
        """Whether somebody waits for it, who is told of errors."""
        self._error: BaseException | None = None
        self._written, self._decided, self._over = Event(), Event(), Event()
        self._counts = False
        # A daemon: what hangs in storage must not keep the process from ending. Only the thread refers to what it
        # writes, which goes with it.
        Thread(target=self._run, args=(write, put_in_place, failed), name="checkpoint", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Whether the thread does nothing any more."""
        return self._over.is_set()

    def let_count(self) -> None:
        """Put it in place as soon as it is written."""
        self._counts = True
        self._decided.set()

    def give_up(self) -> None:
        """Do not put it in place, unless that was decided before."""
        self._decided.set()

    def wait_written(self, within_s: float) -> bool:
        """Wait until it is written, for so many seconds; returns whether it is. Raises what has kept it from that."""
        done = self._written.wait(within_s)
        if self._error:
            raise self._error
        return done

    def wait_in_place(self, within_s: float) -> bool:
        """Wait until it is in place, for so many seconds; returns whether it is. Raises what has kept it from that."""
        done = self._over.wait(within_s)
        if self._error:
            raise self._error
        return done

    def wait(self, within_s: float) -> bool:
        """Wait until it is over, whatever has become of it, for so many seconds; returns whether it is."""
        return self._over.wait(within_s)

    def _run(
        self,
        write: Callable[[], object],
        put_in_place: Callable[[], object],
        failed: Callable[[BaseException], None] | None,
    ) -> None:
        try:
            write()
            self._written.set()
            self._decided.wait()
            if self._counts:
                put_in_place()
        except BaseException as error:  # whatever it is: who waits raises it, or `failed` hears of it
            self._error = error
            if failed:
                failed(error)
        finally:
            self._written.set()
            self._over.set()
