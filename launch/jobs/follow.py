"""Following a job's log by asking for it, through lost connections, until the job has ended."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from actors.config import UserError
from launch.jobs.client import JobsClient, NoAnswer, SubmittedJob

LOST_S = 60.0
"""Time for which a cluster that does not answer is asked again, in seconds."""
PAUSE_S = 1.0
"""Between two questions."""
PENDING_S = 15.0
"""After which it is said of a job that it does not run yet."""
_SHARE, _LONGEST_S = 4, 10.0
"""A pause is as long as so many answers took, and at most so many seconds: each answer brings the whole log, which may
be of many megabytes."""


class ConnectionLost(UserError):
    """The cluster did not answer for LOST_S while a job was followed; the job may go on."""


@dataclass(slots=True)
class _Log:
    """The log as it grows."""

    write: Callable[[str], None]
    known: str = ""
    """How the log begins, unless it is another one, as that of a driver on another node: not to be written."""
    printed: int = 0
    """Characters from the beginning that need not be written (again)."""

    def show(self, text: str) -> None:
        """All of it so far."""
        if not text.startswith(self.known[: len(text)]):  # another log than the one that is known: all of it is new
            self.known, self.printed = "", 0
        if new := text[self.printed :]:
            self.write(new)
        self.printed = max(self.printed, len(text))


def follow_log(client: JobsClient, job_id: str, write: Callable[[str], None], known: str = "") -> SubmittedJob:
    """Write the job's log as it grows, less what is known of it, until the job has ended; returns the job.

    Raises:
        ConnectionLost: no answer for LOST_S.
        UserError: the job is not known, or the token no longer valid.
        KeyboardInterrupt: Ctrl-C; the job goes on.
    """
    log, began_s = _Log(write, known, len(known)), time.monotonic()
    heard_s, pending_said = began_s, False
    while True:
        asked_s, pause_s = time.monotonic(), PAUSE_S
        try:
            job = client.job(job_id)  # before its log, which is whole then if it has ended
            log.show(client.logs(job_id))
            if job.ended:
                return job
            heard_s = time.monotonic()
            if job.state == "PENDING" and not pending_said and heard_s - began_s > PENDING_S:
                pending_said = True
                _say_pending(job)
            pause_s = min(_LONGEST_S, max(PAUSE_S, _SHARE * (heard_s - asked_s)))
        except NoAnswer as error:
            if time.monotonic() - heard_s > LOST_S:
                raise ConnectionLost(f"{error.problems[0]} (tried again for {LOST_S:g} s)") from None
        time.sleep(pause_s)


def _say_pending(job: SubmittedJob) -> None:
    """What nothing is heard of: a job that does not run yet."""
    waits = (
        "it waits for its files on a node, or for a process there (cluster.driver_labels say which nodes); Ray gives "
        "it up after 15 minutes by default"
    )
    print(f"{job.id} is PENDING: {waits}", file=sys.stderr)
