"""A second process for what needs the tokenizers' library: it imports that while this one reads the configuration.

The library takes longer to import than everything else that `tandem check` does, and both take a core of their own.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_UNABLE = 97
"""Exit code of a process that cannot answer."""
_ANSWER_S = 600.0
"""Deadline of one call, in seconds; what users' code may take has deadlines of its own."""


class _Channel(Protocol):
    """An end of a pipe, whose class is another one on each platform."""

    def send(self, obj: object, /) -> None: ...
    def send_bytes(self, buf: bytes, /) -> None: ...
    def recv(self) -> Any: ...
    def poll(self, timeout: float, /) -> bool: ...
    def close(self) -> None: ...


class Aside:
    """A process that is ready for calls; a context manager that ends it.

    Without one (this process has threads, which a fork would lose) and for what cannot be pickled, calls are made here:
    slower, with the same results.

    Example:
        with Aside() as aside:
            config = load(...)
            rows = aside.call(check_rows, config, "data.train")
    """

    def __init__(self) -> None:
        self._pid = 0
        self._connection: _Channel | None = None

    def __enter__(self) -> "Aside":
        # Then there is nothing to gain, and a fork would copy locks that other threads hold.
        loaded = {"transformers", "torch", "ray"} & sys.modules.keys()
        if not loaded and threading.active_count() == 1:
            ours, theirs = Pipe()
            self._pid = os.fork()
            if not self._pid:
                ours.close()
                _serve(theirs)
            theirs.close()
            self._connection = ours
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; later calls are made here."""
        if self._connection is None:
            return
        self._connection.close()
        self._connection = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # somebody else may have waited for it
            os.waitpid(self._pid, 0)

    def _give_up(self) -> NoReturn:
        from actors.config import UserError

        self.close()
        raise UserError(f"data: must be read and tokenised within {_ANSWER_S:g} s, got no answer by then")

    def _say_why_it_ended(self, connection: _Channel) -> None:
        """Raise UserError, unless the process has ended because it could not serve: what ends one process shall not
        end this one, too."""
        from actors.config import UserError  # not before the process is there: the import would come before the fork

        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        connection.close()
        self._connection = None
        if code != _UNABLE:
            if code == -signal.SIGXCPU:  # the limit of CPU time that rendering sets itself
                raise UserError("data: must be rendered by the chat template in seconds, got one that never ends")
            reason = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise UserError(
                f"data: must be read without ending the process (is there memory for it? what does a converter or "
                f"generator do?), got {reason}"
            )

    def call(self, function: Callable[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
        """What a function of a module returns or raises, in the other process; arguments and answer are pickled."""
        if (connection := self._connection) is None:
            return function(*args, **options)
        try:
            connection.send((function, args, options))
            if not connection.poll(_ANSWER_S):
                self._give_up()
            raised, answer = connection.recv()
        except (EOFError, OSError):
            self._say_why_it_ended(connection)
            return function(*args, **options)
        except (pickle.PicklingError, TypeError, AttributeError):
            self.close()  # rows may hold what cannot be pickled
            return function(*args, **options)
        if raised:
            raise answer
        return answer


def _serve(connection: _Channel) -> NoReturn:
    """Answer calls until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks
    os.dup2(2, 1)  # what users' code prints is no part of the report
    try:
        from actors.models.tokenizer import fast_tokenizer

        fast_tokenizer()  # what takes a second is imported before the first question comes
        while True:
            function, args, options = connection.recv()
            try:
                answer = (False, function(*args, **options))
            except Exception as error:  # whatever it was, it is the other's to handle
                answer = (True, error)
            try:
                message = pickle.dumps(answer)
            except (pickle.PicklingError, TypeError, AttributeError):
                os._exit(_UNABLE)  # then the call is made there
            connection.send_bytes(message)
    except (EOFError, OSError, ImportError):
        pass
    # Without the interpreter's end: buffers of the other process are in here, too.
    os._exit(_UNABLE)
