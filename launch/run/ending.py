"""Why a run ends before its last step, with a checkpoint: it was told to, or a node it lives on is about to go."""

from launch.run.cluster import draining
from launch.run.signals import asked_to_stop

STOPPED = 130  # 128 + SIGINT, as shells count
PREEMPTED = 75
"""Exit code of a run that another try continues (EX_TEMPFAIL of sysexits.h)."""


class Ending(Exception):
    """Ends a run after a step whose checkpoint is saved."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.code = code


def outcome(ended_by: BaseException | None) -> str:
    """How a run has ended, by what has ended it, in one word: finished, stopped or failed."""
    if ended_by is None:
        return "finished"
    return "stopped" if isinstance(ended_by, KeyboardInterrupt | Ending) else "failed"


def reason_to_end(nodes: set[str]) -> Ending | None:
    """Why the run should not begin another step; `nodes`: ids of those it lives on."""
    if asked_to_stop():
        return Ending("stopped", STOPPED)
    if leaving := draining(nodes):
        return Ending(f"preempted, as {', '.join(leaving)} is about to go", PREEMPTED)
    return None
