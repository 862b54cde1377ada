"""Whether a node is lost: nobody on it answers, and neither does its network.

Ray says so after 13 s where the node's connections are refused, and after 55 s where nothing comes back at all.
"""

import errno
import select
import socket
from collections.abc import Callable
from typing import Literal, Protocol

State = Literal["heard", "suspect", "lost"]


class Knocking(Protocol):
    """A connection that is being made."""

    def answered(self) -> bool:
        """Whether it has come about."""
        ...


class Knock:
    """A connection to a port of another node, tried without waiting for it: the kernel there answers, however busy its
    processes are."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._socket.setblocking(False)
        error = self._socket.connect_ex((address, port))
        self._failed = error not in (0, errno.EINPROGRESS)

    def answered(self) -> bool:
        """Whether it has come about; a refusal is none."""
        if self._failed or not select.select([], [self._socket], [], 0)[1]:
            return False
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    def __del__(self) -> None:
        self._socket.close()


class Silence:
    """Of one node. It is suspect when its warden leaves a question unanswered for half of `heartbeat_s`, and lost when
    that has lasted for all of it, no process of the run there has answered meanwhile, and nobody opens the door.

    Example:
        silence = Silence(4.0, lambda: Knock("10.0.0.3", 40123))
        silence.asked(now)
        silence.look(now + 4.2, heard_at=now - 1.0)  # "lost"
        silence.answered()  # True: it is back
    """

    def __init__(self, heartbeat_s: float, knock: Callable[[], Knocking]) -> None:
        """`knock`: begins to connect to the node."""
        self._heartbeat_s, self._knock = heartbeat_s, knock
        self._since: float | None = None
        """When the question was asked that is not answered."""
        self._knocking: Knocking | None = None
        self.is_lost = False
        self.silent_s = 0.0
        """How long nobody there had answered when it was held for lost."""

    def asked(self, now: float) -> None:
        """The warden is asked; once more, perhaps, as its answer to the question before has failed."""
        if self._since is None:
            self._since = now

    def answered(self) -> bool:
        """The warden has answered; whether the node was lost until now."""
        back, self.is_lost = self.is_lost, False
        self._since = self._knocking = None
        return back

    def begin_anew(self, now: float) -> None:
        """Nobody has listened for long: what was not heard says nothing."""
        self._since, self._knocking = None if self._since is None else now, None

    def look(self, now: float, heard_at: float) -> State:
        """What is to be thought of the node.

        Args:
            now: seconds of any clock.
            heard_at: when a process of the run there has answered last, by the same clock.
        """
        if self.is_lost:
            return "lost"
        since = None if self._since is None else max(self._since, heard_at)
        if since is None or not now - since >= self._heartbeat_s / 2:
            self._knocking = None
            return "heard"
        # Looked at before it is judged: one that has just begun has had no time.
        if self._knocking is None or self._knocking.answered():
            self._knocking = self._knock()
            return "suspect"
        self.silent_s = now - since
        self.is_lost = self.silent_s >= self._heartbeat_s
        return "lost" if self.is_lost else "suspect"
